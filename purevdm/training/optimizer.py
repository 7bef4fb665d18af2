"""AdamW on pytrees by torch's own kernels, the learning rate as a function of the step, clipping, averaging.

Everything is pure: the arguments are not changed.
"""

import itertools
import math
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor
from torch.optim.adamw import adamw as _adamw

from purevdm import _checks, _spread
from purevdm.types import Params

__all__ = ["AdamW", "Moments", "learning_rate"]


class AdamW(NamedTuple):
    """The settings of training; the defaults are the official configuration's for CIFAR-10.

    Attributes:
        lr: the learning rate after warm-up.
        b1, b2, eps: AdamW's.
        weight_decay: decoupled, on all parameters but biases, scales of norms and a warped schedule's histogram; of a
            module's, on those with two axes or more.
        warmup: steps over which the rate rises from 0 in a line.
        decay: what follows until the last step: "constant", "linear" to 0, or "cosine" to a hundredth.
        steps: the last step, for the decays.
        clip_norm: the norm that gradients are clipped to, or None; the network's and the schedule's each by itself, as they
            may follow different ends.
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
    """Returns the settings, or raises an error that names the bad one."""
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
    """Returns the rate of a step, counted from 0: the first of a warm-up is 0, as in the official code.

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
    """Says which leaves decay, True or False in a tree like theirs. (The official filter lets scales of group norms.)"""

    def decays(path: tuple[Any, ...], leaf: Tensor) -> bool:
        if path[:1] == ("network",) and path[1] in ("params", "buffers"):
            return path[1] == "params" and leaf.ndim > 1
        return path[:2] != ("schedule", "warp") and path[-1] not in ("bias", "scale")

    return optree.tree_map_with_path(decays, params)  # type: ignore[arg-type, return-value]


def init(params: Params) -> Moments:
    """Makes zeros."""
    return Moments(*(optree.tree_map(torch.zeros_like, params) for _ in range(2)))  # type: ignore[arg-type]


def global_norm(grads: Params) -> Tensor:
    """Computes the Euclidean norm of all leaves together, shape ()."""
    return _spread.norm(optree.tree_leaves(grads))  # type: ignore[arg-type]


def clip(grads: Params, most: float) -> Params:
    """Scales gradients down to a global norm of at most ``most``."""
    leaves, form = _spread.flatten(grads)
    if not leaves:
        return grads
    return _spread.unflatten(form, torch._foreach_mul(leaves, (most / global_norm(grads)).clamp(max=1.0)))  # type: ignore[no-any-return]


def apply(settings: AdamW, step: int, params: Params, grads: Params, moments: Moments) -> tuple[Params, Moments]:
    """Takes one step of AdamW; ``step`` counts from 0. A leaf without a gradient (None) stays, and so do its moments."""
    lr, form = learning_rate(settings, step), _spread.flatten(params)[1]
    listed: Any = optree.tree_leaves(grads, none_is_leaf=True)  # type: ignore[arg-type]
    grad: Any = [None if leaf is None else _spread.local(leaf)[0] for leaf in listed]
    of_schedule = [path[0] == "schedule" for path in optree.tree_paths(params)]  # type: ignore[arg-type]
    kinds = list(zip(of_schedule, _spread.flatten(decayed(params))[0], strict=True))
    # torch's kernels change what they are given: they get copies.
    new, mu, nu = ([leaf.detach().clone() for leaf in _spread.flatten(tree)[0]] for tree in (params, *moments))
    for kind in itertools.product((False, True), repeat=2):
        rows = [i for i, other in enumerate(kinds) if other == kind and grad[i] is not None]
        own, its, means, squares = ([leaves[i] for i in rows] for leaves in (new, grad, mu, nu))
        _adamw(
            own,
            its,
            means,
            squares,
            [],
            [torch.tensor(float(step), dtype=torch.float32, device="cpu") for _ in rows],
            foreach=True,
            amsgrad=False,
            beta1=settings.b1,
            beta2=settings.b2,
            lr=lr * (settings.schedule_lr if kind[0] else 1.0),
            weight_decay=settings.weight_decay if kind[1] else 0.0,
            eps=settings.eps,
            maximize=False,
        )
    return _spread.unflatten(form, new), Moments(_spread.unflatten(form, mu), _spread.unflatten(form, nu))


def update_average(settings: AdamW, step: int, average: Params, params: Params) -> Params:
    """Gives the exponential moving average of the parameters after a step: average + (1 - rate) (params - average)."""
    rate = min(settings.ema_rate, (1 + step) / (10 + step)) if settings.ema_warmup else settings.ema_rate
    (leaves, form), (others, _) = _spread.flatten(average), _spread.flatten(params)
    with torch.no_grad():
        return _spread.unflatten(form, torch._foreach_lerp(leaves, others, 1.0 - rate))
