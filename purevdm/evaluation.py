"""The bound of a data set: its parts with standard errors, in bits per dimension, or in nats for real data."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm.elbo import ELBO
from purevdm.types import Key, Params
from purevdm.vdm import VDM

__all__ = ["Evaluation", "Figure", "evaluate"]


class Figure(NamedTuple):
    """A mean over examples and its standard error, in the evaluation's unit."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} +- {self.error:.4f}"


class Evaluation(NamedTuple):
    """The bound on -log p(x), and the parts that it is the sum of.

    Attributes:
        total: the bound.
        diffusion, prior, recon: its parts; the prior is also called the latent loss.
        examples: how many.
        passes: over how many passes of times each example's bound is the mean.
        unit: "bits/dim", bits per dimension, or "nats" an example where data are real and p is a density.
    """

    total: Figure
    diffusion: Figure
    prior: Figure
    recon: Figure
    examples: int
    passes: int
    unit: str = "bits/dim"


@torch.no_grad()
def evaluate(
    model: VDM,
    params: Params,
    batches: Iterable[tuple[Tensor, Any]],
    key: Key,
    *,
    passes: int = 1,
    elbo: Callable[..., ELBO] | None = None,
    callback: Callable[[int], None] | None = None,
) -> Evaluation:
    """The model's bound on a data set, in continuous time or in the model's T steps.

    Batch j draws from ``fold_in(key, j)``, split for its passes, so the figures do not depend on anything but the batches
    and the key.

    Args:
        model: the model.
        params: its parameters.
        batches: pairs (x, cond), x of data (B, *event_shape), cond as the network takes it or None. Each batch's times
            are spread evenly over it, so larger ones have less noise; one of another size is another compilation.
        key: a key.
        passes: how often each example is bounded, at fresh times and noise.
        elbo: ``model.elbo`` compiled, or left out to run it in eager.
        callback: called with the number of examples done, for a progress bar.

    Raises:
        TypeError, ValueError: bad input, as ``model.elbo`` says it, no batch, or passes < 1.
    """
    _checks.key("key", key)
    passes = _checks.integer("passes", passes, 1)
    elbo = elbo or model.elbo
    parts: list[Tensor] = []
    for j, (x, cond) in enumerate(batches):
        n = x.shape[0]
        total: Tensor | None = None
        for k in random.split(random.fold_in(key, j), passes):
            terms = torch.stack(list(elbo(params, x, k, cond)), 1).double()
            total = terms if total is None else total + terms
        parts.append(total / passes)  # type: ignore[operator, arg-type]
        if callback is not None:
            callback(n)
    if not parts:
        raise ValueError("batches: expected at least one, got none")
    figures = torch.cat(parts).cpu() * _per_nat(model)

    def figure(x: Tensor) -> Figure:
        error = x.std().item() / math.sqrt(len(x)) if len(x) > 1 else math.nan
        return Figure(x.mean().item(), error)

    recon, prior, diffusion = (figure(column) for column in figures.unbind(1))
    return Evaluation(figure(figures.sum(1)), diffusion, prior, recon, len(figures), passes, model.decoder.unit)


def _per_nat(model: VDM) -> float:
    """From nats an example to the unit of the model's data."""
    unit = _checks.choice("model.decoder.unit", model.decoder.unit, ("bits/dim", "nats"))
    return 1.0 if unit == "nats" else 1.0 / (math.prod(model.event_shape) * math.log(2.0))
