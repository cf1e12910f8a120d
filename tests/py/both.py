"""Runs one program under torch and under terra and compares what it returns, or the class of what it raises."""

import numpy as np
import torch

import terra


def plain(x):
    """Tensors to arrays (with dtype and shape), containers entered."""
    if isinstance(x, (torch.Tensor, terra.Tensor)):
        dtype = str(x.dtype)
        y = x.detach()
        y = (y.float() if dtype.endswith("bfloat16") else y).numpy().copy()
        return ("tensor", dtype, y)
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (tuple, list)):
        return [plain(v) for v in x]
    if isinstance(x, (torch.dtype, terra.dtype, torch.device, terra.device, torch.Size, terra.Size)):
        return str(x)
    return x


def run(m, fn):
    m.manual_seed(7)
    try:
        return plain(fn(m)), None
    except Exception as error:  # noqa: BLE001: compared, not hidden
        return None, error


def same(a, b, tol, path="result"):
    if isinstance(a, tuple) and len(a) == 3 and a[0] == "tensor":
        assert isinstance(b, tuple) and a[1] == b[1], f"{path}: {a[1]} against {b[1] if isinstance(b, tuple) else b}"
        assert a[2].shape == b[2].shape, f"{path}: {a[2].shape} against {b[2].shape}"
        np.testing.assert_allclose(b[2], a[2], rtol=tol, atol=tol, err_msg=path)
    elif isinstance(a, dict):
        assert list(a) == list(b), f"{path}: {list(a)} against {list(b)}"
        for k in a:
            same(a[k], b[k], tol, f"{path}[{k!r}]")
    elif isinstance(a, list):
        assert isinstance(b, list) and len(a) == len(b), f"{path}: {a} against {b}"
        for i, (x, y) in enumerate(zip(a, b)):
            same(x, y, tol, f"{path}[{i}]")
    elif isinstance(a, float):
        np.testing.assert_allclose(b, a, rtol=tol, atol=tol, err_msg=path)
    elif isinstance(a, np.ndarray):
        np.testing.assert_allclose(b, a, rtol=tol, atol=tol, err_msg=path)
    else:
        assert a == b, f"{path}: {a!r} against {b!r}"


def both(fn, tol=1e-5):
    """fn(module): the same result, or an exception of the same class."""
    want, want_error = run(torch, fn)
    have, have_error = run(terra, fn)
    if want_error is not None or have_error is not None:
        assert want_error is not None, f"only terra raised: {have_error!r}"
        assert have_error is not None, f"only torch raised: {want_error!r}"
        assert isinstance(have_error, type(want_error)) or isinstance(want_error, type(have_error)), (
            f"torch: {want_error!r}, terra: {have_error!r}")
        return
    same(want, have, tol)
