"""Modules that only call a function with the arguments that they keep."""

from .module import Module


class _Calls(Module):
    """`_args`: constructor arguments and defaults, kept as attributes of the same names."""

    _args = ()

    def __init__(self, *args, **kwargs):
        super().__init__()
        names = [name for name, *_ in self._args]
        if len(args) > len(names):
            raise TypeError(f"{type(self).__name__}.__init__() takes at most {len(names) + 1} positional arguments but "
                            f"{len(args) + 1} were given")
        given = dict(zip(names, args))
        for name, value in kwargs.items():
            if name not in names or name in given:
                raise TypeError(f"{type(self).__name__}.__init__() got an unexpected keyword argument '{name}'")
            given[name] = value
        for name, *default in self._args:
            if name not in given and not default:
                raise TypeError(f"{type(self).__name__}.__init__() missing 1 required positional argument: '{name}'")
            setattr(self, name, given.get(name, *default))


