"""Versions."""

from ._C import __version__ as terra

__version__ = f"2.13.0+terra{terra}"
cuda = None
hip = None
git_version = "unknown"
debug = False
