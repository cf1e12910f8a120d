"""The older names of terra.amp for a device that is not there: they do nothing."""

import warnings

from ... import _C, amp


def _deprecated(name):
    warnings.warn(f"`torch.cuda.amp.{name}(args...)` is deprecated. Please use `torch.amp.{name}('cuda', args...)` instead.",
                  FutureWarning, stacklevel=3)


class autocast(amp.autocast):
    def __init__(self, enabled=True, dtype=_C.bfloat16, cache_enabled=True):
        _deprecated("autocast")
        super().__init__("cuda", dtype, enabled, cache_enabled)


class GradScaler(amp.GradScaler):
    def __init__(self, *args, **kwargs):
        _deprecated("GradScaler")
        super().__init__("cuda", *args, **kwargs)
