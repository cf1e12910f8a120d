"""Function: an op whose forward and backward the program defines."""

import functools
import sys

from .. import _C

Tensor = _C.Tensor


class FunctionCtx:
    """What forward leaves for backward."""

    def __init__(self):
        self._saved = ()
        self._dirty = ()
        self._non_differentiable = ()
        self._materialize = True
        self._node = None
        self._outputs = ()
        self.needs_input_grad = ()

    def save_for_backward(self, *tensors):
        """Keeps inputs or outputs for backward, which checks that nobody has changed them."""
        for t in tensors:
            if t is not None and not isinstance(t, Tensor):
                raise TypeError(f"save_for_backward can only save variables, but argument is of type {type(t).__name__}")
        self._to_save = tensors

    def mark_dirty(self, *args):
        self._dirty = args

    def mark_non_differentiable(self, *args):
        self._non_differentiable = args

    def set_materialize_grads(self, value):
        self._materialize = bool(value)

    @property
    def saved_tensors(self):
        out = []
        for t, version, output_nr in self._saved:
            if t is not None and t._version != version:
                raise RuntimeError("one of the variables needed for gradient computation has been modified by an inplace "
                                   f"operation: [torch.{t.dtype._legacy}Tensor {list(t.shape)}], is at version {t._version}; "
                                   f"expected version {version} instead. Hint: enable anomaly detection to find the operation "
                                   "that failed to compute its gradient, with torch.autograd.set_detect_anomaly(True).")
            if t is not None and output_nr is not None and self._node is not None:
                t = self._node.attach(t.detach(), output_nr)
            out.append(t)
        return tuple(out)

    saved_variables = saved_tensors

    def _keep(self, outputs):
        """An output is kept without its grad_fn, which would hold us in a cycle."""
        kept = []
        for t in self.__dict__.pop("_to_save", ()):
            nr = next((i for i, o in enumerate(outputs) if o is t), None) if t is not None else None
            held = t if t is None or nr is None else t.data
            kept.append((held, None if held is None else held._version, nr))
        self._saved = tuple(kept)



class FunctionMeta(type):
    def __init__(cls, name, bases, attrs):
        super().__init__(name, bases, attrs)
        cls._node_name = sys.intern(name + "Backward")


class Function(FunctionCtx, metaclass=FunctionMeta):
    """Subclass it with static methods forward(ctx, …) and backward(ctx, …), call it by apply."""

    @staticmethod
    def forward(*args, **kwargs):
        raise NotImplementedError("You must implement the forward function for custom autograd.Function.")

    @staticmethod
    def backward(ctx, *grad_outputs):
        raise NotImplementedError("You must implement either the backward or vjp method for your custom autograd.Function to use "
                                  "it with backward mode AD.")

    vjp = backward

    @staticmethod
    def setup_context(ctx, inputs, output):
        raise NotImplementedError("setup_context is not implemented.")

    @classmethod
    def apply(cls, *args, **kwargs):
        """Runs forward, and connects its outputs to its inputs."""
        ctx = cls.__new__(cls)
        FunctionCtx.__init__(ctx)
        tensors = tuple(a for a in args if isinstance(a, Tensor))
        connected = _C.is_grad_enabled() and any(t.requires_grad for t in tensors)
        ctx.needs_input_grad = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
        was = _C._set_grad_enabled(False)
        try:
            if cls.setup_context is not Function.setup_context:
                result = cls.forward(*args, **kwargs)
                cls.setup_context(ctx, args, result)
            else:
                result = cls.forward(ctx, *args, **kwargs)
        finally:
            _C._set_grad_enabled(was)
        single = not isinstance(result, (tuple, list))
        outputs = [result] if single else list(result)
        _connect(cls, ctx, args, tensors, outputs, connected)
        return outputs[0] if single else tuple(outputs)


def _fresh(out, ctx, tensors):
    """An output that is an input, unchanged, becomes a view of it, so that it can have a history of its own."""
    if any(out is d for d in ctx._dirty):
        return out
    return out.view(out.shape) if any(out is t for t in tensors) else out


def _connect(cls, ctx, args, tensors, outputs, connected):
    at = [i for i, o in enumerate(outputs) if isinstance(o, Tensor)]
    if connected:
        was = _C._set_grad_enabled(False)
        try:
            for i in at:
                outputs[i] = _fresh(outputs[i], ctx, tensors)
        finally:
            _C._set_grad_enabled(was)
    made = tuple(outputs[i] for i in at)
    ctx._keep(made)
    if not connected:
        return
    flags = tuple(o.dtype.is_floating_point and not any(o is n for n in ctx._non_differentiable) for o in made)
    metas = tuple((o.shape, o.dtype) for o in made)
    run = functools.partial(_run_backward, cls, ctx, _which_tensors(args), metas)
    ctx._node = _C._custom_connect(cls._node_name, run, tensors, made, flags)


def _which_tensors(args):
    return tuple(isinstance(a, Tensor) for a in args)


def _run_backward(cls, ctx, is_tensor, metas, grads):
    if ctx._materialize:
        grads = tuple(_C._new_full(shape, dtype, 0) if g is None else g for g, (shape, dtype) in zip(grads, metas))
    backward = cls.backward if cls.backward is not Function.backward else cls.vjp
    result = backward(ctx, *grads)
    if not isinstance(result, tuple):
        result = (result,)
    if len(result) > len(is_tensor) and all(r is None for r in result[len(is_tensor):]):
        result = result[:len(is_tensor)]
    if len(result) != len(is_tensor):
        raise RuntimeError(f"function {cls._node_name} returned an incorrect number of gradients (expected {len(is_tensor)}, got "
                           f"{len(result)})")
    for r, tensor in zip(result, is_tensor):
        if r is not None and not isinstance(r, Tensor):
            raise RuntimeError(f"function {cls._node_name} returned a value that is not a Tensor: {type(r).__name__}")
    return tuple(r for r, tensor in zip(result, is_tensor) if tensor)


def once_differentiable(fn):
    """Runs a backward without recording it."""

    @functools.wraps(fn)
    def run(ctx, *args):
        was = _C._set_grad_enabled(False)
        try:
            return fn(ctx, *args)
        finally:
            _C._set_grad_enabled(was)

    return run


class InplaceFunction(Function):
    """Kept for its name."""
