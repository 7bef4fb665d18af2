"""Bayesian flows of real numbers (Graves et al. 2023, sec. 4): the input distribution of each is a normal.

Functions of one example, elementwise. Times, accuracies and precisions are tensors that broadcast
against the data. sigma_1 is the standard deviation of the input distribution at t = 1.

>>> import torch
>>> from purevdm.bfn import normal
>>> normal.variance(torch.tensor([0.0, 0.5, 1.0]), sigma_1=0.1)
tensor([1.0000, 0.1000, 0.0100])
"""

import math

import torch
from torch import Tensor

from purevdm._compile import fixed

__all__ = ["T_MIN", "accuracy", "beta", "precision", "predicted", "rate", "variance"]

T_MIN = 1e-6
"""Before this time a noise-predicting network's mean of the data is taken to be 0 and its deviation 1, as in the paper's
algorithms."""


def _exponent(t: Tensor, sigma_1: float) -> Tensor:
    """-log(sigma_1**(2 t)), which is 0 or more."""
    return -2.0 * math.log(fixed(sigma_1)) * t


def variance(t: Tensor, sigma_1: float) -> Tensor:
    """sigma_1**(2 t), the input distribution's variance at time t; 1 less it is the paper's gamma(t) (eq. 80)."""
    return torch.exp(-_exponent(t, sigma_1))


def precision(t: Tensor, sigma_1: float) -> Tensor:
    """rho(t) = sigma_1**(-2 t), the input distribution's precision at time t, starting from 1."""
    return torch.exp(_exponent(t, sigma_1))


def beta(t: Tensor, sigma_1: float) -> Tensor:
    """beta(t) = sigma_1**(-2 t) - 1, all the accuracy sent until time t (eq. 72)."""
    return torch.expm1(_exponent(t, sigma_1))


def rate(t: Tensor, sigma_1: float) -> Tensor:
    """alpha(t) = beta'(t) = -2 log(sigma_1) sigma_1**(-2 t), the accuracy sent in a unit of time (eq. 74)."""
    return -2.0 * math.log(fixed(sigma_1)) * precision(t, sigma_1)


def accuracy(s: Tensor, t: Tensor, sigma_1: float) -> Tensor:
    """beta(t) - beta(s), the accuracy sent from s to a later t; alpha_i of eq. 95 where these are (i - 1) / n and i / n."""
    return precision(s, sigma_1) * torch.expm1(_exponent(t - s, sigma_1))


def predicted(w: Tensor, t: Tensor, sigma_1: float, predicts: str) -> tuple[Tensor, Tensor]:
    """(offset, factor): the data that a network sees are offset + factor * output, and where its second output is a log
    deviation, the deviation is ``|factor| exp(output)`` (1 where the factor is 0).

    Args:
        w: sqrt(beta) x + eps, the latent that the input distribution's mean is a multiple of (:mod:`purevdm.bfn.process`).
        t: the time.
        sigma_1: the deviation at t = 1.
        predicts: "x", the data; "eps", the noise (as in the paper); or "v", sqrt(gamma) eps - sqrt(1 - gamma) x in the
            paper's gamma, as for diffusion.
    """
    t = t + torch.zeros_like(w)
    if predicts == "x":
        return torch.zeros_like(w), torch.ones_like(w)
    if predicts == "v":
        std = torch.sqrt(variance(t, sigma_1))
        return torch.sqrt(-torch.expm1(-_exponent(t, sigma_1))) * std * w, -std
    early = t < fixed(T_MIN)
    scale = torch.rsqrt(beta(torch.where(early, 1.0, t), sigma_1))
    return torch.where(early, 0.0, w * scale), torch.where(early, 0.0, -scale)
