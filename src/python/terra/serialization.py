"""save and load: PyTorch's zip format, both ways.

An archive holds data.pkl, whose tensors name storages by number, and one record of bytes per storage. Loading is restricted by
default: only the few globals that tensors, containers and dtypes need are found, so a file can't run code."""

import contextlib
import importlib
import io
import os
import pickle
import zipfile
from collections import OrderedDict

from . import _C, _core, _utils
from .nn.parameter import Parameter

Tensor = _C.Tensor


class _StorageType:
    """torch.FloatStorage and the like: the name of a dtype inside files."""

    def __init__(self, name, dtype):
        self.__name__ = self.__qualname__ = name
        self.__module__ = "torch"
        self.dtype = dtype

    def __repr__(self):
        return f"<class 'torch.{self.__name__}'>"


STORAGES = {d: _StorageType(d._legacy + "Storage", d) for d in (_C.float32, _C.float64, _C.bfloat16, _C.int64, _C.int32, _C.uint8,
                                                               _C.bool)}
_ABSENT = {n: n[:-7] for n in ("HalfStorage", "ShortStorage", "CharStorage", "ComplexFloatStorage", "ComplexDoubleStorage")}


class _StorageRef:
    def __init__(self, tensor):
        self.tensor = tensor


class _Pickler(pickle._Pickler):
    """Tensors by storage; Terra's own names as PyTorch's."""

    def __init__(self, file, protocol):
        super().__init__(file, protocol)
        self.storages = OrderedDict()  # storage key -> (number, tensor)

    def persistent_id(self, obj):
        if not isinstance(obj, _StorageRef):
            return None
        t = obj.tensor
        key = t._storage_key()
        if key not in self.storages:
            self.storages[key] = (str(len(self.storages)), t)
        number, first = self.storages[key]
        n = t._storage_bytes() // t.element_size()
        return ("storage", STORAGES[t.dtype], number, "cpu", n)

    def reducer_override(self, obj):
        if isinstance(obj, Parameter):
            return (_utils._rebuild_parameter, (obj.data, obj.requires_grad, OrderedDict()))
        if isinstance(obj, Tensor):
            if obj.requires_grad and not obj.is_leaf:
                data, requires_grad = obj.detach(), True
            else:
                data, requires_grad = obj.data, obj.requires_grad
            return (_utils._rebuild_tensor_v2, (_StorageRef(data), data.storage_offset(), tuple(data.shape), data.stride(),
                                                requires_grad, OrderedDict()))
        if isinstance(obj, _StorageType):
            return obj.__name__
        return NotImplemented

    def save_global(self, obj, name=None):
        module = getattr(obj, "__module__", None) or ""
        name = name or getattr(obj, "__qualname__", None) or obj.__name__
        head = module.split(".")[0]
        if head in ("terra", "torch"):
            module = "torch" if module in ("terra._core", "terra._creation", "terra._C") else "torch" + module[5:]
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
            self.memoize(obj)
            return
        super().save_global(obj, name)

    dispatch = pickle._Pickler.dispatch.copy()
    dispatch[type(lambda: 0)] = save_global
    dispatch[type] = lambda self, obj: (_Pickler.save_global(self, obj) if getattr(obj, "__module__", "").split(".")[0] in (
        "terra", "torch") else pickle._Pickler.save_type(self, obj))


def save(obj, f, pickle_module=pickle, pickle_protocol=2, _use_new_zipfile_serialization=True):
    """Writes obj to a path or file."""
    body = io.BytesIO()
    pickler = _Pickler(body, pickle_protocol)
    pickler.dump(obj)
    name = os.path.splitext(os.path.basename(os.fspath(f)))[0] if isinstance(f, (str, os.PathLike)) else "archive"
    if isinstance(f, (str, os.PathLike)):
        folder = os.path.dirname(os.fspath(f))
        if folder and not os.path.isdir(folder):
            raise RuntimeError(f"Parent directory {folder} does not exist.")
    with zipfile.ZipFile(f, "w", zipfile.ZIP_STORED) as z:
        z.writestr(f"{name}/data.pkl", body.getvalue())
        z.writestr(f"{name}/.format_version", "1")
        z.writestr(f"{name}/byteorder", "little")
        for number, t in pickler.storages.values():
            flat = t._alias((t._storage_bytes() // t.element_size(),), (1,), 0)
            z.writestr(f"{name}/data/{number}", _C._read_bytes(flat))
        z.writestr(f"{name}/version", "3\n")


# ---- loading ----

_safe = {}


def _default_globals():
    out = {
        ("torch._utils", n): getattr(_utils, n)
        for n in ("_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_parameter", "_rebuild_parameter_with_state")
    }
    out[("collections", "OrderedDict")] = OrderedDict
    from collections import Counter, defaultdict

    out[("collections", "Counter")], out[("collections", "defaultdict")] = Counter, defaultdict
    out[("builtins", "set")] = out[("__builtin__", "set")] = set
    out[("builtins", "dict")], out[("builtins", "bytearray")], out[("builtins", "complex")] = dict, bytearray, complex
    out[("torch", "Size")], out[("torch", "device")], out[("torch", "Tensor")] = _core.Size, _core.device, Tensor
    out[("torch.nn.parameter", "Parameter")] = Parameter
    for dtype, storage in STORAGES.items():
        out[("torch", storage.__name__)] = storage
        out[("torch", str(dtype).split(".")[-1])] = dtype
    out[("_codecs", "encode")] = _encode
    return out


def _encode(text, encoding="latin1"):
    """bytes in protocol 2; only latin1, which is what pickle writes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("only latin1 is allowed in _codecs.encode")
    return text.encode("latin1")


def add_safe_globals(safe_globals):
    """Lets weights_only loading find these classes and functions."""
    for g in safe_globals:
        g, name = g if isinstance(g, tuple) else (g, None)
        name = name or f"{g.__module__}.{g.__qualname__}"
        module, _, attr = name.rpartition(".")
        _safe[(module, attr)] = _safe[(module.replace("terra", "torch", 1) if module.startswith("terra") else module, attr)] = g


def get_safe_globals():
    return list({id(v): v for v in _safe.values()}.values())


def clear_safe_globals():
    _safe.clear()


@contextlib.contextmanager
def safe_globals(safe_globals):
    """add_safe_globals for the length of a `with`."""
    before = dict(_safe)
    add_safe_globals(safe_globals)
    try:
        yield
    finally:
        _safe.clear()
        _safe.update(before)


_ADVICE = ("Weights only load failed. In PyTorch 2.6, we changed the default value of the `weights_only` argument in `torch.load` from "
           "`False` to `True`. Re-running `torch.load` with `weights_only` set to `False` will likely succeed, but it can result in "
           "arbitrary code execution. Do it only if you got the file from a trusted source.\n")


class _Unpickler(pickle.Unpickler):
    """Any global; PyTorch's names are Terra's."""

    restricted = False

    def __init__(self, file, archive, name, encoding, map_location=None):
        super().__init__(file, encoding=encoding)
        self.archive, self.name, self.loaded, self.map_location = archive, name, {}, map_location

    def find_class(self, module, name):
        known = _default_globals().get((module, name))
        if known is not None and module.split(".")[0] == "torch":
            return known
        if module == "torch" and name in _ABSENT:
            raise pickle.UnpicklingError(f"torch.{name}: this dtype is not in Terra's subset yet")
        if module == "torch" or module.startswith("torch."):
            owner = importlib.import_module("terra" + module[5:])
            for part in name.split("."):
                owner = getattr(owner, part)
            return owner
        return super().find_class(module, name)

    def persistent_load(self, saved):
        if not isinstance(saved, tuple) or len(saved) != 5 or saved[0] != "storage":
            raise pickle.UnpicklingError(f"unknown persistent id {saved!r}")
        _, kind, key, location, numel = saved
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or not isinstance(numel, int) or numel < 0:
            raise pickle.UnpicklingError("malformed storage record")
        if key not in self.loaded:
            self.loaded[key] = self._read(key, kind, numel)
        return self.loaded[key]

    def _read(self, key, kind, numel):
        try:
            data = self.archive.read(f"{self.name}/data/{key}")
        except KeyError:
            raise RuntimeError(f"PytorchStreamReader failed locating file data/{key}: file not found") from None
        size = kind.dtype.itemsize
        if len(data) < numel * size:
            raise RuntimeError(f"storage {key} has {len(data)} bytes in the file, {numel * size} are needed: the file is damaged")
        return _C._from_bytes(data, kind.dtype, (numel,))


class _RestrictedUnpickler(_Unpickler):
    restricted = True

    def find_class(self, module, name):
        found = _safe.get((module, name), _default_globals().get((module, name)))
        if found is None:
            if module == "torch" and name in _ABSENT:
                raise pickle.UnpicklingError(f"torch.{name}: this dtype is not in Terra's subset yet")
            raise pickle.UnpicklingError(_ADVICE + f"WeightsUnpickler error: Unsupported global: GLOBAL {module}.{name} was not an "
                                         "allowed global by default. Please use `torch.serialization.add_safe_globals` to allowlist "
                                         "it if you trust it.")
        return found


def _check_location(map_location):
    if map_location is None or callable(map_location) or isinstance(map_location, dict):
        return
    _core.check_device(map_location)


def _flag(name):
    return os.environ.get(name, "0").lower() in ("1", "y", "yes", "true")


def load(f, map_location=None, pickle_module=None, *, weights_only=None, mmap=None, **pickle_load_args):
    """Reads what save wrote. weights_only (the default) finds no globals but those of tensors and containers."""
    _check_location(map_location)
    if weights_only is None:
        weights_only = not _flag("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") and pickle_module is None
    if _flag("TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
        weights_only = True
    opened = open(f, "rb") if isinstance(f, (str, os.PathLike)) else contextlib.nullcontext(f)
    with opened as file:
        return _load(file, map_location, weights_only, pickle_load_args.get("encoding", "utf-8"))


def _load(file, map_location, weights_only, encoding):
    start = file.tell()
    magic = file.read(4)
    file.seek(start)
    if not magic:
        raise EOFError("Ran out of input")
    if magic[:2] != b"PK":
        if magic[:1] == b"\x80":
            raise RuntimeError("this is a file of PyTorch's format before 1.6, or a plain pickle: not in Terra's subset")
        raise pickle.UnpicklingError(f"invalid load key, '{chr(magic[0])}'.")
    try:
        archive = zipfile.ZipFile(file)
        top = next((n[:-len("/data.pkl")] for n in archive.namelist() if n.endswith("/data.pkl")), None)
        if top is None:
            raise RuntimeError("PytorchStreamReader failed locating file data.pkl: file not found")
        if f"{top}/byteorder" in archive.namelist() and archive.read(f"{top}/byteorder") != b"little":
            raise RuntimeError("the file is big-endian: not supported")
        body = archive.read(f"{top}/data.pkl")
        kind = _RestrictedUnpickler if weights_only else _Unpickler
        return kind(io.BytesIO(body), archive, top, encoding, map_location).load()
    except (zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise RuntimeError("PytorchStreamReader failed reading zip archive: failed finding central directory "
                           f"({error}): the file is truncated or damaged") from None
    except (EOFError, IndexError, KeyError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        if not weights_only:
            raise
        raise pickle.UnpicklingError(f"{_ADVICE}data.pkl is damaged: {type(error).__name__}: {error}") from None
