"""Automatic differentiation: backward, grad, Function, and the modes."""

from .. import _C, _marks
from . import function, functional, grad_mode, graph, variable
from .function import Function, once_differentiable
from .grad_mode import enable_grad, inference_mode, no_grad, set_grad_enabled
from .variable import Variable

Tensor = _C.Tensor


def _tuple(x):
    return (x,) if isinstance(x, Tensor) else tuple(x)




def _grads(roots, given, many):
    if given is None:
        return (None,) * len(roots)
    given = _tuple(given) if not isinstance(given, Tensor) else (given,)
    if len(given) != len(roots):
        raise RuntimeError(f"got {len(roots)} tensors and {len(given)} gradients")
    for r, g in zip(roots, given):
        if isinstance(g, Tensor) and g.shape != r.shape:
            raise RuntimeError(f"Mismatch in shape: grad_output[0] has a shape of {g.shape} and output[0] has a shape of "
                               f"{r.shape}.")
    return given


def backward(tensors, grad_tensors=None, retain_graph=None, create_graph=False, grad_variables=None, inputs=None):
    """Accumulates the gradients of `tensors` into the leaves, or into `inputs` only."""
    roots = _tuple(tensors)
    grads = _grads(roots, grad_tensors if grad_tensors is not None else grad_variables, True)
    if inputs is not None:
        inputs = _tuple(inputs)
        if not inputs:
            raise RuntimeError("`inputs` argument to `backward()` cannot be empty.")
    retain = create_graph if retain_graph is None else retain_graph
    _C._backward(roots, grads, inputs, bool(retain), bool(create_graph), True)
    _marks.backward()


def grad(outputs, inputs, grad_outputs=None, retain_graph=None, create_graph=False, only_inputs=True, allow_unused=None,
         is_grads_batched=False, materialize_grads=False):
    """The gradients of `outputs` with respect to `inputs`, as a tuple."""
    roots, inputs = _tuple(outputs), _tuple(inputs)
    for i in inputs:
        if not i.requires_grad:
            raise RuntimeError("One of the differentiated Tensors does not require grad")
    retain = create_graph if retain_graph is None else retain_graph
    found = _C._backward(roots, _grads(roots, grad_outputs, True), inputs, bool(retain), bool(create_graph), False)
    if materialize_grads:
        return tuple(_C._new_full(i.shape, i.dtype, 0) if g is None else g for i, g in zip(inputs, found))
    if not allow_unused and any(g is None for g in found):
        raise RuntimeError("One of the differentiated Tensors appears to not have been used in the graph. Set allow_unused=True "
                           "if this is the desired behavior.")
    return found


class set_detect_anomaly:
    """Accepted; errors carry the place of the op's call anyway."""

    def __init__(self, mode=True, check_nan=True):
        pass

    def __enter__(self):
        return None

    def __exit__(self, *exc):
        return None


detect_anomaly = set_detect_anomaly
is_grad_enabled = _C.is_grad_enabled

__all__ = ["Function", "Variable", "backward", "detect_anomaly", "enable_grad", "function", "functional", "grad",
           "grad_mode", "graph", "inference_mode", "no_grad", "once_differentiable", "set_detect_anomaly", "set_grad_enabled",
           "variable"]
