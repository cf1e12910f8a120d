"""What compare.py, scaling.py and roofline.py share: programs and who runs them, a process per run, what the machine can do, reports."""

import functools
import importlib.util
import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
JAX_VENV = HERE.parent / ".venv-perf"

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
    "ResNet-18, 4x3x64x64": ("resnet", ["--depth", "18", "--size", "64", "--batch", "4", "--warmup", "5"], True),
}
# Branches for several executors to share; besides the others, in scaling.py.
BRANCHES = {"Experts, 8x3x256, 64": ("experts", [], False)}
QUICK_BRANCHES = {"Experts, 8x3x128, 64": ("experts", ["--width", "128", "--steps", "200"], False)}
DTYPES = ("fp32", "bf16")
PEERS = ("torch eager", "torch.compile", "tuned torch", "tuned torch.compile", "JAX jit")
TERRAS = ("Terra", "tuned Terra")
EVERYONE = (*PEERS, *TERRAS)
COLOURS = dict(zip(EVERYONE, ("#b9c4cf", "#93a3b3", "#6d8296", "#4a6178", "#c9a66b", "#c8452f", "#9a2f1e")))

# What tuning consists of: name -> arguments, environment, for convolutions only.
KEEPING_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_TOP_PAD_": "67108864"}
TUNING = {
    "precision medium": (["--precision", "medium"], {}, False),
    "fused optimizer": (["--fused"], {}, False),
    "channels last": (["--channels-last"], {}, True),
    "malloc keeps memory": ([], KEEPING_MALLOC, False),
}
TERRAS_TUNING = ("precision medium",)  # the rest does nothing to Terra


def tunings(peer, convolutions):
    """All combinations, everything first, nothing last."""
    names = [n for n, (_, _, for_convolutions) in TUNING.items()
             if (n in TERRAS_TUNING if peer in TERRAS else convolutions or not for_convolutions)]
    return [c for k in range(len(names), -1, -1) for c in itertools.combinations(names, k)]


def install_jax():
    """Makes .venv-perf, with JAX in it. Quick the second time."""
    for line in ([sys.executable, "-m", "venv", str(JAX_VENV)],
                 [str(JAX_VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                  "-r", str(HERE / "peers" / "requirements.txt")]):
        if subprocess.run(line).returncode:
            raise SystemExit(f"{JAX_VENV} could not be made: {' '.join(line)}")


def interpreter(peer, jax_python=None):
    """(the interpreter for a peer, None) or (None, why there is none)."""
    if peer in TERRAS:
        return (sys.executable, None) if importlib.util.find_spec("terra") else (None, f"no terra for {sys.executable}")
    if peer != "JAX jit":
        return (sys.executable, None) if importlib.util.find_spec("torch") else (None, f"no torch for {sys.executable}")
    if jax_python:
        return jax_python, None
    if (JAX_VENV / "bin" / "python").exists():
        return str(JAX_VENV / "bin" / "python"), None
    if importlib.util.find_spec("jax"):
        return sys.executable, None
    return None, "no JAX here; perf/compare.py --install makes an environment that has it"


def command(python, peer, program, args, tuning=()):
    """A run's command line, what it adds to the environment."""
    args, env = list(args), {}
    for name in tuning:
        args += TUNING[name][0]
        env |= TUNING[name][1]
    if peer.endswith("compile"):
        args.append("--compile")
    folder = "peers" if peer == "JAX jit" else "programs"
    return [python, *(["-m", "terra"] if peer in TERRAS else []), str(HERE / folder / f"{program}.py"), *args], env


def run(line, env, threads, timeout, executors=0):
    """One process: its record, or what went wrong. threads: for its parallel loops, of each of Terra's executors; 0: as it finds right."""
    if threads:
        env = {**env, **{name: str(threads) for name in ("OMP_NUM_THREADS", "TERRA_THREADS", "NPROC")}}
    if executors:
        env = {**env, "TERRA_EXECUTORS": str(executors)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.json"
        # A session of its own: what it starts ends with it.
        try:
            process = subprocess.Popen([*line, "--json", str(out)], env={**os.environ, **env}, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True)
        except OSError as error:
            return f"{line[0]}: {error.strerror}"
        try:
            errors = process.communicate(timeout=timeout)[1]
        except subprocess.TimeoutExpired:
            return f"no end within {timeout:.0f} s"
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        if process.returncode:
            return (errors.strip().splitlines() or [f"exit status {process.returncode}, no message"])[-1][:200]
        return json.loads(out.read_text())


def outcome(record):
    return record if isinstance(record, str) else f"{record['median_ms']:.3f} ms"


def measure(what, threads, *args):
    """A number that a program <what>.c of this folder prints; None if it prints none, and without a C compiler."""
    cc = shutil.which("cc") or shutil.which("gcc")
    if cc is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / what
        if subprocess.run([cc, "-O3", "-march=native", "-fopenmp", str(HERE / f"{what}.c"), "-o", str(binary)]).returncode:
            return None
        env = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
        printed = subprocess.run([str(binary), *args], env=env, capture_output=True, text=True, check=True).stdout
        return float(printed) if printed else None


def fma_peaks(threads):
    """{dtype: GFLOP/s that the cores reach in registers}; of bfloat16 None where there are no instructions for it."""
    return {dtype: measure("fma_peak", threads, dtype) for dtype in DTYPES}


def best_peaks(measured):
    return {dtype: max(filter(None, (m[dtype] for m in measured)), default=None) for dtype in DTYPES}


def multiplies(peer, dtype, tuning=()):
    """The dtype of a run's products: under "medium", Terra's and torch's are in bfloat16 where they have kernels for it."""
    flags = processor().get("flags", "").split()
    medium = "precision medium" in tuning and ("amx_bf16" in flags or ("avx512_bf16" in flags and peer in TERRAS))
    return "bf16" if dtype == "bf16" or medium else "fp32"


def share(rate, peaks, dtype):
    """(of the peak, whose peak it is): that of float32 for bfloat16 without instructions for it."""
    dtype = dtype if peaks[dtype] else "fp32"
    return (rate / peaks[dtype] if peaks[dtype] else None), dtype


def share_cell(part, dtype):
    return f"{100 * part:.0f} % of {dtype}" if part else ""


def peaks_text(peaks):
    known = [f"{peaks[dtype]:.0f} GFLOP/s of {dtype}" for dtype in DTYPES if peaks[dtype]]
    return ", ".join(known) or "unknown (no C compiler)"


def copy_bandwidth(threads):
    """GB/s that are read and written when memory is copied."""
    return measure("copy_bandwidth", threads)


def usable_cpus():
    return len(os.sched_getaffinity(0))


@functools.cache
def processor():
    """What the system says of the first CPU."""
    with open("/proc/cpuinfo") as f:
        info = dict(line.split(":", 1) for line in f.read().split("\n\n")[0].splitlines() if ":" in line)
    return {k.strip(): v.strip() for k, v in info.items()}


def machine():
    """Processor, instruction sets that matter here, CPUs, memory, system."""
    info = processor()
    flags = info.get("flags", "").split()
    sets = [n for n in ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16") if n in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (f"{info.get('model name', platform.machine())} (family {info.get('cpu family', '?')}, model {info.get('model', '?')}; "
            f"{' '.join(sets) or 'no AVX2'}), {usable_cpus()} CPUs usable, {memory:.0f} GiB, {platform.system()} {platform.release()}")


def chosen(quick, names, branches=False):
    """The programs whose name contains one of these; all, where none are given. A name of none ends it all."""
    programs = QUICK if quick else PROGRAMS
    if branches:
        programs = programs | (QUICK_BRANCHES if quick else BRANCHES)
    for s in names or ():
        if not any(s.lower() in n.lower() for n in programs):
            raise SystemExit(f"no program is called {s!r}; there are: " + "; ".join(programs))
    return {n: p for n, p in programs.items() if not names or any(s.lower() in n.lower() for s in names)}


def row(*cells):
    return "| " + " | ".join(str(c) for c in cells) + " |"


def header(*cells):
    return row(*cells) + "\n" + row(*["---"] * len(cells))


def svg(width, height, parts):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">'
            f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n')


def text(x, y, words, **attributes):
    more = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in attributes.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{str(words).replace("&", "&amp;").replace("<", "&lt;")}</text>'


def write(out, report, markdown, chart=None):
    """Prints the report; with `out`, also <out>.md, .json and .svg."""
    print(markdown)
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        for ending, contents in (("md", markdown), ("json", json.dumps(report, indent=1)), ("svg", chart)):
            if contents:
                Path(f"{out}.{ending}").write_text(contents)
