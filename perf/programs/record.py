"""What every measured program shares, whatever it runs under: options, the timed loop, the record of a run as JSON."""

import argparse
import json
import os
import platform
import resource
import sys
import time

import numpy as np

# What changes how a run performs, of the environment.
SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_", "TORCH", "TERRA_", "XLA_", "JAX_", "NPROC", "MALLOC_", "LD_PRELOAD")
ENVIRONMENT = {k: v for k, v in sorted(os.environ.items()) if k.startswith(SETTINGS)}


def parse(workload, doc, own):
    """The command line: what all programs take, what the workload does, what `own` adds to the parser."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--steps", type=int, default=30)
    p.add_argument("--warmup", type=int, default=10, help="steps that the median leaves out")
    p.add_argument("--seconds", type=float, default=float("inf"), help="no further step behind so many, warm-up apart")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: as autocast does it; parameters stay float32")
    p.add_argument("--json", help="write the record to this file")
    workload.options(p)
    own(p)
    args = p.parse_args()
    if hasattr(workload, "settle"):
        workload.settle(args)
    return args


def pool(make, n=8):
    """Batches made beforehand; pool[i] repeats them."""
    batches = [make() for _ in range(n)]
    return lambda i: batches[i % n]


def since_start():
    """Seconds since the process was started, interpreter and imports included."""
    with open("/proc/self/stat") as f:
        started = int(f.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def cpu_seconds(who=resource.RUSAGE_SELF):
    use = resource.getrusage(who)
    return use.ru_utime + use.ru_stime


def tail(times):
    """How far late steps fall behind: the slowest over the median; of steps under 10 ms, the 99th percentile over it."""
    median = np.median(times)
    return float((np.percentile(times, 99) if median < 10e-3 else np.max(times)) / median)


def run(args, step, flop, runtime, ran_with, compiled):
    """step(i) -> loss as a number. Times args.warmup + args.steps of them, and tells. ran_with: versions and settings;
    compiled(): has the latest step run compiled code?"""
    losses, times, starts = [], [], []
    first = tenth = first_compiled = None
    cpu = 0.0
    for i in range(args.warmup + args.steps):
        if i == args.warmup:
            timed, cpu = time.perf_counter(), cpu_seconds()
        if i > args.warmup and time.perf_counter() - timed > args.seconds:
            break
        start = time.perf_counter()
        losses.append(step(i))
        times.append(time.perf_counter() - start)
        starts.append(start)
        if i == 0:
            first = since_start()
        if i == 9:
            tenth = since_start()
        if first_compiled is None and compiled():
            first_compiled = {"step": i + 1, "ms": 1e3 * times[-1], "at_s": since_start()}
    cpu = cpu_seconds() - cpu
    steady = times[args.warmup:] or times
    record = {
        "program": os.path.splitext(os.path.basename(__import__("__main__").__file__))[0],
        "runtime": runtime,
        "dtype": args.dtype,
        "median_ms": 1e3 * float(np.median(steady)),
        "p10_ms": 1e3 * float(np.percentile(steady, 10)),
        "p90_ms": 1e3 * float(np.percentile(steady, 90)),
        "p99_ms": 1e3 * float(np.percentile(steady, 99)),
        "slowest_ms": 1e3 * max(steady),
        "tail": tail(steady),
        "steps": len(steady),
        "gflop": flop / 1e9,
        "first_step_s": first,
        "tenth_step_s": tenth,
        "first_compiled": first_compiled,
        "cpu_s_per_step": cpu / len(steady),
        "cpu_s": cpu_seconds() + cpu_seconds(resource.RUSAGE_CHILDREN),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "ran_with": {"python": platform.python_version(), "numpy": np.__version__, **ran_with, "arguments": sys.argv[1:],
                     "environment": ENVIRONMENT},
        "losses": losses,
        "starts_us": [1e6 * s for s in starts[args.warmup:]],  # of the monotonic clock, as a timeline's times
    }
    print(f"{record['program']} under {runtime}, {args.dtype}: {record['median_ms']:.3f} ms per step "
          f"({record['p10_ms']:.3f} to {record['p90_ms']:.3f}), {record['gflop'] / record['median_ms'] * 1e3:.1f} GFLOP/s; "
          f"first step after {first:.2f} s; peak {record['peak_rss_mib']:.0f} MiB; loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    if args.json:
        with open(args.json, "w") as f:
            json.dump(record, f)
    return record
