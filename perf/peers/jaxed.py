"""What the JAX peers share: options, parameters, layers, optimizers, the jitted training step.

Parameters are a dict by the names that they have in the PyTorch program. Weights of products lie [out, in]: XLA's derivatives are a
quarter to a half faster than the other way round; those of convolutions HWIO. --dtype bf16 computes as
autocast does: products, and what is made of their results elementwise, in bfloat16; norms, softmax, losses in float32, in which
parameters and the optimizer's state stay."""

import importlib.metadata
import os
import sys
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "programs"))
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import record  # noqa: E402


def options(p):
    p.add_argument("--weights", help="begin with the parameters that a program of perf/programs wrote to this file")


def parse(workload, doc):
    return record.parse(workload, doc, options)


class Parameters(dict):
    """Made as PyTorch's layers make theirs."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def uniform(self, name, shape, fan_in):
        self[name] = self.rng.uniform(-(fan_in**-0.5), fan_in**-0.5, shape).astype(np.float32)

    def normal(self, name, shape):
        self[name] = (0.02 * self.rng.standard_normal(shape)).astype(np.float32)

    def linear(self, name, n_in, n_out, bias=True, normal=False):
        if normal:
            self.normal(name + ".weight", (n_out, n_in))
        else:
            self.uniform(name + ".weight", (n_out, n_in), n_in)
        if bias:
            self.uniform(name + ".bias", n_out, n_in)

    def norm(self, name, width):
        self[name + ".weight"], self[name + ".bias"] = np.ones(width, np.float32), np.zeros(width, np.float32)

    def conv(self, name, n_in, n_out, size):
        self.uniform(name + ".weight", (size, size, n_in, n_out), n_in * size * size)

    def load(self, path):
        for name, a in np.load(path).items():
            if a.ndim == 4:
                a = a.transpose(2, 3, 1, 0)
            if name not in self or self[name].shape != a.shape:
                raise SystemExit(f"{path}: {name} of {a.shape} is no parameter of this program")
            self[name] = a


def linear(p, name, x, dtype):
    """In `dtype`; so is the result."""
    y = x.astype(dtype) @ p[name + ".weight"].astype(dtype).T
    return y + p[name + ".bias"].astype(dtype) if name + ".bias" in p else y


def layer_norm(p, name, x, eps=1e-5):
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps) * p[name + ".weight"] + p[name + ".bias"]


def dropout(key, rate, x):
    if not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)


def attention(q, k, v, causal=False, key=None, rate=0.0):
    """[B, T, heads, C / heads] each; scores and their softmax in float32."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = jnp.matmul(q, k.transpose(0, 1, 3, 2), preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if causal:
        n = scores.shape[-1]
        scores = jnp.where(jnp.tril(jnp.ones((n, n), bool)), scores, -jnp.inf)
    weights = dropout(key, rate, jax.nn.softmax(scores))
    return (weights.astype(v.dtype) @ v).transpose(0, 2, 1, 3)


def cross_entropy(logits, targets):
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=1) - picked).mean()


def adamw(lr, weight_decay=0.01, beta1=0.9, beta2=0.999, eps=1e-8):
    """(the state before the first step, update): as torch.optim.AdamW."""
    def start(p):
        zeros = jax.tree.map(jnp.zeros_like, p)
        return zeros, jax.tree.map(jnp.zeros_like, p), jnp.zeros((), jnp.float32)

    def update(p, grads, state):
        m, v, t = state
        t += 1
        m = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, m, grads)
        v = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, v, grads)
        size, root = lr / (1 - beta1**t), jnp.sqrt(1 - beta2**t)
        p = jax.tree.map(lambda p, m, v: p * (1 - lr * weight_decay) - size * m / (jnp.sqrt(v) / root + eps), p, m, v)
        return p, (m, v, t)

    return start, update


def sgd(lr, momentum, weight_decay):
    """As torch.optim.SGD."""
    def update(p, grads, state):
        state = jax.tree.map(lambda b, g, p: momentum * b + g + weight_decay * p, state, grads, p)
        return jax.tree.map(lambda p, b: p - lr * b, p, state), state

    return partial(jax.tree.map, jnp.zeros_like), update


def train(args, workload, parameters, loss_of, optimizer, buffers=(), feed=lambda *batch: batch):
    """loss_of(parameters, buffers, key, *batch) -> loss, buffers. feed: a batch of the workload's as this program wants it; made
    beforehand."""
    if args.weights:
        parameters.load(args.weights)
    start, update = optimizer

    @partial(jax.jit, donate_argnums=0)
    def training_step(state, batch):
        p, moments, buffers, key = state
        key, mine = jax.random.split(key)
        (loss, buffers), grads = jax.value_and_grad(loss_of, has_aux=True)(p, buffers, mine, *batch)
        p, moments = update(p, grads, moments)
        return (p, moments, buffers, key), loss

    p = jax.tree.map(jnp.array, dict(parameters))
    state = p, start(p), jax.tree.map(jnp.array, buffers), jax.random.key(args.seed, impl="rbg")
    rng = np.random.RandomState(args.seed)
    batch = record.pool(lambda: feed(*workload.batch(args, rng)))

    def step(i):
        nonlocal state
        state, loss = training_step(state, batch(i))
        return float(loss)

    ran_with = {"jax": jax.__version__, "jaxlib": importlib.metadata.version("jaxlib"), "backend": jax.default_backend(),
                "threads": int(os.environ.get("NPROC") or len(os.sched_getaffinity(0)))}
    record.run(args, step, workload.flop(args), "jax " + jax.__version__, ran_with, lambda: True)


def compute_dtype(args):
    return jnp.bfloat16 if args.dtype == "bf16" else jnp.float32
