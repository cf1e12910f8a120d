"""What the native half needs of Python: Size, device, and where the package lies."""

import os

from . import _C


class Size(tuple):
    """A tensor's shape."""

    __slots__ = ()

    def numel(self):
        n = 1
        for d in self:
            n *= d
        return n

    def __repr__(self):
        return f"torch.Size([{', '.join(map(repr, self))}])"

    def __getitem__(self, key):
        item = tuple.__getitem__(self, key)
        return Size(item) if isinstance(key, slice) else item

    def __add__(self, other):
        return Size(tuple.__add__(self, tuple(other)))

    def __mul__(self, n):
        return Size(tuple.__mul__(self, n))

    __rmul__ = __mul__

    def __reduce__(self):
        return (Size, (tuple(self),))


_TYPES = ("cpu", "cuda", "mps", "xpu", "meta", "mkldnn", "hpu", "xla", "privateuseone", "mtia", "ipu", "vulkan")


class device:
    """Where a tensor lives. Terra has the CPU; other devices can be named, not used."""

    __slots__ = ("type", "index")

    def __init__(self, type, index=None):
        if isinstance(type, device):
            type, index = type.type, type.index
        elif isinstance(type, int):
            type, index = "cuda", type
        elif isinstance(type, str):
            name, _, number = type.partition(":")
            if name not in _TYPES:
                raise RuntimeError(f"Expected one of {', '.join(_TYPES)} device type at start of device string: {type}")
            if number:
                if not number.isdigit():
                    raise RuntimeError(f"Invalid device string: '{type}'")
                index = int(number)
            type = name
        else:
            raise TypeError(f"device(): argument 'type' must be str, not {type.__class__.__name__}")
        object.__setattr__(self, "type", type)
        object.__setattr__(self, "index", index)

    def __setattr__(self, name, value):
        raise AttributeError(f"attribute '{name}' of 'torch.device' objects is not writable")

    def __repr__(self):
        return f"device(type={self.type!r})" if self.index is None else f"device(type={self.type!r}, index={self.index})"

    def __str__(self):
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __eq__(self, other):
        return isinstance(other, device) and (self.type, self.index) == (other.type, other.index)

    def __hash__(self):
        return hash((self.type, self.index))

    def __reduce__(self):
        return (device, (self.type,) if self.index is None else (self.type, self.index))

    def __enter__(self):
        check_device(self)
        return self

    def __exit__(self, *exc):
        return None


cpu = device("cpu")


def check_device(where):
    """Raises, as PyTorch's CPU build does, unless `where` names the CPU."""
    if where is None or where is cpu:
        return
    kind = (where if isinstance(where, device) else device(where)).type
    if kind == "cpu":
        return
    if kind == "cuda":
        raise AssertionError("Torch not compiled with CUDA enabled")
    raise RuntimeError(f"Terra runs on the CPU only; the device {where} is not there")


def _repr(tensor):
    from ._tensor_str import _str

    return _str(tensor)


_C._register(Size, cpu, check_device, _repr)
_C._set_package(os.path.dirname(os.path.abspath(__file__)) + os.sep)
