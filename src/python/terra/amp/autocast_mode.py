"""Regions in which operators are given the precision that suits them. The operators' own part is in the op table."""

import functools
import warnings
from collections.abc import Iterable, Mapping

from .. import _C

_DEVICES = ("cpu", "cuda", "ipu", "xpu", "mkldnn", "opengl", "opencl", "ideep", "hip", "ve", "fpga", "maia", "xla", "lazy",
            "vulkan", "mps", "meta", "hpu", "mtia", "privateuseone")


def _is_cpu(device_type):
    if device_type not in _DEVICES:
        raise RuntimeError(f"Expected one of {', '.join(_DEVICES)} device type at start of device string: {device_type}")
    return device_type == "cpu"


def is_autocast_available(device_type):
    return _is_cpu(device_type) or device_type in ("cuda", "xpu", "mps", "hpu", "xla", "mtia", "maia", "ipu")


def is_autocast_enabled(device_type="cuda"):
    return _is_cpu(device_type) and _C._autocast_enabled()


def get_autocast_dtype(device_type):
    # The lower precision of most other devices is float16, which Terra does not have.
    return _C._autocast_get()[1] if _is_cpu(device_type) else _C.bfloat16


def set_autocast_enabled(device_type, enabled):
    _, dtype, cache = _C._autocast_get()
    if _is_cpu(device_type):
        _C._autocast_set(enabled, dtype, cache)


def set_autocast_dtype(device_type, dtype):
    enabled, _, cache = _C._autocast_get()
    if _is_cpu(device_type):
        _C._autocast_set(enabled, dtype, cache)


def is_autocast_cache_enabled():
    return _C._autocast_get()[2]


def set_autocast_cache_enabled(enabled):
    on, dtype, _ = _C._autocast_get()
    _C._autocast_set(on, dtype, enabled)


def autocast_increment_nesting():
    return _C._autocast_nest(1)


def autocast_decrement_nesting():
    return _C._autocast_nest(-1)


class autocast:
    """with autocast("cpu"): products are computed in bfloat16, losses in float32. Also decorates functions."""

    def __init__(self, device_type, dtype=None, enabled=True, cache_enabled=None):
        if not isinstance(device_type, str):
            raise ValueError(f"Expected `device_type` of type `str`, got: `{type(device_type)}`")
        self.device = device_type
        self.fast_dtype = get_autocast_dtype(device_type) if dtype is None else dtype
        if not is_autocast_available(device_type):
            raise RuntimeError(f"User specified an unsupported autocast device_type '{device_type}'")
        self._cache_enabled = is_autocast_cache_enabled() if cache_enabled is None else cache_enabled
        if enabled and device_type != "cpu":
            warnings.warn(f"{device_type.upper()} is not available or torch_xla is imported. Disabling autocast.", stacklevel=2)
            enabled = False
        elif enabled and self.fast_dtype is not _C.bfloat16:
            warnings.warn("In CPU autocast, but the target dtype is not supported. Disabling autocast.\n"
                          "CPU Autocast only supports dtypes of torch.bfloat16 currently.", stacklevel=2)
            enabled = False
        self._enabled = enabled
        self._former = []

    def __enter__(self):
        former = _C._autocast_get()
        if self.device == "cpu":
            _C._autocast_set(self._enabled, self.fast_dtype, self._cache_enabled)
        else:
            _C._autocast_set(former[0], former[1], self._cache_enabled)
        _C._autocast_nest(1)
        self._former.append(former)
        return self

    def __exit__(self, *exc):
        if _C._autocast_nest(-1) == 0:
            _C.clear_autocast_cache()
        _C._autocast_set(*self._former.pop())
        return False

    def __call__(self, func):
        if not callable(func):
            raise TypeError(f"autocast()(func) requires a callable, but got {type(func).__name__}. Did you mean to use autocast "
                            "as a context manager? For example:\n    with torch.autocast(device_type=...):\n"
                            "        output = model(input)")

        @functools.wraps(func)
        def run(*args, **kwargs):
            with self:
                return func(*args, **kwargs)

        return run


def _cast(value, dtype):
    """Tensors of float32 and bfloat16 in containers as `dtype`."""
    if isinstance(value, _C.Tensor):
        return value.to(dtype) if value.is_floating_point() and value.dtype is not _C.float64 else value
    if isinstance(value, Mapping):
        return {_cast(k, dtype): _cast(v, dtype) for k, v in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) and type(value).__module__ != "numpy":
        items = (_cast(v, dtype) for v in value)
        return type(value)(items) if isinstance(value, (list, tuple)) else items
    return value


def _check_device_type(device_type):
    if not isinstance(device_type, str):
        raise ValueError(f"Expected `device_type` of type `str`, got: `{type(device_type)}`")


def custom_fwd(fwd=None, *, device_type, cast_inputs=None):
    """Decorates the forward of an autograd.Function: casts its inputs, which it then computes with outside autocast."""
    _check_device_type(device_type)
    if fwd is None:
        return functools.partial(custom_fwd, device_type=device_type, cast_inputs=cast_inputs)

    @functools.wraps(fwd)
    def run(ctx, *args, **kwargs):
        on = is_autocast_enabled(device_type)
        ctx._dtype, ctx._fwd_used_autocast = get_autocast_dtype(device_type), on and cast_inputs is None
        if cast_inputs is None or not on:
            return fwd(ctx, *args, **kwargs)
        with autocast(device_type, enabled=False):
            return fwd(ctx, *_cast(args, cast_inputs), **_cast(kwargs, cast_inputs))

    return run


def custom_bwd(bwd=None, *, device_type):
    """Decorates the backward of an autograd.Function: autocast is as it was in forward."""
    _check_device_type(device_type)
    if bwd is None:
        return functools.partial(custom_bwd, device_type=device_type)

    @functools.wraps(bwd)
    def run(ctx, *args, **kwargs):
        with autocast(device_type, enabled=ctx._fwd_used_autocast, dtype=ctx._dtype):
            return bwd(ctx, *args, **kwargs)

    return run
