"""Counts given what a decoding map says, as of molecules in a cell: a negative binomial distribution."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm._normal import log_ndtr
from purevdm._stable import expm1
from purevdm.decoders._decoder import data
from purevdm.decoders._discrete import INTEGERS
from purevdm.decoders._observation import Observation
from purevdm.types import Key, Params, Shape


@dataclass(frozen=True)
class NegativeBinomial(Observation):
    """The distribution of :func:`negative_binomial`."""

    dispersion: float
    library: Callable[[Any], Tensor] | str | None
    log_total: tuple[float, float]

    support = "counts, integers of at least 0"

    def init(self, key: Key, event_shape: Shape) -> Params:
        log_theta = torch.full(tuple(event_shape), -math.log(self.dispersion), device=key.device)
        if self.library != "total":
            return {"log_theta": log_theta}
        mean, std = self.log_total
        return {"log_theta": log_theta, "log_total": torch.tensor([mean, math.log(std)], device=key.device)}

    def check(self, x: Tensor) -> Tensor:
        return data(x, INTEGERS, "integers, counts") >= 0

    def features(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if self.library is None:
            return torch.log1p(x.double()).to(dtype)
        return torch.log1p(x.double() / _total(x).clamp(min=1) * math.prod(x.shape[1:])).to(dtype)

    def log_prob(self, params: Params, x: Tensor, out: Tensor, cond: Any = None) -> Tensor:
        total = _total(x) if self.library == "total" else None
        log_p = negative_binomial_log_prob(x, *self._levels(params, total, out, cond))
        if total is not None:  # its own term, shared evenly by the elements
            log_p = log_p + _log_total(total, params["log_total"]) / math.prod(x.shape[1:])
        return log_p.to(out.dtype)

    def mode(self, params: Params, out: Tensor, cond: Any = None) -> Tensor:
        total = params["log_total"][0].double().exp().expand(out.shape[0]) if self.library == "total" else None
        log_mean, log_theta = self._levels(params, total, out, cond)
        return ((1.0 - torch.exp(-log_theta)) * torch.exp(log_mean)).floor().clamp(min=0).long()

    def sample(self, params: Params, key: Key, out: Tensor, cond: Any = None) -> Tensor:
        k_total, k_gamma, k_poisson = random.split(key, 3).unbind(0)
        total = None
        if self.library == "total":
            mean, log_std = params["log_total"].double()
            total = torch.exp(mean + log_std.exp() * random.normal(k_total, out.shape[:1], torch.float64)).round()
        log_mean, log_theta = self._levels(params, total, out, cond)
        log_rate = log_mean - log_theta + _log_gamma(k_gamma, torch.exp(log_theta).expand(out.shape))
        return _poisson(k_poisson, torch.exp(log_rate))

    def _levels(self, params: Params, total: Tensor | None, out: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
        """Computes the log of the means and of theta, float64."""
        log_theta = params["log_theta"].double()
        if self.library is None:
            return out.double(), log_theta
        size = self.library(cond) if callable(self.library) else total
        size = _checks.tensor("library", size).double().reshape(out.shape[0], *[1] * (out.ndim - 1))
        return torch.log_softmax(out.double().flatten(1), 1).reshape(out.shape) + size.clamp(min=1e-3).log(), log_theta


def negative_binomial(
    *,
    dispersion: float = 1.0,
    library: Callable[[Any], Tensor] | str | None = None,
    log_total: tuple[float, float] = (8.0, 1.0),
) -> Observation:
    """Makes the distribution of counts, such as of genes in single cells: negative binomial with a learned dispersion for
    each element.

    The variance is mean + mean**2 / theta, with theta = exp(log_theta) learned. The mean is exp(out), or, with a library
    size, that size times the element's share, the softmax of ``out`` over the event.

    A library size that is computed from the counts it explains makes no distribution of them, and no bound. So with
    ``library="total"``, the example's own total, the total has a distribution as well, a log-normal one rounded to integers
    whose mean and deviation are learned, and -log p(total) is part of the bound. It is a bound, but a loose one: the counts
    need not add up to the total that they are given, which wastes the log of the total's deviation times sqrt(2 pi).

    Args:
        dispersion: 1 / theta at the start, above 0; as it goes to 0, counts are Poisson's.
        library: None for means as they are; "total"; or a function that takes the batch's condition to library sizes, (B,),
            above 0, and bounds are then those of the counts given them.
        log_total: mean and standard deviation of the logarithm of totals at the start, for "total".

    Raises:
        TypeError, ValueError: numbers out of range.
    """
    mean, std = (_checks.real(f"log_total[{i}]", x) for i, x in enumerate(log_total))
    if not callable(library) and library not in (None, "total"):
        raise ValueError(f"library: expected None, 'total' or a function of the condition, got {_checks.describe(library)}")
    return NegativeBinomial(
        _checks.positive("dispersion", dispersion), library, (mean, _checks.positive("log_total[1]", std))
    )


def negative_binomial_log_prob(x: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    """Computes log of Gamma(x + theta) / (Gamma(theta) x!) (theta / (theta + mean))**theta (mean / (theta + mean))**x,
    float64.

    As differences of gamma functions cancel for a large theta, theta is raised by 8 and Stirling's series taken, whose
    leading parts meet those of the powers: good to about 1e-12 of the terms from a theta of 1e-10 to the Poisson limit.
    """
    x, log_mean, log_theta = torch.broadcast_tensors(x.double(), log_mean.double(), log_theta.double())
    mean, theta = torch.exp(log_mean), torch.exp(log_theta)
    t = theta + 8.0
    shifted = sum((torch.log1p(x / (theta + j)) for j in range(8)), torch.zeros_like(x))
    # log Gamma(x + t) - log Gamma(t) = (t - 1/2) log1p(x / t) + x log(x + t) - x + what the series says
    log_ratio = (t - 0.5) * torch.log1p(x / t) - x + _stirling(x + t) - _stirling(t) - shifted
    powers = x * (log_mean + torch.log1p((8.0 + x - mean) / (theta + mean))) - theta * torch.log1p(mean / theta)
    return log_ratio + powers - torch.lgamma(x + 1.0)


def _stirling(x: Tensor) -> Tensor:
    """Computes log Gamma(x) - ((x - 1/2) log x - x + log(2 pi) / 2), for x of at least 8."""
    y = 1.0 / x.square()
    series = 1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y * (1 / 1188 - y * (691 / 360360 - y / 156)))))
    return series / x


def _total(x: Tensor) -> Tensor:
    """Computes the sum of each example, float64, as it broadcasts against x."""
    return x.double().flatten(1).sum(1).reshape(-1, *[1] * (x.ndim - 1))


def _log_total(total: Tensor, params: Tensor) -> Tensor:
    """Computes log p of integers under a log-normal distribution rounded to them, float64."""
    mean, log_std = params.double()
    low, high = (((total + half).clamp(min=0.0).log() - mean) * torch.exp(-log_std) for half in (-0.5, 0.5))
    # In the tail that is nearer, where differences of the distribution function do not cancel.
    low, high = torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)
    log_high, log_low = log_ndtr(high), log_ndtr(low.clamp(min=-1e9))
    return log_high + torch.log(-expm1(log_low - log_high))


def _log_gamma(key: Key, shape: Tensor) -> Tensor:
    """Computes the logarithm of draws from Gamma(shape, 1), by bisection on the distribution function, float64."""
    u = random.uniform(key, tuple(shape.shape), torch.float64)
    # P(shape, x) <= x**shape / Gamma(shape + 1), so no draw lies below this
    low = (u.clamp(min=1e-300).log() + torch.lgamma(shape + 1.0)) / shape - 1e-3
    high = torch.log(shape + 40.0 * shape.sqrt() + 800.0)
    for _ in range(60):
        mid = 0.5 * (low + high)
        below = torch.special.gammainc(shape, torch.exp(mid)) < u
        low, high = torch.where(below, mid, low), torch.where(below, high, mid)
    return 0.5 * (low + high)


def _poisson(key: Key, rate: Tensor) -> Tensor:
    """Draws from Poisson(rate), int64, by bisection on the distribution function: P(X <= k) = Q(k + 1, rate)."""
    u = random.uniform(key, tuple(rate.shape), torch.float64)
    low, high = torch.full_like(rate, -1.0), (rate + 40.0 * rate.sqrt() + 800.0).ceil()  # low is below, high is not
    for _ in range(64):
        mid = torch.floor(0.5 * (low + high))
        below = torch.special.gammaincc(mid.clamp(min=0.0) + 1.0, rate) <= u
        below = below | (mid < 0.0)
        low, high = torch.where(below, mid, low), torch.where(below, high, mid)
    return high.long()
