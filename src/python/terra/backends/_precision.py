"""What float32 products are computed in: set_float32_matmul_precision, and PyTorch's newer names for it, a tree of settings in which
"none" is what the setting above says. Only products heed it, and of the three precisions two: "tf32" is computed as "ieee"."""

import warnings

from .. import _C

MEANS = {"highest": "ieee", "high": "tf32", "medium": "bf16"}
CHOICES = ("none", "ieee", "tf32", "bf16")


class Setting:
    """A place in the tree: `own` is what was set here."""

    def __init__(self, above=None, own="none"):
        self.above, self.own = above, own

    @property
    def fp32_precision(self):
        return self.own if self.own != "none" or self.above is None else self.above.fp32_precision

    @fp32_precision.setter
    def fp32_precision(self, value):
        if value not in CHOICES:
            raise RuntimeError(f"Unknown precision: {value}")
        self.own = value
        apply()


class Mkldnn(Setting):
    enabled = True

    def __init__(self, above):
        super().__init__(above)
        self.matmul, self.conv, self.rnn = Setting(self), Setting(self), Setting(self)

    def is_available(self):
        return True


class CudaMatmul(Setting):
    """Its TF32 is the older "high" and "highest"."""

    @property
    def allow_tf32(self):
        return self.fp32_precision == "tf32"

    @allow_tf32.setter
    def allow_tf32(self, on):
        global _older
        _older = "high" if on else "highest"
        self.fp32_precision = "tf32" if on else "ieee"


every = Setting()
mkldnn = Mkldnn(every)
cuda_matmul = CudaMatmul(every)
_older = "highest"


def apply():
    _C._products_lower(mkldnn.matmul.fp32_precision == "bf16")


def set_float32_matmul_precision(precision):
    """"medium": large products of float32 are computed from bfloat16 copies of their factors, with sums and results in float32, where
    the processor has instructions for it. Else, and otherwise: in float32."""
    global _older
    if not isinstance(precision, str):
        raise RuntimeError(f"set_float32_matmul_precision expects a str, but got {type(precision).__name__}")
    if precision not in MEANS:
        warnings.warn(f"{precision} is not one of 'highest', 'high', or 'medium'; the current "
                      "setFloat32MatmulPrecision call has no effect.", stacklevel=2)
        return
    _older = precision
    cuda_matmul.own = "ieee" if precision == "highest" else "tf32"
    mkldnn.matmul.fp32_precision = MEANS[precision]


def get_float32_matmul_precision():
    return _older
