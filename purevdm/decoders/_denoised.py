"""Distributions of data around the network's estimate of them: densities of real numbers, and masses of bins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm.decoders._decoder import Decoder, affine, checked_affine, finite, level
from purevdm.decoders._discrete import Discrete, integers
from purevdm.decoders._gaussian import Gaussian
from purevdm.decoders._integers import log_mass
from purevdm.types import Key, Params

__all__ = ["denoised", "discretised_gaussian"]


@dataclass(frozen=True)
class Denoised(Gaussian):
    """The decoder of :func:`denoised`."""

    takes_estimate = True

    def reconstruction(
        self, params: Params, x: Tensor, eps_0: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        if estimate is not None:
            eps_0 = (estimate - self.encode(params, x, cond, eps_0.dtype)) * torch.exp(-0.5 * gamma_0)
        return super().reconstruction(params, x, eps_0, gamma_0)

    def log_prob(
        self, params: Params, x: Tensor, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        return super().log_prob(params, x, z if estimate is None else estimate, gamma_0)

    def mode(self, params: Params, z: Tensor, cond: Any = None, estimate: Tensor | None = None) -> Tensor:
        return super().mode(params, z if estimate is None else estimate)

    def sample(
        self, params: Params, key: Key, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        return super().sample(params, key, z if estimate is None else estimate, gamma_0)


def denoised(*, loc: float | Sequence[Any] = 0.0, scale: float | Sequence[Any] = 1.0) -> Decoder:
    """Makes the decoder of real numbers as in :func:`purevdm.decoders.gaussian`, with a density centred at the network's
    estimate of the data in z_0 in place of z_0 / alpha_0: the last step of a DDPM, and that of molecules (Hoogeboom et al.
    2022). It is of the same deviation, exp(gamma_0 / 2) scale, unless the model's reverse process says another
    (``parts.posterior(log_last=...)``).

    With a good network reconstruction costs less, the more so the larger gamma_0 is. Each bound applies the network once
    more.

    Args:
        loc, scale: as for :func:`purevdm.decoders.gaussian`.

    Raises:
        TypeError, ValueError: numbers that are not finite, or a scale that is not above 0.
    """
    return Denoised(*checked_affine(loc, scale))


@dataclass(frozen=True, kw_only=True)
class DiscretisedGaussian(Discrete):
    """The decoder of :func:`discretised_gaussian`."""

    takes_estimate = True

    def _log_mass(self, x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        """Gives the log mass of the bins of values x around a mean, in units of encoded data, by distances in bins."""
        loc, scale = affine(self.loc, self.scale, mean)
        centre = ((mean.double() * scale + loc + 1.0) * self.values - 1.0) / 2.0
        std = torch.exp(0.5 * log_var.double()) * scale * (0.5 * self.values)
        return log_mass(x, x - centre, std, (0, self.values - 1)).to(mean.dtype)

    def reconstruction(
        self, params: Params, x: Tensor, eps_0: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        if estimate is None:
            estimate = self.encode(params, x, cond, eps_0.dtype) + torch.exp(0.5 * gamma_0) * eps_0
        return -self._log_mass(integers(x), estimate, gamma_0)

    def log_prob(
        self, params: Params, x: Tensor, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        _checks.within("x", integers(x), 0, self.values - 1)
        return self._log_mass(x, z if estimate is None else estimate, level(gamma_0, z))

    def log_probs(  # type: ignore[override]
        self, params: Params, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        mean = z if estimate is None else estimate
        values = torch.arange(self.values, device=mean.device).reshape(-1, *[1] * mean.ndim).expand(-1, *mean.shape)
        return self._log_mass(values, mean, level(gamma_0, z)).movedim(0, -1)

    def mode(self, params: Params, z: Tensor, cond: Any = None, estimate: Tensor | None = None) -> Tensor:
        return super().mode(params, z if estimate is None else estimate)

    def sample(
        self, params: Params, key: Key, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        mean, std = z if estimate is None else estimate, torch.exp(0.5 * level(gamma_0, z))
        return super().mode(params, torch.where(finite(mean), mean + std * random.normal(key, mean.shape, mean.dtype), mean))


def discretised_gaussian(
    vocab_size: int = 256, *, loc: float | Sequence[Any] = 0.0, scale: float | Sequence[Any] | None = None
) -> Decoder:
    """Makes the decoder of integers v in [0, vocab_size), with the mass in v's bin of a normal around the network's estimate
    of the data: the last step of a DDPM (Ho, Jain, Abbeel 2020, eq. 13). The first and the last bin are open.

    The normal's variance is the reverse process's last one, ``parts.posterior(log_last=...)`` and its kin, or exp(gamma_0).
    Each bound applies the network once more. A model whose z_0 is noisy needs this: at a deviation of 0.01, where a linear
    DDPM starts, a decoder that sees z_0 only costs 2.4 bits/dim of 256 levels by itself.

    The masses are the normal distribution's, computed in float64. The published code approximates them by tanh, and
    floors probabilities at 1e-12: within 0.003 bits/dim of these for a good estimate, and several bits off for a bad one.

    Args:
        vocab_size: how many values.
        loc, scale: as for :func:`purevdm.decoders.discrete`. Where left out, scale is (vocab_size - 1) / vocab_size: values
            lie at 2 v / (vocab_size - 1) - 1, with the ends at -1 and 1, as in DDPM's code and those after it.

    Raises:
        TypeError, ValueError: as :func:`purevdm.decoders.discrete`.

    >>> import torch
    >>> from purevdm import decoders
    >>> decoder = decoders.discretised_gaussian()
    >>> decoder.encode({}, torch.tensor([0, 128, 255]))
    tensor([-1.0000,  0.0039,  1.0000])
    >>> z, estimate = torch.zeros(1), torch.tensor([0.0039])
    >>> decoder.log_prob({}, torch.tensor([128]), z, torch.tensor(-9.0), estimate=estimate).exp()
    tensor([0.2759])
    """
    vocab_size = _checks.integer("vocab_size", vocab_size, 2, 2**22)
    loc, scale = checked_affine(loc, (vocab_size - 1) / vocab_size if scale is None else scale)
    return DiscretisedGaussian(vocab_size=vocab_size, loc=loc, scale=scale)
