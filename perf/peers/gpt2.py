"""programs/gpt2.py in JAX."""

import jax
import jax.numpy as jnp
import jaxed
from workloads import GPT2


def main():
    args = jaxed.parse(GPT2, __doc__)
    dtype, width = jaxed.compute_dtype(args), args.width
    parameters = jaxed.Parameters(args.seed)
    parameters.normal("words.weight", (args.vocabulary, width))
    parameters.normal("places.weight", (args.length, width))
    for i in range(args.layers):
        at = f"blocks.{i}."
        for name, n_in, n_out in (("qkv", 1, 3), ("proj", 1, 1), ("up", 1, 4), ("down", 4, 1)):
            parameters.linear(at + name, n_in * width, n_out * width, normal=True)
        parameters.norm(at + "ln1", width)
        parameters.norm(at + "ln2", width)
    parameters.norm("ln", width)
    parameters.linear("head", width, args.vocabulary, bias=False, normal=True)

    def attend(p, at, x, key):
        B, T, C = x.shape
        q, k, v = jnp.split(jaxed.linear(p, at + "qkv", x, dtype).reshape(B, T, 3 * args.heads, C // args.heads), 3, axis=2)
        return jaxed.linear(p, at + "proj", jaxed.attention(q, k, v, True, key, args.dropout).reshape(B, T, C), dtype)

    def loss_of(p, buffers, key, words):
        words, following = words[:, :-1], words[:, 1:]
        keys = iter(jax.random.split(key, 1 + 3 * args.layers))
        x = jaxed.dropout(next(keys), args.dropout, p["words.weight"][words] + p["places.weight"])
        for i in range(args.layers):
            at = f"blocks.{i}."
            x = x + jaxed.dropout(next(keys), args.dropout, attend(p, at, jaxed.layer_norm(p, at + "ln1", x), next(keys)))
            y = jax.nn.gelu(jaxed.linear(p, at + "up", jaxed.layer_norm(p, at + "ln2", x), dtype), approximate=True)
            x = x + jaxed.dropout(next(keys), args.dropout, jaxed.linear(p, at + "down", y, dtype))
        logits = jaxed.linear(p, "head", jaxed.layer_norm(p, "ln", x), dtype)
        return jaxed.cross_entropy(logits.reshape(-1, args.vocabulary), following.reshape(-1)), buffers

    jaxed.train(args, GPT2, parameters, loss_of, jaxed.adamw(lr=6e-4, weight_decay=0.1))


if __name__ == "__main__":
    main()
