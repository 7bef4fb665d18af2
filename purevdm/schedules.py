"""Noise schedules: gamma(t), minus the log signal-to-noise ratio at time t in [0, 1] (sec. 3.2, App. H).

A :class:`Schedule` has two pure functions, ``init`` and ``gamma``. ``gamma(params, t)`` takes one time and is strictly
increasing in it. It returns a number, or a tensor of the latent's shape for a schedule of its own in each dimension
(multivariate noise). It is differentiable twice, as the continuous-time loss weighs with its derivative (eq. 17). The
functions :func:`gamma`, :func:`gamma_and_slope` and :func:`levels` take any number of times.

The default endpoints, -13.3 and 5, are the paper's for 8-bit images. Where ``gamma_min`` is left out, a model takes one that
suits the number of levels of its data (:func:`gamma_min_for`), and -13.3 for real data, whose fineness nobody knows.

gamma may be from -40 to 40 in a float32 model, and from -300 to 300 in a float64 one. Other values are refused when a model
is made, and in every call in eager.

>>> import torch
>>> from purevdm import random, schedules
>>> schedule = schedules.learned_linear()
>>> params = schedule.init(random.key(0))
>>> schedules.gamma(schedule, params, torch.tensor([0.0, 0.5, 1.0]))
tensor([-13.3000,  -4.1500,   5.0000])

A schedule of one's own, here a fixed one for each of three dimensions:

>>> def init(key):
...     return {}
>>> def gamma(params, t):
...     return -10.0 + torch.tensor([12.0, 14.0, 16.0]) * t
>>> schedules.gamma(schedules.Schedule.of(init, gamma), {}, torch.tensor(0.5))
tensor([-4., -3., -2.])
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, nn, random
from purevdm._compile import constant, exact, fixed
from purevdm._layout import laid_out
from purevdm._values import Value
from purevdm.types import Key, Params

__all__ = [
    "Levels",
    "Schedule",
    "constrained_monotone",
    "fixed_linear",
    "gamma",
    "gamma_and_slope",
    "gamma_min_for",
    "learned_linear",
    "levels",
    "monotone_mlp",
]


class Schedule(Value):
    """A noise schedule. Derive from it and write its methods, or give two functions to :meth:`of`.

    Attributes:
        endpoints: gamma(0) and gamma(1) as it starts, for networks that embed gamma between them. None: a model computes
            them from the schedule's initial parameters.
        contextual: whether gamma takes a context: the example's condition, as the model's functions are given it (MuLAN,
            Sahoo et al. 2024, arXiv 2312.13236).
        observe: for schedules whose parameters hold statistics of the diffusion losses (:mod:`purevdm.importance`):
            ``observe(params, t, losses) -> branches``, those of ``params`` that a batch with these times and losses, each
            (B,), nats, moves. None where there are none.
    """

    endpoints: tuple[float, float] | None = None
    contextual: bool = False
    observe: Callable[..., Params] | None = None

    def init(self, key: Key) -> Params:
        """Fresh parameters."""
        raise NotImplementedError

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        """gamma at one time t in [0, 1], shape (): of shape () or of one latent's, of t's dtype, strictly increasing in t.
        A contextual schedule is given one example's context, too."""
        raise NotImplementedError

    def with_gamma_min(self, gamma_min: float) -> "Schedule":
        """The schedule with this gamma_min, if it was made without one: :func:`purevdm.vdm` gives the one that suits the
        data (:func:`gamma_min_for`). Others as they are."""
        return self

    @staticmethod
    def of(
        init: Callable[[Key], Params],
        gamma: Callable[..., Tensor],
        *,
        endpoints: tuple[float, float] | None = None,
        contextual: bool = False,
    ) -> "Schedule":
        """A schedule of one's own functions, with the arguments of the methods."""
        return Functions(init, gamma, endpoints, contextual)


@dataclass(frozen=True)
class Functions(Schedule):
    """A schedule made of two functions."""

    own_init: Callable[[Key], Params]
    own_gamma: Callable[..., Tensor]
    endpoints: tuple[float, float] | None = None
    contextual: bool = False

    def init(self, key: Key) -> Params:
        return self.own_init(key)

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        return self.own_gamma(params, t, *context)


# What all schedules share


def _over_times(schedule: Schedule, params: Params, t: Tensor, context: Any) -> Tensor:
    """gamma at times (n,), each with its context."""
    with exact(t.device):
        if schedule.contextual:
            return torch.func.vmap(lambda t, c: schedule.gamma(params, t, c))(t, context)
        return torch.func.vmap(lambda t: schedule.gamma(params, t))(t)


def gamma(schedule: Schedule, params: Params, t: Tensor, context: Any = None) -> Tensor:
    """gamma at any number of times.

    Args:
        schedule: the schedule.
        params: its parameters.
        t: times in [0, 1], floating-point, of any shape.
        context: for a contextual schedule, one context a time: t is then of shape (n,), and so is each tensor's first axis.
            Other schedules ignore it.

    Returns:
        A number or a tensor of the event's shape for each time: ``t.shape`` or ``(*t.shape, *event_shape)``.

    Raises:
        TypeError, ValueError: times that are not floating-point; no context for a contextual schedule.
    """
    params = optree.tree_map(laid_out, params)  # type: ignore[arg-type, assignment]
    found = _over_times(schedule, params, _flat(schedule, t, context), context)
    return found.reshape((*t.shape, *found.shape[1:]))


def gamma_and_slope(schedule: Schedule, params: Params, t: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
    """gamma(t) and its derivative gamma'(t), each as :func:`gamma` returns it, by reverse-mode differentiation.

    So that a further backward pass goes through both in one graph, and finds right gradients: those of a forward-mode
    derivative lack terms for the operations that :mod:`purevdm.likelihood.flow` names. They do, too, in an exported
    program, which has forward mode as ``torch.export`` (2.13) cannot trace the other, and where gamma is of the event's
    shape: write such operations out there, as a layer norm by means. :func:`purevdm.testing.check_schedule` finds the
    second case. Arguments and errors are those of :func:`gamma`.
    """
    params = optree.tree_map(laid_out, params)  # type: ignore[arg-type, assignment]
    flat = _flat(schedule, t, context).clone()  # times that were expanded take no tangents

    def of(params: Params, t: Tensor) -> Tensor:
        return _over_times(schedule, params, t, context)

    def backward(cotangent: Tensor | None) -> tuple[Tensor, Tensor]:
        """gamma, and the derivative of its product with a cotangent, or of its sum."""
        found, pull = torch.func.vjp(partial(of, params), flat)  # type: ignore[misc]
        return found, pull(torch.ones_like(found) if cotangent is None else cotangent)[0]

    with exact(t.device):
        if torch.compiler.is_exporting():
            # The parameters get zero tangents made here: those that PyTorch makes itself have no storage.
            still = optree.tree_map(torch.zeros_like, params)  # type: ignore[arg-type]
            found, slope = torch.func.jvp(of, (params, flat), (still, torch.ones_like(flat)))  # type: ignore[misc]
        else:
            found, slope = backward(None)
            # Many numbers of one time: `backward` is linear in the cotangent, and its transpose is the slope.
            if found.ndim > 1:
                turned = torch.func.vjp(lambda c: backward(c)[1], torch.zeros_like(found))[1]  # type: ignore[misc]
                slope = turned(torch.ones_like(flat))[0]
    return found.reshape((*t.shape, *found.shape[1:])), slope.reshape((*t.shape, *slope.shape[1:]))


def _flat(schedule: Schedule, t: Tensor, context: Any) -> Tensor:
    _checks.floating("t", t)
    if schedule.contextual and context is None:
        raise ValueError("cond: expected the condition that the schedule takes for its context, got None")
    return t.reshape(-1)


class Levels(NamedTuple):
    """The noise levels that the bound of a batch needs. Each field is (B,) or (B, *event_shape), the first two without
    the leading axis where no context tells examples apart.

    Attributes:
        gamma_0, gamma_1: gamma at the times 0 and 1.
        gamma_t: gamma at each example's time.
        weight: the weight of its diffusion loss: gamma'(t) in continuous time (eq. 17), T expm1(gamma(t) - gamma(s)) in T
            steps (eq. 14).
    """

    gamma_0: Tensor
    gamma_1: Tensor
    gamma_t: Tensor
    weight: Tensor


def levels(schedule: Schedule, params: Params, t: Tensor, timesteps: int = 0, context: Any = None) -> Levels:
    """The noise levels of a batch at its times t, (B,), in continuous time or, with ``timesteps`` > 0, in T steps."""
    if schedule.contextual:
        zero, one = torch.zeros_like(t), torch.ones_like(t)
    else:
        zero, one = torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device).unbind(0)
    gamma_0, gamma_1 = (gamma(schedule, params, end, context) for end in (zero, one))
    if timesteps == 0:
        return Levels(gamma_0, gamma_1, *gamma_and_slope(schedule, params, t, context))
    gamma_t = gamma(schedule, params, t, context)
    gamma_s = gamma(schedule, params, t - 1.0 / timesteps, context)
    return Levels(gamma_0, gamma_1, gamma_t, timesteps * torch.expm1(gamma_t - gamma_s))


LIMITS = {torch.float32: 40.0, torch.float64: 300.0}
"""The greatest size of gamma by the model's dtype. Beyond, alpha and sigma, exp(-gamma), or expm1(gamma_1 - gamma_0) leave
the dtype's range."""


def limit(dtype: torch.dtype) -> float:
    """The greatest size of gamma in a dtype."""
    return LIMITS.get(dtype, LIMITS[torch.float32])


def slack(dtype: torch.dtype) -> float:
    """By how much gamma may seem to fall between two near times: what rounding makes of a rise."""
    return 256.0 * torch.finfo(dtype).eps


def increasing(schedule: Schedule, params: Params, like: Tensor, context: Any = None) -> list[_checks.Fact]:
    """That gamma is finite, within its dtype's limit, and increases, in the dtype and on the device of ``like``; in eager.
    At nine times; under a context at five, for every example."""
    if not _checks.readable(like):
        return []
    with torch.no_grad():
        t = torch.linspace(0.0, 1.0, 5 if schedule.contextual else 9, dtype=like.dtype, device=like.device)
        if schedule.contextual:
            n = next((len(leaf) for leaf in _checks.leaves(context).values() if leaf.ndim), 1)
            found = torch.stack([gamma(schedule, params, time.expand(n), context) for time in t])
        else:
            found = gamma(schedule, params, t)
    most = limit(like.dtype)

    def error() -> Exception:
        values, example = _checks.plain(found).double().cpu(), ""
        if schedule.contextual and values.ndim == found.ndim:
            bad = ~(values.isfinite() & (values.abs() <= most))
            bad[1:] |= ~(values.diff(dim=0) > 0)
            i = int(bad.transpose(0, 1).flatten(1).any(1).nonzero()[0])
            values, example = values[:, i], f" in example {i}"
        values = values if values.ndim == 1 else values.flatten(1).mean(1)
        return ValueError(
            f"schedule: expected gamma(t) to be strictly increasing, from {-most:g} at least to {most:g} at most, got "
            + ", ".join(f"{value:.4g}" for value in values[:: len(t) // 4].tolist())
            + " at t = 0, 1/4, 1/2, 3/4, 1"
            + (" (means over dimensions)" if found.ndim > 1 + schedule.contextual else "")
            + example
        )

    return [_checks.Fact((found.abs() <= most).all() & (found.diff(dim=0) > 0).all(), error)]


def rising(levels: Levels, timesteps: int = 0) -> list[_checks.Fact]:
    """That gamma is finite and does not fall where a batch's bound looks at it, for every example; in eager."""
    gamma_0, gamma_1, gamma_t, weight = levels
    if not _checks.readable(gamma_t):
        return []
    few = slack(gamma_t.dtype)

    def error() -> Exception:
        low, high, least = (_checks.plain(v).double() for v in (gamma_t - gamma_0, gamma_1 - gamma_t, weight))
        rise = "its derivative" if timesteps == 0 else f"{timesteps} expm1 of its rise"
        return ValueError(
            "schedule: expected gamma(t) to be finite and to increase at the times of every example, got "
            f"gamma(t) - gamma(0) of {low.min():.4g} at least, gamma(1) - gamma(t) of {high.min():.4g}, "
            f"and {rise} of {least.min():.4g}"
        )

    inside = (gamma_t - gamma_0 >= -few) & (gamma_1 - gamma_t >= -few)
    return [_checks.Fact(inside & (weight >= -few * max(timesteps, 16)) & weight.isfinite(), error)]


# Lines


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
    if _checks.real("spacing", spacing) <= 0.0:
        raise ValueError(f"spacing: expected a number above 0, got {spacing}")
    return GAMMA_MIN - 2.0 * math.log((2.0 / 256.0) / spacing)


@dataclass(frozen=True)
class Linear(Schedule):
    """A line between its endpoints, from which every schedule of this file starts. ``gamma_min`` is None where it was left
    out, for :meth:`with_gamma_min`; outside of a model that is the paper's."""

    gamma_min: float | None
    gamma_max: float

    @property
    def low(self) -> float:
        """gamma_min, or the paper's."""
        return GAMMA_MIN if self.gamma_min is None else self.gamma_min

    @property
    def endpoints(self) -> tuple[float, float]:  # type: ignore[override]
        return self.low, self.gamma_max

    @constant
    def ends(self) -> tuple[float, float]:
        """The endpoints, constants to a compiler."""
        return self.low, self.gamma_max

    def with_gamma_min(self, gamma_min: float) -> Schedule:
        return self._replace(gamma_min=gamma_min) if self.gamma_min is None else self


def _line(gamma_min: float | None, gamma_max: float) -> tuple[float | None, float]:
    low, high = _checks.increasing("gamma_min", GAMMA_MIN if gamma_min is None else gamma_min, "gamma_max", gamma_max)
    most = max(LIMITS.values())
    if low < -most or high > most:
        raise ValueError(f"gamma_min, gamma_max: expected numbers in [{-most:g}, {most:g}], got {low:g} and {high:g}")
    return (None if gamma_min is None else low), high


@dataclass(frozen=True)
class FixedLinear(Linear):
    """The schedule of :func:`fixed_linear`."""

    def init(self, key: Key) -> Params:
        _checks.key("key", key)
        return {}

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        low, high = self.ends()
        return low + (high - low) * _checks.floating("t", t)


def fixed_linear(gamma_min: float | None = None, gamma_max: float = 5.0) -> Schedule:
    """gamma_min + (gamma_max - gamma_min) t, with nothing to learn.

    Raises:
        TypeError, ValueError: endpoints that are not finite numbers, or gamma_min >= gamma_max.
    """
    return FixedLinear(*_line(gamma_min, gamma_max))


@dataclass(frozen=True)
class LearnedLinear(Linear):
    """The schedule of :func:`learned_linear`."""

    def init(self, key: Key) -> Params:
        device = _checks.key("key", key).device
        rise = torch.tensor(self.gamma_max - self.low, dtype=torch.float32, device=device)
        return {"w": rise, "b": torch.tensor(self.low, dtype=torch.float32, device=device)}

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        return params["b"] + params["w"].abs() * _checks.floating("t", t)


def learned_linear(gamma_min: float | None = None, gamma_max: float = 5.0) -> Schedule:
    """b + |w| t, learned, from b = gamma_min and b + w = gamma_max at the start. Parameters ``{"w": (), "b": ()}``.

    Raises:
        TypeError, ValueError: endpoints that are not finite numbers, or gamma_min >= gamma_max.
    """
    return LearnedLinear(*_line(gamma_min, gamma_max))


# Monotone networks


@dataclass(frozen=True)
class MonotoneMLP(Linear):
    """The schedule of :func:`monotone_mlp`."""

    hidden: int
    pin_endpoints: bool

    def init(self, key: Key) -> Params:
        _checks.key("key", key)
        k2, k3 = random.split(key).unbind(0)
        first = nn.dense_init(key, 1, 1, kernel_init=nn.constant(self.gamma_max - self.low))
        return {
            "l1": first | {"bias": torch.tensor([self.low], dtype=torch.float32, device=key.device)},
            "l2": nn.dense_init(k2, 1, self.hidden, kernel_init=nn.normal(1e-2)),
            "l3": nn.dense_init(k3, self.hidden, 1, bias=False, kernel_init=nn.normal(1e-2)),
        }

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        _checks.floating("t", t)
        b, w = params["l1"]["bias"][0], params["l1"]["kernel"][0, 0].abs()
        bump = self._bump(params, t)
        if not self.pin_endpoints:
            return b + w * t + bump
        ends = self._bump(params, torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device))
        return b + w * _pinned((w * t + (bump - ends[0])) / (w + (ends[1] - ends[0])), t)

    def _bump(self, params: Params, t: Tensor) -> Tensor:
        k2, b2, k3 = params["l2"]["kernel"][0].abs(), params["l2"]["bias"], params["l3"]["kernel"][:, 0].abs()
        return torch.tanh(0.5 * (k2 * (2.0 * t[..., None] - 1.0) + b2)) @ k3 / fixed(self.hidden)


def monotone_mlp(
    gamma_min: float | None = None, gamma_max: float = 5.0, hidden: int = 1024, pin_endpoints: bool = False
) -> Schedule:
    """A learned monotone network (App. H): a line plus a hidden layer, with the absolute values of its kernels.

    h(t) = b + |w| t + |k3| . tanh((|k2| (2t - 1) + b2) / 2) / hidden. Increasing terms add up to an increasing sum.

    Args:
        gamma_min, gamma_max: the line's endpoints at the start.
        hidden: the hidden layer's width.
        pin_endpoints: False gives gamma = h, the official code's schedule, whose endpoints h(0) and h(1) are off gamma_min
            and gamma_max by what the hidden layer adds there. True rescales h so that gamma(0) = b and gamma(1) = b + |w|
            exactly: two parameters are the endpoints, and the hidden layer shapes the interior alone.

    Returns:
        A schedule with the parameters ``{"l1": {"kernel": (1, 1), "bias": (1,)}, "l2": {"kernel": (1, hidden), "bias":
        (hidden,)}, "l3": {"kernel": (hidden, 1)}}`` (w and b are l1's), as in the official code.

    Raises:
        TypeError, ValueError: endpoints that are not finite numbers, gamma_min >= gamma_max, or hidden < 1.
    """
    line = _line(gamma_min, gamma_max)
    return MonotoneMLP(*line, _checks.integer("hidden", hidden, 1), _checks.boolean("pin_endpoints", pin_endpoints))


def _pinned(risen: Tensor, t: Tensor) -> Tensor:
    """A curve from 0 to 1 with these values set at t = 0 and t = 1, where sums of another shape may round otherwise; its
    derivative stays."""
    at = risen.detach()
    return risen - ((t == 0.0).to(t.dtype) * at + (t == 1.0).to(t.dtype) * (at - 1.0))


@dataclass(frozen=True)
class ConstrainedMonotone(Linear):
    """The schedule of :func:`constrained_monotone`."""

    hidden: tuple[int, ...]
    activation: str
    weights: tuple[float, ...]

    def init(self, key: Key) -> Params:
        line = LearnedLinear(self.gamma_min, self.gamma_max).init(key)
        *k_hidden, k_out = random.split(key, len(self.hidden) + 1).unbind(0)
        layers = [nn.dense_init(k, n, m) for k, n, m in zip(k_hidden, [1, *self.hidden], self.hidden, strict=False)]
        layers.append(nn.dense_init(k_out, self.hidden[-1], 1, bias=False, kernel_init=nn.normal(1e-3)))
        return line | {"layers": {str(i): layer for i, layer in enumerate(layers)}}

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        _checks.floating("t", t)
        ends = self._bend(params, torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device))
        risen = (t + (self._bend(params, t) - ends[0])) / (1.0 + (ends[1] - ends[0]))
        return params["b"] + params["w"].abs() * _pinned(risen, t)

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
    """A learned monotone network between exact endpoints (Runje & Shankaranarayana 2023, arXiv 2205.11775).

    gamma(t) = b + |w| (t + f(t) - f(0)) / (1 + f(1) - f(0)), f being layers of :func:`purevdm.nn.monotone_dense` over
    2t - 1. So gamma(0) = b and gamma(1) = b + |w| exactly, two parameters; f shapes the interior alone, into any increasing
    curve; and gamma increases strictly, however flat f is.

    Args:
        gamma_min, gamma_max: the endpoints at the start, between which gamma starts close to a line.
        hidden: the widths of the hidden layers.
        activation: the base of their activations, one of ``purevdm.nn.CONVEX``.
        weights: how many units are convex, concave and saturated, relative to one another.

    Returns:
        A schedule with the parameters ``{"w": (), "b": (), "layers": {"0": {"kernel", "bias"}, ...}}``.

    Raises:
        TypeError, ValueError: endpoints that are not finite numbers, gamma_min >= gamma_max, no hidden layer, an
            activation that is not increasing and convex, or weights that are not three.
    """
    line = _line(gamma_min, gamma_max)
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
    return ConstrainedMonotone(*line, widths, activation, parts)
