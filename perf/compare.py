"""Terra against its peers on the programs in perf/programs: a process for each run, rounds interleaved.

    python perf/compare.py --out report            # report.md, report.json, report.svg; half an hour and more
    python perf/compare.py --quick                 # smaller programs, fewer peers: three minutes

Run it with an interpreter that has torch (and, for JAX, jax); Terra must be importable, by installation or PYTHONPATH. The figures mean
something on a quiet machine only: each row says how far its runs lay apart."""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_TOP_PAD_": "67108864"}

# name -> program, its arguments, whether it is made of convolutions
PROGRAMS = {
    "ResNet-50, 8x3x128x128": ("resnet", ["--depth", "50"], True),
    "ResNet-18, 8x3x128x128": ("resnet", ["--depth", "18"], True),
    "BERT, 6x768, 8x128": ("bert_qa", [], False),
    "GPT-2, 6x512, 4x256": ("gpt2", [], False),
    "GPT-2, 2x128, 4x64": ("gpt2", ["--small", "--steps", "200"], False),
    "MLP, 3x64, 16": ("mlp", [], False),
}
QUICK = {
    "MLP, 3x64, 16": ("mlp", ["--steps", "1000"], False),
    "GPT-2, 2x128, 4x64": ("gpt2", ["--small", "--steps", "100"], False),
    "ResNet-18, 4x3x64x64": ("resnet", ["--depth", "18", "--size", "64", "--batch", "4"], True),
}
QUICK_SECONDS = 170  # no run begins later, or lasts longer
PEERS = ("torch eager", "torch.compile", "tuned torch", "tuned torch.compile", "JAX jit")


def command(peer, program, args, convolutions):
    """The run's command line, what it adds to the environment; None where there is no such peer here."""
    script = HERE / "programs" / f"{program}.py"
    env = {}
    if peer == "JAX jit":
        script = HERE / "peers" / f"{program}.py"
        if importlib.util.find_spec("jax") is None or not script.exists():
            return None
    if peer.startswith("tuned"):
        args = [*args, "--precision", "medium", "--fused", *(["--channels-last"] if convolutions else [])]
        env = MALLOC
    if peer.endswith("compile"):
        args = [*args, "--compile"]
    launcher = ["-m", "terra"] if peer == "Terra" else []
    return [sys.executable, *launcher, str(script), *args], env


def run(line, env, threads, timeout):
    """One process: its record, or what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.json"
        if threads:
            env = {**env, "OMP_NUM_THREADS": str(threads), "TERRA_THREADS": str(threads)}
        try:
            done = subprocess.run([*line, "--json", str(out)], env={**os.environ, **env}, capture_output=True, text=True, timeout=timeout,
                                  cwd=folder)
        except subprocess.TimeoutExpired:
            return f"no end within {timeout:.0f} s"
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
        return json.loads(out.read_text())


def fma_peak(threads):
    """GFLOP/s of float32 that the cores reach in registers; None without a C compiler."""
    cc = shutil.which("cc") or shutil.which("gcc")
    if cc is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "fma_peak"
        if subprocess.run([cc, "-O3", "-march=native", "-fopenmp", str(HERE / "fma_peak.c"), "-o", str(binary)]).returncode:
            return None
        env = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
        return float(subprocess.run([str(binary)], env=env, capture_output=True, text=True, check=True).stdout)


def digest(records, peak):
    """A row of the report from the runs of one program by one peer."""
    good = [r for r in records if isinstance(r, dict)]
    if not good:
        return {"failed": records[0] if records else "not run"}
    median = {k: statistics.median(r[k] for r in good) for k in
              ("median_ms", "cpu_s_per_step", "peak_rss_mib", "first_step_s", "tenth_step_s", "gflop")}
    rate = median["gflop"] / median["median_ms"] * 1e3
    return {**median, "runs": len(good), "low_ms": min(r["median_ms"] for r in good), "high_ms": max(r["median_ms"] for r in good),
            "gflops": rate, "share_of_peak": rate / peak if peak else None, "last_loss": good[-1]["losses"][-1],
            "failures": [r for r in records if isinstance(r, str)]}


def best_peer(rows):
    peers = {p: r["median_ms"] for p, r in rows.items() if p != "Terra" and "median_ms" in r}
    return min(peers, key=peers.get) if peers else None


def markdown(report):
    lines = [f"{report['machine']}; {report['threads'] or 'all'} threads; {report['rounds']} rounds interleaved; FMA peak "
             + (f"{report['peak']:.0f} GFLOP/s, measured between the rounds." if report["peak"] else "unknown (no C compiler).")]
    for name, rows in report["programs"].items():
        best = best_peer(rows)
        lines += ["", f"## {name}", "", "| | ms/step | runs from–to | against the best peer | GFLOP/s | of the peak | first / tenth step, s | "
                  "CPU ms/step | peak MiB |", "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
        for peer, r in rows.items():
            if "failed" in r:
                lines.append(f"| {peer} | {r['failed']} | | | | | | | |")
                continue
            ratio = f"{r['median_ms'] / rows[best]['median_ms']:.2f}" if best else ""
            share = f"{100 * r['share_of_peak']:.0f} %" if r["share_of_peak"] else ""
            name_of = f"**{peer}**" if peer == "Terra" else peer
            lines.append(f"| {name_of} | {r['median_ms']:.3g} | {r['low_ms']:.3g}–{r['high_ms']:.3g} | {ratio} | {r['gflops']:.1f} | "
                         f"{share} | {r['first_step_s']:.1f} / {r['tenth_step_s']:.1f} | {1e3 * r['cpu_s_per_step']:.3g} | "
                         f"{r['peak_rss_mib']:.0f} |")
    return "\n".join(lines) + "\n"


def svg(report):
    """Bars: each peer's time per step as a share of the slowest in its program."""
    colours = {"torch eager": "#b9c4cf", "torch.compile": "#93a3b3", "tuned torch": "#6d8296", "tuned torch.compile": "#4a6178",
               "JAX jit": "#c9a66b", "Terra": "#c8452f"}
    y, parts = 20, []
    for name, rows in report["programs"].items():
        rows = {p: r for p, r in rows.items() if "median_ms" in r}
        if not rows:
            continue
        top = max(r["median_ms"] for r in rows.values())
        parts.append(f'<text x="10" y="{y}" font-weight="bold">{name}</text>')
        for peer, r in rows.items():
            y += 18
            width = 360 * r["median_ms"] / top
            parts.append(f'<text x="150" y="{y}" text-anchor="end">{peer}</text><rect x="158" y="{y - 11}" width="{width:.1f}" height="13" '
                         f'fill="{colours[peer]}"/><text x="{164 + width:.1f}" y="{y}">{r["median_ms"]:.3g} ms</text>')
        y += 32
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="620" height="{y}" font-family="sans-serif" font-size="12">'
            f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--programs", nargs="*", help="those whose name contains one of these")
    p.add_argument("--peers", nargs="*", help="of: " + ", ".join(PEERS))
    p.add_argument("--threads", type=int, default=0, help="for all alike; 0: as each finds right")
    p.add_argument("--seconds", type=float, default=20.0, help="of timed steps per run at most")
    p.add_argument("--timeout", type=float, default=900.0, help="seconds for a run, compilation included")
    p.add_argument("--out", help="write <out>.md, <out>.json and <out>.svg")
    p.add_argument("--quick", action="store_true", help="small programs, two rounds, torch.compile for the MLP only: three minutes")
    args = p.parse_args()
    if args.quick:
        args.rounds, args.seconds, args.timeout = 2, min(args.seconds, 3.0), min(args.timeout, 40.0)
    jobs = {}
    for name, (program, arguments, convolutions) in (QUICK if args.quick else PROGRAMS).items():
        if args.programs and not any(s.lower() in name.lower() for s in args.programs):
            continue
        for peer in (*(args.peers or PEERS), "Terra"):
            if args.quick and peer.endswith("compile") and program != "mlp":
                continue
            job = command(peer, program, [*arguments, "--seconds", str(args.seconds)], convolutions)
            if job:
                jobs[name, peer] = job
    if args.quick:  # what takes long last, lest no time is left for the others
        jobs = dict(sorted(jobs.items(), key=lambda job: job[0][1].endswith("compile")))
    records = {key: [] for key in jobs}
    peaks, began = [], time.monotonic()
    for r in range(args.rounds):
        peaks.append(fma_peak(args.threads))
        for (name, peer), (line, env) in list(jobs.items())[:: 1 if r % 2 == 0 or args.quick else -1]:  # there and back, against drift
            left = QUICK_SECONDS - (time.monotonic() - began) if args.quick else args.timeout
            record = run(line, env, args.threads, min(left, args.timeout)) if left > 5 else "no time left"
            records[name, peer].append(record)
            print(f"[{time.monotonic() - began:5.0f} s] round {r + 1}, {name}, {peer}: "
                  + (record if isinstance(record, str) else f"{record['median_ms']:.3f} ms"), file=sys.stderr)
    peak = max(filter(None, peaks), default=None)
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    report = {"machine": f"{cpu}, {len(os.sched_getaffinity(0))} CPUs usable, {platform.system()} {platform.release()}",
              "threads": args.threads, "rounds": args.rounds, "quick": args.quick, "peak": peak, "programs": {}}
    for name, peer in sorted(jobs, key=lambda job: job[1] == "Terra"):
        report["programs"].setdefault(name, {})[peer] = digest(records[name, peer], peak)
    text = markdown(report)
    print(text)
    if args.out:
        Path(args.out + ".md").write_text(text)
        Path(args.out + ".json").write_text(json.dumps({**report, "records": [[*k, v] for k, v in records.items()]}, indent=1))
        Path(args.out + ".svg").write_text(svg(report))


if __name__ == "__main__":
    main()
