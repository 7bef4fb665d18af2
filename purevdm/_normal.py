"""The standard normal's distribution function, for ``vmap``."""

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
