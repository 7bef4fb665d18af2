"""Noise schedules: gamma(t), minus the log signal-to-noise ratio at time t in [0, 1] (sec. 3.2, App. H).

A :class:`Schedule` is a pair of pure functions. ``gamma(params, t)`` is elementwise in t, strictly increasing, and
differentiable in t by ``torch.func.jvp`` (the continuous-time loss weighs with its derivative, eq. 17).
The defaults of the ends, -13.3 and 5, are the paper's for 8-bit images.

>>> import torch
>>> from purevdm import random, schedules
>>> schedule = schedules.learned_linear()
>>> params = schedule.init(random.key(0))
>>> schedule.gamma(params, torch.tensor([0.0, 0.5, 1.0]))
tensor([-13.3000,  -4.1500,   5.0000])
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, nn, random

__all__ = ["Schedule", "constrained_monotone", "fixed_linear", "gamma_and_slope", "learned_linear", "monotone_mlp"]


class Schedule(NamedTuple):
    """A noise schedule.

    Attributes:
        init: ``init(key) -> params``.
        gamma: ``gamma(params, t) -> gamma``, of t's shape and dtype, for t in [0, 1].
    """

    init: Callable[[Tensor], nn.Params]
    gamma: Callable[[nn.Params, Tensor], Tensor]


def gamma_and_slope(schedule: Schedule, params: nn.Params, t: Tensor) -> tuple[Tensor, Tensor]:
    """gamma(t) and gamma'(t), each of t's shape, by a forward derivative: what a second backward would do, in one graph."""
    # The parameters get zeros for tangents, made here: those that PyTorch would make of itself have no storage, and a
    # compiled backward that multiplies them as matrices crashes (2.13).
    still = optree.tree_map(torch.zeros_like, params)  # type: ignore[arg-type]
    # And a time alone gets an axis: a product of a tangent of shape () with a number is of float64, under vmap. A copy, as
    # times that were expanded take no tangents.
    one = t[None].clone()
    gamma, slope = torch.func.jvp(schedule.gamma, (params, one), (still, torch.ones_like(one)))  # type: ignore[misc]
    return gamma[0], slope[0]


def fixed_linear(gamma_min: float = -13.3, gamma_max: float = 5.0) -> Schedule:
    """gamma_min + (gamma_max - gamma_min) t, with nothing to learn.

    Raises:
        TypeError, ValueError: ends that are no finite numbers, or gamma_min >= gamma_max.
    """
    low, high = _checks.increasing("gamma_min", gamma_min, "gamma_max", gamma_max)

    def init(key: Tensor) -> nn.Params:
        _checks.key("key", key)
        return {}

    def gamma(params: nn.Params, t: Tensor) -> Tensor:
        return low + (high - low) * _checks.floating("t", t)

    return Schedule(init, gamma)


def learned_linear(gamma_min: float = -13.3, gamma_max: float = 5.0) -> Schedule:
    """b + |w| t, learned, from b = gamma_min and b + w = gamma_max at the start. Parameters ``{"w": (), "b": ()}``.

    Raises:
        TypeError, ValueError: ends that are no finite numbers, or gamma_min >= gamma_max.
    """
    low, high = _checks.increasing("gamma_min", gamma_min, "gamma_max", gamma_max)

    def init(key: Tensor) -> nn.Params:
        _checks.key("key", key)
        return {"w": torch.tensor(high - low, device=key.device), "b": torch.tensor(low, device=key.device)}

    def gamma(params: nn.Params, t: Tensor) -> Tensor:
        return params["b"] + params["w"].abs() * _checks.floating("t", t)

    return Schedule(init, gamma)


def monotone_mlp(gamma_min: float = -13.3, gamma_max: float = 5.0, hidden: int = 1024, pin_ends: bool = False) -> Schedule:
    """A learned monotone network (App. H): a line plus a hidden layer, with the absolute values of its kernels.

    h(t) = b + |w| t + |k3| . tanh((|k2| (2t - 1) + b2) / 2) / hidden. Increasing terms add up to an increasing sum.

    Args:
        gamma_min, gamma_max: the line's ends at the start.
        hidden: the hidden layer's width.
        pin_ends: False gives gamma = h, the official code's schedule, whose ends h(0) and h(1) lie off gamma_min and
            gamma_max by what the hidden layer adds there. True rescales h so that gamma(0) = b and gamma(1) = b + |w|,
            to the bit: two parameters are the ends, and the hidden layer shapes the interior alone.

    Returns:
        A schedule with the parameters ``{"l1": {"kernel": (1, 1), "bias": (1,)}, "l2": {"kernel": (1, hidden), "bias":
        (hidden,)}, "l3": {"kernel": (hidden, 1)}}`` (w and b are l1's), as in the official code.

    Raises:
        TypeError, ValueError: ends that are no finite numbers, gamma_min >= gamma_max, or hidden < 1.
    """
    low, high = _checks.increasing("gamma_min", gamma_min, "gamma_max", gamma_max)
    hidden = _checks.integer("hidden", hidden, 1)

    def init(key: Tensor) -> nn.Params:
        _checks.key("key", key)
        k2, k3 = random.split(key).unbind(0)
        return {
            "l1": nn.dense_init(key, 1, 1, kernel_init=nn.constant(high - low))
            | {"bias": torch.tensor([low]).to(key.device)},
            "l2": nn.dense_init(k2, 1, hidden, kernel_init=nn.normal(1e-2)),
            "l3": nn.dense_init(k3, hidden, 1, bias=False, kernel_init=nn.normal(1e-2)),
        }

    def bump(params: nn.Params, t: Tensor) -> Tensor:
        k2, b2, k3 = params["l2"]["kernel"][0].abs(), params["l2"]["bias"], params["l3"]["kernel"][:, 0].abs()
        return torch.tanh(0.5 * (k2 * (2.0 * t[..., None] - 1.0) + b2)) @ k3 / hidden

    def gamma(params: nn.Params, t: Tensor) -> Tensor:
        _checks.floating("t", t)
        b, w = params["l1"]["bias"][0], params["l1"]["kernel"][0, 0].abs()
        if not pin_ends:
            return b + w * t + bump(params, t)
        ends = bump(params, torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device))
        rise = w + (ends[1] - ends[0])
        return b + w * ((w * t + (bump(params, t) - ends[0])) / rise)

    return Schedule(init, gamma)


def constrained_monotone(
    gamma_min: float = -13.3,
    gamma_max: float = 5.0,
    hidden: Sequence[int] = (32, 32),
    activation: str = "elu",
    weights: Sequence[float] = (7, 7, 2),
) -> Schedule:
    """A learned monotone network between exact ends (Runje & Shankaranarayana 2023, arXiv 2205.11775).

    gamma(t) = b + |w| (t + f(t) - f(0)) / (1 + f(1) - f(0)), f being layers of :func:`purevdm.nn.monotone_dense` over
    2t - 1. So gamma(0) = b and gamma(1) = b + |w| to the bit, two parameters; f shapes the interior alone, any increasing
    curve; and gamma increases strictly, however flat f is.

    Args:
        gamma_min, gamma_max: the ends at the start, between which gamma starts close to a line.
        hidden: the widths of the hidden layers.
        activation: the base of their activations, one of ``purevdm.nn.CONVEX``.
        weights: how many units are convex, concave and saturated, relative to one another.

    Returns:
        A schedule with the parameters ``{"w": (), "b": (), "layers": {"0": {"kernel", "bias"}, ...}}``.

    Raises:
        TypeError, ValueError: ends that are no finite numbers, gamma_min >= gamma_max, no hidden layer, an activation that
            is not increasing and convex, or weights that are not three.
    """
    low, high = _checks.increasing("gamma_min", gamma_min, "gamma_max", gamma_max)
    widths = [_checks.integer(f"hidden[{i}]", n, 1) for i, n in enumerate(hidden)]
    if not widths:
        raise ValueError("hidden: expected at least one layer, got none")
    nn.monotone_activation(torch.zeros(1), activation, weights)  # refuses bad ones here

    def init(key: Tensor) -> nn.Params:
        _checks.key("key", key)
        *k_hidden, k_out = random.split(key, len(widths) + 1).unbind(0)
        layers = [nn.dense_init(k, n, m) for k, n, m in zip(k_hidden, [1, *widths], widths, strict=False)]
        layers.append(nn.dense_init(k_out, widths[-1], 1, bias=False, kernel_init=nn.normal(1e-3)))
        line = {"w": torch.tensor(high - low, device=key.device), "b": torch.tensor(low, device=key.device)}
        return line | {"layers": {str(i): layer for i, layer in enumerate(layers)}}

    def bend(params: nn.Params, t: Tensor) -> Tensor:
        h = (2.0 * t - 1.0)[..., None]
        for i in range(len(widths)):
            h = nn.monotone_dense(params["layers"][str(i)], h, 1, activation, weights)
        return nn.monotone_dense(params["layers"][str(len(widths))], h, 1, None)[..., 0]

    def gamma(params: nn.Params, t: Tensor) -> Tensor:
        _checks.floating("t", t)
        ends = bend(params, torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device))
        risen = (t + (bend(params, t) - ends[0])) / (1.0 + (ends[1] - ends[0]))
        # At the ends a product of other shape may round otherwise: there the value is set, and the derivative left.
        at = risen.detach()
        off = (t == 0.0).to(t.dtype) * at + (t == 1.0).to(t.dtype) * (at - 1.0)
        return params["b"] + params["w"].abs() * (risen - off)

    return Schedule(init, gamma)
