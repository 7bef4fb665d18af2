"""The training state, and the pure step from one to the next."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, _sharding, _spread, _trees, parallel, random
from purevdm.model import Bounded, bounded
from purevdm.noise import Seeds
from purevdm.training import optimizer
from purevdm.training._gradients import GradFn
from purevdm.training.optimizer import AdamW, Moments
from purevdm.types import Key, Params

__all__ = ["NonFiniteLossError", "TrainState", "init", "train_step"]


class TrainState(NamedTuple):
    """All that training changes.

    Attributes:
        step: how many steps were taken.
        params: the parameters.
        ema_params: their exponential moving average, which evaluation and sampling use.
        moments: AdamW's.
    """

    step: int
    params: Params
    ema_params: Params
    moments: Moments


class NonFiniteLossError(FloatingPointError):
    """A loss, a gradient or a state that is NaN or infinite; the message holds the step and the loss's parts."""


def init(model: Bounded, key: Key, mesh: Any = None) -> TrainState:
    """Makes the state before the first step; with a mesh of :func:`purevdm.parallel.mesh`, spread over its processes."""
    bounded(model)
    params = model.init(key) if mesh is None else parallel.shard(model.init(key), mesh)
    copies = optree.tree_map(lambda leaf: leaf.detach().clone(), params)  # type: ignore[arg-type]
    return TrainState(0, params, copies, optimizer.init(params))  # type: ignore[arg-type]


def train_step(
    settings: AdamW,
    grad_fn: GradFn,
    state: TrainState,
    x: Any,
    key: Key | Seeds,
    cond: Any = None,
    *,
    mask: Tensor | None = None,
    update: Callable[..., Params] | None = None,
) -> tuple[TrainState, dict[str, float]]:
    """Takes one step of training, a pure function: the state that goes in is left as it was.

    Args:
        settings: of the optimiser.
        grad_fn: of :func:`gradients`.
        state: the state. Where some of its parameters require gradients, those that do not are frozen, as those are of
            which ``grad_fn`` gives the gradient None; both stay as they are.
        x, cond: the batch, or the process's rows of it, data (B, *event_shape), and its conditions.
        key: the key of the training: the step draws from ``fold_in(key, state.step)``. For rows of a larger batch, their
            Seeds: ``model.seeds(random.fold_in(key, state.step), size).rows(...)``.
        mask: what exists of the data, bool, which broadcasts to x.
        update: ``model.update``, for networks that keep statistics of their batches, such as modules with batch norms: they
            move by this batch, under the parameters that the gradients are taken at. Processes average theirs.

    Returns:
        The next state, and what to log: the loss and its parts in bits/dim, the gradient's norm, the learning rate. The
        histogram of a warped schedule is the one that ``grad_fn`` returns.

    Raises:
        TypeError, ValueError: settings out of their range; moments or averages of other parameters.
        NonFiniteLossError: a loss, a gradient, or what the step would leave that is NaN or infinite.
    """
    _checks.instance("settings", settings, AdamW, "a purevdm.training.AdamW")
    _checks.instance("state", state, TrainState, "a purevdm.training.TrainState")
    _checks.function("grad_fn", grad_fn)
    _checks.integer("state.step", state.step, 0)
    rate, form = optimizer.learning_rate(settings, state.step), _trees.structure(state.params, "state.params")
    others = {"ema_params": state.ema_params, "moments.mu": state.moments.mu, "moments.nu": state.moments.nu}
    for name, tree in others.items():
        if _trees.structure(tree, f"state.{name}") != form:
            raise ValueError(f"state.{name}: expected the leaves, shapes and dtypes of state.params, got others")
    _checks.tensor("x", x)
    masks = {} if mask is None else {"mask": mask}
    key = key if isinstance(key, Seeds) else random.fold_in(key, state.step)
    params: Any = optree.tree_map(torch.detach, state.params)  # type: ignore[arg-type]
    out = grad_fn(params, x, key, cond, **masks)
    if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], tuple)):
        raise TypeError("grad_fn: expected one that returns (grads, (loss, stats)), as training.gradients(model) does")
    grads: Any
    stats: Any
    grads, (loss, stats) = optree.tree_map(torch.detach, out)  # type: ignore[arg-type, misc]
    mesh = _spread.mesh_of(_checks.leaves(params), "state.params")
    if mesh is not None:  # whose gradients are the mean over processes
        n = torch.tensor([len(x), len(x) ** 2], dtype=torch.float64, device=x.device)
        loss, stats, (mean, square) = _spread.mean((loss, stats, n), mesh)
        if square != mean**2:
            _spread.flatten(grads)  # no message is left under way
            raise ValueError(f"x: expected as many examples in every process, got {len(x)} here, {mean:g} in the mean")
    if any(leaf.requires_grad for leaf in _checks.leaves(state.params).values()):
        grads = optree.tree_map(lambda leaf, grad: grad if leaf.requires_grad else None, state.params, grads)  # type: ignore[arg-type]
    histogram = stats.pop("schedule", {})
    values = {"loss": loss, **stats, "grad_norm": optimizer.global_norm(grads)}
    if settings.clip_norm is not None:
        grads = {name: optimizer.clip(part, settings.clip_norm) for name, part in grads.items()}
    if update is not None:
        params = update(params, x, key, cond, **masks)
    params, moments = optimizer.apply(settings, state.step, params, grads, state.moments)
    if histogram:
        own = params["schedule"]
        histogram = _sharding.like(histogram, {name: own[name] for name in histogram})
        params = params | {"schedule": own | histogram}
    ema = optimizer.update_average(settings, state.step, state.ema_params, params)
    # All is read in one transfer.
    left = {name: _largest(tree) for name, tree in (("params", params), ("nu", moments.nu), ("ema_params", ema))}
    largest = torch.stack(list(left.values()))
    largest = largest if mesh is None else _spread.total(largest, mesh)
    numbers = torch.cat([torch.stack([v.double() for v in values.values()]), largest]).tolist()
    metrics = dict(zip(values, numbers, strict=False))
    if bad := [name for name, value in zip((*values, *left), numbers, strict=True) if not math.isfinite(value)]:
        parts = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
        raise NonFiniteLossError(f"step {state.step}: {', '.join(bad)} not finite ({parts})")
    asks: Any = state.params
    params = optree.tree_map(lambda leaf, old: leaf.requires_grad_() if old.requires_grad else leaf, params, asks)
    return TrainState(state.step + 1, params, ema, moments), metrics | {"lr": rate}


def _largest(tree: Params) -> Tensor:
    """Computes the largest magnitude in a tree, or in this process's part of it, NaN where it holds one; shape (), float64,
    0 for an empty tree."""
    leaves = [leaf for leaf in _spread.flatten(tree)[0] if leaf.is_floating_point() and leaf.numel()]
    if not leaves:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack([n.double() for n in torch._foreach_norm(leaves, math.inf)]).max()
