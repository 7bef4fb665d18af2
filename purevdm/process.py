"""The diffusion's mathematics: the variance-preserving process in terms of gamma, minus the log signal-to-noise ratio.

No network, no randomness: noise comes as an argument. Functions are elementwise. gamma is a tensor that broadcasts against
the rest: a number of shape (), or one for each dimension of an event. With alpha**2 + sigma**2 = 1 and SNR = alpha**2 /
sigma**2 = exp(-gamma) (sec. 3.1-3.2), all is computed from gamma by ``sigmoid``, ``softplus`` and ``expm1``, so that
nothing cancels: float32 is good to a few units in the last place for gamma in [-30, 30].

Times run from s < t, and gamma grows with time: gamma_s < gamma_t. Functions that go back in time take gamma_t first.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm._stable import expm1

__all__ = [
    "Gaussian",
    "align",
    "alpha",
    "diffuse",
    "eps_from_v",
    "eps_from_x",
    "posterior",
    "posterior_from_eps",
    "sigma",
    "transition",
    "x_from_eps",
    "x_from_v",
]


class Gaussian(NamedTuple):
    """A normal distribution with independent components: its mean and its standard deviation (they broadcast)."""

    mean: Tensor
    std: Tensor


def align(gamma: Tensor, z: Tensor) -> Tensor:
    """Shapes gamma of a batch, (B,) or (B, *event_shape), to broadcast against its latents z, (B, *event_shape)."""
    return gamma.reshape(gamma.shape + (1,) * (z.ndim - gamma.ndim))


def alpha(gamma: Tensor) -> Tensor:
    """Gives the scale of the signal, sqrt(sigmoid(-gamma)) (sec. 3.2)."""
    return torch.sqrt(torch.sigmoid(-gamma))


def sigma(gamma: Tensor) -> Tensor:
    """Gives the scale of the noise, sqrt(sigmoid(gamma)) (sec. 3.2)."""
    return torch.sqrt(torch.sigmoid(gamma))


def diffuse(x: Tensor, gamma: Tensor, eps: Tensor) -> Tensor:
    """Gives z_t = alpha_t x + sigma_t eps: a draw of q(z_t given x) (eq. 1) when eps is standard normal."""
    return alpha(gamma) * x + sigma(gamma) * eps


def _alpha_ratio(gamma_s: Tensor, gamma_t: Tensor) -> Tensor:
    """Gives alpha_{t|s} = alpha_t / alpha_s."""
    # PyTorch's softplus is its argument from 20 on, which float64 tells from log(1 + exp(20)).
    return torch.exp(0.5 * (F.softplus(gamma_s, threshold=80) - F.softplus(gamma_t, threshold=80)))


def transition(z_s: Tensor, gamma_s: Tensor, gamma_t: Tensor) -> Gaussian:
    """Gives q(z_t given z_s), from less noise to more (App. A)."""
    ratio = _alpha_ratio(gamma_s, gamma_t)
    # sigma_{t|s}**2 = sigma_t**2 - alpha_{t|s}**2 sigma_s**2 = sigma_t**2 (1 - SNR(t) / SNR(s))
    return Gaussian(ratio * z_s, sigma(gamma_t) * torch.sqrt(-expm1(gamma_s - gamma_t)))


def posterior(z_t: Tensor, x: Tensor, gamma_t: Tensor, gamma_s: Tensor) -> Gaussian:
    """Gives q(z_s given z_t, x), from more noise to less, with the clean x (or a prediction of it) known (App. A)."""
    c = -expm1(gamma_s - gamma_t)
    # (1 - c) / alpha_{t|s} = alpha_{t|s} sigma_s**2 / sigma_t**2, with 1 - c = exp(gamma_s - gamma_t)
    mean = torch.exp(gamma_s - gamma_t) / _alpha_ratio(gamma_s, gamma_t) * z_t + alpha(gamma_s) * c * x
    return Gaussian(mean, sigma(gamma_s) * torch.sqrt(c))


def posterior_from_eps(z_t: Tensor, eps: Tensor, gamma_t: Tensor, gamma_s: Tensor) -> Gaussian:
    """Gives :func:`posterior` with the noise in z_t (or a prediction of it) in place of x (App. A, eq. 34)."""
    c = -expm1(gamma_s - gamma_t)
    mean = (z_t - c * sigma(gamma_t) * eps) / _alpha_ratio(gamma_s, gamma_t)
    return Gaussian(mean, sigma(gamma_s) * torch.sqrt(c))


# What a network may predict: x, eps, or v = alpha eps - sigma x (Salimans & Ho 2022), given z.


def x_from_eps(z: Tensor, eps: Tensor, gamma: Tensor) -> Tensor:
    """Gives x = (z - sigma eps) / alpha."""
    return (z - sigma(gamma) * eps) / alpha(gamma)


def eps_from_x(z: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """Gives eps = (z - alpha x) / sigma."""
    return (z - alpha(gamma) * x) / sigma(gamma)


def x_from_v(z: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """Gives x = alpha z - sigma v."""
    return alpha(gamma) * z - sigma(gamma) * v


def eps_from_v(z: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """Gives eps = sigma z + alpha v."""
    return sigma(gamma) * z + alpha(gamma) * v
