"""torch.autocast("cpu"): dtypes, values and gradients of every operator, and of programs, against torch's."""

import re
import threading

import numpy as np
import pytest
import torch

import terra
from both import both
from op_rows import ROWS
from test_ops import inputs_of, leaves, scalar, to_numpy, to_terra

BOTH = (torch, terra)


def region(t, **kw):
    return t.autocast("cpu", dtype=t.bfloat16, **kw)


def near(have, want, what, tol=1.0):
    """Within bfloat16's rounding of the largest value."""
    assert tuple(have.shape) == tuple(want.shape), what
    assert str(have.dtype) == str(want.dtype), f"{what}: {have.dtype}, torch {want.dtype}"
    a, b = to_numpy(have), to_numpy(want)
    if a.dtype.kind in "biu":
        np.testing.assert_array_equal(a, b, err_msg=what)
    elif a.size:
        atol = 1.6e-2 * tol * max(1.0, float(np.abs(np.nan_to_num(b, posinf=0, neginf=0)).max()))
        np.testing.assert_allclose(a, b, rtol=2e-2 * tol, atol=atol, err_msg=what)


# What torch itself cannot do in a region: its rows are of other dtypes, or it raises.
CASES = [(n, d, i) for n, r in ROWS.items() for d in r.dtypes if d in ("float32", "bfloat16") for i in range(len(r.inputs))]


def run_row(t, r, xs, wants):
    t.manual_seed(5)
    xs = [x.requires_grad_(True) if w else x for x, w in zip(xs, wants)]
    of = [x for x, w in zip(xs, wants) if w]
    with region(t):
        out = r.call(t, t.nn.functional, *xs)
    loss = scalar(t, out, 11) if r.grad and of else 0
    if not hasattr(loss, "backward"):
        return out, []
    return out, t.autograd.grad(loss, of, allow_unused=True)


@pytest.mark.parametrize("name,dtype,i", CASES, ids=[f"{n}-{d}-{i}" for n, d, i in CASES])
def test_every_operator_has_torchs_dtypes(name, dtype, i):
    r = ROWS[name]
    xs = inputs_of(r, dtype, i)
    ys = [to_terra(x) for x in xs]
    wants = [x.differentiable and r.grad for x in r.inputs[i]]
    try:
        want, want_grads = run_row(torch, r, xs, wants)
    except Exception as error:  # noqa: BLE001: compared, not hidden
        with pytest.raises(Exception) as have:
            run_row(terra, r, ys, wants)
            terra.synchronize()
        assert issubclass(have.type, type(error)) or issubclass(type(error), have.type), f"{have.value!r}, torch: {error!r}"
        return
    have, have_grads = run_row(terra, r, ys, wants)
    for h, w in zip(leaves(have), leaves(want), strict=True):
        near(h, w, name, r.tol)
    for h, w in zip(have_grads, want_grads, strict=True):
        assert (h is None) == (w is None), name
        if h is not None:
            near(h, w, f"{name}: gradient", 4 * r.tol)
