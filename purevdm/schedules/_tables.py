"""Fixed schedules through given levels: any table, and the grid of Karras et al. 2022."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._compile import fixed
from purevdm.schedules._kinds import FixedLinear
from purevdm.schedules._schedule import LIMITS, Schedule
from purevdm.types import Key, Params

__all__ = ["karras", "tabulated"]


@dataclass(frozen=True, repr=False)
class Tabulated(Schedule):
    """The schedule of :func:`tabulated`."""

    levels: tuple[float, ...]

    def __repr__(self) -> str:
        return f"Tabulated({len(self.levels)} levels from {self.levels[0]:.6g} to {self.levels[-1]:.6g})"

    @property
    def endpoints(self) -> tuple[float, float]:  # type: ignore[override]
        return self.levels[0], self.levels[-1]

    def init(self, key: Key) -> Params:
        return {}

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        table, last = torch.tensor(self.levels, dtype=t.dtype, device=t.device), len(self.levels) - 1
        at = t * last
        i = at.detach().floor().clamp(0, last - 1)
        share, i = at - i, i.to(torch.int64)
        return table[i] * (1.0 - share) + table[i + 1] * share  # type: ignore[no-any-return]


def tabulated(levels: Iterable[float] | Tensor) -> Schedule:
    """Makes the schedule that goes through n given values of gamma at the times 0, 1 / (n - 1), ..., 1, in straight lines
    between them. So a model in ``timesteps=n - 1`` steps has these noise levels, and no others.

    A DDPM of T betas has T levels, gamma = log((1 - abar) / abar) with abar the product of 1 - beta, and T - 1 steps between
    them; what it calls its last step is p(x given z_0).

    Raises:
        TypeError, ValueError: fewer than two numbers, or some that are not finite, do not increase or are beyond 300.

    >>> import torch
    >>> from purevdm import schedules
    >>> schedule = schedules.tabulated([-9.0, -6.0, 2.0])
    >>> schedules.gamma(schedule, {}, torch.tensor([0.0, 0.25, 0.5, 1.0]))
    tensor([-9.0000, -7.5000, -6.0000,  2.0000])
    """
    if isinstance(levels, Tensor):
        levels = _checks.floating("levels", levels).reshape(-1).tolist()
    if isinstance(levels, (str, bytes, dict)) or not isinstance(levels, Iterable):
        raise TypeError(f"levels: expected numbers, got {_checks.describe(levels)}")
    table = tuple(_checks.real(f"levels[{i}]", level) for i, level in enumerate(levels))
    most = max(LIMITS.values())
    if len(table) < 2:
        raise ValueError(f"levels: expected at least two, got {len(table)}")
    for i, (low, high) in enumerate(itertools.pairwise(table)):
        if not -most <= low < high <= most:
            wanted = f"numbers that increase, from {-most:g} at least to {most:g} at most"
            raise ValueError(f"levels: expected {wanted}, got {low} and {high} at {i} and {i + 1}")
    return Tabulated(table)


@dataclass(frozen=True)
class Karras(FixedLinear):
    """The schedule of :func:`karras`."""

    rho: float

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        rho = fixed(self.rho)
        low, high = (math.exp(0.5 * end / rho) for end in self.ends())
        return 2.0 * rho * torch.log(low + (high - low) * t)


def karras(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """Makes the noise levels of Karras et al. 2022 (arXiv 2206.00364, eq. 5): sigma**(1 / rho) is a line in t, where sigma =
    exp(gamma / 2) is the noise's scale beside data of scale 1. A model in ``timesteps=n - 1`` steps has their n levels.

    Raises:
        TypeError, ValueError: numbers that are not above 0, or sigma_min >= sigma_max.

    >>> import torch
    >>> from purevdm import schedules
    >>> torch.exp(0.5 * schedules.gamma(schedules.karras(), {}, torch.linspace(0, 1, 5)))
    tensor([2.0000e-03, 1.6975e-01, 2.5152e+00, 1.7528e+01, 8.0000e+01])
    """
    low, high = _checks.increasing("sigma_min", _checks.positive("sigma_min", sigma_min), "sigma_max", sigma_max)
    return Karras(2.0 * math.log(low), 2.0 * math.log(high), _checks.positive("rho", rho))
