"""Norms."""

from . import _autocast, _C
from ._ops import matmul, norm as _norm


def vector_norm(x, ord=2, dim=None, keepdim=False, *, dtype=None, out=None):
    """The norm of a tensor as a vector."""
    return _C.op.vector_norm(x if dtype is None else x.to(dtype), float(ord), dim, keepdim)


def norm(A, ord=None, dim=None, keepdim=False, *, out=None, dtype=None):
    """Of vectors, and the Frobenius norm of matrices."""
    if ord not in (None, "fro") and (A.ndim == 2 and dim is None or isinstance(dim, tuple) and len(dim) == 2):
        raise NotImplementedError("linalg.norm: only the Frobenius norm of matrices is in Terra's subset yet")
    return _norm(A, 2 if ord in (None, "fro") else ord, dim, keepdim, dtype=dtype)


@_autocast.lower
def vecdot(x, y, *, dim=-1, out=None):
    return _C.sum(x * y, dim)


def multi_dot(tensors, *, out=None):
    result = tensors[0]
    for t in tensors[1:]:
        result = matmul(result, t)
    return result


def __getattr__(name):
    raise AttributeError(f"module 'torch.linalg' has no attribute '{name}': not in Terra's subset yet")
