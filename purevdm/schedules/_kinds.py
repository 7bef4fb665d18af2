"""The library's schedules: lines, fixed or learned, and monotone networks that bend them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, nn, random
from purevdm._compile import constant, fixed
from purevdm.schedules._schedule import LIMITS, Schedule
from purevdm.types import Key, Params

GAMMA_MIN = -13.3
"""The paper's gamma_min, for 256 levels."""


def gamma_min_for(spacing: float) -> float:
    """Gives the gamma_min for data whose neighbouring values lie so far apart, -13.3 - 2 log((2 / 256) / spacing).

    In units of the noise they are then as far apart as 256 levels at the paper's -13.3, and reconstruction costs 0.01
    bits/dim (:func:`purevdm.decoders.reconstruction_bits`). For n levels over (-1, 1) the spacing is 2 / n.

    >>> from purevdm import schedules
    >>> [round(schedules.gamma_min_for(2 / n), 3) for n in (2, 17, 256, 65536)]
    [-3.596, -7.876, -13.3, -24.39]
    """
    return GAMMA_MIN - 2.0 * math.log((2.0 / 256.0) / _checks.positive("spacing", spacing))


# Lines


@dataclass(frozen=True)
class Linear(Schedule):
    """A line between its endpoints, from which every schedule here starts. Where ``gamma_min`` was left out it is None,
    for :meth:`with_gamma_min`; outside of a model that is the paper's."""

    gamma_min: float | None
    gamma_max: float

    @property
    def endpoints(self) -> tuple[float, float]:  # type: ignore[override]
        return GAMMA_MIN if self.gamma_min is None else self.gamma_min, self.gamma_max

    @constant
    def ends(self) -> tuple[float, float]:
        """Gives the endpoints, constants to a compiler."""
        return self.endpoints

    def with_gamma_min(self, gamma_min: float) -> Schedule:
        return self._replace(gamma_min=gamma_min) if self.gamma_min is None else self


def line(gamma_min: float | None, gamma_max: float) -> tuple[float | None, float]:
    low, high = _checks.increasing("gamma_min", GAMMA_MIN if gamma_min is None else gamma_min, "gamma_max", gamma_max)
    most = max(LIMITS.values())
    if low < -most or high > most:
        raise ValueError(f"gamma_min, gamma_max: expected numbers in [{-most:g}, {most:g}], got {low:g} and {high:g}")
    return (None if gamma_min is None else low), high


@dataclass(frozen=True)
class FixedLinear(Linear):
    """The schedule of :func:`fixed_linear`."""

    def init(self, key: Key) -> Params:
        return {}

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        low, high = self.ends()
        return low + (high - low) * t


def fixed_linear(gamma_min: float | None = None, gamma_max: float = 5.0) -> Schedule:
    """Makes the schedule gamma_min + (gamma_max - gamma_min) t, with nothing to learn.

    Raises:
        TypeError, ValueError: endpoints that are not finite numbers, or gamma_min >= gamma_max.
    """
    return FixedLinear(*line(gamma_min, gamma_max))


@dataclass(frozen=True)
class LearnedLinear(Linear):
    """The schedule of :func:`learned_linear`."""

    def init(self, key: Key) -> Params:
        low, high = self.endpoints
        return {name: torch.tensor(x, dtype=torch.float32, device=key.device) for name, x in (("w", high - low), ("b", low))}

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        return params["b"] + params["w"].abs() * t


def learned_linear(gamma_min: float | None = None, gamma_max: float = 5.0) -> Schedule:
    """Makes the schedule b + |w| t, learned, from b = gamma_min and b + w = gamma_max. Parameters ``{"w": (), "b": ()}``.
    Errors are those of :func:`fixed_linear`."""
    return LearnedLinear(*line(gamma_min, gamma_max))


# Monotone networks


@dataclass(frozen=True)
class MonotoneMLP(Linear):
    """The schedule of :func:`monotone_mlp`."""

    hidden: int
    pin_endpoints: bool

    def init(self, key: Key) -> Params:
        (low, high), (k2, k3) = self.endpoints, random.split(key).unbind(0)
        first = nn.dense_init(key, 1, 1, kernel_init=nn.constant(high - low))
        return {
            "l1": first | {"bias": torch.tensor([low], dtype=torch.float32, device=key.device)},
            "l2": nn.dense_init(k2, 1, self.hidden, kernel_init=nn.normal(1e-2)),
            "l3": nn.dense_init(k3, self.hidden, 1, bias=False, kernel_init=nn.normal(1e-2)),
        }

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        b, w = params["l1"]["bias"][0], params["l1"]["kernel"][0, 0].abs()
        bump = self._bump(params, t)
        if not self.pin_endpoints:
            return b + w * t + bump
        start, end = self._bump(params, _ends(t))
        return b + w * pinned((w * t + (bump - start)) / (w + (end - start)), t)

    def _bump(self, params: Params, t: Tensor) -> Tensor:
        k2, b2, k3 = params["l2"]["kernel"][0].abs(), params["l2"]["bias"], params["l3"]["kernel"][:, 0].abs()
        return torch.tanh(0.5 * (k2 * (2.0 * t[..., None] - 1.0) + b2)) @ k3 / fixed(self.hidden)


def monotone_mlp(
    gamma_min: float | None = None, gamma_max: float = 5.0, hidden: int = 1024, pin_endpoints: bool = False
) -> Schedule:
    """Makes a learned monotone network (App. H): a line plus a hidden layer, with the absolute values of its kernels.

    h(t) = b + |w| t + |k3| . tanh((|k2| (2t - 1) + b2) / 2) / hidden. Increasing terms add up to an increasing sum.

    Args:
        gamma_min, gamma_max: the line's endpoints at the start.
        hidden: the hidden layer's width.
        pin_endpoints: False gives gamma = h, the official code's schedule, whose endpoints h(0) and h(1) are off gamma_min
            and gamma_max by what the hidden layer adds there. True rescales h so that gamma(0) = b and gamma(1) = b + |w|
            exactly: two parameters are the endpoints, and the hidden layer shapes the interior only.

    Returns:
        A schedule with the parameters ``{"l1": {"kernel": (1, 1), "bias": (1,)}, "l2": {"kernel": (1, hidden), "bias":
        (hidden,)}, "l3": {"kernel": (hidden, 1)}}`` (w and b are l1's), as in the official code.

    Raises:
        TypeError, ValueError: endpoints as for :func:`fixed_linear`, or hidden < 1.
    """
    ends = line(gamma_min, gamma_max)
    return MonotoneMLP(*ends, _checks.integer("hidden", hidden, 1), _checks.boolean("pin_endpoints", pin_endpoints))


def _ends(t: Tensor) -> Tensor:
    return torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device)


def pinned(risen: Tensor, t: Tensor) -> Tensor:
    """Gives a curve from 0 to 1 with these values set at t = 0 and t = 1, where sums of another shape may round otherwise;
    its derivative stays."""
    at = risen.detach()
    return risen - ((t == 0.0).to(t.dtype) * at + (t == 1.0).to(t.dtype) * (at - 1.0))


@dataclass(frozen=True)
class ConstrainedMonotone(Linear):
    """The schedule of :func:`constrained_monotone`."""

    hidden: tuple[int, ...]
    activation: str
    weights: tuple[float, ...]

    def init(self, key: Key) -> Params:
        *k_hidden, k_out = random.split(key, len(self.hidden) + 1).unbind(0)
        layers = [nn.dense_init(k, n, m) for k, n, m in zip(k_hidden, [1, *self.hidden], self.hidden, strict=False)]
        layers.append(nn.dense_init(k_out, self.hidden[-1], 1, bias=False, kernel_init=nn.normal(1e-3)))
        line = LearnedLinear(self.gamma_min, self.gamma_max).init(key)
        return line | {"layers": {str(i): layer for i, layer in enumerate(layers)}}

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        start, end = self._bend(params, _ends(t))
        risen = (t + (self._bend(params, t) - start)) / (1.0 + (end - start))
        return params["b"] + params["w"].abs() * pinned(risen, t)

    def _bend(self, params: Params, t: Tensor) -> Tensor:
        h, last = (2.0 * t - 1.0)[..., None], len(self.hidden)
        for i in range(last):
            h = nn.monotone_dense(params["layers"][str(i)], h, self.activation, self.weights)
        return nn.monotone_dense(params["layers"][str(last)], h, None)[..., 0]


def constrained_monotone(
    gamma_min: float | None = None,
    gamma_max: float = 5.0,
    hidden: Sequence[int] = (32, 32),
    activation: str = "elu",
    weights: Sequence[float] = (7, 7, 2),
) -> Schedule:
    """Makes a learned monotone network between exact endpoints (Runje & Shankaranarayana 2023, arXiv 2205.11775).

    gamma(t) = b + |w| (t + f(t) - f(0)) / (1 + f(1) - f(0)), f being layers of :func:`purevdm.nn.monotone_dense` over
    2t - 1. So gamma(0) = b and gamma(1) = b + |w| exactly, two parameters; f shapes only the interior, into any increasing
    curve; and gamma increases strictly, however flat f is.

    Args:
        gamma_min, gamma_max: the endpoints at the start, between which gamma starts close to a line.
        hidden: the widths of the hidden layers.
        activation: the base of their activations, one of ``purevdm.nn.CONVEX``.
        weights: how many units are convex, concave and saturated, relative to one another.

    Returns:
        A schedule with the parameters ``{"w": (), "b": (), "layers": {"0": {"kernel", "bias"}, ...}}``.

    Raises:
        TypeError, ValueError: endpoints as for :func:`fixed_linear`, no hidden layer, an activation that is not increasing
            and convex, or weights that are not three.
    """
    ends = line(gamma_min, gamma_max)
    widths = _checks.integers("hidden", hidden, 1)
    if not widths:
        raise ValueError("hidden: expected at least one layer, got none")
    if isinstance(weights, (str, bytes, dict, Tensor)) or not isinstance(weights, Iterable):
        raise TypeError(f"weights: expected three numbers, got {_checks.describe(weights)}")
    parts = tuple(_checks.real(f"weights[{i}]", w) for i, w in enumerate(weights))
    try:
        nn.monotone_activation(torch.zeros(1), activation, parts)  # refuses bad ones here
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("base:", "activation:", 1)) from None
    return ConstrainedMonotone(*ends, widths, activation, parts)
