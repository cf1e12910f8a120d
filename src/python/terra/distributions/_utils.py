"""Probabilities and logits, each from the other."""


class lazy:
    """A value computed when first asked for, then an attribute."""

    def __init__(self, fn):
        self.fn, self.name = fn, fn.__name__

    def __get__(self, instance, owner=None):
        if instance is None:
            return self
        from ..autograd import enable_grad

        with enable_grad():
            value = self.fn(instance)
        setattr(instance, self.name, value)
        return value


def clamp_probs(probs):
    from .._ops import finfo

    eps = finfo(probs.dtype).eps
    return probs.clamp(min=eps, max=1 - eps)
