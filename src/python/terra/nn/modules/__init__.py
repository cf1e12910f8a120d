"""The modules, one file per kind, as in PyTorch."""

from . import (activation, batchnorm, container, conv, distance, dropout, flatten, linear, loss, module, normalization, pooling,
               rnn, sparse, transformer)
from .module import Module

__all__ = ["Module"]
for _file in (activation, batchnorm, container, conv, distance, dropout, flatten, linear, loss, normalization, pooling, rnn, sparse,
              transformer):
    for _name, _value in vars(_file).items():
        if isinstance(_value, type) and issubclass(_value, Module) and not _name.startswith("_") and _value is not Module:
            globals()[_name] = _value
            if _name not in __all__:
                __all__.append(_name)
