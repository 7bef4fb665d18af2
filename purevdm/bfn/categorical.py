"""Bayesian flows of classes (Graves et al. 2023, sec. 6): the input distribution of each is a categorical.

Functions of one example; x holds integers, and classes lie on a new last axis, of size K. beta_1 is the accuracy at t = 1.

>>> import torch
>>> from purevdm.bfn import categorical
>>> categorical.one_hot(torch.tensor([2]), 4)
tensor([[0., 0., 1., 0.]])
"""

import torch
from torch import Tensor

from purevdm._compile import fixed

__all__ = ["accuracy", "beta", "one_hot", "rate"]


def one_hot(x: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """e_x, (*x.shape, classes)."""
    return (x[..., None].to(torch.int64) == torch.arange(fixed(classes), device=x.device)).to(dtype)


def beta(t: Tensor, beta_1: float) -> Tensor:
    """beta(t) = beta_1 t**2, all the accuracy sent until time t."""
    return fixed(beta_1) * t.square()


def rate(t: Tensor, beta_1: float) -> Tensor:
    """alpha(t) = beta'(t) = 2 beta_1 t, the accuracy sent in a unit of time."""
    return 2.0 * fixed(beta_1) * t


def accuracy(s: Tensor, t: Tensor, beta_1: float) -> Tensor:
    """beta(t) - beta(s), the accuracy sent from s to a later t; beta_1 (2 i - 1) / n**2 from (i - 1) / n to i / n."""
    return fixed(beta_1) * (t - s) * (t + s)
