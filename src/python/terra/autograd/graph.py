"""Nodes of the tape."""

from .._C import Node

__all__ = ["Node"]
