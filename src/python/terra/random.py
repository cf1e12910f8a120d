"""Generators: seeds, states, forks."""

import contextlib
import os

from . import _C


def _seed_of(seed):
    seed = int(seed)
    if not -0x8000_0000_0000_0000 <= seed <= 0xFFFF_FFFF_FFFF_FFFF:
        raise ValueError("Overflow when unpacking long")
    return seed & 0xFFFF_FFFF_FFFF_FFFF


class Generator:
    """A stream of random words: mt19937, as in PyTorch."""

    def __init__(self, device="cpu"):
        from ._core import check_device, cpu

        check_device(device)
        self.device = cpu
        self._seed = 67280421310721
        self._state = _C._generator_create(self._seed)

    def manual_seed(self, seed):
        self._seed = _seed_of(seed)
        _C._generator_set_seed(self._state, self._seed)
        return self

    def seed(self):
        self.manual_seed(int.from_bytes(os.urandom(8), "little"))
        return self._seed

    def initial_seed(self):
        return self._seed

    def get_state(self):
        """The state, as a tensor of bytes."""
        return self._state.clone()

    def set_state(self, new_state):
        if new_state.dtype is not _C.uint8:
            raise TypeError("RNG state must be a torch.ByteTensor")
        if new_state.shape != self._state.shape:
            raise RuntimeError("RNG state is wrong size")
        self._state.copy_(new_state)
        self._seed = int.from_bytes(_C._read_bytes(self._state)[-8:], "little")
        return self

    def clone_state(self):
        return Generator().set_state(self.get_state())

    def _draw64(self):
        """Two words, on the host: what PyTorch draws as one random int64."""
        value = _C._generator_draw64(self._state)
        return value

    def __reduce__(self):
        return (_rebuild, (self.get_state(),))


def _rebuild(state):
    return Generator().set_state(state)


default_generator = Generator.__new__(Generator)
default_generator._state = _C._default_generator()
default_generator._seed = 67280421310721
from ._core import cpu as _cpu  # noqa: E402

default_generator.device = _cpu


def manual_seed(seed):
    """Seeds the default generator; returns it."""
    return default_generator.manual_seed(seed)


def seed():
    return default_generator.seed()


def initial_seed():
    return default_generator.initial_seed()


def get_rng_state():
    return default_generator.get_state()


def set_rng_state(new_state):
    default_generator.set_state(new_state)


@contextlib.contextmanager
def fork_rng(devices=None, enabled=True, **kw):
    """What is drawn inside does not move the generator outside."""
    state = get_rng_state()
    try:
        yield
    finally:
        if enabled:
            set_rng_state(state)
