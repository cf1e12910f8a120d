"""One of n events."""

from .. import _C, _ops
from .._core import Size
from ._utils import clamp_probs, lazy
from .distribution import Distribution


class Categorical(Distribution):
    """By probabilities (normalised here) or logits, along the last dimension."""

    has_enumerate_support = True

    def __init__(self, probs=None, logits=None, validate_args=None):
        if (probs is None) == (logits is None):
            raise ValueError("Either `probs` or `logits` must be specified, but not both.")
        given = probs if probs is not None else logits
        if given.ndim < 1:
            raise ValueError(f"`{'probs' if probs is not None else 'logits'}` parameter must be at least one-dimensional.")
        if probs is not None:
            self._param = self.probs = probs / probs.sum(-1, keepdim=True)
        else:
            self._param = self.logits = logits - logits.logsumexp(dim=-1, keepdim=True)
        self._num_events = given.shape[-1]
        super().__init__(self._param.shape[:-1], validate_args=validate_args)

    def _constraints(self):
        if "probs" in self.__dict__:
            p = self.probs
            return {"probs": (((p >= 0).all(-1)) & ((p.sum(-1) - 1).abs() < 1e-6), "Simplex()")}
        return {"logits": (self.logits == self.logits, "IndependentConstraint(Real(), 1)")}

    @lazy
    def logits(self):
        return clamp_probs(self.probs).log()

    @lazy
    def probs(self):
        return self.logits.softmax(-1)

    @property
    def param_shape(self):
        return self._param.shape

    @property
    def mode(self):
        return self.probs.argmax(dim=-1)

    def sample(self, sample_shape=Size()):
        shape = Size(sample_shape)
        drawn = _C.multinomial(self.probs.detach().reshape(-1, self._num_events), shape.numel(), True).t()
        return drawn.reshape(self._extended_shape(shape))

    def log_prob(self, value):
        self._check_sample(value, lambda v: (v % 1 == 0) & (v >= 0) & (v <= self._num_events - 1),
                           f"IntegerInterval(lower_bound=0, upper_bound={self._num_events - 1})")
        value, log_p = _ops.broadcast_tensors(value.long().unsqueeze(-1), self.logits)
        return log_p.gather(-1, value[..., :1]).squeeze(-1)

    def entropy(self):
        from .._ops import finfo

        return -(self.logits.clamp(min=finfo(self.logits.dtype).min) * self.probs).sum(-1)
