"""Sources whose ideal denoiser is known in closed form, as networks without parameters: what a bound, a sampler or a
likelihood gives for them is known, too."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import decoders, process, random
from purevdm.networks import Network
from purevdm.types import Key, Params, Shape

__all__ = ["Mixture", "categorical", "entropy", "gaussian"]


def _network(denoise: Callable[[Tensor, Tensor], Tensor]) -> Network:
    """Makes the network whose noise goes with ``denoise(z, gamma)``, the mean of the data given z."""
    return Network.of(_init, partial(_apply, denoise))


def _init(key: Key, event_shape: Shape) -> Params:
    return {}


def _apply(
    denoise: Callable[..., Tensor], params: Params, z: Tensor, gamma: Tensor, cond: Any = None, key: Any = None
) -> Tensor:
    return process.eps_from_x(z, denoise(z, gamma), gamma)


def gaussian(std: float) -> Network:
    """Makes the ideal denoiser of independent numbers x ~ N(0, std**2)."""
    return _network(partial(_gaussian_denoise, std))


def _gaussian_denoise(std: float, z: Tensor, gamma: Tensor) -> Tensor:
    gain = std**2 * process.alpha(gamma) / (process.alpha(gamma) ** 2 * std**2 + process.sigma(gamma) ** 2)
    return gain * z


class Mixture(NamedTuple):
    """K Gaussians over d numbers, float64; a single one is a correlated Gaussian."""

    weights: Tensor  # (K,)
    means: Tensor  # (K, d)
    covariances: Tensor  # (K, d, d)

    @property
    def network(self) -> Network:
        """The ideal denoiser, also under a schedule for each dimension."""
        return _network(self.denoise)

    def denoise(self, z: Tensor, gamma: Tensor) -> Tensor:
        """Returns the mean of x given its latent z at gamma, a number or (d,); each (d,)."""
        gamma = gamma.expand_as(z)
        alpha, noise = process.alpha(gamma), torch.diag(process.sigma(gamma) ** 2)
        covariance = alpha[:, None] * self.covariances * alpha + noise
        off = z - alpha * self.means
        solved = torch.linalg.solve(covariance, off)
        logits = self.weights.log() - 0.5 * ((off * solved).sum(-1) + torch.logdet(covariance))
        return logits.softmax(-1) @ (self.means + torch.einsum("kij,kj->ki", self.covariances, alpha * solved))

    def sample(self, key: Key, n: int) -> Tensor:
        """Draws n, (n, d)."""
        k_which, k_eps = random.split(key)
        which = random.categorical(k_which, self.weights.log(), shape=(n,))
        eps = random.normal(k_eps, (n, self.means.shape[1]), torch.float64)
        return self.means[which] + torch.einsum("nij,nj->ni", torch.linalg.cholesky(self.covariances)[which], eps)

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns the log density of x, (n, d): (n,)."""
        parts = torch.distributions.MultivariateNormal(self.means, self.covariances).log_prob(x[:, None])
        return torch.logsumexp(self.weights.log() + parts, -1)

    def widened(self, variances: Tensor) -> "Mixture":
        """Adds independent noise of these variances, (d,)."""
        return self._replace(covariances=self.covariances + torch.diag(variances))


def categorical(p: Tensor) -> Network:
    """Makes the ideal denoiser of independent values of ``decoders.discrete(len(p))`` with probabilities p."""
    return _network(partial(_categorical_denoise, p))


def _categorical_denoise(p: Tensor, z: Tensor, gamma: Tensor) -> Tensor:
    positions = decoders.discrete(len(p)).encode({}, torch.arange(len(p)), dtype=p.dtype)
    alpha, sigma = process.alpha(gamma)[..., None], process.sigma(gamma)[..., None]
    logits = p.log() - 0.5 * ((z[..., None] - alpha * positions) / sigma) ** 2
    return logits.softmax(-1) @ positions


def entropy(p: Tensor) -> float:
    """Computes -sum p log p, nats."""
    return -(p * p.log()).sum().item()


def gaussian_pmf(std: float, vocab: int) -> Tensor:
    """Computes probabilities of the values of ``decoders.discrete(vocab)`` in proportion to the density of N(0, std**2)."""
    f = decoders.discrete(vocab).encode({}, torch.arange(vocab), dtype=torch.float64)
    return torch.softmax(-0.5 * (f / std) ** 2, 0)


def mean_and_error(x: Tensor) -> tuple[float, float]:
    """Computes the mean of independent numbers, and its standard error."""
    return x.mean().item(), x.std().item() / math.sqrt(len(x))
