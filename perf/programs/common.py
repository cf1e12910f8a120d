"""What the programs here share: options, the timed loop, the record of a run as JSON.

A program gives a step, that is: feed a batch, forward, backward, optimizer, loss.item(). Nothing here knows whether `torch` is
PyTorch or Terra; the tuning options are what one would try on PyTorch, and do nothing to Terra."""

import argparse
import json
import os
import resource
import time

import numpy as np
import torch


def parser(doc):
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--steps", type=int, default=30)
    p.add_argument("--warmup", type=int, default=10, help="steps that the median leaves out")
    p.add_argument("--seconds", type=float, default=float("inf"), help="no further step behind so many, warm-up apart")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--json", help="write the record to this file")
    p.add_argument("--precision", choices=["highest", "high", "medium"], help="torch.set_float32_matmul_precision")
    p.add_argument("--fused", action="store_true", help="PyTorch's fused optimizer")
    p.add_argument("--channels-last", action="store_true", help="images and convolutions with channels last")
    p.add_argument("--compile", action="store_true", help="torch.compile the model")
    return p


def prepare(args):
    """Before the model is made."""
    torch.manual_seed(args.seed)
    if args.precision:
        torch.set_float32_matmul_precision(args.precision)
    return np.random.RandomState(args.seed)


def tuned(model, args):
    """The model as the options want it."""
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return torch.compile(model) if args.compile else model


def fused(args):
    """Keyword arguments for an optimizer."""
    return {"fused": True} if args.fused else {}


def since_start():
    """Seconds since the process was started, interpreter and imports included."""
    with open("/proc/self/stat") as f:
        started = int(f.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def cpu_seconds():
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def run(args, step, flop):
    """step(i) -> loss as a number. Times args.warmup + args.steps of them, and tells."""
    losses, times, first, tenth, cpu = [], [], None, None, 0.0
    for i in range(args.warmup + args.steps):
        if i == args.warmup:
            timed, cpu = time.perf_counter(), cpu_seconds()
        if i > args.warmup and time.perf_counter() - timed > args.seconds:
            break
        start = time.perf_counter()
        losses.append(step(i))
        times.append(time.perf_counter() - start)
        first = since_start() if i == 0 else first
        tenth = since_start() if i == 9 else tenth
    steady = times[args.warmup:] or times
    record = {
        "program": os.path.splitext(os.path.basename(__import__("__main__").__file__))[0],
        "runtime": "terra" if torch.__name__ == "terra" else "torch " + torch.__version__,
        "median_ms": 1e3 * float(np.median(steady)),
        "p10_ms": 1e3 * float(np.percentile(steady, 10)),
        "p90_ms": 1e3 * float(np.percentile(steady, 90)),
        "steps": len(steady),
        "gflop": flop / 1e9,
        "first_step_s": first,
        "tenth_step_s": tenth,
        "cpu_s_per_step": (cpu_seconds() - cpu) / len(steady),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "losses": losses,
    }
    print(f"{record['program']} under {record['runtime']}: {record['median_ms']:.3f} ms per step "
          f"({record['p10_ms']:.3f} to {record['p90_ms']:.3f}), {record['gflop'] / record['median_ms'] * 1e3:.1f} GFLOP/s; "
          f"first step after {first:.2f} s; peak {record['peak_rss_mib']:.0f} MiB; loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    if args.json:
        with open(args.json, "w") as f:
            json.dump(record, f)
    return record


def pool(make, n=8):
    """Batches made beforehand; pool[i] repeats them."""
    batches = [make() for _ in range(n)]
    return lambda i: tuple(torch.from_numpy(a) for a in batches[i % n])
