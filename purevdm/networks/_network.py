"""The form of a score network."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, _values
from purevdm.types import Key, Params, Shape


@_values.by_content
class Network(NamedTuple):
    """A score network.

    Attributes:
        init: ``init(key, event_shape) -> params``.
        apply: ``apply(params, z, gamma, cond=None, key=None) -> output``, for one example: the latent z (``event_shape``)
            at noise level gamma (shape (), or ``event_shape`` under a schedule of that shape), given a condition. A key
            switches on what is random in training (dropout of features and of the condition); without one the network is
            deterministic.
        batched: whether ``apply`` takes a whole batch instead, with a leading axis B on z, gamma, every tensor of the
            condition, and the keys, (B, 2). It is then called without ``vmap``, as a network needs that normalises over
            the batch, checkpoints, or calls kernels without a batching rule.
        predicts: what the output is: the noise "eps", the clean data "x", or "v" = alpha eps - sigma x (Salimans & Ho
            2022).
        self_condition: whether ``apply`` also takes ``x_hat``, an earlier estimate of the data (``event_shape``) or None
            for none (Chen, Zhang, Hinton 2022, arXiv 2208.04202).
        residual: whether z is added to what ``apply`` returns.
        outputs: how many numbers ``apply`` returns for each of z's, on a new last axis; None for one, of z's shape.
        dtype: what ``apply`` computes in: floating-point parameters are cast to it in each call. None leaves them.
        endpoints: the values of gamma that ``apply`` normalises between. A model refuses a schedule with a different pair.
            None: the model tells it the schedule's, if its functions are bound to settings with a field ``endpoints``.
        update: for networks whose parameters hold statistics of what they saw, such as batch norms' means:
            ``update(params, z, gamma, cond=None, key=None) -> params`` with those that a training pass leaves. None where
            there are none.
        frozen: paths of leaves or branches of the parameters that training leaves as they are, as ``"params.encoder"``.
    """

    init: Callable[[Key, Shape], Params]
    apply: Callable[..., Tensor]
    batched: bool = False
    predicts: str = "eps"
    self_condition: bool = False
    residual: bool = False
    outputs: int | None = None
    dtype: torch.dtype | None = None
    endpoints: tuple[float, float] | None = None
    update: Callable[..., Params] | None = None
    frozen: tuple[str, ...] = ()


def made_of(
    settings: Any, init: Callable[..., Params], apply: Callable[..., Tensor], predicts: str, residual: bool = False
) -> Network:
    """The network of two functions over settings with the fields ``self_condition``, ``outputs`` and ``endpoints``."""
    return Network(
        init=partial(init, settings),
        apply=partial(apply, settings),
        predicts=_checks.choice("predicts", predicts, ("eps", "x", "v")),
        self_condition=settings.self_condition,
        residual=residual,
        outputs=settings.outputs,
        endpoints=settings.endpoints,
    )
