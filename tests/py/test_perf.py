"""The programs that perf/ measures, made small: the same losses under torch, under Terra and in JAX; the scripts that measure them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAMS = Path(__file__).parents[2] / "perf" / "programs"
SMALL = {
    "mlp": ["--steps", "100", "--warmup", "10"],
    "experts": "--width 16 --experts 3 --steps 50 --warmup 10".split(),
    "gpt2": ["--small", "--steps", "10", "--warmup", "5"],
    "bert_qa": "--width 32 --heads 4 --layers 2 --vocabulary 100 --length 16 --steps 10 --warmup 5".split(),
    # Batch norm over few pixels, with ReLU, multiplies rounding in torch itself too: of 4 images of 32x32 the last layers have one
    # pixel each, and one ulp in one weight moves torch's next loss by 1e-3.
    "resnet": "--depth 18 --size 64 --batch 8 --classes 10 --steps 1 --warmup 1".split(),
}


@pytest.mark.parametrize("name", SMALL)
def test_same_losses(tmp_path, name):
    found = {}
    for under, launcher in (("torch", []), ("terra", ["-m", "terra"])):
        out = tmp_path / f"{under}.json"
        subprocess.run([sys.executable, *launcher, str(PROGRAMS / f"{name}.py"), *SMALL[name], "--json", str(out)], check=True,
                       stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
        found[under] = json.loads(out.read_text())
    np.testing.assert_allclose(found["terra"]["losses"], found["torch"]["losses"], rtol=1e-3 if name == "resnet" else 1e-5)
    assert found["terra"]["gflop"] == found["torch"]["gflop"]
    assert found["terra"]["runtime"] == "terra" and found["terra"]["median_ms"] > 0


# ------------------------------------------------------------------------------------------------ the scripts

PERF = PROGRAMS.parent
sys.path.append(str(PERF))
import harness  # noqa: E402


def report(tmp_path, script, *args):
    out = tmp_path / "report"
    subprocess.run([sys.executable, str(PERF / f"{script}.py"), "--out", str(out), *args], check=True, stdout=subprocess.DEVNULL,
                   timeout=120)
    assert out.with_suffix(".md").read_text()
    return json.loads(out.with_suffix(".json").read_text())


def test_compare(tmp_path):
    made = report(tmp_path, "compare", "--quick", "--programs", "mlp", "--dtypes", "fp32", "--peers", "JAX jit", "--jax-python", "/nowhere",
                  "--seconds", "0.1")
    (rows,) = made["results"]["fp32"].values()
    assert rows["Terra"]["median_ms"] > 0 and rows["Terra"]["first_compiled"] and rows["Terra"]["ran_with"]["terra"]
    assert rows["tuned Terra"]["median_ms"] > 0 and rows["tuned Terra"]["tuning"] == ["precision medium"]
    assert rows["Terra"]["peak_of"] == "fp32" and rows["Terra"]["share_of_peak"] > 0
    assert "--precision" not in rows["Terra"]["ran_with"]["arguments"]
    assert "/nowhere" in rows["JAX jit"]["failed"]


def test_best_peer_and_both_ratios():
    import compare

    rows = {"torch eager": {"median_ms": 4.0}, "JAX jit": {"failed": "not here"}, "Terra": {"median_ms": 3.0}, "tuned Terra": {"median_ms": 2.0}}
    assert list(compare.against_best({"fp32": {"MLP": rows}}))[-1] == "| MLP, fp32 | torch eager | 4 | 0.75 | 0.50 |"
    del rows["torch eager"]
    assert list(compare.against_best({"fp32": {"MLP": rows}}))[-1] == "| MLP, fp32 | none |  | – | – |"


def test_whose_peak_a_row_is_measured_by(monkeypatch):
    medium, amx = ("precision medium",), {"flags": "avx512_bf16 amx_bf16"}
    for flags, torchs, terras in (({"flags": "avx2"}, "fp32", "fp32"), ({"flags": "avx512_bf16"}, "fp32", "bf16"), (amx, "bf16", "bf16")):
        monkeypatch.setattr(harness, "processor", lambda flags=flags: flags)
        assert harness.multiplies("tuned torch", "fp32", medium) == torchs and harness.multiplies("tuned Terra", "fp32", medium) == terras
        assert harness.multiplies("Terra", "fp32") == "fp32" and harness.multiplies("JAX jit", "bf16") == "bf16"
    assert harness.share(50, {"fp32": 100, "bf16": 200}, "bf16") == (0.25, "bf16")
    assert harness.share(50, {"fp32": 100, "bf16": None}, "bf16") == (0.5, "fp32")
    assert harness.share(50, {"fp32": None, "bf16": None}, "bf16") == (None, "fp32")


def test_what_tuning_consists_of():
    assert harness.tunings("tuned Terra", True) == [("precision medium",), ()]
    assert len(harness.tunings("tuned torch", True)) == 16 and len(harness.tunings("tuned torch.compile", False)) == 8


@pytest.mark.parametrize("script", ["compare", "scaling"])
def test_a_program_that_there_is_none_of(tmp_path, script):
    ran = subprocess.run([sys.executable, str(PERF / f"{script}.py"), "--out", str(tmp_path / "report"), "--quick", "--programs", "mlp", "llama"],
                         capture_output=True, text=True, timeout=60)
    assert ran.returncode and "'llama'" in ran.stderr and all(n in ran.stderr for n in harness.QUICK)
    assert not list(tmp_path.iterdir())


def test_agreement():
    line = [sys.executable, str(PERF / "agreement.py"), "--programs", "MLP", "--dtypes", "fp32", "--steps", "5"]
    out = subprocess.run(line, check=True, capture_output=True, text=True, timeout=300).stdout
    assert out.splitlines()[-1].endswith("| 1e-04 | ok |"), out


def test_how_many_steps_are_within_the_limit():
    import agreement

    assert agreement.steps_within(agreement.apart([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), 1e-4) == 3
    assert agreement.steps_within(agreement.apart([1.0, 2.1, 3.0], [1.0, 2.0, 3.0]), 1e-4) == 1
    assert agreement.steps_within(agreement.apart([float("nan")], [1.0]), 1e-4) == 0


def test_scaling(tmp_path):
    made = report(tmp_path, "scaling", "--quick", "--programs", "mlp", "--threads", "2", "--seconds", "0.1")
    assert [s["dtype"] for s in made["series"]] == list(harness.DTYPES)
    for s in made["series"]:
        one, two, shared = s["rows"]
        assert [(r["executors"], r["threads"]) for r in s["rows"]] == [(1, 1), (1, 2), (2, 2)] and shared["median_ms"] > 0
        assert one["speedup"] == one["efficiency"] == 1
        assert two["speedup"] == one["median_ms"] / two["median_ms"] and two["efficiency"] == two["speedup"] / 2
    chart = (tmp_path / "report.svg").read_text()
    assert chart.count("stroke-dasharray") == 1 and chart.count("<circle") == 6 and chart.count('fill="white"') >= 2 and "ideal" in chart


def test_scaling_without_a_run_of_one_thread():
    import scaling

    rows = scaling.curve({(1, 2): 4.0, (2, 4): 2.0})
    assert [r["speedup"] for r in rows] == [None, None] and scaling.speedup_cells(rows[0]) == ["–", "–"]
    report = {"threads": [1, 2, 4], "series": [{"program": "MLP", "dtype": "fp32", "rows": rows}]}
    assert "MLP" not in scaling.chart(report)
    assert scaling.thread_counts(48) == [*range(1, 9), 16, 32, 48]


@pytest.mark.parametrize("dtype", harness.DTYPES)
def test_roofline(tmp_path, dtype):
    made = report(tmp_path, "roofline", "gpt2", *SMALL["gpt2"], "--dtype", dtype)
    np.testing.assert_allclose(made["sum_us"], made["step_us"], rtol=1e-6)
    flop = sum(r["flop"] for r in made["instructions"])
    assert 1 < flop / made["gflop"] / 1e9 < 1.03  # what is not a product adds little
    lower = sum(r["flop_bf16"] for r in made["instructions"])
    np.testing.assert_allclose(lower, made["gflop"] * 1e9 if dtype == "bf16" else 0, rtol=0.01)


@pytest.mark.parametrize("name", [n for n in SMALL if n != "experts"])  # which only scaling.py runs
def test_same_losses_as_jax(tmp_path, name):
    python, reason = harness.interpreter("JAX jit")
    if reason:
        pytest.skip(reason)
    found = []
    for line in ([sys.executable, "-m", "terra", str(PROGRAMS / f"{name}.py")], [python, str(PERF / "peers" / f"{name}.py")]):
        no_dropout = ["--dropout", "0"] if name in ("gpt2", "bert_qa") else []
        files = ["--weights", str(tmp_path / "weights.npz"), "--json", str(tmp_path / "out.json")]
        subprocess.run([*line, *SMALL[name], *no_dropout, *files], check=True, stdout=subprocess.DEVNULL, timeout=300)
        found.append(json.loads((tmp_path / "out.json").read_text()))
    np.testing.assert_allclose(found[1]["losses"], found[0]["losses"], rtol=3e-3 if name == "resnet" else 1e-5)
    assert found[1]["gflop"] == found[0]["gflop"]
