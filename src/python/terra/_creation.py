"""Functions that make tensors."""

import math

from . import _C
from ._core import Size, check_device

_op = _C.op


def _size(size, what):
    if len(size) == 1 and not isinstance(size[0], int):
        first = size[0]
        if isinstance(first, (tuple, list)):
            return tuple(first)
        if hasattr(first, "__index__"):
            return (first.__index__(),)
        raise TypeError(f"{what}(): argument 'size' (position 1) must be tuple of ints, not {type(first).__name__}")
    return size


def _finish(t, device, requires_grad):
    if device is not None:
        check_device(device)
    if requires_grad:
        t.requires_grad_()
    return t


def _check_out(out, make):
    """`out=`: the result is written there."""
    if tuple(out.shape) != tuple(make.shape):
        raise NotImplementedError("out= with another shape is not in Terra's subset yet")
    return out.copy_(make)


def _float(dtype):
    return dtype if dtype is not None else _C.get_default_dtype()


def zeros(*size, out=None, dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False, **kw):
    """zeros(*size, dtype=None) -> Tensor"""
    size = _size((kw["size"],) if "size" in kw else size, "zeros")
    t = _finish(_C._new_full(size, _float(dtype), 0), device, requires_grad)
    return t if out is None else _check_out(out, t)


def ones(*size, out=None, dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False, **kw):
    """ones(*size, dtype=None) -> Tensor"""
    size = _size((kw["size"],) if "size" in kw else size, "ones")
    t = _finish(_C._new_full(size, _float(dtype), 1), device, requires_grad)
    return t if out is None else _check_out(out, t)


def empty(*size, out=None, dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False,
          memory_format=None, **kw):
    """empty(*size, dtype=None) -> Tensor of any values"""
    size = _size((kw["size"],) if "size" in kw else size, "empty")
    return _finish(_C._new_empty(size, _float(dtype)), device, requires_grad)


def full(size, fill_value, *, out=None, dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False):
    """full(size, fill_value, dtype=None) -> Tensor"""
    if isinstance(fill_value, _C.Tensor):
        fill_value = fill_value.item()
    return _finish(_C._new_full(_size((size,), "full"), dtype, fill_value), device, requires_grad)


def zeros_like(input, *, dtype=None, layout=None, device=None, requires_grad=False, memory_format=None, pin_memory=False):
    return _finish(_C._new_full(input.shape, dtype or input.dtype, 0), device, requires_grad)


def ones_like(input, *, dtype=None, layout=None, device=None, requires_grad=False, memory_format=None, pin_memory=False):
    return _finish(_C._new_full(input.shape, dtype or input.dtype, 1), device, requires_grad)


def empty_like(input, *, dtype=None, layout=None, device=None, requires_grad=False, memory_format=None, pin_memory=False):
    return _finish(_C._new_empty(input.shape, dtype or input.dtype), device, requires_grad)


def full_like(input, fill_value, *, dtype=None, layout=None, device=None, requires_grad=False, memory_format=None):
    return _finish(_C._new_full(input.shape, dtype or input.dtype, fill_value), device, requires_grad)


def _number(x):
    return x.item() if isinstance(x, _C.Tensor) else x


def arange(start, end=None, step=1, *, out=None, dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False):
    """arange(end), arange(start, end, step=1) -> Tensor"""
    if end is None:
        start, end = 0, start
    start, end, step = _number(start), _number(end), _number(step)
    if step == 0:
        raise RuntimeError("step must be nonzero")
    if (end - start) * step < 0:
        raise RuntimeError("upper bound and lower bound inconsistent with step sign")
    if dtype is None:
        integers = all(not isinstance(v, float) and hasattr(v, "__index__") for v in (start, end, step))
        dtype = _C.int64 if integers else _C.get_default_dtype()
    if isinstance(start, float) or isinstance(end, float) or isinstance(step, float):
        n = math.ceil((end - start) / step)
    else:
        n = -((start - end) // step)
    return _finish(_C._new_arange((max(int(n), 0),), dtype, start, step), device, requires_grad)


def linspace(start, end, steps, *, out=None, dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False):
    """linspace(start, end, steps) -> Tensor"""
    if steps < 0:
        raise RuntimeError("number of steps must be non-negative")
    t = _C._new_linspace((steps,), _float(dtype), _number(start), _number(end))
    return _finish(t, device, requires_grad)


def eye(n, m=None, *, out=None, dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False):
    """eye(n, m=n) -> Tensor"""
    return _finish(_C._new_eye((n, n if m is None else m), _float(dtype)), device, requires_grad)


def tensor(data, *, dtype=None, device=None, requires_grad=False, pin_memory=False):
    """tensor(data) -> Tensor: a copy."""
    if isinstance(data, _C.Tensor):
        import warnings

        warnings.warn("To copy construct from a tensor, it is recommended to use sourceTensor.detach().clone() or "
                      "sourceTensor.detach().clone().requires_grad_(True), rather than torch.tensor(sourceTensor).",
                      stacklevel=2)
    return _finish(_C._from_data(data, dtype), device, requires_grad)


scalar_tensor = tensor


def as_tensor(data, dtype=None, device=None):
    """as_tensor(data) -> Tensor that shares memory where it can."""
    check_device(device)
    if isinstance(data, _C.Tensor):
        return data if dtype is None else data.to(dtype)
    if type(data).__name__ == "ndarray" and type(data).__module__ == "numpy":
        try:
            t = _C.from_numpy(data)
        except (TypeError, ValueError):
            return _C._from_data(data, dtype)
        return t if dtype is None else t.to(dtype)
    return _C._from_data(data, dtype)


def asarray(obj, *, dtype=None, device=None, copy=None, requires_grad=False):
    t = _C._from_data(obj, dtype) if copy else as_tensor(obj, dtype, device)
    return _finish(t, device, requires_grad)


def from_dlpack(ext_tensor):
    """from_dlpack(obj) -> Tensor that shares the memory of an object with __dlpack__, or of a capsule."""
    return _C._from_dlpack(ext_tensor.__dlpack__() if hasattr(ext_tensor, "__dlpack__") else ext_tensor)


def frombuffer(buffer, *, dtype, count=-1, offset=0, requires_grad=False):
    import numpy

    name = str(dtype).split(".")[-1]
    return _finish(_C.from_numpy(numpy.frombuffer(buffer, dtype=name, count=count, offset=offset)), None, requires_grad)


# ---- random ----


def rand(*size, generator=None, out=None, dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False, **kw):
    """rand(*size) -> Tensor, uniform in [0, 1)"""
    size = _size((kw["size"],) if "size" in kw else size, "rand")
    return _finish(_C._new_empty(size, _float(dtype)).uniform_(0, 1, generator=generator), device, requires_grad)


def randn(*size, generator=None, out=None, dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False, **kw):
    """randn(*size) -> Tensor, standard normal"""
    size = _size((kw["size"],) if "size" in kw else size, "randn")
    return _finish(_C._new_empty(size, _float(dtype)).normal_(0, 1, generator=generator), device, requires_grad)


def randint(*args, generator=None, out=None, dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False,
            **kw):
    """randint(high, size), randint(low, high, size) -> Tensor of integers in [low, high)"""
    args = list(args)
    size = kw.pop("size", None)
    if size is None:
        size = args.pop()
    low, high = kw.pop("low", None), kw.pop("high", None)
    if high is None:
        high = args.pop()
    if low is None:
        low = args.pop() if args else 0
    low, high = int(low), int(high)
    if low >= high:
        raise RuntimeError(f"random_ expects 'from' to be less than 'to', but got from={low} >= to={high}")
    t = _C._new_empty(tuple(size), dtype or _C.int64)
    return _finish(_op._random_(t, low, high, generator=generator), device, requires_grad)


def randperm(n, *, generator=None, out=None, dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False):
    """randperm(n) -> Tensor: a permutation of 0 … n-1"""
    return _finish(_op._randperm(_C._new_empty((n,), dtype or _C.int64), generator=generator), device, requires_grad)


def rand_like(input, *, dtype=None, layout=None, device=None, requires_grad=False, memory_format=None, generator=None):
    return rand(*input.shape, dtype=dtype or input.dtype, device=device, requires_grad=requires_grad, generator=generator)


def randn_like(input, *, dtype=None, layout=None, device=None, requires_grad=False, memory_format=None, generator=None):
    return randn(*input.shape, dtype=dtype or input.dtype, device=device, requires_grad=requires_grad, generator=generator)


def randint_like(input, *args, dtype=None, **kw):
    return randint(*args, tuple(input.shape), dtype=dtype or input.dtype, **kw)


def normal(mean=0.0, std=1.0, size=None, *, generator=None, out=None, dtype=None, device=None, requires_grad=False):
    """normal(mean, std, size): numbers or tensors"""
    if size is not None:
        t = _C._new_empty(_size((size,), "normal"), _float(dtype)).normal_(mean, std, generator=generator)
        return _finish(t, device, requires_grad)
    shape = (mean + std).shape if isinstance(mean, _C.Tensor) and isinstance(std, _C.Tensor) else (
        mean.shape if isinstance(mean, _C.Tensor) else std.shape)
    kind = (mean if isinstance(mean, _C.Tensor) else std).dtype
    return _C._new_empty(shape, kind).normal_(0, 1, generator=generator).mul_(std).add_(mean)


# ---- the legacy constructors ----


class _LegacyType(type):
    def __instancecheck__(cls, obj):
        return isinstance(obj, _C.Tensor) and obj.dtype is cls.dtype


def _legacy(name, dtype):
    def new(cls, *args, **kwargs):
        if len(args) == 1 and not isinstance(args[0], int) and not isinstance(args[0], Size):
            data = args[0]
            if isinstance(data, _C.Tensor):
                if data.dtype is not dtype:
                    raise TypeError(f"expected {dtype} (got {data.dtype})")
                return data.detach()
            return as_tensor(data, dtype)
        size = tuple(args[0]) if len(args) == 1 and not isinstance(args[0], int) else args or (0,)
        return _C._new_empty(size, dtype)

    return _LegacyType(name, (), {"__new__": new, "dtype": dtype, "__module__": "torch",
                                  "__doc__": f"The legacy constructor of {dtype} tensors."})


FloatTensor = _legacy("FloatTensor", _C.float32)
DoubleTensor = _legacy("DoubleTensor", _C.float64)
BFloat16Tensor = _legacy("BFloat16Tensor", _C.bfloat16)
LongTensor = _legacy("LongTensor", _C.int64)
IntTensor = _legacy("IntTensor", _C.int32)
ByteTensor = _legacy("ByteTensor", _C.uint8)
BoolTensor = _legacy("BoolTensor", _C.bool)
_LEGACY = {t.dtype: t for t in (FloatTensor, DoubleTensor, BFloat16Tensor, LongTensor, IntTensor, ByteTensor, BoolTensor)}

__all__ = ["zeros", "ones", "empty", "full", "zeros_like", "ones_like", "empty_like", "full_like", "arange", "linspace", "eye",
           "tensor", "scalar_tensor", "as_tensor", "asarray", "from_dlpack", "frombuffer", "rand", "randn", "randint", "randperm",
           "rand_like", "randn_like", "randint_like", "normal"]
