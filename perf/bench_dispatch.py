"""What an operator costs the Python thread: `x + y` from Python beside torch's eager figure, and the skeleton over a GPT's training
step (tensors, tape and backward included).

    .venv/bin/python perf/bench_dispatch.py
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


def add_ns(t, n=20000):
    x, y = t.ones(4, 4), t.ones(4, 4)
    times = []
    for _ in range(15):
        if hasattr(t, "synchronize"):
            t.synchronize()
        start = time.perf_counter()
        for _ in range(n // 20):
            x + y
        times.append((time.perf_counter() - start) / (n // 20) * 1e9)
    return statistics.median(times)


def gpt_step():
    import terra

    sys.modules.setdefault("torch", terra)
    from terra import nn
    from terra.nn import functional as F

    terra.manual_seed(0)
    vocabulary, width, context, batch = 64, 64, 32, 4
    block = lambda: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    letters, places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
    qkv, blocks, head = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(4)), nn.ModuleList(block() for _ in range(4)), nn.Linear(width, vocabulary)
    params = [p for m in (letters, places, qkv, blocks, head) for p in m.parameters()]
    optimizer = terra.optim.AdamW(params)
    data = np.random.RandomState(0).randint(0, vocabulary, (batch, context + 1))

    def step():
        x, y = terra.tensor(data[:, :-1]), terra.tensor(data[:, 1:])
        h = letters(x) + places(terra.arange(context))
        for a, b in zip(qkv, blocks):
            q, k, v = a(h).chunk(3, -1)
            h = h + F.softmax(q @ k.transpose(1, 2) * 0.125, -1) @ v
            h = h + b(h)
        loss = F.cross_entropy(head(h).view(-1, vocabulary), y.view(-1))
        optimizer.zero_grad()
        before = time.perf_counter()
        loss.backward()
        backward = time.perf_counter() - before
        optimizer.step()
        return loss, backward

    for _ in range(10):
        step()
    terra.synchronize()
    terra._C._stats_reset()
    steps, backward = 100, []
    start = time.perf_counter()
    for _ in range(steps):
        loss, b = step()
        backward.append(b)
        if len(backward) % 2 == 0:
            loss.item()
    terra.synchronize()
    total = time.perf_counter() - start
    s = terra.stats()
    print(f"GPT step: {s['ops'] / steps:.0f} operators, {100 * s['ops_from_plans'] / s['ops']:.1f} % from plans, {total / steps * 1e6:.0f} us a step")
    print(f"  skeleton            {s['skeleton_ns'] / max(1, s['skeleton_ops']):7.0f} ns per operator in C (one call in 64 timed, clock included)")
    print(f"  backward()          {statistics.median(backward) * 1e6:7.0f} us on the Python thread")


def main():
    import torch

    torch.set_num_threads(1)
    want = add_ns(torch)
    del sys.modules["torch"]
    import terra

    print(f"x + y from Python: {add_ns(terra):.0f} ns; torch eager {want:.0f} ns")
    gpt_step()


if __name__ == "__main__":
    main()
