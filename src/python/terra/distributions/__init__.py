"""Probability distributions: those that reinforcement learning asks for."""

from .bernoulli import Bernoulli
from .categorical import Categorical
from .distribution import Distribution
from .normal import Normal

__all__ = ["Bernoulli", "Categorical", "Distribution", "Normal"]


def __getattr__(name):
    raise AttributeError(f"module 'torch.distributions' has no attribute '{name}': not in Terra's subset yet")
