"""Terra: trains imperative deep-learning programs on CPUs by imperative-symbolic co-execution.

`import terra as torch`: a strict subset of PyTorch's API. A name that is not there raises an AttributeError that says so."""

import atexit as _atexit
import math as _math
import builtins as _builtins
import os as _os

# How long idle team threads spin, which libgomp reads when it is loaded: for a few milliseconds, in which a core that is slower than
# the others (it may share a processor with strangers) comes to the end of its part, but not until Python needs the core.
_os.environ.setdefault("GOMP_SPINCOUNT", "100000")

from . import _C, version  # noqa: E402
from ._core import Size, device
from ._C import (Tensor, dtype, explain, from_numpy, get_default_dtype, graphviz, info, is_grad_enabled, mark_step, set_default_dtype,
                 set_executors, stats, synchronize)
from ._C import bfloat16, bool, float32, float64, int32, int64, uint8  # noqa: A004

from ._C import _stats_reset as reset_stats
from ._summary import placement, summary, watch

Size.__module__ = device.__module__ = "torch"

for _name in _C._functions:  # the op table's functions; the composites below may cover some
    globals()[_name] = getattr(_C, _name)

from ._creation import *  # noqa: E402, F403
from ._creation import (BFloat16Tensor, BoolTensor, ByteTensor, DoubleTensor, FloatTensor, IntTensor, LongTensor)  # noqa: E402, F401
from . import _ops, _tensor  # noqa: E402

_NOT_FUNCTIONS = {"attach", "namedtuple", "Tensor", "Size", "math", "builtins", "operator", "METHODS"}
for _name, _value in vars(_ops).items():
    if not _name.startswith("_") and _name not in _NOT_FUNCTIONS:
        globals()[_name] = _value
_ops.attach()
_tensor.attach()
bernoulli = _tensor.bernoulli
from ._tensor import channels_last, contiguous_format, layout, memory_format, preserve_format, strided  # noqa: E402, F401
from ._tensor_str import set_printoptions  # noqa: E402

float, double, long, int = float32, float64, int64, int32  # noqa: A001
pi, e, inf, nan, newaxis = _math.pi, _math.e, _math.inf, _math.nan, None
__version__ = version.__version__

from .random import (Generator, default_generator, get_rng_state, initial_seed, manual_seed, seed, set_rng_state)  # noqa: E402
from . import autograd, random  # noqa: E402
from .autograd import enable_grad, inference_mode, no_grad, set_grad_enabled  # noqa: E402
from . import amp  # noqa: E402
from .amp.autocast_mode import (autocast, autocast_decrement_nesting, autocast_increment_nesting,  # noqa: E402, F401
                                get_autocast_dtype, is_autocast_cache_enabled, is_autocast_enabled, set_autocast_cache_enabled,
                                set_autocast_dtype, set_autocast_enabled)
from ._C import clear_autocast_cache  # noqa: E402, F401
from . import nn, optim, utils  # noqa: E402
from . import _utils, accelerator, backends, cpu, cuda, distributions, linalg, onnx, safetensors, serialization  # noqa: E402, F401
from .backends._precision import get_float32_matmul_precision, set_float32_matmul_precision  # noqa: E402, F401
from .serialization import load, save  # noqa: E402

for _storage in serialization.STORAGES.values():
    globals()[_storage.__name__] = _storage


def coexecute(fn):
    """Decorates a function whose return ends an iteration."""
    import functools

    @functools.wraps(fn)
    def run(*args, **kwargs):
        out = fn(*args, **kwargs)
        mark_step()
        return out

    return run


def compile(model=None, **options):
    """The model itself: Terra compiles what recurs."""
    return model if model is not None else (lambda m: m)


def get_num_threads():
    """Of all executors together."""
    s = stats()
    return s["executors"] * s["threads"]


def set_num_threads(n):
    """Shares n threads out among the executors. More than this process may use are cut down."""
    if not isinstance(n, _builtins.int) or isinstance(n, _builtins.bool):
        raise RuntimeError(f"set_num_threads expects an int, but got {type(n).__name__}")
    if n <= 0:
        raise RuntimeError("set_num_threads expects a positive integer")
    executors = _builtins.min(stats()["executors"], n)
    set_executors(executors, n // executors)


def get_num_interop_threads():
    return 1


def set_num_interop_threads(n):
    """Accepted; the Python thread never computes."""


def use_deterministic_algorithms(mode, *, warn_only=False):
    """Accepted; Terra's results do not depend on threads or fusion."""


def are_deterministic_algorithms_enabled():
    return True


def set_default_device(device):
    from ._core import check_device

    check_device(device)


def get_default_device():
    from ._core import cpu as where

    return where


def set_default_tensor_type(t):
    """The default dtype, by its legacy type or that type's name."""
    if isinstance(t, str):
        t = globals()[t.rpartition(".")[2]]
    set_default_dtype(t.dtype)


def typename(obj):
    if isinstance(obj, Tensor):
        return obj.type()
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def is_storage(obj):
    return isinstance(obj, _tensor.UntypedStorage)


def is_inference_mode_enabled():
    return not is_grad_enabled()


def _register_fork():
    _os.register_at_fork(before=_C._fork_prepare, after_in_parent=_C._fork_parent, after_in_child=_C._fork_child)


_register_fork()
_atexit.register(_C._shutdown)


def __getattr__(name):
    raise AttributeError(f"module 'torch' has no attribute '{name}': not in Terra's subset yet")


__all__ = [_name for _name in globals() if not _name.startswith("_")]
