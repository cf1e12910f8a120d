"""No CUDA: as PyTorch's CPU build answers."""

from .. import _core
from . import amp  # noqa: F401


def is_available():
    return False


def device_count():
    return 0


def is_initialized():
    return False


def is_bf16_supported(including_emulation=True):
    return False


def _nothing(*args, **kwargs):
    return None


manual_seed = manual_seed_all = seed = seed_all = empty_cache = ipc_collect = reset_peak_memory_stats = _nothing


def _absent(*args, **kwargs):
    _core.check_device("cuda")


init = set_device = current_device = get_device_name = get_device_properties = synchronize = current_stream = _absent
get_device_capability = mem_get_info = _absent


def memory_allocated(device=None):
    return 0


max_memory_allocated = memory_reserved = max_memory_reserved = memory_allocated


class device:
    """A context that does nothing."""

    def __init__(self, device):
        self.idx = device

    def __enter__(self):
        return None

    def __exit__(self, *exc):
        return False


class FloatTensor:
    def __new__(cls, *args, **kwargs):
        raise TypeError("type torch.cuda.FloatTensor not available. Torch not compiled with CUDA enabled.")


class LongTensor:
    def __new__(cls, *args, **kwargs):
        raise TypeError("type torch.cuda.LongTensor not available. Torch not compiled with CUDA enabled.")


def __getattr__(name):
    raise AttributeError(f"module 'torch.cuda' has no attribute '{name}': not in Terra's subset yet")
