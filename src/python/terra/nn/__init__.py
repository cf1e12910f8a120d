"""Neural networks: modules, functions, initial values."""

from . import functional, init, modules, parameter, utils
from .modules import *  # noqa: F403
from .modules import Module
from .modules.module import register_module_forward_hook, register_module_forward_pre_hook  # noqa: F401
from .parameter import Buffer, Parameter

__all__ = ["Buffer", "Module", "Parameter", "functional", "init", "modules", "parameter", "utils", *modules.__all__]


def __getattr__(name):
    raise AttributeError(f"module 'torch.nn' has no attribute '{name}': not in Terra's subset yet")
