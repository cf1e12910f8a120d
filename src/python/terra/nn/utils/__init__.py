"""Gradient clipping, parameters as one vector, weight normalisation."""

from . import rnn
from .clip_grad import clip_grad_norm, clip_grad_norm_, clip_grad_value_, get_total_norm, clip_grads_with_norm_
from .convert_parameters import parameters_to_vector, vector_to_parameters
from .weight_norm import remove_weight_norm, weight_norm

__all__ = ["clip_grad_norm", "clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm",
           "parameters_to_vector", "remove_weight_norm", "rnn", "vector_to_parameters", "weight_norm"]


def __getattr__(name):
    raise AttributeError(f"module 'torch.nn.utils' has no attribute '{name}': not in Terra's subset yet")
