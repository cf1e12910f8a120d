"""Limits on gradients."""

import functools
import warnings

from ... import _C
from ..._ops import stack

Tensor = _C.Tensor


def _no_grad(fn):
    @functools.wraps(fn)
    def run(*args, **kwargs):
        was = _C._set_grad_enabled(False)
        try:
            return fn(*args, **kwargs)
        finally:
            _C._set_grad_enabled(was)

    return run


def _grads(parameters):
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    return [p.grad for p in parameters if p.grad is not None]


@_no_grad
def get_total_norm(tensors, norm_type=2.0, error_if_nonfinite=False, foreach=None):
    """The norm of all tensors as one vector."""
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    norm_type = float(norm_type)
    if not tensors:
        return _C._from_data(0.0)
    norms = [_C.op.vector_norm(t, norm_type) for t in tensors]
    total = _C.op.vector_norm(stack(norms), norm_type)
    if error_if_nonfinite and not _C.isfinite(total).item():
        raise RuntimeError(f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
                           "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
                           "`error_if_nonfinite=False`")
    return total


@_no_grad
def clip_grads_with_norm_(parameters, max_norm, total_norm, foreach=None):
    """Scales gradients by max_norm / total_norm where that is below one."""
    factor = _C.clamp(float(max_norm) / (total_norm + 1e-6), max=1.0)
    for g in _grads(parameters):
        g.mul_(factor)


@_no_grad
def clip_grad_norm_(parameters, max_norm, norm_type=2.0, error_if_nonfinite=False, foreach=None):
    """Scales gradients so that their norm is at most max_norm; returns what it was."""
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    total = get_total_norm(_grads(parameters), norm_type, error_if_nonfinite)
    clip_grads_with_norm_(parameters, max_norm, total)
    return total


def clip_grad_norm(parameters, max_norm, norm_type=2.0, error_if_nonfinite=False, foreach=None):
    warnings.warn("torch.nn.utils.clip_grad_norm is now deprecated in favor of torch.nn.utils.clip_grad_norm_.", FutureWarning,
                  stacklevel=2)
    return clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite)


@_no_grad
def clip_grad_value_(parameters, clip_value, foreach=None):
    """Clamps gradients to [-clip_value, clip_value]."""
    for g in _grads(parameters):
        g.clamp_(-float(clip_value), float(clip_value))
