"""Sources whose ideal denoiser is known in closed form, as networks without parameters."""

import math

import torch
from torch import Tensor

from purevdm import decoders, process
from purevdm.networks import Network


def _network(denoise) -> Network:
    def init(key, event_shape):
        return {}

    def apply(params, z, gamma, cond=None, key=None):
        return process.eps_from_x(z, denoise(z, gamma), gamma)

    return Network(init, apply)


def gaussian(std: float) -> Network:
    """The ideal denoiser of x ~ N(0, std**2)."""

    def denoise(z: Tensor, gamma: Tensor) -> Tensor:
        gain = std**2 * process.alpha(gamma) / (process.alpha(gamma) ** 2 * std**2 + process.sigma(gamma) ** 2)
        return gain * z

    return _network(denoise)


def categorical(p: Tensor) -> Network:
    """The ideal denoiser of independent pixels with probabilities p over len(p) values."""
    places = decoders.discrete(len(p)).encode(torch.arange(len(p)), p.dtype)

    def denoise(z: Tensor, gamma: Tensor) -> Tensor:
        alpha, sigma = process.alpha(gamma)[..., None], process.sigma(gamma)[..., None]
        logits = p.log() - 0.5 * ((z[..., None] - alpha * places) / sigma) ** 2
        return logits.softmax(-1) @ places

    return _network(denoise)


def entropy(p: Tensor) -> float:
    return -(p * p.log()).sum().item()


def gaussian_pmf(std: float, vocab: int) -> Tensor:
    """A Gaussian quantised to the decoder's values."""
    f = decoders.discrete(vocab).encode(torch.arange(vocab), torch.float64)
    return torch.softmax(-0.5 * (f / std) ** 2, 0)


def mean_and_error(x: Tensor) -> tuple[float, float]:
    return x.mean().item(), x.std().item() / math.sqrt(len(x))
