"""Leaving the path at every op: a step of more than 150 operators, left after each of them, in six ways, with the executor held
back and with the executor caught up, ends exactly as in sync mode."""

import re

import numpy as np
import pytest

import terra as torch
from terra import _C

WARM, AFTER = 4, 2
KINDS = ("python branch", "fetched branch", "new shape", "exception", "break", "kept temporary")


class Stop(Exception):
    pass


class Program:
    """A small network with conv-free variety: linear layers, layer norm, dropout, softmax attention, in-place writes, views,
    a buffer written in each step, SGD with momentum by hand-called ops."""

    def __init__(self):
        torch.manual_seed(3)
        self.params = [torch.nn.Parameter(torch.randn(s) * 0.3) for s in ((16, 16), (16,), (48, 16), (16, 16), (16,), (16,), (8, 16), (8,))]
        self.opt = torch.optim.AdamW(self.params, lr=1e-2)
        self.buffer = torch.zeros(16)
        self.extra = torch.zeros(3)
        self.log = []
        self.kept = []

    def forward(self, x, y):
        F = torch.nn.functional
        w0, b0, wqkv, wo, g, b, w1, b1 = self.params
        for _ in range(3):
            h = F.gelu(x @ w0 + b0)
            self.buffer.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
            q, k, v = (h @ wqkv.t()).chunk(3, -1)
            a = F.softmax((q @ k.t()) * 0.25, -1)
            a = F.dropout(a, 0.1, True)
            x = F.layer_norm(x + (a @ v) @ wo, (16,), g, b)
            z = torch.tanh(x) * torch.sigmoid(x) - 0.1 * x
            z[:, :4] = z[:, 4:8] * 0.5
            x = x + z.relu()
        o = x @ w1.t() + b1
        return ((o - y) ** 2).mean() + 1e-3 * (o.exp().sum(-1).log() ** 2).mean()

    def step(self, it):
        rng = np.random.RandomState(it)
        x, y = torch.tensor(rng.randn(8, 16).astype("f")), torch.tensor(rng.randn(8, 8).astype("f"))
        self.opt.zero_grad()
        loss = self.forward(x, y)
        loss.backward()
        self.opt.step()

    def state(self):
        out = [p.detach().numpy().copy() for p in self.params] + [self.buffer.numpy().copy(), self.extra.numpy().copy()]
        for s in self.opt.state.values():
            out += [v.numpy().copy() for v in s.values() if isinstance(v, torch.Tensor)]
        out += [None if p.grad is None else p.grad.numpy().copy() for p in self.params]
        return out, torch.get_rng_state().numpy().copy(), list(self.log), [t.detach().numpy().copy() for t in self.kept]


def leave(p, kind, result):
    if kind == "python branch":
        p.extra.add_(1.0)
        p.log.append("branch")
    elif kind == "fetched branch":
        _C._hold_executor(False)
        v = result.detach().float().sum().item()
        p.log.append(v)
        if v > -1e30:
            p.extra.mul_(1.5).add_(0.25)
    elif kind == "new shape":
        p.log.append(tuple(torch.ones(len(p.log) + 5, 3).sum(0).shape))
        p.extra.add_(torch.ones(len(p.log) + 2, 3).sum(0))
    elif kind in ("exception", "break"):
        raise Stop
    else:
        p.kept.append(result)


def run(kind, k, timing, count=None):
    """Warm steps, one that is left after operator k, some more; what all of it came to."""
    p = Program()
    for it in range(WARM):
        p.step(it)
    seen = [0]
    if timing == "held":
        _C._wait_until_idle()  # of iterations before: how far Python gets ahead of them is bounded

    def hook(result):
        seen[0] += 1
        if seen[0] == k:
            if timing == "caught up":
                _C._wait_until_idle()
            elif timing == "held":
                _C._hold_executor(True)
            try:
                with torch.no_grad():
                    leave(p, kind, result)
            finally:
                _C._hold_executor(False)

    _C._set_op_hook(hook)
    try:
        p.step(WARM)
    except Stop:
        p.log.append("stopped")
        if kind == "break":
            p.opt.zero_grad()
    finally:
        _C._set_op_hook(None)
    if count is not None:
        count.append(seen[0])
    for it in range(AFTER):
        p.step(WARM + 1 + it)
    return p.state()


def same(a, b):
    if a is None or b is None:
        return a is b
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    if hasattr(a, "shape"):
        return a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)
    return a == b or (isinstance(a, float) and abs(a - b) <= 1e-4 * max(1, abs(a)))


@pytest.fixture(scope="module")
def n_ops():
    count = []
    run("kept temporary", 0, None, count)
    return count[0]


def test_the_step_is_large_enough(n_ops):
    for _ in range(3):
        run("kept temporary", 0, None)
    torch.synchronize()
    text = _C.explain()
    assert n_ops >= 150, n_ops
    elided = max(int(n) for n in re.findall(r"(\d+) of \d+ values elided", text))
    print(f"{n_ops} operators, {elided} values elided")
    assert elided >= 20, text


@pytest.mark.parametrize("timing", ["held", "caught up"])
@pytest.mark.parametrize("kind", KINDS)
def test_leaving_after_every_op(kind, timing, n_ops):
    wrong = []
    for k in range(1, n_ops + 1):
        _C._set_sync(True)
        want = run(kind, k, None)
        _C._set_sync(False)
        have = run(kind, k, timing)
        if not same(want, have):
            wrong.append(k)
    print(f"{kind}, {timing}: left after each of {n_ops} operators, {len(wrong)} wrong")
    assert not wrong
