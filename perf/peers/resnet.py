"""programs/resnet.py in JAX: images NHWC, weights HWIO."""

import jax
import jax.numpy as jnp
import jaxed
import numpy as np
from workloads import ResNet


def conv(p, name, x, stride, dtype):
    w = p[name + ".weight"].astype(dtype)
    pad = w.shape[0] // 2
    return jax.lax.conv_general_dilated(x.astype(dtype), w, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def batch_norm(p, running, name, x, dtype):
    """Normalises by the batch, notes running mean and variance."""
    x = x.astype(jnp.float32)
    n = x.size // x.shape[-1]
    mean, square = x.mean((0, 1, 2)), (x * x).mean((0, 1, 2))
    variance = jnp.maximum(square - mean * mean, 0)
    for what, new in ((".mean", mean), (".var", variance * n / (n - 1))):
        running[name + what] = 0.9 * running[name + what] + 0.1 * new
    scale = jax.lax.rsqrt(variance + 1e-5) * p[name + ".weight"]
    return (x * scale + (p[name + ".bias"] - mean * scale)).astype(dtype)


def main():
    args = jaxed.parse(ResNet, __doc__)
    dtype = jaxed.compute_dtype(args)
    parameters, running = jaxed.Parameters(args.seed), {}

    def conv_and_norm(conv, norm, n_in, n_out, kernel):
        parameters.conv(conv, n_in, n_out, kernel)
        parameters.norm(norm, n_out)
        running[norm + ".mean"], running[norm + ".var"] = np.zeros(n_out, np.float32), np.ones(n_out, np.float32)

    conv_and_norm("stem", "bn", 3, 64, 7)
    blocks = []
    for i, (n_in, width, n_out, stride) in enumerate(ResNet.blocks(args.depth)):
        chain, shortcut = ResNet.convs(args.depth, n_in, width, n_out, stride)
        named = [(f"layers.{i}.conv{j + 1}", f"layers.{i}.bn{j + 1}", c) for j, c in enumerate(chain)]
        down = [(f"layers.{i}.down.0", f"layers.{i}.down.1", c) for c in shortcut]
        for conv_name, norm_name, (n, m, kernel, _) in named + down:
            conv_and_norm(conv_name, norm_name, n, m, kernel)
        blocks.append((named, down))
    parameters.linear("head", n_out, args.classes)

    def loss_of(p, running, key, x, targets):
        running = dict(running)
        x = jax.nn.relu(batch_norm(p, running, "bn", conv(p, "stem", x, 2, dtype), dtype))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)])
        for named, down in blocks:
            y = x
            for j, (conv_name, norm_name, (_, _, _, stride)) in enumerate(named):
                y = batch_norm(p, running, norm_name, conv(p, conv_name, jax.nn.relu(y) if j else y, stride, dtype), dtype)
            for conv_name, norm_name, (_, _, _, stride) in down:
                x = batch_norm(p, running, norm_name, conv(p, conv_name, x, stride, dtype), dtype)
            x = jax.nn.relu(x + y)
        return jaxed.cross_entropy(jaxed.linear(p, "head", x.mean((1, 2)), dtype), targets), running

    jaxed.train(args, ResNet, parameters, loss_of, jaxed.sgd(0.01, 0.9, 1e-4), running,
                lambda images, targets: (np.ascontiguousarray(images.transpose(0, 2, 3, 1)), targets))


if __name__ == "__main__":
    main()
