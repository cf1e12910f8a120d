"""Switches that programs set; none changes anything here."""

from types import SimpleNamespace

cudnn = SimpleNamespace(benchmark=False, deterministic=False, enabled=False, allow_tf32=True, is_available=lambda: False,
                        version=lambda: None)
cuda = SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False), is_built=lambda: False, enable_flash_sdp=lambda on: None,
                       enable_mem_efficient_sdp=lambda on: None, enable_math_sdp=lambda on: None)
mps = SimpleNamespace(is_available=lambda: False, is_built=lambda: False)
mkldnn = SimpleNamespace(enabled=True, is_available=lambda: True)
mkl = SimpleNamespace(is_available=lambda: False)
openmp = SimpleNamespace(is_available=lambda: True)
