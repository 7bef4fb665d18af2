"""AdamW on pytrees by torch's own kernels, the learning rate as a function of the step, clipping, averaging.

Everything is pure: the arguments are not changed.
"""

import math
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor
from torch.optim.adamw import adamw as _adamw

from purevdm import _checks
from purevdm.types import Params

__all__ = ["AdamW", "Moments", "learning_rate"]


class AdamW(NamedTuple):
    """The settings of training; the defaults are the official configuration's for CIFAR-10.

    Attributes:
        lr: the learning rate after warm-up.
        b1, b2, eps: AdamW's.
        weight_decay: decoupled, on the leaves that :func:`decayed` names.
        warmup: steps over which the rate rises from 0 in a line.
        decay: what follows until the last step: "constant", "linear" to 0, or "cosine" to a hundredth.
        steps: the last step, for the decays.
        clip_norm: the global norm that gradients are clipped to, or None; the network's and the schedule's each on its own,
            as they may follow different ends.
        ema_rate: how much of the averaged parameters stays in a step.
        ema_warmup: whether the average starts faster, at the rate min(ema_rate, (1 + step) / (10 + step)).
        schedule_lr: what the rate of the noise schedule's parameters is multiplied by.
    """

    lr: float = 2e-4
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup: int = 100
    decay: str = "constant"
    steps: int = 10_000_000
    clip_norm: float | None = None
    ema_rate: float = 0.9999
    ema_warmup: bool = False
    schedule_lr: float = 1.0


class Moments(NamedTuple):
    """AdamW's state: the moving means of the gradients and of their squares, trees like the parameters."""

    mu: Params
    nu: Params


def checked(settings: AdamW) -> AdamW:
    """The settings, or an error that names the bad one."""
    for name in ("lr", "eps", "weight_decay", "schedule_lr"):
        if _checks.real(name, getattr(settings, name)) < 0:
            raise ValueError(f"{name}: expected a number of at least 0, got {getattr(settings, name)}")
    for name in ("b1", "b2", "ema_rate"):
        _checks.probability(name, getattr(settings, name))
    _checks.integer("warmup", settings.warmup, 0)
    _checks.integer("steps", settings.steps, 1)
    _checks.choice("decay", settings.decay, ("constant", "linear", "cosine"))
    if settings.clip_norm is not None and _checks.real("clip_norm", settings.clip_norm) <= 0:
        raise ValueError(f"clip_norm: expected a number above 0 or None, got {settings.clip_norm}")
    return settings


def learning_rate(settings: AdamW, step: int) -> float:
    """The rate of a step, counted from 0: the first of a warm-up is 0, as in the official code.

    Raises:
        TypeError, ValueError: settings or a step out of their range.
    """
    checked(_checks.instance("settings", settings, AdamW, "a purevdm.training.AdamW"))
    step = _checks.integer("step", step, 0)
    if step < settings.warmup:
        return settings.lr * step / settings.warmup
    done = min((step - settings.warmup) / max(1, settings.steps - settings.warmup), 1.0)
    if settings.decay == "linear":
        return settings.lr * (1.0 - done)
    if settings.decay == "cosine":
        return settings.lr * (0.505 + 0.495 * math.cos(math.pi * done))
    return settings.lr


def decayed(params: Params) -> Params:
    """Which leaves decay: all but biases and the scales of norms, True or False in a tree like the parameters.

    (The official filter names biases and layer norms; its own norms are group norms, whose scales it lets decay.) Of a
    ``torch.nn.Module``, whose trees have the branches ``params`` and ``buffers``, the parameters of two axes and more decay.
    The histogram of a warped schedule stays.
    """

    def decays(path: tuple[Any, ...], leaf: Tensor) -> bool:
        if path[:1] == ("network",) and path[1] in ("params", "buffers"):
            return path[1] == "params" and leaf.ndim > 1
        if path[:2] == ("schedule", "warp"):
            return False
        return path[-1] not in ("bias", "scale")

    return optree.tree_map_with_path(decays, params)  # type: ignore[arg-type, return-value]


def init(params: Params) -> Moments:
    """Zeros."""
    zeros = optree.tree_map(torch.zeros_like, params)  # type: ignore[arg-type]
    return Moments(zeros, optree.tree_map(torch.clone, zeros))  # type: ignore[arg-type]


def global_norm(grads: Params) -> Tensor:
    """The Euclidean norm of all leaves together, shape ()."""
    return torch.nn.utils.get_total_norm(_flat(grads)[0])


def clip(grads: Params, most: float) -> Params:
    """Gradients scaled down to a global norm of at most ``most``."""
    leaves, spec = _flat(grads)
    if not leaves:
        return grads
    return _tree(spec, torch._foreach_mul(leaves, (most / global_norm(grads)).clamp(max=1.0)))


def _flat(tree: Any) -> tuple[list[Tensor], Any]:
    return optree.tree_flatten(tree)  # type: ignore[return-value]


def _tree(spec: Any, leaves: Any) -> Params:
    return optree.tree_unflatten(spec, leaves)  # type: ignore[return-value]


def apply(settings: AdamW, step: int, params: Params, grads: Params, moments: Moments) -> tuple[Params, Moments]:
    """One step of AdamW; ``step`` counts from 0. A leaf without a gradient (None) stays, and so do its moments."""
    lr = learning_rate(settings, step)
    _, spec = _flat(params)
    decays: Any = optree.tree_leaves(decayed(params))  # type: ignore[arg-type]
    # torch's kernels change what they are given: they get copies.
    new, mu, nu = ([leaf.detach().clone() for leaf in _flat(tree)[0]] for tree in (params, moments.mu, moments.nu))
    grad: Any = optree.tree_leaves(grads, none_is_leaf=True)  # type: ignore[arg-type]
    paths = optree.tree_paths(params)  # type: ignore[arg-type]
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for i, path in enumerate(paths):
        if grad[i] is not None:
            kinds.setdefault((bool(decays[i]), path[0] == "schedule"), []).append(i)
    for (decay, of_schedule), rows in kinds.items():
        _adamw(
            [new[i] for i in rows],
            [grad[i] for i in rows],
            [mu[i] for i in rows],
            [nu[i] for i in rows],
            [],
            [torch.tensor(float(step), dtype=torch.float32, device="cpu") for _ in rows],
            foreach=True,
            amsgrad=False,
            beta1=settings.b1,
            beta2=settings.b2,
            lr=lr * (settings.schedule_lr if of_schedule else 1.0),
            weight_decay=settings.weight_decay if decay else 0.0,
            eps=settings.eps,
            maximize=False,
        )
    return _tree(spec, new), Moments(_tree(spec, mu), _tree(spec, nu))


def update_average(settings: AdamW, step: int, average: Params, params: Params) -> Params:
    """The exponential moving average of the parameters after a step: average + (1 - rate) (params - average)."""
    rate = min(settings.ema_rate, (1 + step) / (10 + step)) if settings.ema_warmup else settings.ema_rate
    leaves, spec = _flat(optree.tree_map(torch.detach, average))  # type: ignore[arg-type]
    return _tree(spec, torch._foreach_lerp(leaves, _flat(optree.tree_map(torch.detach, params))[0], 1.0 - rate))  # type: ignore[arg-type]
