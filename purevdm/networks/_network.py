"""The form of a score network."""

import inspect
import math
import types
from collections.abc import Callable, Iterator
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
            None: the model tells it the schedule's, if its functions are bound to settings with a field ``endpoints``. Any
            other ``apply`` is given gamma as it is, and a library network that it calls has to be given its ``gamma_min``
            and ``gamma_max``: the model refuses one without, as it would normalise by the paper's, -13.3 and 5.
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


PAPER = (-13.3, 5.0)  # the endpoints of a network outside of a model


def told(network: Network, endpoints: tuple[float, float]) -> Network:
    """The network with a model's endpoints, if it was given none.

    Raises:
        ValueError: a library network that was given none stands in another's ``apply``, where the model does not reach it.
    """
    if network.endpoints is not None:
        return network
    bound = {name: _bound(getattr(network, name), endpoints) for name in ("init", "apply")}
    if bound["apply"] is not network.apply:
        return network._replace(**bound, endpoints=endpoints)
    if not same(endpoints, PAPER):
        for inner in _within(network.apply, set()):
            if inner.endpoints is None and _bound(inner.apply, endpoints) is not inner.apply:
                low, high = endpoints
                raise ValueError(
                    f"network: its apply calls {inner!r}, which would normalise gamma between {PAPER[0]} and {PAPER[1]}, "
                    f"but the model's levels go from {low} to {high}; make that one with gamma_min={low}, gamma_max={high}"
                )
    return network._replace(**bound)


def _bound(function: Any, endpoints: tuple[float, float]) -> Any:
    """A function bound to settings, or to a network, bound to the same with these endpoints; others as they are."""
    if isinstance(function, partial) and function.args and isinstance(function.args[0], Network):
        inner = told(function.args[0], endpoints)
        if inner.endpoints is not function.args[0].endpoints:
            return partial(function.func, inner, *function.args[1:], **function.keywords)
    return _values.rebound(function, endpoints=endpoints)


def same(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two pairs of endpoints are the same."""
    return all(math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-6) for x, y in zip(a, b, strict=True))


def _within(value: Any, seen: set[int]) -> Iterator[Network]:
    """The networks that a function of a user's holds: bound to it, in its closure, in its object, or as globals."""
    if id(value) in seen:
        return
    seen.add(id(value))
    parts: list[Any] = []
    if isinstance(value, Network):
        yield value
        parts = [value.apply]
    elif isinstance(value, partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, (tuple, list)):
        parts = list(value)
    elif isinstance(value, dict):
        parts = list(value.values())
    elif inspect.ismethod(value):
        parts = [value.__func__, vars(value.__self__) if hasattr(value.__self__, "__dict__") else value.__self__]
    elif inspect.isfunction(value) and value.__module__.partition(".")[0] not in ("purevdm", "torch"):
        codes = [value.__code__]
        for code in codes:  # and those of functions in it
            codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
        named = (value.__globals__.get(name) for code in codes for name in code.co_names)
        near = (x for x in named if isinstance(x, Network) or getattr(x, "__module__", None) == value.__module__)
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        parts = [*cells, *(value.__defaults__ or ()), *near]
    elif not isinstance(value, (type, torch.nn.Module)) and inspect.ismethod(getattr(value, "__call__", None)):  # noqa: B004
        parts = [value.__call__]
    for part in parts:
        yield from _within(part, seen)
