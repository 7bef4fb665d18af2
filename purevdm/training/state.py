"""The training state, and the pure step from one to the next."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm.nn import Params
from purevdm.training import optimizer
from purevdm.training.optimizer import AdamW, Moments
from purevdm.vdm import VDM

__all__ = ["NonFiniteLossError", "TrainState", "gradients", "init", "train_step"]


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
    """A loss or a gradient that is NaN or infinite; the message holds the step and the loss's parts."""


def init(model: VDM, key: Tensor) -> TrainState:
    """The state before the first step."""
    params = model.init(key)
    return TrainState(0, params, optree.tree_map(torch.clone, params), optimizer.init(params))  # type: ignore[arg-type]


GradFn = Callable[..., tuple[Params, tuple[Tensor, dict[str, Tensor]]]]
"""``(params, x, key, cond, *, part) -> (grads, (loss, stats))``."""


def gradients(model: VDM, *, variance: bool = False, compile: bool = False, remat: bool = False, **options: Any) -> GradFn:
    """The function that gives a step its gradients: the bound's, or with the schedule's interior following the variance.

    Args:
        model: the model.
        variance: whether the interior follows the variance (App. I.2), by ``model.vlb_and_variance_grads``.
        compile: whether to compile it, one graph for every part of every step.
        remat: whether the loss alone is compiled and differentiated from outside, so that networks made with ``remat=True``
            compute their blocks again in the backward pass, for less memory.
        options: for ``torch.compile``.

    Raises:
        ValueError: remat without compile, or with variance.
    """
    if remat and (variance or not compile):
        raise ValueError("remat: expected compile=True and variance=False with it")

    def grad_fn(params: Params, x: Tensor, key: Tensor, cond: Any = None, *, part: tuple[Any, int] = (0, 1)) -> Any:
        if variance:
            return model.vlb_and_variance_grads(params, x, key, cond, part=part, has_aux=True)
        loss = torch.func.grad_and_value(model.loss_and_stats, has_aux=True)
        return loss(params, x, key, cond, part=part)

    if not remat:
        return torch.compile(grad_fn, fullgraph=True, **options) if compile else grad_fn
    compiled = torch.compile(model.loss_and_stats, fullgraph=True, **options)

    def outside(params: Params, x: Tensor, key: Tensor, cond: Any = None, *, part: tuple[Any, int] = (0, 1)) -> Any:
        leaves: Any
        leaves, spec = optree.tree_flatten(params)  # type: ignore[arg-type]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        loss, stats = compiled(optree.tree_unflatten(spec, leaves), x, key, cond, part=part)
        grads: Any = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        plain = {name: value.detach() for name, value in stats.items()}
        return optree.tree_unflatten(spec, grads), (loss.detach(), plain)

    return outside


def train_step(
    settings: AdamW,
    grad_fn: GradFn,
    state: TrainState,
    x: Tensor,
    key: Tensor,
    cond: Any = None,
    *,
    accumulate: int = 1,
    part: tuple[int, int] = (0, 1),
    average: Callable[[list[Tensor]], list[Tensor]] | None = None,
) -> tuple[TrainState, dict[str, float]]:
    """One step of training, a pure function: the state that goes in is left as it was.

    The step's key is ``fold_in(key, state.step)``, so one key serves the whole training, and a state says all that is
    needed to go on.

    Args:
        settings: of the optimiser.
        grad_fn: of :func:`gradients`.
        state: the state.
        x: the process's part of the batch, integers (B, *event_shape).
        key: the key of the training.
        cond: its conditions.
        accumulate: into how many pieces to cut x, one after the other; the result is that of the whole, with less memory.
        part: (i, k): x is the i-th of k equal parts of a global batch, whose noise is drawn as if it were one.
        average: averages a list of tensors over the processes, in place of which comes the result.

    Returns:
        The next state, and what to log: the loss and its parts in bits/dim, the gradient's norm, the learning rate.

    Raises:
        TypeError, ValueError: settings out of their range, or a batch that does not divide into the pieces.
        NonFiniteLossError: a loss or a gradient that is NaN or infinite.
    """
    optimizer.checked(settings)
    accumulate = _checks.integer("accumulate", accumulate, 1)
    if x.shape[0] % accumulate:
        raise ValueError(f"accumulate: expected a divisor of the batch of {x.shape[0]}, got {accumulate}")
    index, parts = part
    k_step = random.fold_in(key, state.step)
    spec: Any = None
    total: Any = []
    size = x.shape[0] // accumulate
    for i in range(accumulate):
        rows = slice(i * size, (i + 1) * size)
        piece = None if cond is None else optree.tree_map(lambda leaf, rows=rows: leaf[rows], cond)
        at = torch.tensor(index * accumulate + i, device=x.device)
        out = grad_fn(state.params, x[rows], k_step, piece, part=(at, parts * accumulate))
        leaves: Any
        leaves, spec = optree.tree_flatten(out)  # type: ignore[arg-type]
        total = torch._foreach_add(total, leaves) if total else leaves
    mean = torch._foreach_div(total, accumulate) if accumulate > 1 else total
    if average is not None:
        mean = average(list(mean))
    whole: Any = optree.tree_unflatten(spec, mean)
    grads, (loss, stats) = whole
    values = {"loss": loss, **stats, "grad_norm": optimizer.global_norm(grads)}
    metrics = dict(zip(values, torch.stack([v.detach().double() for v in values.values()]).tolist(), strict=True))
    bad = [name for name, value in metrics.items() if value != value or abs(value) == float("inf")]
    if bad:
        parts_text = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
        raise NonFiniteLossError(f"step {state.step}: {', '.join(bad)} not finite ({parts_text})")
    if settings.clip_norm is not None:
        grads = {name: optimizer.clip(part, settings.clip_norm) for name, part in grads.items()}
    params, moments = optimizer.apply(settings, state.step, state.params, grads, state.moments)
    ema = optimizer.update_average(settings, state.step, state.ema_params, params)
    metrics["lr"] = optimizer.learning_rate(settings, state.step)
    return TrainState(state.step + 1, params, ema, moments), metrics
