"""torch.cpu.amp and torch.cuda.amp: the same, with the device in the name."""

import warnings

from .. import _C
from .autocast_mode import autocast as _autocast
from .grad_scaler import GradScaler as _GradScaler


def of_device(device):
    """(autocast, GradScaler) for it."""

    def deprecated(name):
        warnings.warn(f"`torch.{device}.amp.{name}(args...)` is deprecated. Please use `torch.amp.{name}('{device}', args...)` "
                      "instead.", FutureWarning, stacklevel=3)

    class autocast(_autocast):
        def __init__(self, enabled=True, dtype=_C.bfloat16, cache_enabled=True):
            deprecated("autocast")
            super().__init__(device, dtype, enabled, cache_enabled)

    class GradScaler(_GradScaler):
        def __init__(self, *args, **kwargs):
            deprecated("GradScaler")
            super().__init__(device, *args, **kwargs)

    return autocast, GradScaler
