"""Recomputing a part of forward in backward, to keep less."""

from .. import _C
from .. import random as _random
from ..autograd import Function

Tensor = _C.Tensor


def _detached(args):
    out = []
    for a in args:
        if isinstance(a, Tensor):
            d = a.detach()
            if a.requires_grad:
                d.requires_grad_()
            a = d
        out.append(a)
    return tuple(out)


class CheckpointFunction(Function):
    """Runs without recording; backward runs it again, recording, and goes through that."""

    @staticmethod
    def forward(ctx, run, preserve, *args):
        ctx.run, ctx.preserve, ctx.others = run, preserve, [None if isinstance(a, Tensor) else a for a in args]
        ctx.is_tensor = [isinstance(a, Tensor) for a in args]
        ctx.state = _random.get_rng_state() if preserve else None
        ctx.autocast = _C._autocast_get()
        ctx.save_for_backward(*[a for a in args if isinstance(a, Tensor)])
        return run(*args)

    @staticmethod
    def backward(ctx, *grads):
        tensors = iter(ctx.saved_tensors)
        args = _detached([next(tensors) if t else o for t, o in zip(ctx.is_tensor, ctx.others)])
        now = _random.get_rng_state() if ctx.preserve else None
        was, outside = _C._set_grad_enabled(True), _C._autocast_get()
        _C._autocast_set(*ctx.autocast)
        try:
            if ctx.preserve:
                _random.set_rng_state(ctx.state)
            out = ctx.run(*args)
        finally:
            _C._set_grad_enabled(was)
            _C._autocast_set(*outside)
            if ctx.preserve:
                _random.set_rng_state(now)
        out = (out,) if isinstance(out, Tensor) else out
        pairs = [(o, g) for o, g in zip(out, grads) if isinstance(o, Tensor) and o.requires_grad]
        if not pairs:
            raise RuntimeError("none of output has requires_grad=True, this checkpoint() is not necessary")
        _C._backward(tuple(o for o, _ in pairs), tuple(g for _, g in pairs), None, False, False, True)
        return (None, None, *[a.grad if isinstance(a, Tensor) else None for a in args])


def checkpoint(function, *args, use_reentrant=None, preserve_rng_state=True, context_fn=None, determinism_check="default",
               debug=False, early_stop=True, **kwargs):
    """function(*args), whose intermediates are computed again in backward."""
    if kwargs:
        plain = function

        def function(*a):
            return plain(*a, **kwargs)

    if not any(isinstance(a, Tensor) and a.requires_grad for a in args) and _C.is_grad_enabled():
        # Only closed-over parameters need gradients: a dummy input puts the node onto the tape.
        dummy = _C._new_full((0,), None, 0).requires_grad_()
        inner = function
        return CheckpointFunction.apply(lambda d, *a: inner(*a), preserve_rng_state, dummy, *args)
    return CheckpointFunction.apply(function, preserve_rng_state, *args)


def checkpoint_sequential(functions, segments, input, use_reentrant=None, **kwargs):
    """A Sequential in segments, each checkpointed but the last."""
    functions = list(functions.children()) if hasattr(functions, "children") else list(functions)
    size = len(functions) // segments

    def run(start, end):
        def forward(x):
            for f in functions[start:end]:
                x = f(x)
            return x

        return forward

    end = 0
    for start in range(0, size * (segments - 1), size):
        end = start + size
        input = checkpoint(run(start, end), input, use_reentrant=use_reentrant, **kwargs)
    return run(end, len(functions))(input)


