"""Batch norm with the addition and the relu behind it, and their derivatives, in one instruction, against op by op
execution."""

import modes
import numpy as np
import pytest

import terra as torch

F = torch.nn.functional


def forward(kind, norms, x, identity):
    y = norms[0](x)
    if kind == "relu":
        y = F.relu(y)
    elif kind == "relu_":
        y = F.relu(y, inplace=True)
    elif kind == "residual":
        y = F.relu(y + identity)
    elif kind == "residual, first":
        y = F.relu(identity + y)
    elif kind == "residual, in place":
        y += identity
        y = F.relu(y, inplace=True)
    elif kind == "residual, twice":
        y = F.relu(y + identity)
        y = F.relu(norms[1](y) + y)
    elif kind == "residual, twice, seen":  # the sum of two gradients has another reader, whom the next iteration adds up
        y = F.relu(y + identity)
        seen = norms.__dict__.get("seen", 0)
        if y.requires_grad:
            y.register_hook(lambda g: setattr(norms, "seen", g.float().mean()))
        y = F.relu(norms[1](y) + y) + seen
    elif kind == "two norms":
        y = F.relu(y + norms[1](identity))
    elif kind == "addition only":
        y = y + identity
    elif kind == "kept":
        z = y + identity
        y = F.relu(z) + 0.1 * z
    elif kind == "alpha":
        y = F.relu(torch.add(y, identity, alpha=0.5))
    return y


KINDS = ("relu", "relu_", "residual", "residual, first", "residual, in place", "residual, twice", "residual, twice, seen",
         "two norms", "addition only", "kept", "alpha")


def train(kind, channels, sync, half=False):
    with modes.sync_mode(sync):
        torch.manual_seed(3)
        norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(channels) for _ in range(2))
        convs = torch.nn.ModuleList(torch.nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        params = list(norms.parameters()) + list(convs.parameters())

        def loss_of(x):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                h = convs[0](x)
                y = forward(kind, norms, convs[1](h), h)
            return (y * y).float().mean()

        out = modes.train(params, (4, channels, 6, 5), loss_of)
        norms.eval()
        x = torch.tensor(np.random.RandomState(9).randn(4, channels, 6, 5).astype("f"))
        with torch.no_grad():
            for _ in range(4):
                out.append(forward(kind, norms, x, x * 1).sum().item())
        state = [p.detach().numpy().copy() for p in params] + [b.numpy().copy() for b in norms.buffers()]
        return out, state, torch.explain()


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_same_as_single_ops(kind, channels, capfd):
    have, want = train(kind, channels, False), train(kind, channels, True)
    np.testing.assert_allclose(have[0], want[0], rtol=1e-5)
    for a, b in zip(have[1], want[1]):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)
    assert " norm " in have[2], have[2]
    assert "could not be compiled" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_rounded_as_by_single_ops(kind, capfd):
    have, want = train(kind, 16, False, half=True), train(kind, 16, True, half=True)
    np.testing.assert_array_equal(have[0], want[0])
    for a, b in zip(have[1], want[1]):
        np.testing.assert_array_equal(a, b)
    assert " norm " in have[2], have[2]
    assert "could not be compiled" not in capfd.readouterr().err
