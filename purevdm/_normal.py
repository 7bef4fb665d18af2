"""The normal distribution: its distribution function, for ``vmap``, and expectations over bins."""

import math

import torch
from torch import Tensor

from purevdm._compile import fixed

_ROOT_HALF = math.sqrt(0.5)


def log_ndtr(x: Tensor) -> Tensor:
    """Computes log Phi(x), without underflow. (``torch.special.log_ndtr`` has no rule for ``vmap``.)"""
    low, high = x.clamp(max=0.0), x.clamp(min=0.0)
    left = torch.log(0.5 * torch.special.erfcx(-fixed(_ROOT_HALF) * low)) - 0.5 * low.square()
    return torch.where(x < 0.0, left, torch.log1p(-0.5 * torch.erfc(fixed(_ROOT_HALF) * high)))


def bin_expectation(mean: Tensor, std: Tensor, bins: int) -> Tensor:
    """Computes the expectation of the bin's centre under N(mean, std**2), without the probabilities: each edge between two
    bins adds the width of one times the probability of lying above it."""
    edges = 2.0 * torch.arange(1, bins, device=mean.device).to(mean.dtype) / bins - 1.0
    above = torch.special.ndtr((mean[..., None] - edges) / std[..., None])
    return (1.0 / bins - 1.0) + (2.0 / bins) * above.sum(-1)
