"""Real numbers whose density is centred at the network's estimate of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm.decoders._decoder import Decoder, checked_affine
from purevdm.decoders._gaussian import Gaussian
from purevdm.types import Key, Params

__all__ = ["denoised"]


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
    """Real numbers as in :func:`purevdm.decoders.gaussian`, with a density centred at the network's estimate of the data in
    z_0 in place of z_0 / alpha_0: the last step of a DDPM, and that of molecules (Hoogeboom et al. 2022). It is of the same
    deviation, exp(gamma_0 / 2) scale.

    With a good network reconstruction costs less, the more so the larger gamma_0 is. Each bound applies the network once
    more.

    Args:
        loc, scale: as for :func:`purevdm.decoders.gaussian`.

    Raises:
        TypeError, ValueError: numbers that are not finite, or a scale that is not above 0.
    """
    return Denoised(*checked_affine(loc, scale))
