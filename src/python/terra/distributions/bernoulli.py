"""A coin."""

from .. import _C, _creation
from .._core import Size
from ..nn.functional import binary_cross_entropy_with_logits
from ._utils import clamp_probs, lazy
from .distribution import Distribution


class Bernoulli(Distribution):
    """By the probability of 1, or its logit."""

    has_enumerate_support = True

    def __init__(self, probs=None, logits=None, validate_args=None):
        if (probs is None) == (logits is None):
            raise ValueError("Either `probs` or `logits` must be specified, but not both.")
        given = probs if probs is not None else logits
        if not isinstance(given, _C.Tensor):
            given = _creation.tensor(float(given))
        setattr(self, "probs" if probs is not None else "logits", given)
        self._param = given
        super().__init__(given.shape, validate_args=validate_args)

    def _constraints(self):
        if "probs" in self.__dict__:
            return {"probs": ((self.probs >= 0) & (self.probs <= 1), "Interval(lower_bound=0.0, upper_bound=1.0)")}
        return {"logits": (self.logits == self.logits, "Real()")}

    @lazy
    def logits(self):
        p = clamp_probs(self.probs)
        return p.log() - (-p).log1p()

    @lazy
    def probs(self):
        return self.logits.sigmoid()

    @property
    def mean(self):
        return self.probs

    @property
    def variance(self):
        return self.probs * (1 - self.probs)

    @property
    def mode(self):
        """1 where it is likelier, NaN where both are equally likely."""
        return (self.probs >= 0.5).to(self.probs.dtype).masked_fill(self.probs == 0.5, float("nan"))

    def sample(self, sample_shape=Size()):
        return _C.bernoulli(self.probs.detach().expand(self._extended_shape(sample_shape)).contiguous())

    def log_prob(self, value):
        self._check_sample(value, lambda v: (v == 0) | (v == 1), "Boolean()")
        return -binary_cross_entropy_with_logits(self.logits.expand(value.shape), value, reduction="none")

    def entropy(self):
        return binary_cross_entropy_with_logits(self.logits, self.probs, reduction="none")
