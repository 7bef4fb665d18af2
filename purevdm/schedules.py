"""Noise schedules: gamma(t), minus the log signal-to-noise ratio at time t in [0, 1] (sec. 3.2, App. H).

A :class:`Schedule` is a pair of pure functions. ``gamma(params, t)`` takes one time and is strictly increasing in it. It
returns a number, or a tensor of the event's shape for a schedule of its own in each dimension (multivariate noise). It is
differentiable twice, as the continuous-time loss weighs with its derivative (eq. 17). The functions
:func:`gamma`, :func:`gamma_and_slope` and :func:`levels` take any number of times.

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
>>> schedules.gamma(schedules.Schedule(init, gamma), {}, torch.tensor(0.5))
tensor([-4., -3., -2.])
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, _values, nn, random
from purevdm._compile import constant, exact, fixed
from purevdm._layout import laid_out
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


@_values.by_content
class Schedule(NamedTuple):
    """A noise schedule.

    Attributes:
        init: ``init(key) -> params``.
        gamma: ``gamma(params, t) -> gamma`` for one time t in [0, 1], shape (): of shape () or ``event_shape``, of t's
            dtype, strictly increasing in t.
        endpoints: gamma(0) and gamma(1) as it starts, for networks that embed gamma between them. None: a model computes
            them from the schedule's initial parameters.
        contextual: whether gamma sees a context: ``gamma(params, t, context)``, where the context is the example's
            condition as the model's functions are given it (MuLAN, Sahoo et al. 2024, arXiv 2312.13236).
        with_gamma_min: for a schedule made without ``gamma_min``: ``with_gamma_min(gamma_min)`` is the same one with it.
            :func:`purevdm.vdm` takes the gamma_min that suits the data (:func:`gamma_min_for`).
        observe: for schedules whose parameters hold statistics of the diffusion losses (:mod:`purevdm.importance`):
            ``observe(params, t, losses) -> branches``, those of ``params`` that a batch with these times and losses, each
            (B,), nats, moves. None where there are none.
    """

    init: Callable[[Key], Params]
    gamma: Callable[..., Tensor]
    endpoints: tuple[float, float] | None = None
    contextual: bool = False
    observe: Callable[..., Params] | None = None
    with_gamma_min: Callable[..., Any] | None = None


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
    found = _over_times(schedule, laid_out(params), _flat(schedule, t, context), context)
    return found.reshape((*t.shape, *found.shape[1:]))


def gamma_and_slope(schedule: Schedule, params: Params, t: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
    """gamma(t) and its derivative gamma'(t), each as :func:`gamma` returns it, by reverse-mode differentiation.

    So that a further backward pass goes through both in one graph, and finds right gradients: those of a forward-mode
    derivative lack terms for the operations that :func:`purevdm.flow.divergence` names. They do, too, in an exported
    program, which has forward mode as ``torch.export`` (2.13) cannot trace the other, and where gamma is of the event's
    shape: write such operations out there, as a layer norm by means. :func:`purevdm.testing.check_schedule` finds the
    second case. Arguments and errors are those of :func:`gamma`.
    """
    params = laid_out(params)
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


class Linear(NamedTuple):
    """The settings of a line."""

    gamma_min: float
    gamma_max: float

    @constant
    def endpoints(self) -> tuple[float, float]:
        return self.gamma_min, self.gamma_max


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


def _remade(settings: Any, gamma_min: float | None = None, *, maker: Callable[..., Schedule]) -> Schedule:
    return maker(gamma_min, *settings[1:])


def _open(gamma_min: float | None, settings: Any, maker: Callable[..., Schedule]) -> Callable[..., Schedule] | None:
    """How a schedule of these settings is made again, where its gamma_min was left out."""
    return partial(_remade, settings, maker=maker) if gamma_min is None else None


def _linear(gamma_min: float | None, gamma_max: float) -> Linear:
    gamma_min = GAMMA_MIN if gamma_min is None else gamma_min
    low, high = _checks.increasing("gamma_min", gamma_min, "gamma_max", gamma_max)
    most = max(LIMITS.values())
    if low < -most or high > most:
        raise ValueError(f"gamma_min, gamma_max: expected numbers in [{-most:g}, {most:g}], got {low:g} and {high:g}")
    return Linear(low, high)


def fixed_linear(gamma_min: float | None = None, gamma_max: float = 5.0) -> Schedule:
    """gamma_min + (gamma_max - gamma_min) t, with nothing to learn.

    Raises:
        TypeError, ValueError: endpoints that are not finite numbers, or gamma_min >= gamma_max.
    """
    line = _linear(gamma_min, gamma_max)
    again = _open(gamma_min, line, fixed_linear)
    return Schedule(_no_params, partial(_fixed_gamma, line), endpoints=line[:2], with_gamma_min=again)


def _no_params(key: Key) -> Params:
    _checks.key("key", key)
    return {}


def _fixed_gamma(line: Linear, params: Params, t: Tensor) -> Tensor:
    low, high = line.endpoints()
    return low + (high - low) * _checks.floating("t", t)


def learned_linear(gamma_min: float | None = None, gamma_max: float = 5.0) -> Schedule:
    """b + |w| t, learned, from b = gamma_min and b + w = gamma_max at the start. Parameters ``{"w": (), "b": ()}``.

    Raises:
        TypeError, ValueError: endpoints that are not finite numbers, or gamma_min >= gamma_max.
    """
    line = _linear(gamma_min, gamma_max)
    again = _open(gamma_min, line, learned_linear)
    return Schedule(partial(_line_init, line), _line_gamma, endpoints=line[:2], with_gamma_min=again)


def _line_init(line: Linear, key: Key) -> Params:
    _checks.key("key", key)
    return {
        "w": torch.tensor(line.gamma_max - line.gamma_min, dtype=torch.float32, device=key.device),
        "b": torch.tensor(line.gamma_min, dtype=torch.float32, device=key.device),
    }


def _line_gamma(params: Params, t: Tensor) -> Tensor:
    return params["b"] + params["w"].abs() * _checks.floating("t", t)


# Monotone networks


class MonotoneMLP(NamedTuple):
    """The settings of :func:`monotone_mlp`."""

    gamma_min: float
    gamma_max: float
    hidden: int
    pin_endpoints: bool


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
    line = _linear(gamma_min, gamma_max)
    settings = MonotoneMLP(*line, _checks.integer("hidden", hidden, 1), _checks.boolean("pin_endpoints", pin_endpoints))
    again = _open(gamma_min, settings, monotone_mlp)
    gamma = partial(_mlp_gamma, settings)
    return Schedule(partial(_mlp_init, settings), gamma, endpoints=line[:2], with_gamma_min=again)


def _mlp_init(settings: MonotoneMLP, key: Key) -> Params:
    _checks.key("key", key)
    k2, k3 = random.split(key).unbind(0)
    low, high, hidden, _ = settings
    bias = torch.tensor([low], dtype=torch.float32, device=key.device)
    return {
        "l1": nn.dense_init(key, 1, 1, kernel_init=nn.constant(high - low)) | {"bias": bias},
        "l2": nn.dense_init(k2, 1, hidden, kernel_init=nn.normal(1e-2)),
        "l3": nn.dense_init(k3, hidden, 1, bias=False, kernel_init=nn.normal(1e-2)),
    }


def _mlp_bump(settings: MonotoneMLP, params: Params, t: Tensor) -> Tensor:
    k2, b2, k3 = params["l2"]["kernel"][0].abs(), params["l2"]["bias"], params["l3"]["kernel"][:, 0].abs()
    return torch.tanh(0.5 * (k2 * (2.0 * t[..., None] - 1.0) + b2)) @ k3 / fixed(settings.hidden)


def _mlp_gamma(settings: MonotoneMLP, params: Params, t: Tensor) -> Tensor:
    _checks.floating("t", t)
    b, w = params["l1"]["bias"][0], params["l1"]["kernel"][0, 0].abs()
    bump = _mlp_bump(settings, params, t)
    if not settings.pin_endpoints:
        return b + w * t + bump
    ends = _mlp_bump(settings, params, torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device))
    return b + w * _pinned((w * t + (bump - ends[0])) / (w + (ends[1] - ends[0])), t)


def _pinned(risen: Tensor, t: Tensor) -> Tensor:
    """A curve from 0 to 1 with these values set at t = 0 and t = 1, where sums of another shape may round otherwise; its
    derivative stays."""
    at = risen.detach()
    return risen - ((t == 0.0).to(t.dtype) * at + (t == 1.0).to(t.dtype) * (at - 1.0))


class ConstrainedMonotone(NamedTuple):
    """The settings of :func:`constrained_monotone`."""

    gamma_min: float
    gamma_max: float
    hidden: tuple[int, ...]
    activation: str
    weights: tuple[float, ...]


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
    line = _linear(gamma_min, gamma_max)
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
    settings = ConstrainedMonotone(*line, widths, activation, parts)
    again = _open(gamma_min, settings, constrained_monotone)
    gamma = partial(_constrained_gamma, settings)
    return Schedule(partial(_constrained_init, settings), gamma, endpoints=line[:2], with_gamma_min=again)


def _constrained_init(settings: ConstrainedMonotone, key: Key) -> Params:
    widths = settings.hidden
    line = _line_init(Linear(settings.gamma_min, settings.gamma_max), key)
    *k_hidden, k_out = random.split(key, len(widths) + 1).unbind(0)
    layers = [nn.dense_init(k, n, m) for k, n, m in zip(k_hidden, [1, *widths], widths, strict=False)]
    layers.append(nn.dense_init(k_out, widths[-1], 1, bias=False, kernel_init=nn.normal(1e-3)))
    return line | {"layers": {str(i): layer for i, layer in enumerate(layers)}}


def _bend(settings: ConstrainedMonotone, params: Params, t: Tensor) -> Tensor:
    h, last = (2.0 * t - 1.0)[..., None], len(settings.hidden)
    for i in range(last):
        h = nn.monotone_dense(params["layers"][str(i)], h, 1, settings.activation, settings.weights)
    return nn.monotone_dense(params["layers"][str(last)], h, 1, None)[..., 0]


def _constrained_gamma(settings: ConstrainedMonotone, params: Params, t: Tensor) -> Tensor:
    _checks.floating("t", t)
    ends = _bend(settings, params, torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device))
    risen = (t + (_bend(settings, params, t) - ends[0])) / (1.0 + (ends[1] - ends[0]))
    return params["b"] + params["w"].abs() * _pinned(risen, t)
