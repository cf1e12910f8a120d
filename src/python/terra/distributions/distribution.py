"""The base of all distributions: shapes and the check of arguments."""

from .. import _C
from .._core import Size

_checks = __debug__


class Distribution:
    """A batch of distributions over events."""

    has_rsample = False
    has_enumerate_support = False

    def __init__(self, batch_shape=Size(), event_shape=Size(), validate_args=None):
        self._batch_shape, self._event_shape = Size(batch_shape), Size(event_shape)
        self._validate_args = _checks if validate_args is None else validate_args
        if self._validate_args:
            for name, (holds, what) in self._constraints().items():
                value = getattr(self, name)
                if not bool(holds.all()):
                    raise ValueError(f"Expected parameter {name} ({type(value).__name__} of shape {tuple(value.shape)}) of "
                                     f"distribution {self!r} to satisfy the constraint {what}, but found invalid values:\n{value}")

    @staticmethod
    def set_default_validate_args(value):
        global _checks
        if value not in (True, False):
            raise ValueError
        _checks = value

    def _constraints(self):
        """Name of a parameter -> (where it holds, the constraint's name)."""
        return {}

    @property
    def batch_shape(self):
        return self._batch_shape

    @property
    def event_shape(self):
        return self._event_shape

    def _extended_shape(self, sample_shape=()):
        return Size(Size(sample_shape) + self._batch_shape + self._event_shape)

    def _check_sample(self, value, holds, what):
        if self._validate_args:
            if not isinstance(value, _C.Tensor):
                raise ValueError("The value argument to log_prob must be a Tensor")
            if not bool(holds(value).all()):
                raise ValueError(f"Expected value argument ({type(value).__name__} of shape {tuple(value.shape)}) to be within the "
                                 f"support ({what}) of the distribution {self!r}, but found invalid values:\n{value}")

    def sample(self, sample_shape=Size()):
        """Draws, outside autograd."""
        raise NotImplementedError

    def rsample(self, sample_shape=Size()):
        """Draws through which gradients flow."""
        raise NotImplementedError

    def log_prob(self, value):
        raise NotImplementedError

    def entropy(self):
        raise NotImplementedError

    @property
    def stddev(self):
        return self.variance.sqrt()

    def perplexity(self):
        return self.entropy().exp()

    def __repr__(self):
        names = [n for n in ("probs", "logits", "loc", "scale") if n in self.__dict__]
        args = ", ".join(f"{n}: {v if v.numel() == 1 else v.size()}" for n in names for v in [self.__dict__[n]])
        return f"{type(self).__name__}({args})"
