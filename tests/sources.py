"""Sources whose ideal denoiser is known in closed form, as networks without parameters."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from purevdm import decoders, process, random
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


class Mixture(NamedTuple):
    """K Gaussians over d numbers, float64; one alone is a correlated Gaussian."""

    weights: Tensor  # (K,)
    means: Tensor  # (K, d)
    covariances: Tensor  # (K, d, d)

    @property
    def network(self) -> Network:
        """The ideal denoiser, also under a schedule for each dimension."""

        def denoise(z: Tensor, gamma: Tensor) -> Tensor:
            gamma = gamma.expand_as(z)
            alpha, noise = process.alpha(gamma), torch.diag(process.sigma(gamma) ** 2)
            covariance = alpha[:, None] * self.covariances * alpha + noise
            off = z - alpha * self.means
            solved = torch.linalg.solve(covariance, off)
            logits = self.weights.log() - 0.5 * ((off * solved).sum(-1) + torch.logdet(covariance))
            return logits.softmax(-1) @ (self.means + torch.einsum("kij,kj->ki", self.covariances, alpha * solved))

        return _network(denoise)

    def sample(self, key: Tensor, n: int) -> Tensor:
        k_which, k_eps = random.split(key)
        which = random.categorical(k_which, self.weights.log(), shape=(n,))
        eps = random.normal(k_eps, (n, self.means.shape[1]), torch.float64)
        return self.means[which] + torch.einsum("nij,nj->ni", torch.linalg.cholesky(self.covariances)[which], eps)

    def log_prob(self, x: Tensor) -> Tensor:
        parts = torch.distributions.MultivariateNormal(self.means, self.covariances).log_prob(x[:, None])
        return torch.logsumexp(self.weights.log() + parts, -1)

    def widened(self, variances: Tensor) -> "Mixture":
        """With independent noise of these variances added, (d,)."""
        return self._replace(covariances=self.covariances + torch.diag(variances))


def categorical(p: Tensor) -> Network:
    """The ideal denoiser of independent pixels with probabilities p over len(p) values."""
    positions = decoders.discrete(len(p)).encode(torch.arange(len(p)), p.dtype)

    def denoise(z: Tensor, gamma: Tensor) -> Tensor:
        alpha, sigma = process.alpha(gamma)[..., None], process.sigma(gamma)[..., None]
        logits = p.log() - 0.5 * ((z[..., None] - alpha * positions) / sigma) ** 2
        return logits.softmax(-1) @ positions

    return _network(denoise)


def entropy(p: Tensor) -> float:
    return -(p * p.log()).sum().item()


def gaussian_pmf(std: float, vocab: int) -> Tensor:
    """A Gaussian quantised to the decoder's values."""
    f = decoders.discrete(vocab).encode(torch.arange(vocab), torch.float64)
    return torch.softmax(-0.5 * (f / std) ** 2, 0)


def mean_and_error(x: Tensor) -> tuple[float, float]:
    return x.mean().item(), x.std().item() / math.sqrt(len(x))
