"""programs/resnet.py in JAX: images NHWC, weights HWIO."""

import jax
import jax.numpy as jnp
import jaxed
import numpy as np
from workloads import ResNet


def conv(p, name, x, stride, dtype):
    """1x1 as a product; on images of few pixels, where XLA's convolution is many times slower, as a product with patches."""
    w, x = p[name + ".weight"].astype(dtype), x.astype(dtype)
    kernel, out = w.shape[0], -(-x.shape[1] // stride)
    pad = kernel // 2
    if kernel > 1 and out > 4:
        return jax.lax.conv_general_dilated(x, w, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    patches = [x[:, i:i + (out - 1) * stride + 1:stride, j:j + (out - 1) * stride + 1:stride] for i in range(kernel) for j in range(kernel)]
    return jnp.concatenate(patches, -1) @ w.reshape(-1, w.shape[-1])


def max_pool(x):
    """3x3 by 2, as maxima of slices: the derivative of XLA's window is ten times slower."""
    def along(x, dim):
        n = 2 * (-(-x.shape[dim] // 2))
        x = jnp.pad(x, [(1, 1) if d == dim else (0, 0) for d in range(4)], constant_values=-jnp.inf)
        return jnp.maximum(jnp.maximum(*(jax.lax.slice_in_dim(x, i, i + n - 1, 2, dim) for i in (0, 1))),
                           jax.lax.slice_in_dim(x, 2, 2 + n - 1, 2, dim))

    return along(along(x, 1), 2)


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
        x = max_pool(jax.nn.relu(batch_norm(p, running, "bn", conv(p, "stem", x, 2, dtype), dtype)))
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
