"""How kernels start."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from purevdm import random
from purevdm.types import Key, Shape

Initialiser = Callable[[Key, Shape, int], Tensor]
"""``(key, shape, fan_in) -> kernel``, float32 on the key's device."""


def lecun_normal(key: Key, shape: Shape, fan_in: int) -> Tensor:
    """Draws a normal of variance 1 / fan_in, truncated at two standard deviations of the normal before truncation."""
    # 0.8796... is the standard deviation of a standard normal truncated to (-2, 2).
    scale = 1.0 / math.sqrt(fan_in) / 0.87962566103423978
    return random.truncated_normal(key, -2.0, 2.0, shape) * scale


def zeros(key: Key, shape: Shape, fan_in: int) -> Tensor:
    """Makes zeros."""
    return torch.zeros(tuple(shape), dtype=torch.float32, device=key.device)


def constant(value: float) -> Initialiser:
    """Makes an initialiser: everywhere this value."""

    def init(key: Key, shape: Shape, fan_in: int) -> Tensor:
        return torch.full(tuple(shape), value, dtype=torch.float32, device=key.device)

    return init


def normal(stddev: float = 1e-2) -> Initialiser:
    """Makes an initialiser: normal with mean 0 and this standard deviation."""

    def init(key: Key, shape: Shape, fan_in: int) -> Tensor:
        return random.normal(key, shape) * stddev

    return init
