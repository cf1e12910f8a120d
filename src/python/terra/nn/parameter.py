"""Parameter, Buffer."""

from .. import _C

Tensor = _C.Tensor


class Parameter(Tensor):
    """A tensor that a Module lists among its parameters."""

    _is_parameter = True

    def __new__(cls, data=None, requires_grad=True):
        if data is None:
            data = _C._new_empty((0,), None)
        return Tensor._make_subclass(cls, data, requires_grad)

    def __reduce_ex__(self, protocol):
        from collections import OrderedDict

        from .._utils import _rebuild_parameter

        return (_rebuild_parameter, (self.data, self.requires_grad, OrderedDict()))


Parameter.__module__ = "torch.nn.parameter"


class Buffer:
    """A tensor that a Module lists among its buffers."""

    def __new__(cls, data=None, *, persistent=True):
        t = _C._new_empty((0,), None) if data is None else data.detach()
        t._is_buffer, t.persistent = True, persistent
        return t


class UninitializedTensorMixin:
    """Lazy modules are not in the subset; the name is looked for."""


def is_lazy(param):
    return False
