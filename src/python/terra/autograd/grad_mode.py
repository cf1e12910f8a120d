"""no_grad and its kin: context managers that are decorators too."""

import functools
import inspect

from .. import _C


class _Mode:
    """Sets the grad mode inside a `with` or a decorated function (of any kind)."""

    _on = False

    def __init__(self):
        self._former = []

    def __enter__(self):
        self._former.append(_C._set_grad_enabled(self._on))

    def __exit__(self, *exc):
        _C._set_grad_enabled(self._former.pop())

    def clone(self):
        return type(self)()

    def __call__(self, fn):
        if inspect.isclass(fn):
            fn.__init__ = self(fn.__init__)
            return fn
        if inspect.isgeneratorfunction(fn):
            return self._generator(fn)

        @functools.wraps(fn)
        def run(*args, **kwargs):
            with self.clone():
                return fn(*args, **kwargs)

        return run

    def _generator(self, fn):
        @functools.wraps(fn)
        def run(*args, **kwargs):
            inner = fn(*args, **kwargs)
            sent = None
            while True:
                with self.clone():
                    try:
                        item = inner.send(sent)
                    except StopIteration as stop:
                        return stop.value
                sent = yield item

        return run


def _decorates(cls):
    """Lets the class itself stand as a decorator: @no_grad, without parentheses."""
    plain = cls.__new__

    def new(c, fn=None, *args):
        if fn is not None and callable(fn):
            return c()(fn)
        return plain(c)

    cls.__new__ = staticmethod(new)
    return cls


@_decorates
class no_grad(_Mode):
    """Ops inside are not recorded for backward."""


@_decorates
class enable_grad(_Mode):
    """Ops inside are recorded for backward."""

    _on = True


class set_grad_enabled(_Mode):
    """set_grad_enabled(mode): at once, and until the end of a `with`."""

    def __init__(self, mode):
        super().__init__()
        self._on = self.mode = bool(mode)
        self._before = _C._set_grad_enabled(self._on)

    def __enter__(self):
        _C._set_grad_enabled(self._on)

    def __exit__(self, *exc):
        _C._set_grad_enabled(self._before)

    def clone(self):
        return type(self)(self.mode)

    def __call__(self, fn):
        _C._set_grad_enabled(self._before)
        return super().__call__(fn)


class inference_mode(_Mode):
    """As no_grad."""

    def __new__(cls, mode=True):
        return cls()(mode) if callable(mode) and not isinstance(mode, bool) else super().__new__(cls)

    def __init__(self, mode=True):
        super().__init__()
        self.mode = mode
        self._on = not mode and _C.is_grad_enabled()

    def clone(self):
        return type(self)(self.mode)
