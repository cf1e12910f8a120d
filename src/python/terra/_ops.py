"""Functions composed of the op table's rows, as torch.<name> and, where METHODS lists them, as Tensor.<name>."""

import builtins
import math
from collections import namedtuple

from . import _autocast, _C
from ._core import Size

Tensor = _C.Tensor
_op = _C.op
_any, _all, _sum, _max, _min, _abs, _range = (builtins.any, builtins.all, builtins.sum, builtins.max, builtins.min,
                                              builtins.abs, range)


def _result(name, *fields):
    """A named tuple that prints as torch.return_types does."""
    base = namedtuple(name, fields)

    class result(base):
        __slots__ = ()

        def __repr__(self):
            return "torch.return_types." + name + "(\n" + ",\n".join(f"{f}={v!r}" for f, v in zip(fields, self)) + ")"

    result.__name__ = result.__qualname__ = name
    result.__module__ = "torch.return_types"
    return result


_max_result = _result("max", "values", "indices")
_min_result = _result("min", "values", "indices")
_sort_result = _result("sort", "values", "indices")
_topk_result = _result("topk", "values", "indices")
_median_result = _result("median", "values", "indices")


def _wrap(dim, n):
    n = n or 1
    if not -n <= dim < n:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-n}, {n - 1}], but got {dim})")
    return dim % n


def _sizes(size):
    return tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) and hasattr(size[0], "__len__") else size


def _need(function, name, position, value, what, *types):
    """A TypeError in PyTorch's words unless `value` is of one of the types."""
    if not isinstance(value, types) or (isinstance(value, builtins.bool) and builtins.bool not in types):
        raise TypeError(f"{function}(): argument '{name}' (position {position}) must be {what}, not {type(value).__name__}")


# ---- shapes ----


def reshape(input, shape):
    return input.reshape(shape)


def permute(input, dims):
    return input.permute(dims)


def t(input):
    return input.t()


def unbind(input, dim=0):
    return input.unbind(dim)


def contiguous(input, memory_format=None):
    return input.contiguous()


def view_as(input, other):
    _need("view_as", "other", 1, other, "Tensor", Tensor)
    return input.view(other.shape)


def reshape_as(input, other):
    _need("reshape_as", "other", 1, other, "Tensor", Tensor)
    return input.reshape(other.shape)


def expand_as(input, other):
    _need("expand_as", "other", 1, other, "Tensor", Tensor)
    return input.expand(other.shape)


def flatten(input, start_dim=0, end_dim=-1):
    n = input.ndim
    if n == 0:
        return input.reshape(1)
    start, end = _wrap(start_dim, n), _wrap(end_dim, n)
    if start > end:
        raise RuntimeError("flatten() has invalid args: start_dim cannot come after end_dim")
    if start == end:
        return input
    shape = input.shape
    size = 1
    for d in shape[start:end + 1]:
        size *= d
    return input.reshape(shape[:start] + (size,) + shape[end + 1:])


def unflatten(input, dim, sizes):
    dim = _wrap(dim, input.ndim)
    sizes = list(sizes)
    if -1 in sizes:
        known = 1
        for s in sizes:
            known *= s if s != -1 else 1
        sizes[sizes.index(-1)] = input.shape[dim] // known
    return input.reshape(input.shape[:dim] + tuple(sizes) + input.shape[dim + 1:])


def ravel(input):
    return input.reshape(-1)


def movedim(input, source, destination):
    n = input.ndim
    source = [source] if isinstance(source, int) else list(source)
    destination = [destination] if isinstance(destination, int) else list(destination)
    source, destination = [_wrap(d, n) for d in source], [_wrap(d, n) for d in destination]
    rest = iter([d for d in _range(n) if d not in source])
    at = dict(zip(destination, source))
    return input.permute([at[d] if d in at else next(rest) for d in _range(n)])


moveaxis = movedim


def swapaxes(input, axis0, axis1):
    return _C.transpose(input, axis0, axis1)


swapdims = swapaxes


def narrow(input, dim, start, length):
    dim = _wrap(dim, input.ndim)
    n = input.shape[dim]
    start = int(start)
    if not -n <= start <= n:
        raise IndexError(f"start out of range (expected to be in range of [{-n}, {n}], but got {start})")
    start = start + n if start < 0 else start
    if length < 0:
        raise RuntimeError("narrow(): length must be non-negative.")
    if start + length > n:
        raise RuntimeError(f"start ({start}) + length ({length}) exceeds dimension size ({n}).")
    return _op.slice(input, dim, start, start + length, 1)


def split(tensor, split_size_or_sections, dim=0):
    dim = _wrap(dim, tensor.ndim)
    n = tensor.shape[dim]
    sections = split_size_or_sections
    if isinstance(sections, int):
        if sections < 0 or (sections == 0 and n):
            raise RuntimeError(f"split expects split_size be non-negative, but got split_size={sections}")
        sections = [_min(sections, n - at) for at in _range(0, n, sections)] if n else [0]
    elif _sum(sections) != n:
        raise RuntimeError(f"split_with_sizes expects split_sizes to sum exactly to {n} (input tensor's size at dimension "
                           f"{dim}), but got split_sizes={list(sections)}")
    out, at = [], 0
    for size in sections:
        out.append(_op.slice(tensor, dim, at, at + size, 1))
        at += size
    return tuple(out)


def _split_method(self, split_size, dim=0):
    return split(self, split_size, dim)


def split_with_sizes(input, split_sizes, dim=0):
    return split(input, list(split_sizes), dim)


def chunk(input, chunks, dim=0):
    if chunks <= 0:
        raise RuntimeError(f"chunk expects `chunks` to be greater than 0, got: {chunks}")
    dim = _wrap(dim, input.ndim)
    size = -(-input.shape[dim] // chunks)
    if size == 0:
        return split(input, [0] * chunks, dim)
    return split(input, size, dim)


def tensor_split(input, indices_or_sections, dim=0):
    dim = _wrap(dim, input.ndim)
    n = input.shape[dim]
    if isinstance(indices_or_sections, int):
        k, extra = divmod(n, indices_or_sections)
        return split(input, [k + 1] * extra + [k] * (indices_or_sections - extra), dim)
    at = [0, *indices_or_sections, n]
    return tuple(_op.slice(input, dim, a, _max(a, b), 1) for a, b in zip(at, at[1:]))


def cat(tensors, dim=0, *, out=None):
    if isinstance(tensors, Tensor) or not isinstance(tensors, (tuple, list)):
        raise TypeError(f"cat(): argument 'tensors' (position 1) must be tuple of Tensors, not {type(tensors).__name__}")
    if not tensors:
        raise ValueError("expected a non-empty list of Tensors")
    kept = [x for x in tensors if not (isinstance(x, Tensor) and x.ndim == 1 and x.shape[0] == 0)]
    if not kept:
        kept = tensors[:1]
    if not isinstance(kept[0], Tensor):
        raise TypeError(f"expected Tensor as element 0 in argument 0, but got {type(kept[0]).__name__}")
    if kept[0].ndim == 0:
        raise RuntimeError("zero-dimensional tensor (at position 0) cannot be concatenated")
    result = _op.cat(_wrap(dim, kept[0].ndim), kept)
    return result if out is None else out.copy_(result)


concat = concatenate = cat


def stack(tensors, dim=0, *, out=None):
    if not isinstance(tensors, (tuple, list)):
        raise TypeError(f"stack(): argument 'tensors' (position 1) must be tuple of Tensors, not {type(tensors).__name__}")
    if not tensors:
        raise RuntimeError("stack expects a non-empty TensorList")
    first = tensors[0]
    for i, x in enumerate(tensors):
        if not isinstance(x, Tensor):
            raise TypeError(f"expected Tensor as element {i} in argument 0, but got {type(x).__name__}")
        if x.shape != first.shape:
            raise RuntimeError(f"stack expects each tensor to be equal size, but got {list(first.shape)} at entry 0 and "
                               f"{list(x.shape)} at entry {i}")
    dim = _wrap(dim, first.ndim + 1)
    return _op.cat(dim, [_C.unsqueeze(x, dim) for x in tensors])


def hstack(tensors):
    tensors = [x.reshape(1) if x.ndim == 0 else x for x in tensors]
    return cat(tensors, 0 if tensors[0].ndim == 1 else 1)


def vstack(tensors):
    return cat([x.reshape(1, -1) if x.ndim < 2 else x for x in tensors], 0)


def repeat(input, *repeats):
    repeats = _sizes(repeats)
    if len(repeats) < input.ndim:
        raise RuntimeError("Number of dimensions of repeat dims can not be smaller than number of dimensions of tensor")
    shape = (1,) * (len(repeats) - input.ndim) + tuple(input.shape)
    pairs = [v for r, s in zip(repeats, shape) for v in ((s,) if r == 1 else (r, s))]
    source = [v for r, s in zip(repeats, shape) for v in ((s,) if r == 1 else (1, s))]
    total = [r * s for r, s in zip(repeats, shape)]
    return input.reshape(source).expand(pairs).clone(memory_format=None).reshape(total) if source != pairs else \
        input.clone().reshape(total)


def tile(input, *dims):
    dims = _sizes(dims)
    return repeat(input, *((1,) * (input.ndim - len(dims)) + tuple(dims)))


def repeat_interleave(input, repeats, dim=None, *, output_size=None):
    if dim is None:
        input, dim = input.reshape(-1), 0
    dim = _wrap(dim, input.ndim)
    if isinstance(repeats, Tensor):
        if repeats.numel() == 1:
            repeats = int(repeats)
        else:
            rows = [i for i, r in enumerate(repeats.tolist()) for _ in _range(r)]
            return _C.index_select(input, dim, _C._from_data(rows, _C.int64))
    shape = input.shape
    wide = _C.unsqueeze(input, dim + 1).expand(shape[:dim + 1] + (repeats,) + shape[dim + 1:])
    return wide.reshape(shape[:dim] + (shape[dim] * repeats,) + shape[dim + 1:])


def broadcast_shapes(*shapes):
    out = []
    for d in _range(_max((len(s) for s in shapes), default=0)):
        sizes = {s[-1 - d] for s in shapes if len(s) > d} - {1}
        if len(sizes) > 1:
            raise RuntimeError("Shape mismatch: objects cannot be broadcast to a single shape")
        out.append(sizes.pop() if sizes else 1)
    return Size(reversed(out))


def broadcast_tensors(*tensors):
    shape = broadcast_shapes(*[x.shape for x in _sizes(tensors)])
    return tuple(x.expand(shape) for x in _sizes(tensors))


def broadcast_to(input, size):
    return input.expand(size)


def meshgrid(*tensors, indexing="ij"):
    tensors = _sizes(tensors)
    if indexing == "xy" and len(tensors) >= 2:
        grids = meshgrid(tensors[1], tensors[0], *tensors[2:])
        return tuple(_C.transpose(g, 0, 1) for g in (grids[1], grids[0], *grids[2:]))
    shape = [x.numel() for x in tensors]
    return tuple(x.reshape([-1 if i == d else 1 for i in _range(len(tensors))]).expand(shape) for d, x in enumerate(tensors))


def roll(input, shifts, dims=None):
    shifts = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    dims = () if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)
    if not shifts:
        raise RuntimeError("`shifts` required")
    if not dims and len(shifts) == 1:
        return _op.roll(input.reshape(-1), shifts[0], 0).reshape(input.shape)
    if len(shifts) != len(dims):
        raise RuntimeError(f"shifts and dimensions must align. shifts: {len(shifts)}, dims:{len(dims)}")
    for s, d in zip(shifts, dims):
        input = _op.roll(input, s, d)
    return input


def flip(input, *dims):
    return _C.flip(input, _sizes(dims))


def as_strided(input, size, stride, storage_offset=None):
    # The row counts from the input's first element, PyTorch from the storage's.
    return _op.as_strided(input, size, stride, 0 if storage_offset is None else storage_offset - input.storage_offset())


def diag(input, diagonal=0):
    if input.ndim == 2:
        return _C.diagonal(input, diagonal).clone()
    n = input.shape[0] + _abs(diagonal)
    out = _C._new_full((n, n), input.dtype, 0)
    rows = _C._new_arange((input.shape[0],), _C.int64, _max(-diagonal, 0), 1)
    cols = _C._new_arange((input.shape[0],), _C.int64, _max(diagonal, 0), 1)
    out[rows, cols] = input
    return out


@_autocast.float32
def trace(input):
    return _C.sum(_C.diagonal(input))


def tril_indices(row, col, offset=0, *, dtype=None, device=None):
    pairs = [(i, j) for i in _range(row) for j in _range(col) if j - i <= offset]
    return _C._from_data([[p[0] for p in pairs], [p[1] for p in pairs]], dtype or _C.int64)


def triu_indices(row, col, offset=0, *, dtype=None, device=None):
    pairs = [(i, j) for i in _range(row) for j in _range(col) if j - i >= offset]
    return _C._from_data([[p[0] for p in pairs], [p[1] for p in pairs]], dtype or _C.int64)


# ---- reductions ----


def _reduced(dim):
    return dim is None or (isinstance(dim, (tuple, list)) and not dim)


def max(input, dim=None, keepdim=False, *, out=None):
    if dim is None:
        return _C.amax(input)
    if isinstance(dim, Tensor):
        return _C.maximum(input, dim)
    return _max_result(*_op.max_dim(input, dim, keepdim))


def min(input, dim=None, keepdim=False, *, out=None):
    if dim is None:
        return _C.amin(input)
    if isinstance(dim, Tensor):
        return _C.minimum(input, dim)
    return _min_result(*_op.min_dim(input, dim, keepdim))


def _max_method(self, dim=None, keepdim=False, *, other=None):
    return max(self, dim if other is None else other, keepdim)


def _min_method(self, dim=None, keepdim=False, *, other=None):
    return min(self, dim if other is None else other, keepdim)


def aminmax(input, *, dim=None, keepdim=False):
    return (_C.amin(input, dim, keepdim), _C.amax(input, dim, keepdim))


def sort(input, dim=-1, descending=False, stable=False):
    return _sort_result(*_op.sort(input, dim, descending, stable))


def argsort(input, dim=-1, descending=False, stable=False):
    return _op.sort(input, dim, descending, stable)[1]


def topk(input, k, dim=-1, largest=True, sorted=True):
    _need("topk", "k", 2, k, "int", int, Tensor)
    return _topk_result(*_op.topk(input, int(k), dim, largest, sorted))


def median(input, dim=None, keepdim=False):
    if dim is None:
        flat = input.reshape(-1)
        return _op.sort(flat, 0, False, False)[0][(flat.shape[0] - 1) // 2]
    values, indices = _op.sort(input, dim, False, True)
    k = (input.shape[dim] - 1) // 2
    values, indices = narrow(values, dim, k, 1), narrow(indices, dim, k, 1)
    return _median_result(values, indices) if keepdim else _median_result(values.squeeze(dim), indices.squeeze(dim))


def _var_args(dim, unbiased, correction):
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased is None or unbiased else 0
    return dim, correction


def var(input, dim=None, unbiased=None, keepdim=False, *, correction=None):
    dim, correction = _var_args(dim, unbiased, correction)
    return _op.var(input, dim, correction=correction, keepdim=keepdim)


def std(input, dim=None, unbiased=None, keepdim=False, *, correction=None):
    return _C.sqrt(var(input, dim, unbiased, keepdim, correction=correction))


def std_mean(input, dim=None, unbiased=None, keepdim=False, *, correction=None):
    d = None if isinstance(dim, bool) else dim
    return std(input, dim, unbiased, keepdim, correction=correction), _C.mean(input, d, keepdim)


def var_mean(input, dim=None, unbiased=None, keepdim=False, *, correction=None):
    d = None if isinstance(dim, bool) else dim
    return var(input, dim, unbiased, keepdim, correction=correction), _C.mean(input, d, keepdim)


def norm(input, p="fro", dim=None, keepdim=False, out=None, dtype=None):
    if p in ("fro", None):
        p = 2
    if dtype is not None:
        input = input.to(dtype)
    return _op.vector_norm(input, float(p), dim, keepdim)


def dist(input, other, p=2):
    return _op.vector_norm(input - other, float(p))


def count_nonzero(input, dim=None):
    return _C.sum(input != 0, dim)


def nansum(input, dim=None, keepdim=False):
    return _C.sum(where(_C.isnan(input), 0.0, input), dim, keepdim)


def equal(input, other):
    return input.shape == other.shape and _C.all(input == other).item()


def isclose(input, other, rtol=1e-05, atol=1e-08, equal_nan=False):
    close = _C.logical_or(input == other, _C.logical_and(
        _C.isfinite(other), _C.abs(input - other) <= atol + rtol * _C.abs(other)))
    if equal_nan:
        close = _C.logical_or(close, _C.logical_and(_C.isnan(input), _C.isnan(other)))
    return close


def allclose(input, other, rtol=1e-05, atol=1e-08, equal_nan=False):
    return _C.all(isclose(input, other, rtol, atol, equal_nan)).item()


# ---- elementwise ----


def where(condition, input=None, other=None):
    if input is None and other is None:
        return nonzero(condition, as_tuple=True)
    if isinstance(input, (int, float)) and isinstance(other, (int, float)):
        input = _C._new_full((), None, input)
        other = _C._new_full((), None, other)
    return _op.where(condition, input, other)


def _where_method(self, condition, other):
    return _op.where(condition, self, other)


def clamp_min(input, min):
    return _C.clamp(input, min)


def clamp_max(input, max):
    return _C.clamp(input, None, max)


def rsub(input, other, *, alpha=1):
    return _op.sub(other, input, alpha=alpha)


def true_divide(input, other):
    return _C.div(input, other)


def floor_divide(input, other):
    return _C.div(input, other, rounding_mode="floor")


def softmax(input, dim=None, dtype=None, *, _stacklevel=3):
    if dim is None:
        raise TypeError('softmax() missing 1 required positional arguments: "dim"')
    return _op._softmax(input if dtype is None else input.to(dtype), dim)


def log_softmax(input, dim=None, dtype=None, *, _stacklevel=3):
    if dim is None:
        raise TypeError('log_softmax() missing 1 required positional arguments: "dim"')
    return _op._log_softmax(input if dtype is None else input.to(dtype), dim)


def frac(input):
    return input - _C.trunc(input)


def nan_to_num(input, nan=0.0, posinf=None, neginf=None):
    top = finfo(input.dtype).max
    out = where(_C.isnan(input), nan, input)
    out = where(out == math.inf, top if posinf is None else posinf, out)
    return where(out == -math.inf, -top if neginf is None else neginf, out)


def is_tensor(obj):
    return isinstance(obj, Tensor)


def is_floating_point(input):
    return input.dtype.is_floating_point


def is_complex(input):
    return False


def numel(input):
    return input.numel()


def is_nonzero(input):
    return bool(input)


def result_type(tensor1, tensor2):
    return _C.result_type(tensor1, tensor2)


def promote_types(type1, type2):
    return _C.result_type(_C._new_empty((1,), type1), _C._new_empty((1,), type2))


def _kind(dtype):
    return 2 if dtype.is_floating_point else 0 if dtype is _C.bool else 1


def can_cast(from_, to):
    return _kind(from_) <= _kind(to)


# ---- matrices ----


def matmul(input, other, *, out=None):
    if not isinstance(other, Tensor):
        raise TypeError(f"matmul(): argument 'other' (position 2) must be Tensor, not {type(other).__name__}")
    result = input.matmul(other)
    return result if out is None else out.copy_(result)


@_autocast.untouched
def dot(input, tensor):
    if input.ndim != 1 or tensor.ndim != 1:
        raise RuntimeError(f"1D tensors expected, but got {input.ndim}D and {tensor.ndim}D tensors")
    return input.matmul(tensor)


@_autocast.untouched
def mv(input, vec):
    return input.matmul(vec)


def outer(input, vec2):
    return input.unsqueeze(1) * vec2.unsqueeze(0)


ger = outer


def einsum(equation, *operands):
    """Any equation of products and sums; pairs are contracted from left to right through bmm."""
    operands = list(_sizes(operands)) if len(operands) == 1 and not isinstance(operands[0], Tensor) else list(operands)
    from ._einsum import einsum as run

    return run(equation, operands)


def tensordot(a, b, dims=2):
    if isinstance(dims, int):
        dims = (list(_range(a.ndim - dims, a.ndim)), list(_range(dims)))
    left, right = ([_wrap(d, x.ndim) for d in ds] for ds, x in zip(dims, (a, b)))
    keep_a = [d for d in _range(a.ndim) if d not in left]
    keep_b = [d for d in _range(b.ndim) if d not in right]
    k = 1
    for d in left:
        k *= a.shape[d]
    out = a.permute(keep_a + left).reshape(-1, k).matmul(b.permute(right + keep_b).reshape(k, -1))
    return out.reshape([a.shape[d] for d in keep_a] + [b.shape[d] for d in keep_b])


# ---- indexing ----


def nonzero(input, *, as_tuple=False):
    at = _C._nonzero_of(input)
    return at.unbind(1) if as_tuple else at


def masked_select(input, mask):
    input, mask = broadcast_tensors(input, mask)
    return input[mask]


def take(input, index):
    return _C.index_select(input.reshape(-1), 0, index.reshape(-1)).reshape(index.shape)


def take_along_dim(input, indices, dim=None):
    return _C.gather(input.reshape(-1), 0, indices.reshape(-1)) if dim is None else _C.gather(input, dim, indices)


def index_fill_(input, dim, index, value):
    input[(slice(None),) * _wrap(dim, input.ndim) + (index,)] = value
    return input


def index_fill(input, dim, index, value):
    return index_fill_(input.clone(), dim, index, value)


def index_copy_(input, dim, index, source):
    input[(slice(None),) * _wrap(dim, input.ndim) + (index,)] = source
    return input


def index_put_(input, indices, values, accumulate=False):
    if accumulate:
        index = [i for i in indices]
        shape = broadcast_shapes(*[i.shape for i in index])
        _op.index_put_(input, values, (1 << len(index)) - 1, True, [i.expand(shape) for i in index])
    else:
        input[tuple(indices)] = values
    return input


def masked_scatter_(input, mask, source):
    mask = mask.expand_as(input)
    input[mask] = source.reshape(-1)[:int(mask.sum())]
    return input


def unique(input, sorted=True, return_inverse=False, return_counts=False, dim=None):
    if dim is not None:
        raise NotImplementedError("unique(dim=) is not in Terra's subset yet")
    import numpy

    values, inverse, counts = numpy.unique(input.detach().numpy(), return_inverse=True, return_counts=True)
    out = [_C._from_data(values)]
    if return_inverse:
        out.append(_C._from_data(inverse.reshape(tuple(input.shape)), _C.int64))
    if return_counts:
        out.append(_C._from_data(counts, _C.int64))
    return out[0] if len(out) == 1 else tuple(out)


def bincount(input, weights=None, minlength=0):
    n = _max(int(input.max()) + 1 if input.numel() else 0, minlength)
    source = weights if weights is not None else _C._new_full(input.shape, _C.int64, 1)
    return _C.scatter_add(_C._new_full((n,), source.dtype, 0), 0, input.long(), source)


def searchsorted(sorted_sequence, input, *, right=False, side=None):
    right = right or side == "right"
    value = input if isinstance(input, Tensor) else _C._from_data(input)
    below = sorted_sequence.unsqueeze(-2) <= value.unsqueeze(-1) if right else \
        sorted_sequence.unsqueeze(-2) < value.unsqueeze(-1)
    return _C.sum(below, -1)


# ---- numbers about dtypes ----


class finfo:
    """Limits of a floating dtype."""

    _TABLE = {
        _C.float32: (32, 1.1920928955078125e-07, 3.4028234663852886e+38, 1.1754943508222875e-38, 1e-06),
        _C.float64: (64, 2.220446049250313e-16, 1.7976931348623157e+308, 2.2250738585072014e-308, 1e-15),
        _C.bfloat16: (16, 0.0078125, 3.3895313892515355e+38, 1.1754943508222875e-38, 0.01),
    }

    def __init__(self, type=None):
        type = _C.get_default_dtype() if type is None else type
        if type not in self._TABLE:
            raise TypeError(f"torch.finfo() requires a floating point input type. Use torch.iinfo to handle '{type}'")
        self.bits, self.eps, self.max, self.tiny, self.resolution = self._TABLE[type]
        self.min, self.smallest_normal, self.dtype = -self.max, self.tiny, str(type).split(".")[-1]

    def __repr__(self):
        return (f"finfo(resolution={self.resolution:g}, min={self.min:g}, max={self.max:g}, eps={self.eps:g}, "
                f"smallest_normal={self.tiny:g}, tiny={self.tiny:g}, dtype={self.dtype})")


class iinfo:
    """Limits of an integer dtype."""

    def __init__(self, type):
        if type.is_floating_point or type is _C.bool:
            raise TypeError("torch.iinfo() requires an integer input type. Use torch.finfo to handle " + str(type))
        self.bits, self.dtype = 8 * type.itemsize, str(type).split(".")[-1]
        self.min = -(1 << (self.bits - 1)) if type.is_signed else 0
        self.max = (1 << (self.bits - 1 if type.is_signed else self.bits)) - 1

    def __repr__(self):
        return f"iinfo(min={self.min}, max={self.max}, dtype={self.dtype})"


# ---- aliases ----

absolute, negative, multiply, subtract, divide = _C.abs, _C.neg, _C.mul, _C.sub, _C.div
greater, greater_equal, less, less_equal, not_equal = _C.gt, _C.ge, _C.lt, _C.le, _C.ne
clip, fix, arcsin, arccos, arctan, arctan2 = _C.clamp, _C.trunc, _C.asin, _C.acos, _C.atan, _C.atan2
spmm = _C.mm


def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    return _op.max_pool2d(input, kernel_size, kernel_size if stride is None else stride, padding, dilation, ceil_mode)[0]


def dropout(input, p, train):
    return _op._dropout(input, p, None)[0] if train and p > 0 else input


METHODS = """view_as reshape_as expand_as flatten unflatten ravel movedim moveaxis swapaxes swapdims narrow split_with_sizes
    chunk tensor_split repeat tile repeat_interleave broadcast_to roll flip as_strided diag trace sort argsort topk median var
    std norm dist count_nonzero nansum equal isclose allclose clamp_min clamp_max true_divide floor_divide softmax log_softmax
    frac nan_to_num is_complex dot mv outer ger nonzero masked_select take take_along_dim index_fill_ index_fill index_copy_
    index_put_ masked_scatter_ unique bincount absolute negative multiply subtract divide greater greater_equal less
    less_equal not_equal clip fix aminmax is_nonzero""".split()


def _in_place(fn):
    """An in-place form of a function that has none of its own."""

    def method(self, *args, **kwargs):
        return self.copy_(fn(self, *args, **kwargs))

    return method


def attach():
    """Gives Tensor the methods of this module."""
    for name in METHODS:
        fn = globals()[name]
        setattr(Tensor, name, _method(fn) if type(fn).__name__ == "builtin_function_or_method" else fn)
    Tensor.max, Tensor.min, Tensor.split, Tensor.where = _max_method, _min_method, _split_method, _where_method
    Tensor.clip_ = Tensor.clamp_
    Tensor.clamp_min_ = lambda self, min: self.clamp_(min)
    Tensor.clamp_max_ = lambda self, max: self.clamp_(None, max)
    Tensor.multiply_, Tensor.subtract_, Tensor.divide_ = Tensor.mul_, Tensor.sub_, Tensor.div_
    Tensor.floor_divide_ = lambda self, other: self.div_(other, rounding_mode="floor")


def _method(builtin):
    def method(self, *args, **kwargs):
        return builtin(self, *args, **kwargs)

    method.__name__ = builtin.__name__
    return method
