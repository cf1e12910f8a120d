"""Public programs, unmodified, under torch and under Terra with the same seed: what they print is the same.

Their sources are not in this repository. TERRA_PROGRAMS names a folder with checkouts, each in a subfolder owner+name; a program
whose checkout is absent is skipped.

Numbers are compared within a tolerance that the program's own sensitivity sets, times of day not at all. Where a program
samples its actions, or multiplies rounding (a learning rate of 20), courses part after a while in torch itself, between
instruction sets: there, the numbers before are compared (`lines`: it is stopped behind them; `alike`: it runs to its end), or a
smaller rate is given on the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = os.environ.get("TERRA_PROGRAMS")
BERT = "codertimo+BERT-pytorch"
LM = ["--data", "{data}/lm", "--epochs", "1", "--emsize", "32", "--nhid", "32", "--nlayers", "1", "--log-interval", "5", "--lr", "0.5"]
PROGRAMS = {
    "minGPT": dict(checkout="karpathy+minGPT", path=".", run=["projects/adder/adder.py", "--trainer.max_iters=60"], tolerance=1e-4),
    # Behind line 110 a ReLU may turn: of six runs of torch whose weights differ by an ulp, one parts from the others by 4e-2.
    "dynamic_net": dict(checkout="jcjohnson+pytorch-examples", run=["nn/dynamic_net.py"], tolerance=1e-4, alike=100),
    "word_language_model": dict(checkout="pytorch+examples", run=["word_language_model/main.py", *LM], tolerance=2e-3),
    "word_language_model, GRU": dict(checkout="pytorch+examples", run=["word_language_model/main.py", *LM, "--model", "GRU"],
                                     tolerance=2e-3),
    "word_language_model, Transformer": dict(
        checkout="pytorch+examples", run=["word_language_model/main.py", *LM, "--model", "Transformer", "--nhead", "2"], tolerance=2e-3),
    "actor_critic": dict(checkout="pytorch+examples", run=["reinforcement_learning/actor_critic.py"], tolerance=1e-4, lines=12,
                         needs="gymnasium"),
    "BERT": dict(checkout=BERT, path=".", entry="bert_pytorch.__main__:train", tolerance=1e-4,
                 run="-c {data}/bert/corpus.small -v vocab.small -o bert.model -hs 32 -l 2 -a 2 -s 20 -b 16 -e 1 -w 0 --with_cuda "
                     "False".split(),
                 first=("bert_pytorch.dataset.vocab:build", "-c {data}/bert/corpus.small -o vocab.small".split())),
    "TCN": dict(checkout="locuslab+TCN", path=".", cwd="TCN/poly_music", tolerance=1e-3,
                run="music_test.py --cuda --data JSB --epochs 1 --nhid 32 --levels 2".split(),
                env={"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}),
}
TIMES = re.compile(r"iter_dt \S+|ms/batch +\S+|time: +\S+")
NUMBER = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:e[-+]?\d+)?", re.I)

# As `python -m terra --seed 3`, for torch.
SEEDED = """import random, sys, os, numpy, torch
random.seed(3); numpy.random.seed(3); torch.manual_seed(3)
sys.argv = sys.argv[1:]; path = sys.argv[0]; sys.path[0] = os.path.dirname(os.path.abspath(path))
module = type(sys)("__main__"); module.__file__ = path; sys.modules["__main__"] = module
exec(compile(open(path).read(), path, "exec"), module.__dict__)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The text that ships with Python, as a corpus of lines and as pairs of sentences."""
    from pydoc_data import topics

    folder = tmp_path_factory.mktemp("data")
    lines = [line.strip() for line in "\n".join(topics.topics.values()).split("\n") if line.strip()]
    (folder / "lm").mkdir()
    (folder / "bert").mkdir()
    for name, (first, last) in dict(train=(0, 3000), valid=(3000, 3300), test=(3300, 3600)).items():
        (folder / "lm" / f"{name}.txt").write_text("\n".join(lines[first:last]) + "\n")
    pairs = zip(lines[:600:2], lines[1:600:2])
    (folder / "bert" / "corpus.small").write_text("\n".join("\t".join(p) for p in pairs) + "\n")
    return folder


def entry(folder, name):
    """A console script, as pip would write it."""
    module, function = name.split(":")
    script = folder / (function + ".py")
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    return str(script)


def output(tmp_path, program, under, data):
    """The lines that it prints."""
    checkout = Path(FOLDER) / program["checkout"]
    work = tmp_path / under
    if "cwd" in program:  # it reads files beside it, and writes there: work on a copy
        import shutil

        shutil.copytree(checkout, work)
        checkout, cwd = work, work / program["cwd"]
    else:
        work.mkdir()
        cwd = work
    seeded = tmp_path / f"seeded-{under}.py"
    seeded.write_text(SEEDED)
    launcher = ["-m", "terra", "--seed", "3"] if under == "terra" else [str(seeded)]
    path = [os.environ.get("PYTHONPATH", "")] + ([str(checkout / program["path"])] if "path" in program else [])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in path if p), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1",
           "PYTHONUNBUFFERED": "1", **program.get("env", {})}

    def command(args):
        args = [a.format(data=data) for a in args]
        return [sys.executable, *launcher, *args]

    if "first" in program:
        name, args = program["first"]
        subprocess.run(command([entry(work, name), *args]), cwd=cwd, env=env, check=True, capture_output=True, timeout=300)
    if "entry" in program:
        args = [entry(work, program["entry"]), *program["run"]]
    elif "cwd" in program:
        args = program["run"]
    else:
        args = [str(checkout / program["run"][0]), *program["run"][1:]]
    errors = open(tmp_path / f"errors-{under}", "w+")
    process = subprocess.Popen(command(args), cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if len(lines) == program.get("lines"):
            process.kill()
    process.stdout.close()
    code = process.wait(timeout=300)
    errors.seek(0)
    assert code == 0 or len(lines) == program.get("lines"), errors.read()[-3000:]
    return lines


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(tmp_path, name, data):
    program = PROGRAMS[name]
    if not FOLDER:
        pytest.skip("TERRA_PROGRAMS does not name a folder with checkouts (owner+name)")
    if not (Path(FOLDER) / program["checkout"]).is_dir():
        pytest.skip(f"no checkout {program['checkout']} in TERRA_PROGRAMS")
    if "needs" in program:
        pytest.importorskip(program["needs"])
    want, have = (output(tmp_path, program, under, data) for under in ("torch", "terra"))
    assert len(have) == len(want)
    worst = 0.0
    for i, (a, b) in enumerate(zip(want, have)):
        a, b = TIMES.sub("", a), TIMES.sub("", b)
        assert NUMBER.sub("#", a) == NUMBER.sub("#", b)
        if i >= program.get("alike", len(want)):
            continue
        for x, y in zip(map(float, NUMBER.findall(a)), map(float, NUMBER.findall(b))):
            worst = max(worst, abs(x - y) / max(abs(x), 1.0))
    print(f"\n{name}: {len(want)} lines, numbers within {worst:.1e}")
    assert worst < program["tolerance"]
