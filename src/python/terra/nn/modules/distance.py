"""Distances."""

from .. import functional as F
from .simple import _Calls


class CosineSimilarity(_Calls):
    _args = (("dim", 1), ("eps", 1e-8))

    def forward(self, x1, x2):
        return F.cosine_similarity(x1, x2, self.dim, self.eps)


class PairwiseDistance(_Calls):
    _args = (("p", 2.0), ("eps", 1e-6), ("keepdim", False))

    def forward(self, x1, x2):
        return F.pairwise_distance(x1, x2, self.p, self.eps, self.keepdim)
