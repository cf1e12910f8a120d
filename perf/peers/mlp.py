"""programs/mlp.py in JAX."""

import jax
import jax.numpy as jnp
import jaxed
from workloads import MLP


def main():
    args = jaxed.parse(MLP, __doc__)
    dtype = jaxed.compute_dtype(args)
    parameters = jaxed.Parameters(args.seed)
    for i in range(args.layers):
        parameters.linear(str(2 * i), args.width, args.width)

    def loss_of(p, buffers, key, x, y):
        for i in range(args.layers):
            x = jaxed.linear(p, str(2 * i), jax.nn.relu(x) if i else x, dtype)
        return jnp.square(x.astype(jnp.float32) - y).mean(), buffers

    jaxed.train(args, MLP, parameters, loss_of, jaxed.adamw(lr=1e-3))


if __name__ == "__main__":
    main()
