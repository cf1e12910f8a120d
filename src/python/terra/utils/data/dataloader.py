"""DataLoader: batches of a dataset, in this process or by workers that are forked."""

import itertools
import math
import multiprocessing
import os
import queue
import warnings

from ... import _marks
from ... import random as _random
from . import _utils
from .dataset import IterableDataset
from .sampler import BatchSampler, RandomSampler, Sampler, SequentialSampler

default_collate, default_convert, get_worker_info = _utils.default_collate, _utils.default_convert, _utils.get_worker_info


class _Infinite(Sampler):
    def __iter__(self):
        return itertools.repeat(None)


class DataLoader:
    """Iterating gives batches. The generator's draws are PyTorch's."""

    __initialized = False

    def __class_getitem__(cls, item):
        return cls

    def __init__(self, dataset, batch_size=1, shuffle=None, sampler=None, batch_sampler=None, num_workers=0, collate_fn=None,
                 pin_memory=False, drop_last=False, timeout=0, worker_init_fn=None, multiprocessing_context=None, generator=None, *,
                 prefetch_factor=None, persistent_workers=False, pin_memory_device="", in_order=True):
        if num_workers < 0:
            raise ValueError("num_workers option should be non-negative; use num_workers=0 to disable multiprocessing.")
        if timeout < 0:
            raise ValueError("timeout option should be non-negative")
        if num_workers == 0 and prefetch_factor is not None:
            raise ValueError("prefetch_factor option could only be specified in multiprocessing.let num_workers > 0 to enable "
                             "multiprocessing, otherwise set prefetch_factor to None.")
        if persistent_workers and num_workers == 0:
            raise ValueError("persistent_workers option needs num_workers > 0")
        self.dataset, self.num_workers, self.prefetch_factor = dataset, num_workers, prefetch_factor or (2 if num_workers else None)
        self.pin_memory, self.pin_memory_device, self.timeout = pin_memory, pin_memory_device, timeout
        self.worker_init_fn, self.multiprocessing_context = worker_init_fn, multiprocessing_context
        self.generator, self.persistent_workers, self.in_order = generator, persistent_workers, in_order
        self._iterable = isinstance(dataset, IterableDataset)
        sampler, batch_sampler = self._samplers(dataset, shuffle, sampler, batch_sampler, batch_size, drop_last, generator)
        if batch_sampler is not None and (batch_size != 1 or drop_last):
            raise ValueError("batch_sampler option is mutually exclusive with batch_size, shuffle, sampler, and drop_last")
        if batch_size is None and drop_last:
            raise ValueError("batch_size=None option disables auto-batching and is mutually exclusive with drop_last")
        if batch_sampler is not None:
            batch_size, drop_last = None, False
        elif batch_size is not None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.batch_size, self.drop_last, self.sampler, self.batch_sampler = batch_size, drop_last, sampler, batch_sampler
        self.collate_fn = collate_fn or (default_convert if batch_sampler is None else default_collate)
        self._iterator = None
        self._IterableDataset_len_called = None
        self.__initialized = True

    def _samplers(self, dataset, shuffle, sampler, batch_sampler, batch_size, drop_last, generator):
        if self._iterable:
            if shuffle:
                raise ValueError(f"DataLoader with IterableDataset: expected unspecified shuffle option, but got shuffle={shuffle}")
            if sampler is not None or batch_sampler is not None:
                raise ValueError("DataLoader with IterableDataset: expected unspecified sampler and batch_sampler options")
            return _Infinite(), None
        if sampler is not None and shuffle:
            raise ValueError("sampler option is mutually exclusive with shuffle")
        if batch_sampler is not None and (batch_size != 1 or shuffle or sampler is not None or drop_last):
            raise ValueError("batch_sampler option is mutually exclusive with batch_size, shuffle, sampler, and drop_last")
        if sampler is None:
            sampler = RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
        return sampler, batch_sampler

    def __setattr__(self, name, value):
        if self.__initialized and name in ("batch_size", "batch_sampler", "sampler", "drop_last", "dataset",
                                           "persistent_workers"):
            raise ValueError(f"{name} attribute should not be set after {type(self).__name__} is initialized")
        super().__setattr__(name, value)

    def __iter__(self):
        if self.persistent_workers and self.num_workers > 0:
            if self._iterator is None:
                self._iterator = _ByWorkers(self)
            else:
                self._iterator.reset(self)
            return self._iterator
        return _ByWorkers(self) if self.num_workers else _Here(self)

    @property
    def _auto_collation(self):
        return self.batch_sampler is not None

    @property
    def _index_sampler(self):
        return self.batch_sampler if self._auto_collation else self.sampler

    def __len__(self):
        if self._iterable:
            n = len(self.dataset)
            if self.batch_size is None:
                return n
            return n // self.batch_size if self.drop_last else -(-n // self.batch_size)
        return len(self._index_sampler)

    def check_worker_number_rationality(self):
        pass


def _full_batches(loader):
    """How many of an epoch's batches are of the whole batch size; infinite where only a program's own sampler knows."""
    known = loader.batch_size is not None and type(loader.sampler) in (RandomSampler, SequentialSampler)
    return len(loader.sampler) // loader.batch_size if known else math.inf


class _Iterator:
    def __init__(self, loader):
        self.loader = loader
        self.indices = iter(loader._index_sampler)
        self.handed, self.full = 0, _full_batches(loader)
        generator = loader.generator or _random.default_generator
        self.base_seed = generator._draw64() & 0x7FFF_FFFF_FFFF_FFFF

    def __iter__(self):
        return self

    def __len__(self):
        return len(self.loader._index_sampler)

    def __next__(self):
        data = self._next()
        self.handed += 1
        _marks.dataloader(self.handed > self.full)
        return data

    next = __next__


class _Here(_Iterator):
    """Batches made by this process when they are asked for."""

    def __init__(self, loader):
        super().__init__(loader)
        self.fetcher = _utils.Fetcher(loader.dataset, loader._auto_collation, loader.collate_fn, loader.drop_last,
                                      loader._iterable)

    def _next(self):
        return self.fetcher.fetch(next(self.indices))


class _ByWorkers(_Iterator):
    """Batches made by processes, handed out in order. `sent` and `taken` count batches; a few are always under way."""

    def __init__(self, loader):
        super().__init__(loader)
        context = loader.multiprocessing_context or "fork"
        if isinstance(context, str):
            context = multiprocessing.get_context(context)
        self.results = context.Queue()
        self.tasks, self.workers = [], []
        for w in range(loader.num_workers):
            tasks = context.Queue()
            tasks.cancel_join_thread()
            process = context.Process(target=_utils.worker_loop, daemon=True, args=(
                loader.dataset, loader._iterable, tasks, self.results, loader._auto_collation, loader.collate_fn, loader.drop_last,
                self.base_seed, loader.worker_init_fn, w, loader.num_workers, os.getpid()))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            self.tasks.append(tasks)
            self.workers.append(process)
        self._start()

    def _start(self):
        self.sent = self.taken = 0
        self.early = {}                          # number -> batch that came before its turn
        self.alive = [True] * len(self.workers)  # streams that have not ended
        self.turn = 0
        self.owner = {}
        for _ in range(self.loader.prefetch_factor * len(self.workers)):
            self._send()

    def reset(self, loader):
        while self.taken < self.sent:            # what the last epoch left under way
            if self.taken not in self.early:
                self._receive()
            self.early.pop(self.taken, None)
            self.taken += 1
        self.indices = iter(loader._index_sampler)  # workers keep their seeds
        self.handed = 0
        for tasks in self.tasks:
            tasks.put("resume")
        self._start()

    def _send(self):
        try:
            indices = next(self.indices)
        except StopIteration:
            return
        for _ in self.workers:
            w = self.turn
            self.turn = (self.turn + 1) % len(self.workers)
            if self.alive[w]:
                self.tasks[w].put((self.sent, indices))
                self.owner[self.sent] = w
                self.sent += 1
                return

    def _receive(self):
        waited = 0.0
        while True:
            try:
                number, data = self.results.get(timeout=1.0)
            except queue.Empty:
                waited += 1.0
                dead = [p for p in self.workers if not p.is_alive()]
                if dead:
                    names = ", ".join(str(p.pid) for p in dead)
                    raise RuntimeError(f"DataLoader worker (pid(s) {names}) exited unexpectedly") from None
                if self.loader.timeout and waited >= self.loader.timeout:
                    raise RuntimeError(f"DataLoader timed out after {self.loader.timeout} seconds") from None
                continue
            self.early[number] = data
            return

    def _next(self):
        while self.taken < self.sent:
            if self.taken not in self.early:
                self._receive()
                continue
            data = self.early.pop(self.taken)
            self.taken += 1
            if isinstance(data, _utils.End):
                self.alive[data.worker] = False
                self._send()
                continue
            self._send()
            if isinstance(data, _utils.Failure):
                data.reraise()
            return data
        if not self.loader.persistent_workers:
            self.close()
        raise StopIteration

    def close(self):
        for tasks in self.tasks:
            try:
                tasks.put(None)
            except (OSError, ValueError):
                pass
        for process in self.workers:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
        for tasks in self.tasks:
            tasks.close()
        self.tasks = []

    def __del__(self):
        try:
            if self.tasks:
                self.close()
        except Exception:
            pass


