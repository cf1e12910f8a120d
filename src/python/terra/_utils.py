"""What pickles of tensors call."""

from .nn.parameter import Parameter


def _rebuild_tensor_v2(storage, storage_offset, size, stride, requires_grad, backward_hooks, metadata=None):
    t = storage._alias(tuple(size), tuple(stride), storage_offset)
    return t.requires_grad_() if requires_grad else t


def _rebuild_tensor(storage, storage_offset, size, stride):
    return storage._alias(tuple(size), tuple(stride), storage_offset)


def _rebuild_parameter(data, requires_grad, backward_hooks):
    return Parameter(data, requires_grad)


def _rebuild_parameter_with_state(data, requires_grad, backward_hooks, state):
    p = Parameter(data, requires_grad)
    p.__dict__.update(state if isinstance(state, dict) else {})
    return p


