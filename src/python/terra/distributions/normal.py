"""The normal distribution."""

import math

from .. import _C, _creation, _ops
from .._core import Size
from ..autograd import no_grad
from .distribution import Distribution


def _both(a, b):
    if not isinstance(a, _C.Tensor):
        a = _creation.tensor(a, dtype=b.dtype if isinstance(b, _C.Tensor) else _C.get_default_dtype())
    if not isinstance(b, _C.Tensor):
        b = _creation.tensor(b, dtype=a.dtype)
    return _ops.broadcast_tensors(a, b)


class Normal(Distribution):
    """By mean and standard deviation."""

    has_rsample = True

    def __init__(self, loc, scale, validate_args=None):
        self.loc, self.scale = _both(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def _constraints(self):
        return {"loc": (self.loc == self.loc, "Real()"), "scale": (self.scale > 0, "GreaterThan(lower_bound=0.0)")}

    @property
    def mean(self):
        return self.loc

    mode = mean

    @property
    def stddev(self):
        return self.scale

    @property
    def variance(self):
        return self.scale.pow(2)

    def sample(self, sample_shape=Size()):
        with no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape=Size()):
        eps = _creation.empty(self._extended_shape(sample_shape), dtype=self.loc.dtype).normal_()
        return self.loc + eps * self.scale

    def log_prob(self, value):
        if isinstance(value, _C.Tensor):
            self._check_sample(value, lambda v: v == v, "Real()")
        return -((value - self.loc) ** 2) / (2 * self.scale ** 2) - self.scale.log() - math.log(math.sqrt(2 * math.pi))

    def entropy(self):
        return 0.5 + 0.5 * math.log(2 * math.pi) + self.scale.log()

    def cdf(self, value):
        return 0.5 * (1 + ((value - self.loc) * self.scale.reciprocal() / math.sqrt(2)).erf())
