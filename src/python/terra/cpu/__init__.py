"""The one device."""

from . import amp  # noqa: F401


def is_available():
    return True


def device_count():
    return 1


def current_device():
    return "cpu"


def synchronize(device=None):
    """Accepted, as in PyTorch; terra.synchronize() waits."""


def __getattr__(name):
    raise AttributeError(f"module 'torch.cpu' has no attribute '{name}': not in Terra's subset yet")
