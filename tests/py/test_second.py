"""The second iteration of a loop: guessed from the first, followed where the guess is right, forgotten where it isn't."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import numpy as np
import terra as torch
make, other_at = eval("lambda p: torch.optim." + sys.argv[1]), int(sys.argv[2])
torch.manual_seed(3)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
optimizer = make(model.parameters())
x, y = (torch.from_numpy(np.random.RandomState(n).rand(5, n).astype("f")) for n in (8, 4))
losses, followed = [], []
for i in range(6):
    before = torch.stats()["iterations_coexecuted"]
    optimizer.zero_grad()
    z = model(x)
    if i == other_at:
        z = z.tanh()
    loss = torch.nn.functional.mse_loss(z, y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    followed.append(torch.stats()["iterations_coexecuted"] - before)
print(json.dumps([losses, followed, torch.stats()["side_exits"]]))
"""


@pytest.fixture
def run(tmp_path):
    program = tmp_path / "program.py"  # calls in a file have places
    program.write_text(PROGRAM)

    def run(optimizer, other_at, plans):
        out = subprocess.run([sys.executable, str(program), optimizer, str(other_at)], env={**os.environ, "TERRA_PLANS": plans},
                             capture_output=True, text=True, check=True).stdout
        return json.loads(out)

    return run


@pytest.mark.parametrize("optimizer", ["SGD(p, lr=0.1, momentum=0.9)", "AdamW(p, lr=0.01)", "RMSprop(p, lr=0.01, momentum=0.5)"])
def test_the_second_is_followed(run, optimizer):
    losses, followed, exits = run(optimizer, -1, "1")
    assert followed[:2] == [0, 1] and exits == 0
    assert losses == pytest.approx(run(optimizer, -1, "0")[0], rel=1e-6)


@pytest.mark.parametrize("optimizer, other_at", [("AdamW(p, lr=0.01)", 1), ("AdamW(p, lr=0.01)", 0),
                                                 ("SGD(p, lr=0.1, momentum=0.9, dampening=0.1)", -1)])
def test_a_wrong_guess_costs_one_exit(run, optimizer, other_at):
    losses, followed, exits = run(optimizer, other_at, "1")
    assert followed[1] == 0 and exits <= 2
    assert losses == pytest.approx(run(optimizer, other_at, "0")[0], rel=1e-6)
