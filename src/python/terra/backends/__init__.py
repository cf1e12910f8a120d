"""Switches that programs set. The precision of float32 products is heeded; nothing else changes anything here."""

import sys
from types import ModuleType, SimpleNamespace

from . import _precision

cudnn = SimpleNamespace(benchmark=False, deterministic=False, enabled=False, allow_tf32=True, is_available=lambda: False,
                        version=lambda: None)
cuda = SimpleNamespace(matmul=_precision.cuda_matmul, is_built=lambda: False, enable_flash_sdp=lambda on: None,
                       enable_mem_efficient_sdp=lambda on: None, enable_math_sdp=lambda on: None)
mps = SimpleNamespace(is_available=lambda: False, is_built=lambda: False)
mkldnn = _precision.mkldnn
mkl = SimpleNamespace(is_available=lambda: False)
openmp = SimpleNamespace(is_available=lambda: True)


class _Module(ModuleType):
    @property
    def fp32_precision(self):
        return _precision.every.fp32_precision

    @fp32_precision.setter
    def fp32_precision(self, value):
        _precision.every.fp32_precision = value


sys.modules[__name__].__class__ = _Module
