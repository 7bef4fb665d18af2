"""Bayesian flows of classes (Graves et al. 2023, sec. 6): the input distribution of each is a categorical.

Functions of one example with noise as an argument; x holds integers, and classes lie on a new last axis, of size K. beta_1
is the accuracy at t = 1.

>>> import torch
>>> from purevdm.bfn import categorical
>>> theta = torch.full((1, 4), 0.25)
>>> y = categorical.sender(torch.tensor([2]), torch.tensor(0.5), torch.zeros(1, 4))
>>> categorical.update(theta, y)
tensor([[0.0963, 0.0963, 0.7112, 0.0963]])
"""

import torch
from torch import Tensor

from purevdm._compile import fixed

__all__ = ["accuracy", "beta", "flow", "flow_logits", "one_hot", "rate", "sender", "update"]


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


def sender(x: Tensor, alpha: Tensor, eps: Tensor) -> Tensor:
    """y = alpha (K e_x - 1) + sqrt(alpha K) eps, a draw of the sender distribution of accuracy alpha (sec. 6)."""
    classes = eps.shape[-1]
    return alpha * (classes * one_hot(x, classes, eps.dtype) - 1.0) + torch.sqrt(alpha * classes) * eps


def update(theta: Tensor, y: Tensor) -> Tensor:
    """The input distribution after seeing y: exp(y) theta, normalised. The largest exponent is subtracted first, so
    no y is too large."""
    return torch.softmax(theta.log() + y, -1)


def flow_logits(x: Tensor, t: Tensor, eps: Tensor, beta_1: float) -> Tensor:
    """The sum of all that was sent until time t, of accuracy beta(t): theta before the softmax."""
    return sender(x, beta(t, beta_1), eps)


def flow(x: Tensor, t: Tensor, eps: Tensor, beta_1: float) -> Tensor:
    """theta at time t, a draw of the Bayesian flow distribution when eps is standard normal."""
    return torch.softmax(flow_logits(x, t, eps, beta_1), -1)
