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

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, nn

__all__ = ["Schedule", "fixed_linear", "learned_linear", "monotone_mlp"]


class Schedule(NamedTuple):
    """A noise schedule.

    Attributes:
        init: ``init(key) -> params``.
        gamma: ``gamma(params, t) -> gamma``, of t's shape and dtype, for t in [0, 1].
    """

    init: Callable[[Tensor], nn.Params]
    gamma: Callable[[nn.Params, Tensor], Tensor]


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
        k2, k3 = nn.random.split(key).unbind(0)
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
