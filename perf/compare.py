"""Terra against its peers on the programs in perf/programs: a process for each run, rounds interleaved.

    python perf/compare.py --install --out report  # report.md, report.json, report.svg; hours, unless --programs or --dtypes narrow it
    python perf/compare.py --quick                 # smaller programs, torch tuned in one way, fewer runs: three minutes

Run it with an interpreter that has torch; Terra must be importable, by installation or PYTHONPATH. JAX is looked for in .venv-perf,
which --install makes, then here. Tuned torch and tuned Terra are the best of all combinations of what tuning consists of for them
(harness.py), found in runs of --search-seconds before the rounds. The figures mean something on a quiet machine only: each row says how far its runs lay apart."""

import argparse
import statistics
import sys
import time

import harness

QUICK_SECONDS = 165  # no run begins later, or lasts longer
QUICK_COMPILES = {("fp32", "mlp")}
QUICK_LEAVES = {("bf16", "resnet")}  # minutes for torch on processors without bfloat16


class Clock:
    """How long a run may take."""

    def __init__(self, args):
        self.began, self.args = time.monotonic(), args

    def passed(self):
        return time.monotonic() - self.began

    def left(self):
        return min(self.args.timeout, QUICK_SECONDS - self.passed() if self.args.quick else self.args.timeout)

    def run(self, what, job, threads):
        left = self.left()
        record = harness.run(*job, threads, left) if left > 3 else "no time left"
        print(f"[{self.passed():5.0f} s] {what}: {harness.outcome(record)}", file=sys.stderr)
        return record


def plan(args):
    """{(dtype, program, peer): (interpreter, program file, its arguments, has convolutions)}, and why others are missing."""
    jobs, missing = {}, {}
    programs = harness.chosen(args.quick, args.programs)
    for dtype in args.dtypes:
        for name, (program, arguments, convolutions) in programs.items():
            for peer in (*args.peers, *harness.TERRAS):
                key = dtype, name, peer
                python, reason = harness.interpreter(peer, args.jax_python)
                if args.quick and (dtype, program) not in QUICK_COMPILES and (peer.endswith("compile") or (dtype, program) in QUICK_LEAVES):
                    reason = "not in the quick comparison"
                if reason:
                    missing[key] = reason
                else:
                    jobs[key] = python, program, [*arguments, "--dtype", dtype, "--seconds"], convolutions
    if args.quick:  # what is needed least last, lest no time is left for the others
        jobs = dict(sorted(jobs.items(), key=lambda job: (job[0][2].endswith("compile"), job[0][0] != "fp32",
                                                          -harness.EVERYONE.index(job[0][2]))))
    return jobs, missing


def tune(args, clock, key, job):
    """The best combination, and what each gave."""
    python, program, arguments, convolutions = job
    candidates = harness.tunings(key[2], convolutions)
    if args.quick or args.search_seconds <= 0:
        return candidates[0], []
    found = []
    for names in candidates:
        line = harness.command(python, key[2], program, [*arguments, str(args.search_seconds)], names)
        record = clock.run(f"search, {', '.join(key)}: {', '.join(names) or 'nothing'}", line, args.threads)
        found.append({"tuning": names, "median_ms": record["median_ms"] if isinstance(record, dict) else None,
                      "failure": record if isinstance(record, str) else None})
    ran = [f for f in found if f["median_ms"] is not None]
    return (min(ran, key=lambda f: f["median_ms"])["tuning"] if ran else ()), found


def digest(records, peaks, products):
    """A row of the report from the runs of one program by one peer; products: what dtype they are in."""
    good = [r for r in records if isinstance(r, dict)]
    failures = sorted({r for r in records if isinstance(r, str)})
    if not good:
        return {"failed": "; ".join(failures) or "not run"}
    median = {k: statistics.median(r[k] for r in good) for k in
              ("median_ms", "p10_ms", "p90_ms", "tail", "cpu_s_per_step", "cpu_s", "peak_rss_mib", "first_step_s", "gflop")}
    tenth = [r["tenth_step_s"] for r in good if r["tenth_step_s"] is not None]
    rate = median["gflop"] / median["median_ms"] * 1e3
    part, whose = harness.share(rate, peaks, products)
    return {**median, "tenth_step_s": statistics.median(tenth) if tenth else None, "first_compiled": good[-1]["first_compiled"],
            "runs": len(good), "low_ms": min(r["median_ms"] for r in good), "high_ms": max(r["median_ms"] for r in good),
            "gflops": rate, "share_of_peak": part, "peak_of": whose, "last_loss": good[-1]["losses"][-1],
            "ran_with": good[-1]["ran_with"], "failures": failures}


def best_peer(rows):
    peers = {p: r["median_ms"] for p, r in rows.items() if p not in harness.TERRAS and "median_ms" in r}
    return min(peers, key=peers.get) if peers else None


def cells(peer, r, best_ms):
    if "failed" in r:
        return [peer, r["failed"], *[""] * 10]
    compiled = r["first_compiled"]
    return [f"**{peer}**" if peer in harness.TERRAS else peer, f"{r['median_ms']:.3g}", f"{r['p10_ms']:.3g}–{r['p90_ms']:.3g}",
            f"{r['low_ms']:.3g}–{r['high_ms']:.3g} ({r['runs']})", f"{r['median_ms'] / best_ms:.2f}" if best_ms else "",
            f"{r['tail']:.2f}", f"{r['gflops']:.1f}", harness.share_cell(r["share_of_peak"], r["peak_of"]),
            f"{r['first_step_s']:.1f} / " + (f"{r['tenth_step_s']:.1f}" if r["tenth_step_s"] else "–"),
            f"{compiled['step']}: {compiled['ms']:.3g}" if compiled else "–", f"{1e3 * r['cpu_s_per_step']:.3g} / {r['cpu_s']:.1f}",
            f"{r['peak_rss_mib']:.0f}"]


def against_best(results):
    """A table: of each program the best peer, and the ratios of both Terras to it."""
    yield from ("## Against the best peer", "", harness.header("program", "best peer", "ms/step", *(f"{t} vs best" for t in harness.TERRAS)))
    for dtype, programs in results.items():
        for name, rows in programs.items():
            best = best_peer(rows)
            ratios = [f"{rows[t]['median_ms'] / rows[best]['median_ms']:.2f}" if best and "median_ms" in rows.get(t, {}) else "–"
                      for t in harness.TERRAS]
            yield harness.row(f"{name}, {dtype}", *([best, f"{rows[best]['median_ms']:.3g}"] if best else ["none", ""]), *ratios)


def ran_with(rows):
    """What each peer ran with, a line per peer."""
    for peer, r in rows.items():
        if "ran_with" in r:
            w = dict(r["ran_with"])
            arguments, environment = " ".join(w.pop("arguments")[:-2]), " ".join(f"{k}={v}" for k, v in w.pop("environment").items())
            about = ", ".join("; ".join(v) if isinstance(v, list) else f"{k} {v}" for k, v in w.items())
            tuning = "" if r.get("tuning") is None else f" tuned: {', '.join(r['tuning']) or 'nothing helped'};"
            yield f"* {peer}:{tuning} {about}; `{arguments}`" + (f"; `{environment}`" if environment else "")
            yield from (f"  * of {peer}'s runs, some failed: {f}" for f in r["failures"])


def markdown(report):
    lines = ["# Terra and its peers", "", f"{report['machine']}; {report['threads'] or 'all'} threads; rounds interleaved: "
             f"{report['rounds']}; FMA peak, measured between them, {harness.peaks_text(report['peaks'])}. `{report['command']}`.", "",
             "ms/step is the median over runs of their medians, then of their 10th and 90th percentiles; *runs* where their medians lay, "
             "and how many; *vs best* the ratio to the best peer; *late* the slowest step over the median, of steps under 10 ms their 99th "
             "percentile; *of peak* that of the dtype that a row multiplies in; first and tenth step in seconds from the start of the "
             "process; *compiled* the first step that ran compiled code, and its ms; CPU ms of a step, and seconds of the process.", "", *against_best(report["results"])]
    for dtype, programs in report["results"].items():
        lines += ["", f"## {dtype}"]
        for name, rows in programs.items():
            best = best_peer(rows)
            lines += ["", f"### {name}, {dtype}", "",
                      harness.header("", "ms/step", "10–90 %", "runs", "vs best", "late", "GFLOP/s", "of peak", "first / tenth, s",
                                     "compiled", "CPU", "peak MiB")]
            lines += [harness.row(*cells(peer, r, rows[best]["median_ms"] if best else None)) for peer, r in rows.items()]
            lines += ["", *ran_with(rows)]
    return "\n".join(lines) + "\n"


def chart(report):
    """Bars: each peer's time per step as a share of the slowest in its program."""
    y, parts = 20, []
    for dtype, programs in report["results"].items():
        for name, rows in programs.items():
            rows = {p: r for p, r in rows.items() if "median_ms" in r}
            if not rows:
                continue
            top = max(r["median_ms"] for r in rows.values())
            parts.append(harness.text(10, y, f"{name}, {dtype}", font_weight="bold"))
            for peer, r in rows.items():
                y += 18
                width = 360 * r["median_ms"] / top
                parts += [harness.text(150, y, peer, text_anchor="end"),
                          f'<rect x="158" y="{y - 11}" width="{width:.1f}" height="13" fill="{harness.COLOURS[peer]}"/>',
                          harness.text(164 + width, y, f"{r['median_ms']:.3g} ms")]
            y += 32
    return harness.svg(620, y, parts)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--programs", nargs="*", help="those whose name contains one of these")
    p.add_argument("--peers", nargs="*", choices=harness.PEERS, default=harness.PEERS)
    p.add_argument("--dtypes", nargs="*", choices=harness.DTYPES, default=harness.DTYPES)
    p.add_argument("--threads", type=int, default=0, help="for all alike; 0: as each finds right")
    p.add_argument("--seconds", type=float, default=20.0, help="of timed steps per run at most")
    p.add_argument("--search-seconds", type=float, default=5.0,
                   help="the same, while the best tuning is looked for; 0: it is not, all of it at once")
    p.add_argument("--timeout", type=float, default=900.0, help="seconds for a run, compilation included")
    p.add_argument("--jax-python", help="an interpreter that has jax")
    p.add_argument("--install", action="store_true", help="first make .venv-perf, an environment with JAX")
    p.add_argument("--out", help="write <out>.md, <out>.json and <out>.svg")
    p.add_argument("--quick", action="store_true", help="small programs, up to two rounds, torch tuned by all means at once, "
                   "torch.compile for the MLP only: three minutes")
    args = p.parse_args()
    if args.install:
        harness.install_jax()
    if args.quick:
        args.rounds, args.seconds, args.timeout = 2, min(args.seconds, 1.5), min(args.timeout, 40.0)
    clock = Clock(args)
    jobs, missing = plan(args)
    tunings, searches, lines = {}, {}, {}
    for key, job in jobs.items():
        if key[2].startswith("tuned"):
            tunings[key], searches[key] = tune(args, clock, key, job)
        python, program, arguments, _ = job
        lines[key] = harness.command(python, key[2], program, [*arguments, str(args.seconds)], tunings.get(key, ()))
    records = {key: [] for key in lines}
    measured = []
    for r in range(args.rounds):
        measured.append(harness.fma_peaks(args.threads))
        for key, line in list(lines.items())[:: 1 if r % 2 == 0 or args.quick else -1]:  # there and back, against drift
            if r == 0 or clock.left() > 3:
                records[key].append(clock.run(f"round {r + 1}, {', '.join(key)}", line, args.threads))
    peaks = harness.best_peaks(measured)
    report = {"machine": harness.machine(), "command": " ".join(sys.argv), "threads": args.threads, "rounds": args.rounds, "peaks": peaks,
              "seconds": clock.passed(), "results": {}}
    for key in sorted({**records, **missing}, key=lambda k: (harness.DTYPES.index(k[0]), harness.EVERYONE.index(k[2]))):
        dtype, name, peer = key
        result = {"failed": missing[key]} if key in missing else digest(
            records[key], peaks, harness.multiplies(peer, dtype, tunings.get(key, ())))
        if key in tunings:
            result |= {"tuning": tunings[key], "search": searches[key]}
        report["results"].setdefault(dtype, {}).setdefault(name, {})[peer] = result
    text = markdown(report)
    harness.write(args.out, {**report, "records": [[*k, v] for k, v in records.items()]}, text, chart(report))


if __name__ == "__main__":
    main()
