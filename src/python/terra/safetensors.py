"""safetensors files: what safetensors.torch offers, for Terra's tensors. `python -m terra` puts this in its place."""

import json
import os

from . import _C
from ._core import check_device

_NAMES = {_C.float32: "F32", _C.float64: "F64", _C.bfloat16: "BF16", _C.int64: "I64", _C.int32: "I32", _C.uint8: "U8", _C.bool: "BOOL"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def _check(tensors):
    if not isinstance(tensors, dict):
        raise ValueError(f"Expected a dict of [str, torch.Tensor] but received {type(tensors)}")
    seen = {}
    for name, t in tensors.items():
        if not isinstance(t, _C.Tensor):
            raise ValueError(f"Key `{name}` is invalid, expected torch.Tensor but received {type(t)}")
        if not t.is_contiguous():
            raise ValueError(f"You are trying to save a non contiguous tensor: `{name}` which is not allowed. It either means you are "
                             "trying to save tensors which are reference of each other in which case it's recommended to save only "
                             "the full tensors, and reslice at load time, or simply call `.contiguous()` on your tensor to pack it "
                             "before saving.")
        other = seen.setdefault(t._storage_key(), name)
        if other != name and t.numel():
            raise RuntimeError(f"Some tensors share memory, this will lead to duplicate memory on disk and potential differences when "
                               f"loading them again: [{{'{other}', '{name}'}}].")


def save(tensors, metadata=None):
    """A dict of tensors as bytes."""
    _check(tensors)
    header, bodies, at = {}, [], 0
    if metadata:
        header["__metadata__"] = dict(metadata)
    for name in sorted(tensors, key=lambda n: (-tensors[n].element_size(), n)):  # aligned: the widest first
        t = tensors[name].detach()
        body = _C._read_bytes(t)
        header[name] = {"dtype": _NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + len(body)]}
        bodies.append(body)
        at += len(body)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(bodies)


def save_file(tensors, filename, metadata=None):
    """Writes a dict of tensors."""
    data = save(tensors, metadata)
    with open(os.fspath(filename), "wb") as f:
        f.write(data)


def load(data):
    """Tensors from bytes; the safetensors package checks them."""
    import safetensors

    out = {}
    for name, view in safetensors.deserialize(data):
        if view["dtype"] not in _DTYPES:
            raise NotImplementedError(f"{name}: dtype {view['dtype']} is not in Terra's subset yet")
        out[name] = _C._from_bytes(bytes(view["data"]), _DTYPES[view["dtype"]], tuple(view["shape"]))
    return out


def load_file(filename, device="cpu"):
    """Tensors from a file."""
    check_device(device)
    with open(os.fspath(filename), "rb") as f:
        return load(f.read())


def save_model(model, filename, metadata=None, force_contiguous=True):
    """A module's state; of names that share memory the first stays."""
    state, seen = {}, set()
    for name, t in model.state_dict().items():
        if t._storage_key() not in seen:
            seen.add(t._storage_key())
            state[name] = t.contiguous() if force_contiguous else t
    save_file(state, filename, metadata)


def load_model(model, filename, strict=True, device="cpu"):
    """A module's state back from a file."""
    state = load_file(filename, device)
    mine = model.state_dict()
    by_storage = {}
    for name, t in mine.items():
        by_storage.setdefault(t._storage_key(), []).append(name)
    for names in by_storage.values():  # names that were left out because they share memory
        have = next((n for n in names if n in state), None)
        for n in names:
            if have is not None:
                state.setdefault(n, state[have])
    result = model.load_state_dict(state, strict=strict)
    return result.missing_keys, result.unexpected_keys
