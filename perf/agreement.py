"""The losses of the compared programs, step by step, under Terra and under PyTorch with the same seed.

    python perf/agreement.py                           # 50 steps of each at full size, float32 and bfloat16: minutes
    python perf/agreement.py --programs "GPT-2, 2x128" --dtypes fp32 --steps 20

A row tells how far apart they are at most, relative to PyTorch's, up to which step they are within the limit, 1e-4 in float32 and 1e-2
in bfloat16. Where they leave it, PyTorch runs once more on one thread, its sums made in another order: if it leaves the limit
itself (a ResNet's batch norms over a small batch multiply rounding by ten or a hundred in each step), no other runtime can stay
within, and the row is "rounding". The exit status is 1 where a row is "beyond"."""

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


def apart(ours, theirs):
    """Relative differences, step by step."""
    return [abs(x - y) / max(abs(y), 1e-30) for x, y in zip(ours, theirs, strict=True)]


def steps_within(differences, limit):
    return next((i for i, d in enumerate(differences) if not d <= limit), len(differences))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--programs", nargs="*", help="those whose name contains one of these")
    p.add_argument("--dtypes", nargs="*", choices=harness.DTYPES, default=harness.DTYPES)
    p.add_argument("--timeout", type=float, default=1800)
    args = p.parse_args()
    print(harness.header("program", "dtype", "first loss", "last", "Terra from PyTorch", "within", "PyTorch from itself", "within", "limit",
                         ""), flush=True)
    failed = False
    for name, (program, arguments, _) in harness.chosen(False, args.programs).items():
        for dtype in args.dtypes:
            line = [*arguments, "--dtype", dtype, "--warmup", "0", "--steps", str(args.steps)]
            theirs, ours = (losses(peer, program, line, 0, args.timeout) for peer in ("torch eager", "Terra"))
            limit, verdict, itself = LIMITS[dtype], "ok", ["", ""]
            differences = apart(ours, theirs)
            within = steps_within(differences, limit)
            if within < len(differences):
                again = apart(losses("torch eager", program, line, 1, args.timeout), theirs)
                verdict = "rounding" if steps_within(again, limit) < len(again) else "beyond"
                itself = [f"{max(again):.1e}", f"{steps_within(again, limit)} steps"]
            failed |= verdict == "beyond"
            print(harness.row(name, dtype, f"{theirs[0]:.5f}", f"{theirs[-1]:.5f}", f"{max(differences):.1e}", f"{within} steps", *itself,
                              f"{limit:.0e}", verdict), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
