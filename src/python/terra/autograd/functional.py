"""Jacobians and products with them, row by row."""

from .._ops import stack


def _prepare(inputs):
    many = isinstance(inputs, tuple)
    return many, tuple(i.detach().requires_grad_() for i in (inputs if many else (inputs,)))


def vjp(func, inputs, v=None, create_graph=False, strict=False):
    """func's outputs, and v^T J."""
    from . import grad

    many, args = _prepare(inputs)
    out = func(*args)
    found = grad(out, args, v, create_graph=create_graph, allow_unused=True, materialize_grads=True)
    return out if create_graph else out.detach(), found if many else found[0]


def jacobian(func, inputs, create_graph=False, strict=False, vectorize=False):
    """The Jacobian of one output."""
    from . import grad

    many, args = _prepare(inputs)
    out = func(*args)
    rows = [grad(y, args, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True)
            for y in out.reshape(-1).unbind(0)]
    found = tuple(stack([r[i] for r in rows]).reshape(tuple(out.shape) + tuple(a.shape)) for i, a in enumerate(args))
    return found if many else found[0]


def hessian(func, inputs, create_graph=False, strict=False):
    """The Hessian of a scalar function of one tensor."""
    from . import grad

    def gradient(x):
        return grad(func(x), x, create_graph=True)[0]

    with_graph = jacobian(gradient, inputs, create_graph)
    return with_graph if create_graph else with_graph.detach()


