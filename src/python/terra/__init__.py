"""Terra: trains imperative deep-learning programs on CPUs by imperative-symbolic co-execution."""

from terra._C import __version__

__all__ = ["__version__"]
