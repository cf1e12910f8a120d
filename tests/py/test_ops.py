"""Every operator, driven by its row of op_rows.py, against torch."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import terra
from op_rows import ROWS

TABLE = Path(__file__).parents[2] / "include/terra/ops.def"
NAMES = re.findall(r"^TR_OP\((\w+),", TABLE.read_text(), re.M)
EPS = {"float32": 2e-6, "float64": 1e-12, "bfloat16": 1.6e-2}


def test_every_row_of_the_table_has_a_row_here():
    print(f"{len(NAMES)} operators")
    assert len(NAMES) >= 120
    assert sorted(set(NAMES) - set(ROWS)) == [] and sorted(set(ROWS) - set(NAMES)) == []


def test_every_row_has_three_bad_inputs():
    assert [name for name, r in ROWS.items() if len(r.bad) < 3] == []


def to_torch(array, dtype):
    if dtype == "bool":
        return torch.from_numpy(np.asarray(np.asarray(array) > 0))
    return torch.from_numpy(np.ascontiguousarray(array)).to(getattr(torch, dtype))


def to_terra(t):
    """A terra tensor of the same values and dtype."""
    if t.dtype == torch.bfloat16:
        return terra.from_numpy(t.detach().float().numpy().copy()).clone().to(terra.bfloat16)
    return terra.from_numpy(t.detach().numpy().copy()).clone()


def to_numpy(t):
    t = t.detach()
    t = t.float() if str(t.dtype) == "torch.bfloat16" else t
    return t.numpy(force=True) if isinstance(t, torch.Tensor) else t.numpy()


def strided(m, t):
    """The same values, laid out with gaps and transposed."""
    if t.dim() == 0 or t.numel() == 0:
        return t
    wide = m.empty(tuple(reversed(t.shape)) + (2,), dtype=t.dtype)
    wide[..., 0] = t.permute(*range(t.dim() - 1, -1, -1))
    return wide[..., 0].permute(*range(t.dim() - 1, -1, -1))


def leaves(x):
    return [y for z in x for y in leaves(z)] if isinstance(x, (tuple, list)) else [x]


def close(have, want, dtype, tol, what, exact=False):
    for h, w in zip(leaves(have), leaves(want), strict=True):
        assert tuple(h.shape) == tuple(w.shape), f"{what}: shape {tuple(h.shape)}, torch {tuple(w.shape)}"
        assert str(h.dtype) == str(w.dtype), f"{what}: dtype {h.dtype}, torch {w.dtype}"
        a, b = to_numpy(h), to_numpy(w)
        if exact or a.dtype.kind in "biu":
            np.testing.assert_array_equal(a, b, err_msg=what)
        else:
            eps = EPS[str(w.dtype)[6:]] * tol
            np.testing.assert_allclose(a, b, rtol=4 * eps, atol=4 * eps, err_msg=what)


def sample_ids(r):
    return [(d, i) for d in r.dtypes for i in range(len(r.inputs))]


CASES = [(name, dtype, i) for name, r in ROWS.items() for dtype, i in sample_ids(r)]


def inputs_of(r, dtype, i):
    rng = np.random.default_rng(abs(hash((i, len(r.inputs)))) % 1000)
    arrays = []
    for x in r.inputs[i]:
        a = x.make(rng)
        if dtype in ("int64", "int32", "uint8") and x.kind in ("normal", "unit", "distinct"):
            a = np.abs(a * 5).round() if dtype == "uint8" else (a * 5).round()
        if dtype in ("int64", "int32", "uint8") and x.kind == "positive":
            a = (a * 3).round() + 1
        kind = "bool" if x.kind == "bool" else "int64" if x.kind.startswith("index") and dtype not in ("uint8", "int32", "bool") else dtype
        if x.kind.startswith("index") and r.call is not None and dtype in ("uint8", "int32", "bool"):
            kind = dtype if all(y.kind.startswith("index") for y in r.inputs[i]) else "int64"
        arrays.append(to_torch(a, kind))
    return arrays


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("name,dtype,i", CASES, ids=[f"{n}-{d}-{i}" for n, d, i in CASES])
def test_values(name, dtype, i, layout):
    r = ROWS[name]
    if layout not in r.layouts:
        pytest.skip("this row is about contiguous tensors")
    xs = inputs_of(r, dtype, i)
    ys = [to_terra(x) for x in xs]
    if layout == "strided":
        xs, ys = [strided(torch, x) for x in xs], [strided(terra, y) for y in ys]
    torch.manual_seed(5)
    terra.manual_seed(5)
    want = r.call(torch, torch.nn.functional, *xs)
    have = r.call(terra, terra.nn.functional, *ys)
    close(have, want, dtype, r.tol, name, r.exact)
    if r.elementwise:
        for h, w in zip(leaves(have), leaves(want), strict=True):
            if w.numel() > 1:
                assert h.stride() == w.stride(), f"{name}: strides {h.stride()}, torch {w.stride()}"
    if r.random:
        assert np.array_equal(terra.rand(3).numpy(), torch.rand(3).numpy()), f"{name}: the generators are apart"


def scalar(t, out, seeds):
    """A scalar that weighs every float result."""
    total = 0
    for k, y in enumerate(leaves(out)):
        if y.requires_grad:
            w = np.random.default_rng(seeds + k).uniform(0.5, 1.5, tuple(y.shape))
            total = total + (y * t.from_numpy(np.asarray(w)).to(y.dtype)).sum()
    return total


GRADS = [(n, d, i) for n, r in ROWS.items() if r.grad for d in r.dtypes if d in ("float32", "float64") for i in range(len(r.inputs))]


@pytest.mark.parametrize("name,dtype,i", GRADS, ids=[f"{n}-{d}-{i}" for n, d, i in GRADS])
def test_gradients(name, dtype, i):
    r = ROWS[name]
    xs = inputs_of(r, dtype, i)
    ys = [to_terra(x) for x in xs]
    wants = [x.differentiable for x in r.inputs[i]]
    if not any(wants):
        pytest.skip("nothing to differentiate")
    gradients = []
    for t, zs in ((torch, xs), (terra, ys)):
        t.manual_seed(5)
        zs = [z.requires_grad_(True) if w else z for z, w in zip(zs, wants)]
        loss = scalar(t, r.call(t, t.nn.functional, *zs), 11)
        gradients.append(t.autograd.grad(loss, [z for z, w in zip(zs, wants) if w], allow_unused=True))
    for h, w in zip(gradients[1], gradients[0], strict=True):
        assert (h is None) == (w is None)
        if h is not None:
            close(h, w, dtype, 8 * r.tol, f"{name}: gradient")


DOUBLE = [(n, i) for n, r in ROWS.items() if r.grad and r.gradgrad and "float64" in r.dtypes for i in range(len(r.inputs))]


@pytest.mark.parametrize("name,i", DOUBLE, ids=[f"{n}-{i}" for n, i in DOUBLE])
def test_double_gradients(name, i):
    r = ROWS[name]
    xs = inputs_of(r, "float64", i)
    ys = [to_terra(x) for x in xs]
    wants = [x.differentiable for x in r.inputs[i]]
    results = []
    for t, zs in ((torch, xs), (terra, ys)):
        t.manual_seed(5)
        zs = [z.requires_grad_(True) if w else z for z, w in zip(zs, wants)]
        of = [z for z, w in zip(zs, wants) if w]
        loss = scalar(t, r.call(t, t.nn.functional, *zs), 11)
        first = [g for g in t.autograd.grad(loss, of, create_graph=True, allow_unused=True) if g is not None and g.requires_grad]
        if not first:
            results.append(None)
            continue
        second = scalar(t, first, 23)
        results.append(t.autograd.grad(second, of, allow_unused=True))
    want, have = results
    assert (want is None) == (have is None) or all(g is None or not np.any(to_numpy(g)) for g in (want or have))
    if want is None or have is None:
        return
    for h, w in zip(have, want, strict=True):
        if h is None or w is None:
            other = w if h is None else h
            assert other is None or not np.any(to_numpy(other)), f"{name}: one of the double gradients is missing"
        else:
            close(h, w, "float64", 1e3 * r.tol, f"{name}: double gradient")


def drain():
    """An error that the last test's program never asked for."""
    try:
        terra.synchronize()
    except Exception:
        pass


BAD = [(n, i) for n, r in ROWS.items() for i in range(len(r.bad))]


@pytest.mark.parametrize("name,i", BAD, ids=[f"{n}-{i}" for n, i in BAD])
def test_bad_inputs(name, i):
    call = ROWS[name].bad[i]
    drain()
    with pytest.raises(Exception) as want:
        call(torch, torch.nn.functional)
    with pytest.raises(Exception) as have:
        call(terra, terra.nn.functional)
        terra.synchronize()
    assert issubclass(have.type, want.type) or issubclass(want.type, have.type), f"{have.value!r}, torch: {want.value!r}"
    assert str(have.value)
