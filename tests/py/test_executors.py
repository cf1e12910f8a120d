"""Several executors share a plan's instructions, and how many there are may change at any time: nothing else does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import terra as torch

HERE = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def as_it_was():
    before = torch.stats()
    yield
    torch.set_executors(before["executors"], before["threads"])


def train(steps, between=lambda it: None, within=lambda it: None, broken=()):
    """Two towers over one input, of a layer norm and dropout each, and an embedding; losses, and the parameters in the end. In `broken`
    steps an index of the embedding is out of range."""
    torch.manual_seed(5)
    tower = lambda: torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.LayerNorm(512), torch.nn.Dropout(0.1),
                                        torch.nn.Linear(512, 256))
    a, b, table = tower(), tower(), torch.nn.Embedding(10, 256)
    params = [*a.parameters(), *b.parameters(), *table.parameters()]
    opt = torch.optim.AdamW(params, lr=1e-2)
    losses = []
    for it in range(steps):
        between(it)
        rng = np.random.RandomState(it)
        x, k = torch.tensor(rng.randn(256, 256).astype("f")), torch.tensor(rng.randint(0, 10, 256) + 10 * (it in broken))
        opt.zero_grad()
        y = a(x) * b(x) + table(k)
        within(it)
        loss = (y ** 2).mean()
        loss.backward()
        opt.step()
        try:
            losses.append(loss.item())
        except IndexError as error:
            losses.append(str(error))
    return losses, [p.detach().numpy().copy() for p in params]


def same(a, b):
    return a[0] == b[0] and all(np.array_equal(x, y) for x, y in zip(a[1], b[1]))


def test_the_number_of_executors_changes_nothing():
    torch.set_executors(1, 1)
    want = train(12)
    torch.set_executors(2, 1)
    if torch.stats()["executors"] < 2:
        pytest.skip("this process may use one core")
    torch.reset_stats()
    assert same(train(12), want)
    s = torch.stats()
    assert s["instructions"] / 8 < s["instructions_shared"] < s["instructions"]


def test_errors_are_those_of_one_executor():
    broken = (6, 7, 11, 14, 15, 20)
    torch.set_executors(1, 1)
    want = train(24, broken=broken)
    assert [it for it, loss in enumerate(want[0]) if isinstance(loss, str)] == list(broken) and "out of range" in want[0][6]
    torch.set_executors(2, 1)
    assert same(train(24, broken=broken), want)
    place = lambda it: torch.set_executors(1 + it % 2, 1)
    assert same(train(24, broken=broken, within=place), want)


def test_executors_come_and_go_between_and_within_iterations():
    torch.set_executors(1, 1)
    want = train(24)
    place = lambda it: torch.set_executors(1 + it // 3 % 2, 1) if it % 3 == 2 else None
    assert same(train(24, between=place), want)
    assert same(train(24, within=place), want)


def test_num_threads():
    torch.set_executors(1, 0)
    torch.set_num_threads(1)
    assert torch.get_num_threads() == torch.stats()["threads"] == 1
    assert "executor 0: 1 thread on cpus" in torch.info()
    torch.set_num_threads(10 ** 6)  # PyTorch takes it as well
    assert 1 <= torch.get_num_threads() <= len(os.sched_getaffinity(0))
    for bad, why in ((0, "positive integer"), (-2, "positive integer"), (1.5, "expects an int")):
        with pytest.raises(RuntimeError, match=why):
            torch.set_num_threads(bad)
    with pytest.raises(ValueError, match="from 1 to 64 executors"):
        torch.set_executors(65)
    with pytest.raises(ValueError, match="1 thread or more"):
        torch.set_executors(1, -1)


@pytest.mark.parametrize("what", ["test_faults.py", "test_fetches.py", "test_wild.py", "test_images.py",
                                  "test_leaving.py -k branch"])
def test_what_holds_with_one_holds_with_two(what):
    file, *rest = what.split()
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file), *rest],
                          env={**os.environ, "TERRA_EXECUTORS": "2"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
