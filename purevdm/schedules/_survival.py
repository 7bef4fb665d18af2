"""Schedules by sigmoid(-gamma(t)), which is alpha(t)**2, the signal's share of the variance, or in discrete diffusion
alpha(t) itself, the probability that a token is still itself. It runs from 1 - floor to floor, so that gamma is finite."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._compile import constant, fixed
from purevdm.schedules._schedule import LIMITS, Schedule
from purevdm.types import Key, Params

__all__ = ["cosine", "power"]


@dataclass(frozen=True)
class Survival(Schedule):
    """A fixed schedule with log-odds of two curves, which add up to 1, squeezed between the floor and 1 - floor."""

    floor: float

    @property
    def endpoints(self) -> tuple[float, float]:  # type: ignore[override]
        high = math.log1p(-self.floor) - math.log(self.floor)
        return -high, high

    @constant
    def numbers(self) -> tuple[float, float]:
        """Gives the floor and what is left between the two, constants to a compiler."""
        return self.floor, 1.0 - 2.0 * self.floor

    def init(self, key: Key) -> Params:
        return {}

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        floor, rest = self.numbers()
        kept, lost = self.curves(t)
        return torch.log(floor + rest * lost) - torch.log(floor + rest * kept)

    def curves(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Gives alpha(t)**2 without a floor, which falls from 1 to 0, and 1 minus it, each to its own precision."""
        raise NotImplementedError


def _floor(floor: float) -> float:
    least = math.exp(-max(LIMITS.values()))
    if not least <= _checks.real("floor", floor) < 0.5:
        raise ValueError(f"floor: expected a number in [{least:.2g}, 0.5), got {floor}")
    return float(floor)


@dataclass(frozen=True)
class Power(Survival):
    """The schedule of :func:`power`."""

    exponent: float

    def curves(self, t: Tensor) -> tuple[Tensor, Tensor]:
        lost = t ** fixed(self.exponent)
        return 1.0 - lost, lost


def power(exponent: float = 1.0, floor: float = 1e-6) -> Schedule:
    """Makes the schedule alpha(t)**2 = floor + (1 - 2 floor) (1 - t**exponent), with nothing to learn. Exponent 1 is the
    line of masked diffusion (Shi et al. 2024, arXiv 2406.04329, which takes a floor of 1e-4).

    Raises:
        TypeError, ValueError: an exponent below 1, whose slope has no limit at t = 0; a floor outside of (0, 0.5), or below
            5e-131, from where gamma leaves float64's range. (In float32 models a floor below 4e-18 is refused.)

    >>> import torch
    >>> from purevdm import schedules
    >>> torch.sigmoid(-schedules.gamma(schedules.power(2.0), {}, torch.tensor([0.0, 0.5, 1.0])))
    tensor([1.0000e+00, 7.5000e-01, 1.0000e-06])
    """
    if _checks.real("exponent", exponent) < 1.0:
        raise ValueError(f"exponent: expected a number of at least 1, got {exponent}")
    return Power(_floor(floor), float(exponent))


@dataclass(frozen=True)
class Cosine(Survival):
    """The schedule of :func:`cosine`."""

    def curves(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 2.0 * torch.sin(0.25 * math.pi * (1.0 - t)).square(), torch.sin(0.5 * math.pi * t)


def cosine(floor: float = 1e-6) -> Schedule:
    """Makes the schedule alpha(t)**2 = floor + (1 - 2 floor) (1 - cos((1 - t) pi / 2)), that of masked diffusion (Shi et al.
    2024), with nothing to learn. Its alpha falls fast at first, and is flat at t = 1.

    Raises:
        TypeError, ValueError: a floor as for :func:`power`.
    """
    return Cosine(_floor(floor))
