"""Large products of float32, which AMX's tiles compute from three bfloat16 for each number: as near to exact as PyTorch's, and the
same as its where a number is no sum of such, being infinite, undefined, huge or tiny. And large products of bfloat16, which have
kernels of their own for AMX and for AVX512-BF16: exact sums, rounded once."""

import numpy as np
import pytest
import torch

import terra

M, K, N = 224, 416, 256


def noise(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def operands():
    return [noise(1, M, K), noise(2, K, N), noise(3, M, N), noise(4, N)]


FORMS = {
    "nn": lambda t, a, b, y, row: a @ b,
    "nt": lambda t, a, b, y, row: a @ b.t().contiguous().t(),
    "tn": lambda t, a, b, y, row: a.t().contiguous().t() @ b,
    "tt": lambda t, a, b, y, row: a.t().contiguous().t() @ b.t().contiguous().t(),
    "row": lambda t, a, b, y, row: t.addmm(row, a, b),
    "scaled": lambda t, a, b, y, row: t.addmm(y, a, b, beta=0.5, alpha=-2),
    "only scaled": lambda t, a, b, y, row: t.addmm(y, a, b, beta=0, alpha=3),
    "columns": lambda t, a, b, y, row: a[:, 3:-2] @ b[3:-2, 5:],
}


def run(t, form, arrays):
    return FORMS[form](t, *(t.tensor(x) for x in arrays)).numpy().copy()


@pytest.mark.parametrize("form", FORMS)
def test_near_to_exact(form):
    """Errors relative to the sum of the terms' magnitudes, as rounding makes them."""
    arrays = operands()
    wide = [torch.tensor(x).double() for x in arrays]
    exact = FORMS[form](torch, *wide).numpy()
    size = FORMS[form](torch, *(torch.tensor(np.abs(x)).double() for x in arrays)).abs().numpy() + 1
    if "scaled" in form:
        size = 3 * (np.abs(arrays[0]).astype(np.float64) @ np.abs(arrays[1]).astype(np.float64)) + 1
    assert (np.abs(run(terra, form, arrays) - exact) / size).max() < 3e-7


@pytest.mark.parametrize("depth", [64, 700, 5000])
def test_errors_do_not_grow_beyond_torchs(depth):
    """Positive terms, whose sums grow: the hardest for rounding."""
    a, b = np.abs(noise(1, 256, depth)), np.abs(noise(2, depth, 1100))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    ours, theirs = ((t.tensor(a) @ t.tensor(b)).numpy() for t in (terra, torch))
    error = [np.sqrt(np.mean(((x - exact) / exact) ** 2)) for x in (ours, theirs)]
    assert error[0] < max(3 * error[1], 1e-7), error


SPECIAL = [np.inf, -np.inf, np.nan, 3.4e38, -2e38, 1e-38, 1e-41, -1e-33, 0.0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("where", [0, 1])
def test_special_values(form, value, where):
    arrays = operands()
    if "scaled" in form and 1e38 < abs(value) < np.inf:
        pytest.skip("what overflows depends on when a product is scaled")
    arrays[where].reshape(-1)[[5 * arrays[where].shape[1] + 7, -1]] = value
    have, want = (run(t, form, arrays) for t in (terra, torch))
    np.testing.assert_array_equal(np.isfinite(have), np.isfinite(want))
    np.testing.assert_array_equal(have[~np.isfinite(have)], want[~np.isfinite(want)])
    fine = np.isfinite(want)
    np.testing.assert_allclose(have[fine], want[fine], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-12, 1e-18, 1e-20, 1e-30, 1e15])
def test_scaled_factors(scale):
    """Of both factors: products of the first are ordinary, of the others tiny, down to denormal ones, or large."""
    a, b = (x * np.float32(scale) for x in operands()[:2])
    have, want = ((t.tensor(a) @ t.tensor(b)).numpy() for t in (terra, torch))
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=max(1e-5 * float(np.abs(want).max()), 2e-38))


def test_from_plans_and_where_numbers_become_special():
    """Steps of a loop in which one of the weights blows up to infinity."""
    growth = np.ones((K, N), dtype=np.float32)
    growth[17, 33] = 3e4

    def program(t):
        x, w, g = t.tensor(noise(1, M, K)), t.tensor(noise(2, K, N)).requires_grad_(), t.tensor(growth)
        found = []
        for step in range(16):
            y = x @ w
            y.backward(t.ones_like(y))
            with t.no_grad():
                w *= g
                w.grad = None
            found.append(y.detach().numpy().copy())
        return found

    for have, want in zip(program(terra), program(torch), strict=True):
        np.testing.assert_array_equal(np.isnan(have), np.isnan(want))
        np.testing.assert_array_equal(np.isposinf(have), np.isposinf(want))
        fine = np.isfinite(want)
        np.testing.assert_allclose(have[fine], want[fine], rtol=1e-4, atol=1e-4)


def test_linear_with_an_activation():
    """A product that a plan could have given to the library together with its activation."""
    def program(t):
        x = t.tensor(noise(1, M, K))
        layers = [t.tensor(noise(5, N, K) / 20).requires_grad_(), t.tensor(noise(6, N, N) / 16).requires_grad_()]
        found = []
        for step in range(12):
            y = t.relu(t.nn.functional.linear(t.relu(t.nn.functional.linear(x, layers[0])), layers[1]))
            loss = y.square().mean()
            loss.backward()
            with t.no_grad():
                for w in layers:
                    w -= 0.1 * w.grad
                    w.grad = None
            found.append(loss.item())
        return found

    np.testing.assert_allclose(program(terra), program(torch), rtol=1e-5)


@pytest.mark.parametrize("depth", [416, 2050, 417])
@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_near_to_exact(form, depth):
    """Rows enough for kernels of our own; an even depth that no vector divides, and an odd one, which the library takes."""
    arrays = [noise(1, 700, depth), noise(2, depth, N), noise(3, 700, N), noise(4, N)]
    ours, theirs = ([t.tensor(x).to(t.bfloat16) for x in arrays] for t in (terra, torch))
    exact = FORMS[form](torch, *(x.double() for x in theirs)).numpy()
    have = FORMS[form](terra, *ours)
    assert have.dtype == terra.bfloat16
    size = 3 * (theirs[0].double().abs() @ theirs[1].double().abs()).max().item()
    np.testing.assert_allclose(have.to(terra.float32).numpy(), exact, rtol=2**-8, atol=1e-6 * size)


def test_bfloat16_left_factor_whose_rows_lie_apart():
    """Columns of a wider matrix, which no kernel of pixels that lie side by side may take as it is."""
    a, b = noise(1, 700, 421), noise(2, 416, N)
    have, want = (t.tensor(a).to(t.bfloat16)[:, 3:-2] @ t.tensor(b).to(t.bfloat16) for t in (terra, torch))
    np.testing.assert_allclose(have.to(terra.float32).numpy(), want.float().numpy(), rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("form", ["nn", "nt", "row"])
def test_bfloat16_special_values(form, value):
    def found(t):
        arrays = [noise(1, 700, 130), noise(2, 130, 1024), noise(3, 700, 1024), noise(4, 1024)]
        arrays[0][699, 129] = arrays[1][64, 511] = value
        return FORMS[form](t, *(t.tensor(x).to(t.bfloat16) for x in arrays)).to(t.float32).numpy()

    have, want = found(terra), found(torch)
    np.testing.assert_array_equal(np.isfinite(have), np.isfinite(want))
    np.testing.assert_array_equal(have[~np.isfinite(have)], want[~np.isfinite(want)])


def test_bfloat16_linear_layers_under_autocast():
    """Forward, by the input and by the weights, in plans, with weights too large for plans to slice their products."""
    def program(t):
        x = t.tensor(noise(1, 520, 320))
        layers = [t.tensor(noise(5, 512, 320) / 20).requires_grad_(), t.tensor(noise(6, 320, 512) / 20).requires_grad_()]
        bias = t.tensor(noise(7, 512)).requires_grad_()
        found = []
        for step in range(12):
            with t.autocast("cpu", dtype=t.bfloat16):
                y = t.nn.functional.linear(t.relu(t.nn.functional.linear(x, layers[0], bias)), layers[1])
            loss = y.float().square().mean()
            loss.backward()
            with t.no_grad():
                for w in (*layers, bias):
                    w -= 0.1 * w.grad
                    w.grad = None
            found.append(np.append(y[-1].float().detach().numpy(), loss.item()))
        return np.array(found)

    have, want = program(terra), program(torch)
    np.testing.assert_allclose(have[:, -1], want[:, -1], rtol=5e-3)
    np.testing.assert_allclose(have[:, :-1], want[:, :-1], atol=0.02 * np.abs(want[:, :-1]).max())
