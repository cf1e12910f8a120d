"""Data loading and checkpointing."""

from . import checkpoint, data

__all__ = ["checkpoint", "data"]


def __getattr__(name):
    raise AttributeError(f"module 'torch.utils' has no attribute '{name}': not in Terra's subset yet")
