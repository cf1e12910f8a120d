"""Pooling."""

from .. import functional as F
from .simple import _Calls


class _MaxPool(_Calls):
    _args = (("kernel_size",), ("stride", None), ("padding", 0), ("dilation", 1), ("return_indices", False),
             ("ceil_mode", False))

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.stride is None:
            self.stride = self.kernel_size

    def forward(self, input):
        return type(self)._fn(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode,
                              self.return_indices)

    def extra_repr(self):
        return (f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
                f"ceil_mode={self.ceil_mode}")


class MaxPool1d(_MaxPool):
    _fn = staticmethod(F.max_pool1d)


class MaxPool2d(_MaxPool):
    _fn = staticmethod(F.max_pool2d)


class AvgPool2d(_Calls):
    _args = (("kernel_size",), ("stride", None), ("padding", 0), ("ceil_mode", False), ("count_include_pad", True),
             ("divisor_override", None))

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.stride is None:
            self.stride = self.kernel_size

    def forward(self, input):
        return F.avg_pool2d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad,
                            self.divisor_override)

    def extra_repr(self):
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool1d(_Calls):
    _args = (("kernel_size",), ("stride", None), ("padding", 0), ("ceil_mode", False), ("count_include_pad", True))

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for name in ("kernel_size", "stride", "padding"):
            value = getattr(self, name)
            value = self.kernel_size if value is None else value
            setattr(self, name, value if isinstance(value, tuple) else (value,))

    def forward(self, input):
        return F.avg_pool1d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)

    def extra_repr(self):
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AdaptiveAvgPool2d(_Calls):
    _args = (("output_size",),)

    def forward(self, input):
        return F.adaptive_avg_pool2d(input, self.output_size)

    def extra_repr(self):
        return f"output_size={self.output_size}"


class AdaptiveAvgPool1d(AdaptiveAvgPool2d):
    def forward(self, input):
        return F.adaptive_avg_pool1d(input, self.output_size)
