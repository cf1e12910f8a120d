"""Collating samples into batches; what a worker process does."""

import collections.abc
import os
import queue
import random
import signal
import traceback

from ... import _C
from ..._ops import stack
from ... import random as _random

_info = None


class WorkerInfo:
    """What get_worker_info() tells inside a worker."""

    def __init__(self, id, num_workers, seed, dataset):
        self.id, self.num_workers, self.seed, self.dataset = id, num_workers, seed, dataset


def get_worker_info():
    """Who this worker is; None in the main process."""
    return _info


def default_collate(batch):
    """A list of samples as a batch: tensors stacked, numbers made tensors, containers entered."""
    first = batch[0]
    if isinstance(first, _C.Tensor):
        return stack(batch, 0)
    kind = type(first)
    if kind.__module__ == "numpy" and kind.__name__ not in ("str_", "string_"):
        if kind.__name__ == "ndarray":
            if first.dtype.kind in "SUO":
                raise TypeError(f"default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; found "
                                f"{first.dtype}")
            return stack([_C._from_data(b) for b in batch], 0)
        return _C._from_data([b.item() for b in batch], _C._from_data(first).dtype)
    if isinstance(first, float):
        return _C._from_data(batch, _C.float64)
    if isinstance(first, int):
        return _C._from_data(batch)
    if isinstance(first, (str, bytes)):
        return batch
    if isinstance(first, collections.abc.Mapping):
        try:
            return kind({k: default_collate([b[k] for b in batch]) for k in first})
        except TypeError:
            return {k: default_collate([b[k] for b in batch]) for k in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return kind(*(default_collate(samples) for samples in zip(*batch)))
    if isinstance(first, collections.abc.Sequence):
        if any(len(b) != len(first) for b in batch):
            raise RuntimeError("each element in list of batch should be of equal size")
        columns = list(zip(*batch))
        if isinstance(first, tuple):
            return [default_collate(c) for c in columns]
        return [default_collate(list(c)) for c in columns]
    raise TypeError(f"default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; found {kind}")


def default_convert(data):
    """Arrays to tensors, containers entered, no new dimension."""
    if isinstance(data, _C.Tensor):
        return data
    if type(data).__module__ == "numpy" and type(data).__name__ not in ("str_", "string_"):
        return _C._from_data(data) if getattr(data, "dtype", None) is not None and data.dtype.kind not in "SUO" else data
    if isinstance(data, collections.abc.Mapping):
        return {k: default_convert(v) for k, v in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(default_convert(d) for d in data))
    if isinstance(data, tuple):
        return [default_convert(d) for d in data]
    if isinstance(data, collections.abc.Sequence) and not isinstance(data, (str, bytes)):
        return [default_convert(d) for d in data]
    return data


class Fetcher:
    """Samples of some indices, collated."""

    def __init__(self, dataset, auto_collation, collate, drop_last, iterable):
        self.dataset, self.auto, self.collate, self.drop_last = dataset, auto_collation, collate, drop_last
        self.stream = iter(dataset) if iterable else None
        self.ended = False

    def fetch(self, indices):
        if self.stream is not None:
            return self._from_stream(indices)
        if not self.auto:
            return self.collate(self.dataset[indices])
        if callable(getattr(self.dataset, "__getitems__", None)):
            return self.collate(self.dataset.__getitems__(indices))
        return self.collate([self.dataset[i] for i in indices])

    def _from_stream(self, indices):
        if self.ended:
            raise StopIteration
        if not self.auto:
            return self.collate(next(self.stream))
        data = []
        for _ in indices:
            try:
                data.append(next(self.stream))
            except StopIteration:
                self.ended = True
                break
        if not data or (self.drop_last and len(data) < len(indices)):
            raise StopIteration
        return self.collate(data)


class Failure:
    """An exception of a worker, on its way to the main process."""

    def __init__(self, error, where):
        self.kind, self.message = type(error), traceback.format_exc()
        self.where = where

    def reraise(self):
        text = f"Caught {self.kind.__name__} {self.where}.\nOriginal {self.message}"
        if self.kind is KeyError:
            text = _KeyErrorMessage(text)
        try:
            error = self.kind(text)
        except Exception:
            raise RuntimeError(text) from None
        raise error


class _KeyErrorMessage(str):
    def __repr__(self):
        return str(self)


class End:
    """A worker's stream has ended."""

    def __init__(self, worker):
        self.worker = worker


def worker_loop(dataset, iterable, tasks, results, auto_collation, collate, drop_last, base_seed, init, worker, n_workers, parent):
    """A worker process: takes (number, indices), gives (number, batch), until None."""
    global _info
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    seed = base_seed + worker
    random.seed(seed)
    _random.manual_seed(seed)
    try:
        import numpy

        numpy.random.seed(seed & 0xFFFF_FFFF)
    except ImportError:
        pass
    _info = WorkerInfo(worker, n_workers, seed, dataset)
    fetcher = failure = None
    try:
        if init is not None:
            init(worker)
        fetcher = Fetcher(dataset, auto_collation, collate, drop_last, iterable)
    except Exception as error:
        failure = Failure(error, f"in DataLoader worker process {worker}")
    while True:
        try:
            task = tasks.get(timeout=5)
        except queue.Empty:
            if os.getppid() != parent:
                return
            continue
        if task is None:
            return
        if task == "resume":
            fetcher = Fetcher(dataset, auto_collation, collate, drop_last, iterable)
            continue
        number, indices = task
        if failure is not None:
            results.put((number, failure))
            failure = None
            continue
        try:
            data = fetcher.fetch(indices)
        except StopIteration:
            data = End(worker)
        except Exception as error:
            data = Failure(error, f"in DataLoader worker process {worker}")
        results.put((number, data))


