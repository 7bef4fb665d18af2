"""The normal distribution over bins: probabilities that stay exact far into the tails.

Bins cut [-1, 1] into equal parts. The first and the last also hold the tails, so that the masses add up to 1. All is
computed from log Phi, in float64 inside, and never by subtracting two probabilities close to 0 or 1: so no floor is needed,
and the logarithms are good to the last digits of float32 for every mean and deviation.

>>> import torch
>>> from purevdm.bfn import distributions
>>> log_p = distributions.bin_log_probs(torch.tensor([0.1, 40.0]), torch.tensor([0.2, 0.5]), 4)
>>> log_p.exp().sum(-1), log_p[1, 0]
(tensor([1., 1.]), tensor(-3285.8135))
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm._normal import log_ndtr
from purevdm._stable import expm1
from purevdm.decoders import Decoder, Discrete
from purevdm.types import Key, Params

__all__ = ["binned"]


def _log_mass(lower: Tensor, upper: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Computes the log mass of a standard normal in (lower, upper), of the first bin from -infinity, of the last on."""
    # The mirror image where the mass would else be a difference of numbers close to 1.
    flipped = ~first & (last | (lower + upper > 0.0))
    lower, upper = torch.where(flipped, -upper, lower), torch.where(flipped, -lower, upper)
    below = log_ndtr(upper)
    return below + torch.log(torch.where(first | last, 1.0, -expm1(log_ndtr(lower) - below)))


def bin_log_prob(index: Tensor, mean: Tensor, std: Tensor, bins: int) -> Tensor:
    """Computes the log probability of the bins with these indices, integers in [0, bins), under N(mean, std**2), in the
    mean's dtype."""
    lower = (2.0 * index.double() / bins - 1.0 - mean.double()) / std.double()
    return _log_mass(lower, lower + 2.0 / bins / std.double(), index == 0, index == bins - 1).to(mean.dtype)


def bin_log_probs(mean: Tensor, std: Tensor, bins: int) -> Tensor:
    """Computes the log probability of each bin, on a new last axis, under N(mean, std**2)."""
    return bin_log_prob(torch.arange(bins, device=mean.device), mean[..., None], std[..., None], bins)


@dataclass(frozen=True, kw_only=True)
class Binned(Discrete):
    """The decoder of :func:`binned`."""

    def log_prob(
        self, params: Params, x: Tensor, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        _checks.within("x", x, 0, self.values - 1)
        return bin_log_prob(x, _checks.floating("z", z), torch.exp(0.5 * gamma_0), self.values)

    def log_probs(
        self, params: Params, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        return bin_log_probs(_checks.floating("z", z), torch.exp(0.5 * gamma_0), self.values)

    def reconstruction(
        self, params: Params, x: Tensor, eps_0: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        half = torch.exp(-0.5 * gamma_0.double()) / self.values
        lower, upper = -half - eps_0.double(), half - eps_0.double()
        return -_log_mass(lower, upper, x == 0, x == self.values - 1).to(eps_0.dtype)

    def sample(
        self, params: Params, key: Key, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        return self.mode(params, z + torch.exp(0.5 * gamma_0) * random.normal(key, z.shape, z.dtype))


def binned(bins: int = 256) -> Decoder:
    """Makes a decoder of integers in [0, bins), each the bin of [-1, 1] that a normal's draw falls into: p(v given z) is the
    mass of N(z, exp(gamma_0)) in the bin, the tails in the first and the last. Positions are ``decoders.discrete(bins)``'s.

    A BFN's output distribution of discretised data, and the official code's reconstruction of continuous ones (sec. 7.2).

    Raises:
        TypeError, ValueError: fewer than 2 bins.

    >>> import torch
    >>> from purevdm import bfn
    >>> bfn.binned(4).log_probs({}, torch.tensor([0.25]), torch.tensor(-2.0)).exp()
    tensor([[0.0207, 0.2276, 0.5032, 0.2484]])
    """
    return Binned(vocab_size=_checks.integer("bins", bins, 2, 2**22), loc=0.0, scale=1.0)
