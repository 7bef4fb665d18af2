"""Learning a schedule's interior by the variance of the bound's estimate (App. I.2).

In continuous time the bound depends only on the schedule's endpoints; the interior says how noisy its Monte Carlo estimate
is. With gamma(t) = gamma_0 + (gamma_1 - gamma_0) r(t), r from 0 to 1, the endpoints follow the bound and r the variance.
Since the estimate's mean does not depend on r, the gradient of its variance is that of its square, 2 L dL/dr.
:mod:`purevdm.importance` lowers the variance without a gradient, under any schedule.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _autograd, bound, process, schedules
from purevdm._compile import exact
from purevdm._door import Batch
from purevdm.bound import NLLBound
from purevdm.denoiser import of_model
from purevdm.model import Model
from purevdm.noise import Noise
from purevdm.schedules import Levels, Schedule
from purevdm.types import Params

__all__ = ["Curve", "curve", "gradients", "levels"]


class Curve(NamedTuple):
    """A schedule at a batch's times, its endpoints apart from its interior.

    Attributes:
        gamma_0, gamma_1: the endpoints, each () or ``event_shape``, with a leading axis B where a context tells examples
            apart.
        r: how far gamma is from one to the other, (B,) or (B, *event_shape), in [0, 1].
        slope: r'(t), as r.
    """

    gamma_0: Tensor
    gamma_1: Tensor
    r: Tensor
    slope: Tensor


def curve(schedule: Schedule, params: Params, t: Tensor, context: Any = None) -> Curve:
    """Gives the schedule's curve at times (B,), in continuous time."""
    gamma_0, gamma_1, gamma_t, slope = schedules.levels(schedule, params, t, 0, context)
    rise = gamma_1 - gamma_0
    return Curve(gamma_0, gamma_1, (gamma_t - gamma_0) / rise, slope / rise)


def levels(curve: Curve) -> Levels:
    """Gives what the bound asks of the schedule: the inverse of :func:`curve`."""
    gamma_0, gamma_1, r, slope = curve
    rise = gamma_1 - gamma_0
    return Levels(gamma_0, gamma_1, gamma_0 + rise * r, rise * slope)


def gradients(
    model: Model, batch: Batch, noise: Noise, scale: float | Tensor, cond: Any = None
) -> tuple[Params, NLLBound, Curve]:
    """Computes the gradient of the mean bound times ``scale``, () or (B,), but for the schedule's interior that of the mean
    squared diffusion loss (its losses times ``scale``), in one pass.

    Returns:
        The gradients, the bound's terms (each (B,), nats), and the schedule's curve.
    """
    params = batch.params
    at = curve(model.schedule, params["schedule"], noise.t, cond)

    def mean(others: Params, curve: Curve) -> tuple[Tensor, NLLBound]:
        denoise = of_model(model, others, cond, noise.key, batch.there)
        terms = bound.terms(model, denoise, others, batch.x, noise, levels(curve), batch.mask)
        terms = bound.summed(terms)
        return (terms.total * scale).mean(), terms

    others = {name: branch for name, branch in params.items() if name != "schedule"}
    given = (batch.x, noise, cond)
    (grads, of_curve), (_, terms) = _autograd.grad_and_value(mean, others, at, given=given)
    # Example i's r and slope enter only its own loss L_i, so the gradient of the mean of L_i**2 is theirs times 2 L_i.
    twice = process.align(2.0 * (terms.diffusion * scale), of_curve.r)
    cotangent = of_curve._replace(r=twice * of_curve.r, slope=twice * of_curve.slope)
    of_schedule = _pull_back(model.schedule, params["schedule"], noise.t, cotangent, cond)
    return grads | {"schedule": of_schedule}, terms, at


def _pull_back(schedule: Schedule, params: Params, t: Tensor, cotangent: Curve, context: Any) -> Params:
    """Gives the gradient with respect to the schedule's parameters from one with respect to the curve."""
    if not params:
        return {}
    fixed = [part.detach() for part in cotangent]

    def product(params: Params) -> Tensor:
        parts = zip(curve(schedule, params, t, context), fixed, strict=True)
        return sum(((part * weight).sum() for part, weight in parts), torch.zeros((), dtype=t.dtype, device=t.device))

    with exact(t.device):
        return torch.func.grad(product)(params)
