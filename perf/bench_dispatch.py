"""What an operator costs the Python thread, in two figures with limits; exit status 1 beyond them.

* The skeleton: time inside the C core per operator, over whole training steps of a GPT that run from a plan: tensors, tape,
  backward and optimizer included, the interpreter and waits for the executor not (TERRA_TIME_CALLS; src/tracer/clock.h). The
  median over steps. An operator is a call of a row of the op table, forward or backward; as nearly half of them make views, the
  figure is given per computing operator too, the time of the views included.
* `x + y` from Python, beside torch's eager figure for the same line.

    python perf/bench_dispatch.py
"""

import os
import statistics
import subprocess
import sys
import time

import numpy as np

SKELETON_NS, ADD_NS = 300, 600
STEPS, ADDS = 200, 100


def add_ns(t):
    """Some at a time, the executor idle before: what Python pays, not what computing costs."""
    x, y = t.ones(4, 4), t.ones(4, 4)
    times = []
    for _ in range(400):
        if hasattr(t, "synchronize"):
            t.synchronize()
        start = time.perf_counter_ns()
        for _ in range(ADDS):
            x + y
        times.append((time.perf_counter_ns() - start) / ADDS)
    return statistics.median(times), min(times)


class Gpt:
    """Four blocks of attention and a two-layer perceptron, cross-entropy, AdamW; small, so that Python never waits."""

    VOCABULARY, WIDTH, CONTEXT, BATCH = 64, 32, 16, 2

    def __init__(self, t):
        nn, width = t.nn, self.WIDTH
        self.t = t
        t.manual_seed(0)
        self.letters, self.places = nn.Embedding(self.VOCABULARY, width), nn.Embedding(self.CONTEXT, width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(4))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(4))
        self.head = nn.Linear(width, self.VOCABULARY)
        modules = (self.letters, self.places, self.qkv, self.blocks, self.head)
        self.optimizer = t.optim.AdamW([p for m in modules for p in m.parameters()])
        self.data = np.random.RandomState(0).randint(0, self.VOCABULARY, (self.BATCH, self.CONTEXT + 1))

    def step(self):
        t, F = self.t, self.t.nn.functional
        x, y = t.tensor(self.data[:, :-1]), t.tensor(self.data[:, 1:])
        h = self.letters(x) + self.places(t.arange(self.CONTEXT))
        for a, b in zip(self.qkv, self.blocks):
            q, k, v = a(h).chunk(3, -1)
            h = h + F.softmax(q @ k.transpose(1, 2) * 0.125, -1) @ v
            h = h + b(h)
        loss = F.cross_entropy(self.head(h).view(-1, self.VOCABULARY), y.view(-1))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def skeleton():
    import terra

    gpt = Gpt(terra)
    for _ in range(20):
        gpt.step()
    terra.synchronize()
    terra._C._stats_reset()
    ns, ops, views, before = [], [], [], terra.stats()
    for _ in range(STEPS):
        gpt.step()
        terra.synchronize()
        now = terra.stats()
        ops.append(now["ops"] - before["ops"])
        views.append(now["views"] - before["views"])
        ns.append(now["skeleton_ns"] - before["skeleton_ns"])
        before = now
    s = terra.stats()
    per_op = [n / (o + v) for n, o, v in zip(ns, ops, views)]
    per_computing = [n / o for n, o in zip(ns, ops)]
    median = statistics.median(per_op)
    print(f"GPT step: {statistics.median(ops):.0f} operators that compute, {100 * s['ops_from_plans'] / s['ops']:.1f} % from plans, "
          f"{statistics.median(views):.0f} that make views")
    print(f"  in C, per operator: {median:.0f} ns, least {min(per_op):.0f} ns (limit {SKELETON_NS}); "
          f"per computing operator: {statistics.median(per_computing):.0f} ns, least {min(per_computing):.0f} ns")
    return median <= SKELETON_NS


def child(what, **environment):
    return subprocess.run([sys.executable, __file__, what], env={**os.environ, **environment}).returncode == 0


def main():
    if "skeleton" in sys.argv:
        return not skeleton()
    if "add" in sys.argv:
        import terra

        ns, least = add_ns(terra)
        print(f"x + y from Python: {ns:.0f} ns, least {least:.0f} ns (limit {ADD_NS})")
        return not ns <= ADD_NS
    if "torch" in sys.argv:
        import torch

        torch.set_num_threads(1)
        print("torch eager:       {:.0f} ns, least {:.0f} ns".format(*add_ns(torch)))
        return 0
    # One thread for the executor: Python has a core of its own, if the machine has two.
    fine = [child("skeleton", TERRA_TIME_CALLS="1", TERRA_THREADS="1"), child("add", TERRA_THREADS="1"), child("torch")]
    return not all(fine)


if __name__ == "__main__":
    sys.exit(main())
