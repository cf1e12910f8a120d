"""Reshaping."""

from .. import functional as F
from .simple import _Calls


class Flatten(_Calls):
    """Flattens dimensions into one."""

    _args = (("start_dim", 1), ("end_dim", -1))

    def forward(self, input):
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self):
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(_Calls):
    """Splits one dimension."""

    _args = (("dim",), ("unflattened_size",))

    def forward(self, input):
        return input.unflatten(self.dim, self.unflattened_size)

    def extra_repr(self):
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"


class Upsample(_Calls):
    """Enlarges images."""

    _args = (("size", None), ("scale_factor", None), ("mode", "nearest"), ("align_corners", None), ("recompute_scale_factor", None))

    def forward(self, input):
        return F.interpolate(input, self.size, self.scale_factor, self.mode, self.align_corners)

    def extra_repr(self):
        what = f"scale_factor={self.scale_factor!r}" if self.scale_factor is not None else f"size={self.size!r}"
        return f"{what}, mode={self.mode!r}"


class PixelShuffle(_Calls):
    """[*, C r^2, H, W] to [*, C, H r, W r]."""

    _args = (("upscale_factor",),)

    def forward(self, input):
        return F.pixel_shuffle(input, self.upscale_factor)

    def extra_repr(self):
        return f"upscale_factor={self.upscale_factor}"


class _Pad(_Calls):
    _args = (("padding",),)
    _n, _mode = 2, "constant"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if isinstance(self.padding, int):
            self.padding = (self.padding,) * (2 * self._n)

    def forward(self, input):
        return F.pad(input, self.padding, self._mode, getattr(self, "value", None))

    def extra_repr(self):
        return f"{self.padding}"


class ZeroPad2d(_Pad):
    pass


class ConstantPad1d(_Pad):
    _args = (("padding",), ("value",))
    _n = 1

    def extra_repr(self):
        return f"padding={self.padding}, value={self.value}"


class ConstantPad2d(ConstantPad1d):
    _n = 2


class ReflectionPad2d(_Pad):
    _mode = "reflect"


class ReplicationPad2d(_Pad):
    _mode = "replicate"
