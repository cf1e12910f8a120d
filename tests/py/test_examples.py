"""The same script under torch and under Terra, same seed: the same course. And Terra's own modes with each other."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "digits": ["--steps", "{steps}", "--epochs", "20"],
    "char_gpt": ["--steps", "{steps}", "--sample", "0", "--layers", "2", "--width", "64", "--context", "32", "--batch", "8"],
}


def losses(tmp_path, name, steps, under, **env):
    out = tmp_path / f"{name}-{under}-{'-'.join(env.values())}.npy"
    launcher = ["-m", "terra"] if under == "terra" else []
    args = [a.format(steps=steps) for a in PROGRAMS[name]]
    subprocess.run([sys.executable, *launcher, str(ROOT / "examples" / f"{name}.py"), *args, "--losses", str(out)], check=True,
                   env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", **env}, stdout=subprocess.DEVNULL, timeout=600)
    return np.load(out)


@pytest.mark.parametrize("name", PROGRAMS)
def test_same_course_as_torch(tmp_path, name):
    want, have = losses(tmp_path, name, 100, "torch"), losses(tmp_path, name, 100, "terra")
    worst = np.max(np.abs(have - want) / np.abs(want))
    print(f"{name}: 100 losses, {want[0]:.4f} to {want[-1]:.4f}, within {worst:.1e} relative of torch")
    assert worst < 1e-4


# Plans sum in another order than single ops where a layout differs. A difference of one rounding stays one until it turns
# a relu or a maximum over, from when on the courses part: the digits network does so after 100 to 300 steps.
@pytest.mark.parametrize("name,steps", [("digits", 80), ("char_gpt", 300)])
def test_modes_agree(tmp_path, name, steps):
    """Sync mode, tier 0 and plans."""
    sync = losses(tmp_path, name, 300, "terra", TERRA_SYNC="1")
    tier0 = losses(tmp_path, name, 300, "terra", TERRA_PLANS="0")
    plans = losses(tmp_path, name, 300, "terra", TERRA_PLANS="1")
    apart = np.abs(plans - sync) / sync
    print(f"{name}: tier 0 within {np.max(np.abs(tier0 - sync) / sync):.1e}, plans within {apart[:steps].max():.1e} over {steps} steps, "
          f"{apart.max():.1e} over 300")
    assert np.array_equal(tier0, sync)
    assert apart[:steps].max() < 1e-5
