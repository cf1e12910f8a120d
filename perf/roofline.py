"""Where a step's time goes under Terra, and how far each instruction is from what the machine can do.

    python perf/roofline.py --out roofline gpt2 --small --steps 100     # roofline.md, roofline.json

The program is one of perf/programs, what follows its options.

Steady steps only, of those the middle half by duration. Times are the executor's, from TERRA_TIMELINE; operations and bytes from the
shapes, as a plan's text has them (TERRA_DUMP). An instruction's roof is the longer of its operations at the FMA peak (products of
bfloat16 at theirs) and its bytes at the copy bandwidth, all measured here; what is lost is its time beyond that. Operations are those of
the sums that define an op: convolutions that find the same sums with fewer products (3x3 filters of float32) may beat their roof, and
so may small instructions, as what lies in caches moves faster than memory copies. Then nothing counts as lost. Gaps are times in which
the executor ran nothing."""

import argparse
import bisect
import collections
import json
import re
import tempfile
from pathlib import Path

import harness

INSTRUCTION = re.compile(r"\s*(\d+) (\w+)\s+\d+  (.+?)(?:  elides .*?)?(?:  weights at home .*?)?  (\S+) kFLOP, (?:(\S+) of them bf16, )?(\S+) kB(?:  (\S.*))?$")
SUMS = ("runs", "us", "flop", "flop_bf16", "bytes", "compute_us", "roof_us", "lost_us")
DISPATCH_US = 2.0
GAPS = {"dispatch": f"between instructions, under {DISPATCH_US:g} µs each", "waiting": "within a plan, waiting for Python",
        "between": "between plans"}


def read_plans(folder):
    """{(plan, instruction): what it is}."""
    found = {}
    for path in Path(folder).glob("plan-*.txt"):
        plan = int(path.stem.split("-")[1])
        for line in path.read_text().splitlines()[2:]:
            m = INSTRUCTION.match(line)
            if not m:
                raise SystemExit(f"{path.name}: not an instruction: {line}")
            index, kind, ops, kflop, kflop_bf16, kbytes, site = m.groups()
            found[plan, int(index)] = {"plan": plan, "instruction": int(index), "kind": kind, "ops": re.sub(r" @\d+", "", ops),
                                       "label": kind if kind != "op" else "op " + ops.split("[")[0], "flop": 1e3 * float(kflop),
                                       "flop_bf16": 1e3 * float(kflop_bf16 or 0), "bytes": 1e3 * float(kbytes), "site": site or ""}
    return found


def spans(timeline):
    """The executor's track as (start, end, key) without holes: keys are (plan, instruction), ("single", operator) or ("gap", why, what
    came next)."""
    events = sorted((e for e in timeline if e.get("ph") == "X" and e["tid"] == 1), key=lambda e: e["ts"])
    end, before = None, None
    for e in events:
        at = e.get("args")
        key = (at["plan"], at["instruction"]) if at else ("single", e["name"])
        if end is not None and e["ts"] > end:
            within = at and isinstance(before[0], int) and before[0] == key[0] and before[1] < key[1]
            why = "between" if not within else "dispatch" if e["ts"] - end < DISPATCH_US else "waiting"
            yield end, e["ts"], ("gap", why, key)
        start = e["ts"] if end is None else max(e["ts"], end)
        end, before = e["ts"] + e["dur"], key
        yield start, end, key


def begins(pieces, starts):
    """When the executor began with the steps that Python began at `starts`: Python is ahead, and reads a loss before the plan's last
    instructions have run."""
    runs, before = [], None
    for start, _, key in pieces:
        if key[0] == "gap":
            continue
        if before is None or before[0] != key[0] or key[1] <= before[1]:
            runs.append(start)
        before = key
    return [runs[i] for i in (bisect.bisect_left(runs, t) for t in starts) if i < len(runs)]


def middle_half(starts):
    """Windows (start, end) of the steps whose duration lies between the quartiles, in order."""
    steps = sorted(zip(starts, starts[1:]), key=lambda w: w[1] - w[0])
    return sorted(steps[len(steps) // 4: len(steps) - len(steps) // 4])


def shares(pieces, windows):
    """{key: (microseconds, runs) per window}; pieces and windows are sorted and do not overlap among themselves."""
    found, first = collections.defaultdict(lambda: [0.0, 0.0]), 0
    for start, end, key in pieces:
        while first < len(windows) and windows[first][1] <= start:
            first += 1
        for w in windows[first:]:
            if w[0] >= end:
                break
            inside = min(end, w[1]) - max(start, w[0])
            if inside > 0:
                found[key][0] += inside / len(windows)
                found[key][1] += inside / (end - start) / len(windows)
    return found


def account(plans, found, peaks, bandwidth):
    """Rows of instructions, dearest first; gaps by reason, with what came after most of each. Products of bfloat16 count against their
    own peak."""
    per_us = {dtype: 1 / peaks[harness.share(0, peaks, dtype)[1]] / 1e3 if peaks["fp32"] else 0.0 for dtype in harness.DTYPES}
    rows, gaps = [], {why: {"us": 0.0, "count": 0.0, "before": collections.Counter()} for why in GAPS}
    for key, (us, runs) in found.items():
        if key[0] == "gap":
            gap = gaps[key[1]]
            gap["us"] += us
            gap["count"] += runs
            gap["before"][key[2]] += us
            continue
        what = plans.get(key) or {"kind": "single", "label": "single", "ops": str(key[1]), "flop": 0.0, "flop_bf16": 0.0, "bytes": 0.0,
                                 "site": ""}
        flop, lower, size = runs * what["flop"], runs * what["flop_bf16"], runs * what["bytes"]
        compute = (flop - lower) * per_us["fp32"] + lower * per_us["bf16"]
        move = size / bandwidth / 1e3 if bandwidth else 0.0
        rows.append({**what, "runs": runs, "us": us, "flop": flop, "flop_bf16": lower, "bytes": size, "compute_us": compute,
                     "roof_us": max(compute, move),
                     "bound": "operations" if compute > move else "bytes", "lost_us": max(0.0, us - max(compute, move))})
    for gap in gaps.values():
        gap["before"] = [{"next": plans[k]["ops"].split("]")[0] + "]" if k in plans else str(k[1]), "us": us}
                         for k, us in gap["before"].most_common(3)]
    return sorted(rows, key=lambda r: -r["us"]), gaps


def total(rows):
    return {name: sum(r[name] for r in rows) for name in SUMS}


def by_label(rows):
    """One row per kind; single kernels, per operator."""
    kinds = collections.defaultdict(list)
    for r in rows:
        kinds[r["label"]].append(r)
    return sorted(({"label": label, "count": len(rs), **total(rs)} for label, rs in kinds.items()), key=lambda k: -k["us"])


def rate(amount, us, least_us):
    """Of something per microsecond, in units of thousands per microsecond; and the share of what is possible, which takes least_us."""
    r = amount / us / 1e3 if us else 0.0
    return f"{r:.1f}" + (f" ({100 * least_us / us:.0f} %)" if us and least_us is not None else "")


def figures(r, report):
    """Cells of a row: time, share, operations and bytes and their rates, roof, loss."""
    return [f"{r['us'] / 1e3:.3f}", f"{100 * r['us'] / report['step_us']:.1f} %", f"{r['flop'] / 1e6:.4g}",
            rate(r["flop"], r["us"], r["compute_us"] if report["peaks"]["fp32"] else None), f"{r['bytes'] / 1e6:.4g}",
            rate(r["bytes"], r["us"], r["bytes"] / report["bandwidth"] / 1e3 if report["bandwidth"] else None),
            f"{r['roof_us'] / 1e3:.3f}", f"{r['lost_us'] / 1e3:.3f}"]


def empty_handed(what, count, us, lost_us, report):
    """A row of what neither computes nor moves."""
    return harness.row(what, count, f"{us / 1e3:.3f}", f"{100 * us / report['step_us']:.1f} %", *[""] * 5, f"{lost_us / 1e3:.3f}")


def markdown(report, top):
    columns = ("ms", "of the step", "MFLOP", "GFLOP/s (of peak)", "MB", "GB/s (of copy)", "roof, ms", "lost, ms")
    instructions, gaps = report["instructions"], report["gaps"]
    busy = total(instructions)
    lines = [f"# Where the time goes: {report['program']}", "",
             f"{report['machine']}; {report['threads'] or 'all'} threads; FMA peak {harness.peaks_text(report['peaks'])}, copy "
             f"{report['bandwidth']} GB/s. Means of {report['windows']} steps, the middle half of {report['steps']}: "
             f"{report['step_us'] / 1e3:.3f} ms each, in {report['python_waits_us'] / 1e3:.3f} ms of which Python waited for a value.",
             "", "## By kind", "", harness.header("kind", "instructions", *columns)]
    lines += [harness.row(k["label"], k["count"], *figures(k, report)) for k in report["kinds"]]
    lines.append(harness.row("all", len(instructions), *figures(busy, report)))
    lines += [empty_handed(f"gap: {GAPS[why]}", f"{g['count']:.1f}", g["us"], g["us"], report) for why, g in gaps.items()]
    lines.append(empty_handed("**step**", "", report["sum_us"], busy["lost_us"] + sum(g["us"] for g in gaps.values()), report))
    before = [f"* Gaps {GAPS[why]}: " + "; ".join(f"before {b['next']} {b['us']:.1f} µs" for b in g["before"])
              for why, g in gaps.items() if g["before"]]
    lines += ["", *before, "", f"## The {min(top, len(instructions))} dearest instructions", "",
              harness.header("plan.instruction", "kind", "what", "bound by", *columns, "call")]
    for r in instructions[:top]:
        what = r["ops"] if len(r["ops"]) < 90 else r["ops"][:60] + " … " + r["ops"].rpartition("] ")[2]
        name = f"{r['plan']}.{r['instruction']}" if "plan" in r else "–"
        lines.append(harness.row(name, r["kind"], what, r["bound"], *figures(r, report), r["site"]))
    return "\n".join(lines) + "\n"


def run(args):
    """The program's record, its timeline, its plans."""
    python, reason = harness.interpreter("Terra")
    if reason:
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as folder:
        line, _ = harness.command(python, "Terra", args.program, args.arguments)
        timeline = Path(folder) / "timeline.json"
        record = harness.run(line, {"TERRA_TIMELINE": str(timeline), "TERRA_DUMP": folder}, args.threads, args.timeout, executors=1)
        if isinstance(record, str):
            raise SystemExit(record)
        return record, json.loads(timeline.read_text())["traceEvents"], read_plans(folder)


def python_waits(events, windows):
    """Microseconds per step."""
    waits = ((e["ts"], e["ts"] + e["dur"], "waits") for e in events
             if e.get("ph") == "X" and e["tid"] == 0 and e["name"] == "waits for a value")
    return shares(waits, windows)["waits"][0]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=0, help="0: as Terra finds right")
    p.add_argument("--top", type=int, default=20, help="so many instructions by themselves; the JSON file has all")
    p.add_argument("--timeout", type=float, default=900.0)
    p.add_argument("--out", help="write <out>.md and <out>.json")
    p.add_argument("program", choices=sorted({program for program, _, _ in harness.PROGRAMS.values()}))
    p.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's")
    args = p.parse_args()
    measured = [(harness.fma_peaks(args.threads), harness.copy_bandwidth(args.threads))]
    record, events, plans = run(args)
    measured.append((harness.fma_peaks(args.threads), harness.copy_bandwidth(args.threads)))
    peaks, bandwidth = harness.best_peaks([m[0] for m in measured]), max(filter(None, (m[1] for m in measured)), default=None)
    pieces = list(spans(events))
    windows = middle_half(begins(pieces, record["starts_us"]))
    if not windows:
        raise SystemExit("at least two steps behind the warm-up are needed")
    rows, gaps = account(plans, shares(pieces, windows), peaks, bandwidth)
    if not rows:
        raise SystemExit("the timeline has none of these steps: it is bounded, so take fewer")
    report = {"program": " ".join([args.program, *args.arguments]), "machine": harness.machine(), "threads": args.threads,
              "ran_with": record["ran_with"], "gflop": record["gflop"], "peaks": peaks, "bandwidth": bandwidth,
              "steps": len(record["starts_us"]) - 1, "windows": len(windows),
              "step_us": sum(b - a for a, b in windows) / len(windows), "python_waits_us": python_waits(events, windows),
              "sum_us": sum(r["us"] for r in rows) + sum(g["us"] for g in gaps.values()), "kinds": by_label(rows), "gaps": gaps,
              "instructions": rows}
    harness.write(args.out, report, markdown(report, args.top))


if __name__ == "__main__":
    main()
