"""The programs that perf/ measures, made small: the same losses under torch and under Terra."""

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
