"""Tensor's methods that are written in Python: autograd's, hooks, copying, conversion, random fills."""

from . import _C, _creation
from ._core import check_device

Tensor = _C.Tensor
_op = _C.op


def backward(self, gradient=None, retain_graph=None, create_graph=False, inputs=None):
    """Accumulates the gradients of this tensor into the leaves."""
    from .autograd import backward as run

    run(self, gradient, retain_graph, create_graph, inputs=inputs)


class RemovableHandle:
    """Removes a hook."""

    next_id = 0

    def __init__(self, remove=None):
        self._remove = remove
        self.id = RemovableHandle.next_id
        RemovableHandle.next_id += 1

    def remove(self):
        if self._remove is not None:
            self._remove()
            self._remove = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.remove()


def register_hook(self, hook):
    """Calls hook(grad) whenever this tensor's gradient is computed; what it returns replaces the gradient."""
    if not self.requires_grad:
        raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
    number = self._register_hook(hook)
    return RemovableHandle(lambda: self._remove_hook(number))


def register_post_accumulate_grad_hook(self, hook):
    """Calls hook(tensor) after its .grad was accumulated."""
    if not self.requires_grad or not self.is_leaf:
        raise RuntimeError("post accumulate grad hooks can only be registered on leaf tensors that require gradient")

    number = self._register_post_hook(lambda _: hook(self))
    return RemovableHandle(lambda: self._remove_hook(number))


def detach_(self):
    """Takes this tensor out of the graph, in place."""
    if self.grad_fn is None:
        return self.requires_grad_(False)
    raise NotImplementedError("detach_() of a non-leaf is not in Terra's subset yet; use detach()")


def deepcopy(self, memo):
    if not self.is_leaf:
        raise RuntimeError("Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol at the "
                           "moment.  If you were attempting to deepcopy a module, this may be because of a torch.nn.utils.weight_norm "
                           "usage, see https://github.com/pytorch/pytorch/pull/103001")
    if id(self) in memo:
        return memo[id(self)]
    with _no_grad():
        out = self.detach().clone()
    if type(self) is not Tensor:
        out = _C.Tensor._make_subclass(type(self), out)
    if self.requires_grad:
        out.requires_grad_()
    if self.grad is not None:
        out.grad = self.grad.__deepcopy__(memo)
    memo[id(self)] = out
    if self.__dict__:
        import copy

        out.__dict__.update(copy.deepcopy(self.__dict__, memo))
    return out


class _no_grad:
    def __enter__(self):
        self.was = _C._set_grad_enabled(False)

    def __exit__(self, *exc):
        _C._set_grad_enabled(self.was)


def _rebuild(data, dtype, size, requires_grad, cls, state):
    t = _C._from_bytes(data, dtype, size)
    if cls is not None:
        t = _C.Tensor._make_subclass(cls, t)
    if requires_grad:
        t.requires_grad_()
    if state:
        t.__dict__.update(state)
    return t


def reduce_ex(self, protocol):
    if not self.is_leaf and self.requires_grad:
        raise RuntimeError("can't pickle a tensor that requires gradient and isn't a leaf")
    data = self.detach()
    return (_rebuild, (_C._read_bytes(data), self.dtype, tuple(self.shape), self.requires_grad,
                       None if type(self) is Tensor else type(self), dict(self.__dict__)))


def contains(self, element):
    if isinstance(element, (Tensor, int, float, bool)):
        return bool((element == self).any().item())
    raise RuntimeError(f"Tensor.__contains__ only supports Tensor or scalar, but you passed in a {type(element)}.")


def format(self, spec):
    if self.ndim == 0:
        return self.item().__format__(spec)
    return object.__format__(self, spec)


def array(self, dtype=None, copy=None):
    a = self.numpy()
    if dtype is not None and a.dtype != dtype:
        return a.astype(dtype)
    return a.copy() if copy else a


def reversed_(self):
    return self if self.ndim == 0 else self.flip(0)


def type_(self, dtype=None, non_blocking=False, **kwargs):
    if dtype is None:
        return f"torch.{self.dtype._legacy}Tensor"
    if isinstance(dtype, str):
        name = dtype.rpartition(".")[2]
        for t in _creation._LEGACY.values():
            if t.__name__ == name:
                return self.to(t.dtype)
        raise ValueError(f"invalid type: '{dtype}'")
    return self.to(getattr(dtype, "dtype", dtype) if isinstance(dtype, type) and hasattr(dtype, "dtype") and
                   not isinstance(dtype, _C.dtype) and dtype is not Tensor else dtype if dtype is not Tensor else _C.float32)


def type_as(self, other):
    return self.to(other.dtype)


def cuda(self, device=None, non_blocking=False, memory_format=None):
    check_device("cuda")


def zero_(self):
    return self.fill_(0)


def random_(self, *args, generator=None, **kw):
    low, high = (args + (None, None))[:2] if len(args) == 2 else (0, args[0] if args else None)
    low, high = kw.get("from", low), kw.get("to", high)
    if high is None:
        high = {_C.float32: 1 << 24, _C.float64: 1 << 53, _C.bfloat16: 1 << 8, _C.uint8: 256, _C.bool: 2,
                _C.int32: 1 << 31}.get(self.dtype, 1 << 63) + (self.dtype.is_floating_point)
        high = min(high, (1 << 63) - 1)
    return _op._random_(self, int(low), int(high), generator=generator)


def bernoulli_(self, p=0.5, *, generator=None):
    if isinstance(p, Tensor):
        return self.copy_(_C.bernoulli(p.expand_as(self), generator=generator))
    return _op._bernoulli_(self, p, generator=generator)


def bernoulli(input, p=None, *, generator=None, out=None):
    if p is not None:
        return _op._bernoulli_(_C._new_empty(input.shape, input.dtype), p, generator=generator)
    if not isinstance(input, Tensor) or input.is_contiguous():
        return _C.bernoulli(input, generator=generator)
    order = sorted(range(input.ndim), key=lambda d: -input.stride(d))  # drawn in the order of memory
    drawn = _C.bernoulli(input.permute(order).contiguous(), generator=generator)
    return drawn.permute([order.index(d) for d in range(input.ndim)])


def new_tensor(self, data, *, dtype=None, device=None, requires_grad=False):
    t = _C._from_data(data, dtype or self.dtype)
    return t.requires_grad_() if requires_grad else t


def _new_of(make):
    def method(self, *size, dtype=None, device=None, requires_grad=False, layout=None, pin_memory=False, **kw):
        return make(*size, dtype=dtype or self.dtype, device=device, requires_grad=requires_grad, **kw)

    return method


def new(self, *args):
    if len(args) == 1 and isinstance(args[0], (list, tuple)) and not isinstance(args[0], _C.Tensor):
        return _C._from_data(args[0], self.dtype)
    return _creation._LEGACY[self.dtype](*args)


def apply_(self, fn):
    flat = [fn(v) for v in self.reshape(-1).tolist()]
    with _no_grad():
        return self.copy_(_C._from_data(flat, self.dtype).reshape(self.shape))


def map_(self, other, fn):
    flat = [fn(a, b) for a, b in zip(self.reshape(-1).tolist(), other.expand_as(self).reshape(-1).tolist())]
    with _no_grad():
        return self.copy_(_C._from_data(flat, self.dtype).reshape(self.shape))


def set_(self, source=None, *args):
    if source is None:
        source = _C._new_empty((0,), self.dtype)
    if args:
        offset, size, *stride = args
        n, strides = 1, []
        for d in reversed(tuple(size)):
            strides.insert(0, n)
            n *= d
        source = source._alias(tuple(size), tuple(stride[0]) if stride else tuple(strides), offset)
    self.data = source
    return self


def resize_(self, *sizes, memory_format=None):
    size = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    n = 1
    for d in size:
        n *= d
    if n <= self.numel():
        self.data = self.detach().contiguous().reshape(-1)[:n].view(size)
    else:
        fresh = _C._new_empty((n,), self.dtype)
        if self.numel():
            fresh[:self.numel()] = self.detach().reshape(-1)
        self.data = fresh.view(size)
    return self


def squeeze_(self, dim=None):
    self.data = self.detach().squeeze() if dim is None else self.detach().squeeze(dim)
    return self


def unsqueeze_(self, dim):
    self.data = self.detach().unsqueeze(dim)
    return self


def t_(self):
    self.data = self.detach().t()
    return self


def transpose_(self, dim0, dim1):
    self.data = self.detach().transpose(dim0, dim1)
    return self


class UntypedStorage:
    """What tensors share, as far as programs look at it."""

    def __init__(self, tensor):
        self._tensor = tensor

    def data_ptr(self):
        return self._tensor._storage_key()

    def nbytes(self):
        return self._tensor._storage_bytes()

    def size(self):
        return self._tensor._storage_bytes()

    __len__ = size

    def __eq__(self, other):
        return isinstance(other, UntypedStorage) and self._tensor._same_storage(other._tensor)

    def __hash__(self):
        return hash(self.data_ptr())


def data_ptr(self):
    """A number that tells storages and offsets apart; not an address."""
    return self._storage_key() + self.storage_offset() * self.element_size()


def attach():
    for fn in (backward, register_hook, register_post_accumulate_grad_hook, detach_, type_as, cuda, zero_, random_, bernoulli_,
               bernoulli, new_tensor, new, apply_, map_, set_, resize_, squeeze_, unsqueeze_, t_, transpose_, data_ptr):
        setattr(Tensor, fn.__name__, fn)
    Tensor.__deepcopy__, Tensor.__reduce_ex__, Tensor.__contains__ = deepcopy, reduce_ex, contains
    Tensor.__format__, Tensor.__array__, Tensor.__reversed__, Tensor.type = format, array, reversed_, type_
    Tensor.__array_priority__ = 1000
    Tensor.__dlpack_device__ = lambda self: (1, 0)
    for name in ("zeros", "ones", "empty"):
        setattr(Tensor, "new_" + name, _new_of(getattr(_creation, name)))
    Tensor.new_full = lambda self, size, fill_value, *, dtype=None, device=None, requires_grad=False, **kw: _creation.full(
        size, fill_value, dtype=dtype or self.dtype, device=device, requires_grad=requires_grad)
    Tensor.is_pinned = lambda self, device=None: False
    Tensor.pin_memory = lambda self, device=None: self
    Tensor.share_memory_ = lambda self: self
    Tensor.is_shared = lambda self: False
    Tensor.is_complex = lambda self: False
    Tensor.is_signed = lambda self: self.dtype.is_signed
    Tensor.get_device = lambda self: -1
    Tensor.half = _half
    Tensor.layout = property(lambda self: strided)
    Tensor.nbytes = property(lambda self: self.numel() * self.element_size())
    Tensor.H = property(lambda self: self.t())
    Tensor.names = property(lambda self: (None,) * self.ndim)
    Tensor.untyped_storage = lambda self: UntypedStorage(self)
    Tensor._backward_hooks = property(lambda self: self.__dict__.get("_hooks"))
    Tensor.__module__ = "torch"
    Tensor.clone = _clone
    Tensor.mm = _C.Tensor.mm
    Tensor.true_divide_ = Tensor.div_
    Tensor.__array_wrap__ = lambda self, a, context=None, return_scalar=False: _creation.as_tensor(a)


_raw_clone = Tensor.clone


def _clone(self, *, memory_format=None):
    return _raw_clone(self)


def _half(self, memory_format=None):
    raise NotImplementedError("float16 is not in Terra's subset yet; bfloat16 is")


class layout:
    """How a tensor's elements lie; Terra has strided tensors."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return "torch." + self.name


class memory_format(layout):
    """The order of dimensions in memory, as PyTorch names it."""


strided = layout("strided")
contiguous_format, channels_last, preserve_format = (memory_format(n) for n in
                                                     ("contiguous_format", "channels_last", "preserve_format"))
