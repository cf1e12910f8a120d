"""Is the steady state steady? Per step of two networks, behind a warm-up, in the executor and its team:

  * no tensor is allocated,
  * no page is faulted in (minor faults of these threads, the median over steps),
  * nothing is compiled.

The exit status says it: 0 if all hold, 1 if one does not, 2 if one could not be seen. Lists the oneDNN partitions that ran.

    python perf/steady_state.py [--steps 60] [--warmup 40] [--networks digits resnet18]
"""

import argparse
import os
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOREIGN = set(os.listdir("/proc/self/task"))  # threads that are not the runtime's: there before it
import numpy as np  # noqa: E402

FOREIGN |= set(os.listdir("/proc/self/task"))

import terra  # noqa: E402
from terra.__main__ import alias  # noqa: E402

torch = alias()
sys.path[:0] = [str(ROOT / "perf" / "programs"), str(ROOT / "examples")]
F = torch.nn.functional


def minor_faults():
    """Of the runtime's threads: the executor, its team, the compile thread; not Python's. By thread."""
    counts = {}
    for tid in os.listdir("/proc/self/task"):
        if tid in FOREIGN or int(tid) == os.getpid():
            continue
        try:
            with open(f"/proc/self/task/{tid}/stat") as f:
                counts[tid] = int(f.read().rpartition(")")[2].split()[7])
        except FileNotFoundError:  # it has ended
            pass
    return counts


def digits():
    import digits as example

    rng = np.random.RandomState(1)
    images, labels = rng.standard_normal((64, 1, 8, 8)).astype(np.float32), rng.randint(0, 10, 64)
    model = example.Net()
    return model, torch.optim.AdamW(model.parameters(), lr=5e-4), images, labels


def resnet18(size=64):
    import resnet

    rng = np.random.RandomState(1)
    images, labels = rng.standard_normal((8, 3, size, size)).astype(np.float32), rng.randint(0, 1000, 8)
    model = resnet.ResNet(resnet.Basic, (2, 2, 2, 2), 1000)
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), images, labels


NETWORKS = {"digits": digits, "resnet18": resnet18}


def counters():
    """allocations: None where the runtime does not count them."""
    s = terra.stats()
    return {"faults": sum(minor_faults().values()), "allocations": s.get("allocations"), "compile": s["compile_ns"],
            "plans": s["plans"], "traced": s["iterations_traced"], "exits": s["side_exits"], "live": s["bytes_live"]}


def measure(name, warmup, steps):
    model, optimizer, images, labels = NETWORKS[name]()
    seen = []
    for i in range(warmup + steps):
        x, y = torch.from_numpy(images), torch.from_numpy(labels)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        loss.item()
        if i >= warmup - 1:
            torch.synchronize()
            seen.append(counters())
    each = {k: [b[k] - a[k] for a, b in zip(seen, seen[1:])] for k in seen[0] if seen[0][k] is not None}
    threads = minor_faults()
    print(f"{name}: {steps} steps behind {warmup}; {len(threads)} threads, which faulted {sum(threads.values())} times since they began")
    verdict = [bool(threads) and sum(threads.values()) > 0 or None]  # nothing seen at all: not a proof

    def row(what, key, judge):
        if key not in each:
            print(f"  {what:<34}not counted: terra.stats() has no '{key}'")
            verdict.append(None)
            return
        values = each[key]
        good = judge(values) == 0
        verdict.append(good)
        print(f"  {what:<34}{'ok  ' if good else 'FAIL'}  median {statistics.median(values):g}, most {max(values)}, in {sum(v > 0 for v in values)} "
              f"steps")

    row("tensor allocations per step", "allocations", statistics.median)
    row("minor faults per step", "faults", statistics.median)
    row("plans made", "plans", sum)
    row("compiling, ns", "compile", sum)
    row("iterations traced", "traced", sum)
    row("side exits", "exits", sum)
    print(f"  live memory                       {seen[0]['live'] / 2**20:.1f} MiB, changed by {seen[-1]['live'] - seen[0]['live']} bytes")
    return verdict


def partitions():
    """What of oneDNN the plans hold, by their account: Graph API partitions (of kind dnn), and convolutions whose weights stay in
    the library's layout."""
    return {line.strip() for line in terra.explain().splitlines() if re.match(r"\s*\d+\s+dnn\b", line) or "weights at home" in line}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--warmup", type=int, default=40)
    p.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    args = p.parse_args()
    verdict, before = [], set()
    for name in args.networks:
        verdict += measure(name, args.warmup, args.steps)
        found = partitions() - before
        before |= found
        print(f"  oneDNN partitions in plans: {len(found) or 'none'}")
        for line in sorted(found, key=lambda s: int(s.split()[0])):
            print("    " + line)
        torch.reset_stats()
    return 1 if False in verdict else 2 if None in verdict else 0


if __name__ == "__main__":
    sys.exit(main())
