"""Variable: a Tensor's former name."""

from .. import _C


class _VariableMeta(type):
    def __instancecheck__(cls, other):
        return isinstance(other, _C.Tensor)


class Variable(metaclass=_VariableMeta):
    """Variable(tensor, requires_grad=False) gives the tensor back."""

    def __new__(cls, data=None, requires_grad=False, volatile=False):
        if data is None:
            data = _C._new_empty((0,), None)
        out = data.detach()
        return out.requires_grad_() if requires_grad else data if not data.requires_grad else out
