"""How the programs in perf/programs scale with threads and executors: the median step, the speed-up over one thread, the efficiency.

    python perf/scaling.py --out scaling           # scaling.md, scaling.json, scaling.svg
    python perf/scaling.py --quick                 # smaller programs

One process per program, dtype, number of executors and of threads; rounds interleaved. Threads are those of parallel loops
(OMP_NUM_THREADS, TERRA_THREADS), of all executors together; Python's own comes on top, so that with as many threads as CPUs the two
share one. Several executors (TERRA_EXECUTORS) share the instructions of a plan; on a machine of several NUMA nodes they go round
its nodes, where one keeps to its own: the rows of as many threads show near and far."""

import argparse
import statistics
import sys

import harness


def thread_counts(usable):
    """All up to 8, then powers of two and what there is."""
    return sorted({n for n in range(1, usable + 1) if n <= 8 or n & (n - 1) == 0} | {usable})


def teams(threads, peer):
    """(executors, threads of all together): one with each number of threads; where it is Terra, 2, 4, ... with equal shares as well."""
    several = [e for e in (2, 4, 8, 16, 32, 64) if peer in harness.TERRAS]
    return [(e, n) for n in threads for e in (1, *several) if n % e == 0]


def curve(times):
    """Of {(executors, threads): median ms}: rows with speed-up over one thread and efficiency; without a run of one thread, neither."""
    one = times.get((1, 1))
    return [{"executors": e, "threads": n, "median_ms": ms, "speedup": one and one / ms, "efficiency": one and one / ms / n}
            for (e, n), ms in sorted(times.items())]


def speedup_cells(r):
    return ["–", "–"] if r["speedup"] is None else [f"{r['speedup']:.2f}", f"{100 * r['efficiency']:.0f} %"]


def markdown(report):
    lines = ["# Scaling", "", f"{report['machine']}; {report['peer']}; rounds interleaved: {report['rounds']}; Python's thread comes on "
             f"top. `{report['command']}`.", "",
             harness.header("program", "dtype", "executors", "threads", "ms/step", "runs", "speed-up", "efficiency", "GFLOP/s", "of peak")]
    for s in report["series"]:
        for r in s["rows"]:
            share = harness.share_cell(*harness.share(r["gflops"], report["peaks"][r["threads"]], s["dtype"]))
            lines.append(harness.row(s["program"], s["dtype"], r["executors"], r["threads"], f"{r['median_ms']:.3g}",
                                     f"{r['low_ms']:.3g}–{r['high_ms']:.3g}", *speedup_cells(r), f"{r['gflops']:.1f}", share))
        lines += [harness.row(s["program"], s["dtype"], e, n, why, *[""] * 5) for e, n, why in s["failures"]]
    return "\n".join(lines) + "\n"


def chart(report):
    """Speed-up over threads, a line per program; dashed: bf16; grey: ideal; hollow: several executors."""
    size, left, top = 360, 40, 20
    most = max(report["threads"])
    palette = ("#c8452f", "#4a6178", "#c9a66b", "#6a994e", "#8e6c8a", "#2a9d8f")

    def at(n, speedup):
        return left + size * (n - 1) / max(most - 1, 1), top + size * (1 - min(speedup, most) / most)

    parts = [f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in (at(n, n) for n in report["threads"]))}" fill="none" '
             'stroke="#bbb" stroke-width="2"/>']
    for n in (n for n in report["threads"] if most <= 8 or n & (n - 1) == 0 or n == most):
        parts += [harness.text(at(n, 0)[0], top + size + 16, n, text_anchor="middle"),
                  harness.text(left - 8, at(1, n)[1] + 4, n, text_anchor="end")]
    parts.append(harness.text(left + size / 2, top + size + 34, "threads; upwards: speed-up; dashed: bf16; grey: ideal; hollow: several executors", text_anchor="middle"))
    names = list(dict.fromkeys(s["program"] for s in report["series"]))
    for i, s in enumerate(s for s in report["series"] if s["rows"] and s["rows"][0]["speedup"]):
        colour = palette[names.index(s["program"]) % len(palette)]
        dash = ' stroke-dasharray="6 4"' if s["dtype"] == "bf16" else ""
        alone = [r for r in s["rows"] if r["executors"] == 1]
        points = " ".join("{:.1f},{:.1f}".format(*at(r["threads"], r["speedup"])) for r in alone)
        dots = [("{:.1f}\" cy=\"{:.1f}".format(*at(r["threads"], r["speedup"])), colour if r["executors"] == 1 else "white") for r in s["rows"]]
        parts += [f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>',
                  *(f'<circle cx="{dot}" r="3" fill="{fill}" stroke="{colour}"/>' for dot, fill in dots),
                  harness.text(left + size + 20, top + 20 + 20 * i, f"{s['program']}, {s['dtype']}: {alone[-1]['speedup']:.2f}",
                               fill=colour)]
    return harness.svg(700, max(top + size + 50, top + 40 + 20 * len(report["series"])), parts)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--programs", nargs="*", help="those whose name contains one of these")
    p.add_argument("--dtypes", nargs="*", choices=harness.DTYPES, default=harness.DTYPES)
    p.add_argument("--threads", nargs="*", type=int, help="numbers of threads, 1 besides; where none are given, up to all CPUs that this "
                   "process may use")
    p.add_argument("--peer", choices=[e for e in harness.EVERYONE if not e.startswith("tuned")], default="Terra", help="whose scaling")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=20.0, help="of timed steps per run at most")
    p.add_argument("--timeout", type=float, default=900.0, help="seconds for a run")
    p.add_argument("--jax-python", help="an interpreter that has jax")
    p.add_argument("--out", help="write <out>.md, <out>.json and <out>.svg")
    p.add_argument("--quick", action="store_true", help="small programs, one round")
    args = p.parse_args()
    if args.quick:
        args.rounds, args.seconds = 1, min(args.seconds, 2.0)
    python, reason = harness.interpreter(args.peer, args.jax_python)
    if reason:
        raise SystemExit(reason)
    threads = sorted({1, *(args.threads or thread_counts(harness.usable_cpus()))})
    if threads[0] < 1:
        p.error("a number of threads is 1 or more")
    programs = harness.chosen(args.quick, args.programs, branches=True)
    places = teams(threads, args.peer)
    keys = [(name, dtype, e, n) for name in programs for dtype in args.dtypes for e, n in places]
    records = {key: [] for key in keys}
    for r in range(args.rounds):
        for key in keys[:: 1 if r % 2 == 0 else -1]:  # there and back, against drift
            name, dtype, e, n = key
            program, arguments, _ = programs[name]
            line = harness.command(python, args.peer, program, [*arguments, "--dtype", dtype, "--seconds", str(args.seconds)])
            record = harness.run(*line, n // e, args.timeout, e)
            records[key].append(record)
            print(f"round {r + 1}, {name}, {dtype}, executors: {e}, threads: {n}: {harness.outcome(record)}", file=sys.stderr)
    series = []
    for name in programs:
        for dtype in args.dtypes:
            good = {at: [r for r in records[name, dtype, *at] if isinstance(r, dict)] for at in places}
            times = {at: [r["median_ms"] for r in rs] for at, rs in good.items() if rs}
            rows = curve({at: statistics.median(t) for at, t in times.items()}) if times else []
            for row in rows:
                at = row["executors"], row["threads"]
                t = times[at]
                row |= {"low_ms": min(t), "high_ms": max(t), "gflops": good[at][0]["gflop"] / row["median_ms"] * 1e3}
            failures = [(*at, next(r for r in records[name, dtype, *at] if isinstance(r, str))) for at in places if not good[at]]
            series.append({"program": name, "dtype": dtype, "rows": rows, "failures": failures})
    report = {"machine": harness.machine(), "command": " ".join(sys.argv), "peer": args.peer, "threads": threads, "rounds": args.rounds,
              "peaks": {n: harness.fma_peaks(n) for n in threads}, "series": series}
    harness.write(args.out, {**report, "records": [[*k, v] for k, v in records.items()]}, markdown(report), chart(report))


if __name__ == "__main__":
    main()
