"""Initial values: the same draws, in the same order, as PyTorch."""

import math
import warnings

from .. import _C

Tensor = _C.Tensor


class _quiet:
    def __enter__(self):
        self.was = _C._set_grad_enabled(False)

    def __exit__(self, *exc):
        _C._set_grad_enabled(self.was)


def _no_grad(fn):
    import functools

    @functools.wraps(fn)
    def run(*args, **kwargs):
        with _quiet():
            return fn(*args, **kwargs)

    return run


def calculate_gain(nonlinearity, param=None):
    """The recommended gain of a nonlinearity."""
    linear = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
    if nonlinearity in linear or nonlinearity == "sigmoid":
        return 1
    if nonlinearity == "tanh":
        return 5.0 / 3
    if nonlinearity == "relu":
        return math.sqrt(2.0)
    if nonlinearity == "leaky_relu":
        if param is None:
            slope = 0.01
        elif isinstance(param, (int, float)) and not isinstance(param, bool):
            slope = param
        else:
            raise ValueError(f"negative_slope {param} not a valid number")
        return math.sqrt(2.0 / (1 + slope ** 2))
    if nonlinearity == "selu":
        return 3.0 / 4
    raise ValueError(f"Unsupported nonlinearity {nonlinearity}")


@_no_grad
def uniform_(tensor, a=0.0, b=1.0, generator=None):
    return tensor.uniform_(a, b, generator=generator)


@_no_grad
def normal_(tensor, mean=0.0, std=1.0, generator=None):
    return tensor.normal_(mean, std, generator=generator)


def _redraw(tensor, mean, std, a, b, generator):
    """Normal values; all are drawn again, and those out of bounds replaced, until none is."""
    low, high = (_C._from_data(v, tensor.dtype).item() for v in (a, b))
    values = tensor.normal_(mean, std, generator=generator)
    while True:
        out = _C.logical_or(values < low, values > high)
        if not out.any():
            return values
        values = _C.op.where(out, _C._new_empty(tensor.shape, tensor.dtype).normal_(mean, std, generator=generator), values)


def _accept(tensor, mean, std, a, b, generator):
    """Where [a, b] holds little: uniform values, each kept with the probability of its density."""
    top = -0.5 * ((max(a, min(mean, b)) - mean) / std) ** 2

    def rejected(values):
        density = values.sub(mean).div_(std).pow_(2).mul_(-0.5).sub_(top)
        return _C._new_empty(tensor.shape, tensor.dtype).uniform_(generator=generator).log_() > density

    values = tensor.uniform_(a, b, generator=generator).clone()
    pending = rejected(values)
    while pending.any():
        again = _C._new_empty(tensor.shape, tensor.dtype).uniform_(a, b, generator=generator)
        values = _C.op.where(pending, again, values)
        pending = _C.logical_and(pending, rejected(again))
    return values


@_no_grad
def trunc_normal_(tensor, mean=0.0, std=1.0, a=-2.0, b=2.0, generator=None):
    """Normal values within [a, b]."""

    def cdf(x):
        return (1.0 + math.erf(x / math.sqrt(2.0))) / 2.0

    if (mean < a - 2 * std) or (mean > b + 2 * std):
        warnings.warn("mean is more than 2 std from [a, b] in nn.init.trunc_normal_. The distribution of values may be incorrect.",
                      stacklevel=2)
    draw = _redraw if cdf((b - mean) / std) - cdf((a - mean) / std) > 0.3 else _accept
    values = draw(tensor, mean, std, a, b, generator)
    return tensor if values is tensor else tensor.copy_(values)


@_no_grad
def constant_(tensor, val):
    return tensor.fill_(val)


@_no_grad
def ones_(tensor):
    return tensor.fill_(1.0)


@_no_grad
def zeros_(tensor):
    return tensor.fill_(0.0)


@_no_grad
def eye_(tensor):
    if tensor.ndim != 2:
        raise ValueError("Only tensors with 2 dimensions are supported")
    return tensor.copy_(_C._new_eye(tensor.shape, tensor.dtype))


@_no_grad
def dirac_(tensor, groups=1):
    if tensor.ndim not in (3, 4, 5):
        raise ValueError("Only tensors with 3, 4, or 5 dimensions are supported")
    if tensor.shape[0] % groups:
        raise ValueError("dim 0 must be divisible by groups")
    per = tensor.shape[0] // groups
    tensor.fill_(0)
    middle = tuple(s // 2 for s in tensor.shape[2:])
    for g in range(groups):
        for d in range(min(per, tensor.shape[1])):
            tensor[(g * per + d, d, *middle)] = 1
    return tensor


def _calculate_fan_in_and_fan_out(tensor):
    if tensor.ndim < 2:
        raise ValueError("Fan in and fan out can not be computed for tensor with fewer than 2 dimensions")
    field = 1
    for s in tensor.shape[2:]:
        field *= s
    return tensor.shape[1] * field, tensor.shape[0] * field


def _calculate_correct_fan(tensor, mode):
    mode = mode.lower()
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"Mode {mode} not supported, please use one of ['fan_in', 'fan_out']")
    return _calculate_fan_in_and_fan_out(tensor)[mode == "fan_out"]


def xavier_uniform_(tensor, gain=1.0, generator=None):
    fan_in, fan_out = _calculate_fan_in_and_fan_out(tensor)
    a = math.sqrt(3.0) * (gain * math.sqrt(2.0 / float(fan_in + fan_out)))
    return uniform_(tensor, -a, a, generator)


def xavier_normal_(tensor, gain=1.0, generator=None):
    fan_in, fan_out = _calculate_fan_in_and_fan_out(tensor)
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / float(fan_in + fan_out)), generator)


def _empty(tensor):
    if 0 in tensor.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=3)
        return True
    return False


def kaiming_uniform_(tensor, a=0, mode="fan_in", nonlinearity="leaky_relu", generator=None):
    if _empty(tensor):
        return tensor
    std = calculate_gain(nonlinearity, a) / math.sqrt(_calculate_correct_fan(tensor, mode))
    bound = math.sqrt(3.0) * std
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(tensor, a=0, mode="fan_in", nonlinearity="leaky_relu", generator=None):
    if _empty(tensor):
        return tensor
    return normal_(tensor, 0, calculate_gain(nonlinearity, a) / math.sqrt(_calculate_correct_fan(tensor, mode)), generator)


@_no_grad
def orthogonal_(tensor, gain=1, generator=None):
    if tensor.ndim < 2:
        raise ValueError("Only tensors with 2 or more dimensions are supported")
    if tensor.numel() == 0:
        return tensor
    import numpy

    rows = tensor.shape[0]
    cols = tensor.numel() // rows
    flat = _C._new_empty((rows, cols), tensor.dtype).normal_(0, 1, generator=generator)
    a = flat.numpy()
    q, r = numpy.linalg.qr(a.T if rows < cols else a)
    d = numpy.diag(r)
    q = q * numpy.where(d < 0, -1, 1)
    q = numpy.ascontiguousarray(q.T if rows < cols else q)
    return tensor.copy_(_C._from_data(q, tensor.dtype).view(tensor.shape)).mul_(gain)


@_no_grad
def sparse_(tensor, sparsity, std=0.01, generator=None):
    if tensor.ndim != 2:
        raise ValueError("Only tensors with 2 dimensions are supported")
    from .._creation import randperm

    rows, cols = tensor.shape
    tensor.normal_(0, std, generator=generator)
    for c in range(cols):
        tensor[randperm(rows)[:int(math.ceil(sparsity * rows))], c] = 0
    return tensor


def _deprecated(fn):
    def run(*args, **kwargs):
        warnings.warn(f"`nn.init.{fn.__name__[:-1]}` is now deprecated in favor of `nn.init.{fn.__name__}`.", FutureWarning,
                      stacklevel=2)
        return fn(*args, **kwargs)

    run.__name__ = fn.__name__[:-1]
    return run


uniform, normal, constant, eye, dirac = map(_deprecated, (uniform_, normal_, constant_, eye_, dirac_))
xavier_uniform, xavier_normal, kaiming_uniform, kaiming_normal, orthogonal, sparse = map(
    _deprecated, (xavier_uniform_, xavier_normal_, kaiming_uniform_, kaiming_normal_, orthogonal_, sparse_))
