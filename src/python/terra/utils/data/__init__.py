"""Datasets, samplers, loaders."""

from . import dataloader, dataset, sampler
from .dataloader import DataLoader, default_collate, default_convert, get_worker_info
from .dataset import (ChainDataset, ConcatDataset, Dataset, IterableDataset, StackDataset, Subset, TensorDataset, random_split)
from .sampler import (BatchSampler, RandomSampler, Sampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler)

__all__ = ["BatchSampler", "ChainDataset", "ConcatDataset", "DataLoader", "Dataset", "IterableDataset", "RandomSampler", "Sampler",
           "SequentialSampler", "StackDataset", "Subset", "SubsetRandomSampler", "TensorDataset", "WeightedRandomSampler",
           "dataloader", "dataset", "default_collate", "default_convert", "get_worker_info", "random_split", "sampler"]


def __getattr__(name):
    raise AttributeError(f"module 'torch.utils.data' has no attribute '{name}': not in Terra's subset yet")
