"""programs/bert_qa.py in JAX."""

import jax
import jaxed
from workloads import Bert

EPS = 1e-12


def main():
    args = jaxed.parse(Bert, __doc__)
    dtype, width = jaxed.compute_dtype(args), args.width
    parameters = jaxed.Parameters(args.seed)
    for name, n in (("words", args.vocabulary), ("places", args.length), ("kinds", 2)):
        parameters.normal(name + ".weight", (n, width))
    parameters.norm("norm", width)
    for i in range(args.layers):
        at = f"layers.{i}."
        for name, n_in, n_out in (("query", 1, 1), ("key", 1, 1), ("value", 1, 1), ("out", 1, 1), ("up", 1, 4), ("down", 4, 1)):
            parameters.linear(at + name, n_in * width, n_out * width, normal=True)
        parameters.norm(at + "norm1", width)
        parameters.norm(at + "norm2", width)
    parameters.linear("answer", width, 2, normal=True)

    def attend(p, at, x, key):
        B, T, C = x.shape
        q, k, v = (jaxed.linear(p, at + name, x, dtype).reshape(B, T, args.heads, C // args.heads) for name in ("query", "key", "value"))
        return jaxed.linear(p, at + "out", jaxed.attention(q, k, v, False, key, args.dropout).reshape(B, T, C), dtype)

    def loss_of(p, buffers, key, words, kinds, first, last):
        keys = iter(jax.random.split(key, 1 + 3 * args.layers))
        x = p["words.weight"][words] + p["places.weight"] + p["kinds.weight"][kinds]
        x = jaxed.dropout(next(keys), args.dropout, jaxed.layer_norm(p, "norm", x, EPS))
        for i in range(args.layers):
            at = f"layers.{i}."
            y = jaxed.dropout(next(keys), args.dropout, attend(p, at, x, next(keys)))
            x = jaxed.layer_norm(p, at + "norm1", x + y, EPS)
            y = jaxed.linear(p, at + "down", jax.nn.gelu(jaxed.linear(p, at + "up", x, dtype), approximate=False), dtype)
            x = jaxed.layer_norm(p, at + "norm2", x + jaxed.dropout(next(keys), args.dropout, y), EPS)
        answer = jaxed.linear(p, "answer", x, dtype)
        return (jaxed.cross_entropy(answer[..., 0], first) + jaxed.cross_entropy(answer[..., 1], last)) / 2, buffers

    jaxed.train(args, Bert, parameters, loss_of, jaxed.adamw(lr=3e-5, weight_decay=0.01))


if __name__ == "__main__":
    main()
