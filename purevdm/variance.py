"""Learning a schedule's interior by the variance of the bound's estimate (App. I.2).

In continuous time the bound depends on the schedule's ends alone; the interior only says how noisy its Monte Carlo
estimate is. With gamma(t) = gamma_0 + (gamma_1 - gamma_0) r(t), r from 0 to 1, the ends follow the bound and r the variance.
Since the estimate's mean does not depend on r, the gradient of its variance is that of its square, 2 L dL/dr.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from purevdm import nn
from purevdm.elbo import Levels
from purevdm.schedules import Schedule, gamma_and_slope

__all__ = ["Curve", "curve", "levels", "pull_back", "variance_cotangent"]


class Curve(NamedTuple):
    """A schedule at a batch's times, its ends apart from its interior.

    Attributes:
        gamma_0, gamma_1: the ends, each ().
        r: the place between them, (B,), in [0, 1].
        slope: r'(t), (B,).
    """

    gamma_0: Tensor
    gamma_1: Tensor
    r: Tensor
    slope: Tensor


def curve(schedule: Schedule, params: nn.Params, t: Tensor) -> Curve:
    """The schedule at times t, (B,). Any schedule will do: those of a line have an r that nothing moves."""
    zero, one = (torch.full((), end, dtype=t.dtype, device=t.device) for end in (0.0, 1.0))
    gamma_0, gamma_1 = schedule.gamma(params, zero), schedule.gamma(params, one)
    gamma_t, slope = gamma_and_slope(schedule, params, t)
    rise = gamma_1 - gamma_0
    return Curve(gamma_0, gamma_1, (gamma_t - gamma_0) / rise, slope / rise)


def levels(curve: Curve) -> Levels:
    """What the bound asks of the schedule, in continuous time, for a batch: each field (B,)."""
    gamma_0, gamma_1, r, slope = curve
    rise = gamma_1 - gamma_0
    return Levels(gamma_0.expand(r.shape), gamma_1.expand(r.shape), gamma_0 + rise * r, rise * slope)


def variance_cotangent(gradient: Curve, diffusion: Tensor) -> Curve:
    """From the gradient of the mean bound with respect to the curve, that of what each part of it follows.

    Example i's r and slope enter its own diffusion loss L_i alone, so the gradient of the mean of L_i**2 is theirs times
    2 L_i.

    Args:
        gradient: of the mean bound.
        diffusion: L_i, (B,), in the bound's units.
    """
    return gradient._replace(r=2.0 * diffusion * gradient.r, slope=2.0 * diffusion * gradient.slope)


def pull_back(schedule: Schedule, params: nn.Params, t: Tensor, cotangent: Curve) -> nn.Params:
    """The gradient with respect to the schedule's parameters from one with respect to the curve."""
    if not params:
        return {}
    held = Curve(*(part.detach() for part in cotangent))

    def product(params: nn.Params) -> Tensor:
        parts = zip(curve(schedule, params, t), held, strict=True)
        return sum(((part * weight).sum() for part, weight in parts), torch.zeros((), dtype=t.dtype, device=t.device))

    return torch.func.grad(product)(params)
