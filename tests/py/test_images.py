"""Networks of images, which plans keep with channels last, against op by op execution, which has them row-major."""

import modes
import numpy as np
import pytest

import terra as torch

F = torch.nn.functional

POOLS = {
    "max": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max, dilated": lambda x: F.max_pool2d(x, 2, 1, 1, dilation=2),
    "average": lambda x: F.avg_pool2d(x, 2),
    "average, overlapping": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "indices": lambda x: (lambda y, at: y + at * 1e-3)(*F.max_pool2d(x, 2, return_indices=True)),
}


def train(pool, channels, sync, dtype=None):
    with modes.sync_mode(sync):
        torch.manual_seed(3)
        convs = torch.nn.ModuleList(torch.nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

        def loss_of(x):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
                y = convs[1](pool(F.relu(convs[0](x))))
            return (F.adaptive_avg_pool2d(y, 1).float() ** 2).mean() + y.float().mean()

        losses = modes.train(convs.parameters(), (3, channels, 10, 9), loss_of)
        return losses, [p.detach().numpy().copy() for p in convs.parameters()], torch.explain()


@pytest.mark.parametrize("channels", [16, 48])
@pytest.mark.parametrize("pool", POOLS)
def test_pools(pool, channels):
    have, want = train(POOLS[pool], channels, False), train(POOLS[pool], channels, True)
    np.testing.assert_allclose(have[0], want[0], rtol=1e-5)
    for a, b in zip(have[1], want[1]):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert "channels last" in have[2], have[2]


@pytest.mark.parametrize("pool", POOLS)
def test_pools_of_bfloat16(pool):
    have, want = train(POOLS[pool], 16, False, torch.bfloat16), train(POOLS[pool], 16, True, torch.bfloat16)
    np.testing.assert_allclose(have[0], want[0], rtol=2e-2, atol=2e-3)
    for a, b in zip(have[1], want[1]):
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=5e-3)
