"""What autocast does to functions that are composed of several rows of the op table."""

import functools

from . import _C

_enabled = _C._autocast_enabled


def _casts(cast):
    def decorate(fn):
        @functools.wraps(fn)
        def run(*args, **kwargs):
            if _enabled():
                args = [cast(a) for a in args]
                kwargs = {k: cast(a) for k, a in kwargs.items()}
            return fn(*args, **kwargs)

        return run

    return decorate


float32 = _casts(_C._autocast_float32)  # decorates functions that get their tensors in float32
lower = _casts(_C._autocast_lower)  # ... in lower precision


def untouched(fn):
    """Decorates a function that autocast leaves alone, though it calls products."""

    @functools.wraps(fn)
    def run(*args, **kwargs):
        if not _enabled():
            return fn(*args, **kwargs)
        state = _C._autocast_get()
        _C._autocast_set(False, *state[1:])
        try:
            return fn(*args, **kwargs)
        finally:
            _C._autocast_set(*state)

    return run
