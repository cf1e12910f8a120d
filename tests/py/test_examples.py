"""The same script under torch and under Terra, same seed: the same course. And Terra's own modes with each other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "digits": ["--epochs", "20"],
    "char_gpt": ["--sample", "0", "--layers", "2", "--width", "64", "--context", "32", "--batch", "8"],
}
MODES = {"sync": {"TERRA_SYNC": "1"}, "tier 0": {"TERRA_PLANS": "0"}, "plans": {"TERRA_PLANS": "1"}}


def course(tmp_path, name, steps, under, **env):
    """Losses of each step, the parameters after the last, the random generator's state."""
    out = tmp_path / f"{name}-{under}-{'-'.join(env)}"
    launcher = ["-m", "terra"] if under == "terra" else []
    subprocess.run([sys.executable, *launcher, str(ROOT / "examples" / f"{name}.py"), *PROGRAMS[name], "--steps", str(steps),
                    "--losses", f"{out}.npy", "--state", f"{out}.pt"], check=True, stdout=subprocess.DEVNULL, timeout=600,
                   env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", **env})
    state = torch.load(f"{out}.pt")
    model = {k: v.numpy() for k, v in state["model"].items() if v.is_floating_point()}
    return np.load(f"{out}.npy"), model, state["rng"].numpy()


def relative(have, want):
    return np.max(np.abs(have - want) / np.abs(want))


def parts(model):
    """Parameters (name -> values) whose gradient is not zero in exact arithmetic, and those where it is: softmax takes no
    notice of a key's bias, so that its gradient is all rounding, which AdamW makes as large as any other."""
    moving, idle = {}, {}
    for name, value in model.items():
        if name.endswith("qkv.bias"):
            q, k, v = np.split(value, 3)
            moving[name], idle[name + "[key]"] = np.concatenate([q, v]), k
        else:
            moving[name] = value
    return moving, idle


def farthest(have, want):
    """The largest distance in norm, relative to the norm, and its parameter's name."""
    return max(((np.linalg.norm(have[k] - want[k]) / max(np.linalg.norm(want[k]), 1e-30), k) for k in want), default=(0.0, "none"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_same_course_as_torch(tmp_path, name):
    want, want_model, _ = course(tmp_path, name, 100, "torch")
    have, have_model, _ = course(tmp_path, name, 100, "terra")
    worst = relative(have, want)
    apart, where = farthest(parts(have_model)[0], parts(want_model)[0])
    print(f"\n{name}: 100 losses, {want[0]:.4f} to {want[-1]:.4f}, within {worst:.1e} relative of torch; "
          f"parameters within {apart:.1e} in norm ({where})")
    assert list(have_model) == list(want_model)
    assert worst < 1e-4


@pytest.mark.parametrize("name", PROGRAMS)
def test_modes_agree(tmp_path, name):
    """Sync mode, tier 0 and plans over 300 steps: plans sum in another order than single ops where a layout differs."""
    runs = {mode: course(tmp_path, name, 300, "terra", **env) for mode, env in MODES.items()}
    losses, model, rng = runs["sync"]
    moving, idle = parts(model)
    print()
    for mode in ("tier 0", "plans"):
        have, have_model, have_rng = runs[mode]
        have_moving, have_idle = parts(have_model)
        loss, (far, where), (far_idle, where_idle) = relative(have, losses), farthest(have_moving, moving), farthest(have_idle, idle)
        print(f"{name}: 300 steps, {mode} against sync mode: losses within {loss:.1e}, parameters within {far:.1e} in norm ({where}); "
              f"of exact gradient zero: {far_idle:.1e} ({where_idle}); generator {'equal' if np.array_equal(have_rng, rng) else 'DIFFERS'}")
        assert loss < 1e-5
        assert far < 1e-4
        assert np.array_equal(have_rng, rng)
    assert np.array_equal(runs["tier 0"][0], losses)


def test_summary():
    """What the digits example says of its steady state: full batches from plans alone, executors with their cores."""
    out = subprocess.run([sys.executable, "-m", "terra", str(ROOT / "examples" / "digits.py"), "--steps", "120"], check=True,
                         capture_output=True, text=True, timeout=600)
    rows = {line[:20].strip(): line[20:] for line in out.stdout.splitlines()[1:]}
    share = float(re.search(r"([\d.]+) % of", rows["steady state"])[1])
    assert share >= 99 and "0 side exits" in rows["iterations"]
    assert re.search(r"cpus \d", rows["executors"])
    assert rows["last batches"].startswith("5 steps")
    assert not out.stderr, "a progress bar where there is no terminal"
