"""The losses of the compared programs, step by step, under Terra and under PyTorch with the same seed.

    python perf/agreement.py                           # 50 steps of each at full size, float32 and bfloat16: minutes
    python perf/agreement.py --programs "GPT-2, 2x128" --dtypes fp32 --steps 20

A row tells how far apart they are at most, relative to PyTorch's; also how far PyTorch is from itself with its weights' products in another
order (one thread): what a program multiplies rounding by, no other runtime can spare it. The exit status is 1 where a row is
beyond its limit: 1e-4 in float32, 1e-2 in bfloat16."""

import argparse
import sys

import harness

LIMITS = {"fp32": 1e-4, "bf16": 1e-2}


def losses(peer, program, arguments, threads, timeout):
    python, why = harness.interpreter(peer)
    if python is None:
        sys.exit(why)
    line, env = harness.command(python, peer, program, arguments)
    record = harness.run(line, env, threads, timeout)
    if isinstance(record, str):
        sys.exit(f"{peer}: {record}")
    return record["losses"]


def apart(a, b):
    """(largest relative difference, its step from 1 on)."""
    return max((abs(x - y) / max(abs(y), 1e-30), i + 1) for i, (x, y) in enumerate(zip(a, b, strict=True)))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--programs", nargs="*", help="those whose name contains one of these")
    p.add_argument("--dtypes", nargs="*", choices=harness.DTYPES, default=harness.DTYPES)
    p.add_argument("--timeout", type=float, default=1800)
    args = p.parse_args()
    print(harness.header("program", "dtype", "first loss", "last", "Terra from PyTorch", "PyTorch from itself", "limit", ""), flush=True)
    failed = False
    for name, (program, arguments, _) in harness.chosen(False, args.programs).items():
        for dtype in args.dtypes:
            line = [*arguments, "--dtype", dtype, "--warmup", "0", "--steps", str(args.steps)]
            theirs = losses("torch eager", program, line, 0, args.timeout)
            again = losses("torch eager", program, line, 1, args.timeout)
            ours = losses("Terra", program, line, 0, args.timeout)
            (most, at), (itself, _) = apart(ours, theirs), apart(again, theirs)
            good = most <= LIMITS[dtype]
            failed |= not good
            print(harness.row(name, dtype, f"{theirs[0]:.5f}", f"{theirs[-1]:.5f}", f"{most:.1e} (step {at})", f"{itself:.1e}",
                              f"{LIMITS[dtype]:.0e}", "ok" if good else "beyond"), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
