"""Features of numbers: sinusoids."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from purevdm import _checks
from purevdm.nn._batching import concatenate


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Computes sinusoids of one number at ``dim // 2`` frequencies from 1 down to 1 / 10000, sines then cosines.

    Args:
        t: shape (); networks of the paper give 1000 times the normalised gamma.
        dim: how many features; an odd one is filled with a zero.

    Returns:
        (dim,), dim at least 4.
    """
    half = _checks.integer("dim", dim, 4) // 2
    frequencies = torch.exp(torch.arange(half, dtype=t.dtype, device=t.device) * (-math.log(10000.0) / (half - 1)))
    angles = t * frequencies
    return concatenate([angles.sin(), angles.cos(), angles.new_zeros(dim % 2)])


def fourier_features(x: Tensor, exponents: Sequence[int]) -> Tensor:
    """Computes base-2 Fourier features, sin and cos of 2 pi 2**n x, of each channel (sec. 4.5).

    Args:
        x: (channels, *space).
        exponents: the n's.

    Returns:
        (2 * channels * len(exponents), *space): all sines, then all cosines; within each, channel by channel.
    """
    # 2 pi as a literal: under dynamic=True a compiler makes a symbol of math.pi, and fails on it in a loop.
    scales = torch.tensor([2.0**n * 6.283185307179586 for n in exponents], dtype=x.dtype, device=x.device)
    angles = (x.unsqueeze(1) * scales.reshape(-1, *(1 for _ in x.shape[1:]))).flatten(0, 1)
    return concatenate([angles.sin(), angles.cos()])
