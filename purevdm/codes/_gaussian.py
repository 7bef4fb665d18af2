"""Codes with normal distributions."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm import _checks, random
from purevdm.codes._code import Code, mapped
from purevdm.types import Key

__all__ = ["gaussian"]


@dataclass(frozen=True)
class Gaussian(Code):
    """The code of :func:`gaussian`."""

    encoder: Any
    size: int

    @property
    def outputs(self) -> int:
        return 2 * self.size

    def noise(self, key: Key, dtype: torch.dtype) -> Tensor:
        return random.normal(key, (self.size,), dtype)

    def draw(self, out: Tensor, noise: Tensor) -> Tensor:
        mean, variance = self.moments(out)
        return mean + torch.sqrt(variance) * noise

    def kl(self, out: Tensor) -> Tensor:
        mean, variance = self.moments(out)
        return 0.5 * (mean.square() + variance - torch.log(variance) - 1.0)

    def log_ratio(self, out: Tensor, code: Tensor) -> Tensor:
        mean, variance = self.moments(out)
        return 0.5 * ((code - mean).square() / variance + torch.log(variance) - code.square()).sum(1)

    def prior(self, key: Key, dtype: torch.dtype) -> Tensor:
        return random.normal(key, (self.size,), dtype)

    def moments(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the means and the variances, each (B, m)."""
        mean, raw = out.chunk(2, 1)
        return mean, F.softplus(raw).clamp(min=torch.finfo(out.dtype).tiny)


def gaussian(encoder: Any, size: int) -> Code:
    """Makes a code of independent normals, with N(0, I) as its prior.

    Args:
        encoder: a map to 2 ``size`` numbers an example, as :class:`Code` says: the means, then what ``softplus`` makes
            variances of.
        size: m.

    Raises:
        TypeError, ValueError: no map, or a size below 1.
    """
    return Gaussian(mapped(encoder), _checks.integer("size", size, 1))
