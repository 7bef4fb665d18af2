"""Learned schedules with a gamma for each dimension, under a context or none (MuLAN, Sahoo et al. 2024, arXiv
2312.13236)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm import _checks, nn, random
from purevdm._compile import fixed
from purevdm.schedules._kinds import Linear, line, pinned
from purevdm.schedules._schedule import Schedule
from purevdm.types import Key, Params, Shape

# Gauss-Legendre on [0, 1], exact for polynomials up to degree 5.
_NODES = tuple((x, w / 18.0) for x, w in ((0.5 - math.sqrt(0.15), 5.0), (0.5, 8.0), (0.5 + math.sqrt(0.15), 5.0)))


@dataclass(frozen=True)
class Multivariate(Linear):
    """What these schedules share: a latent's shape, the number of entries of the context, and of hidden units."""

    event_shape: tuple[int, ...]
    context: int
    hidden: int

    @property
    def contextual(self) -> bool:  # type: ignore[override]
        return self.context > 0

    @property
    def numbers(self) -> int:
        """How many numbers a latent has."""
        return math.prod(self.event_shape)

    def read(self, context: tuple[Any, ...], like: Tensor) -> Tensor | None:
        """Gives what the schedule takes of an example's condition: its last numbers."""
        if not self.context:
            return None
        c = _checks.floating("cond", context[0])
        if c.ndim != 1 or len(c) < self.context:
            raise ValueError(f"cond: expected at least {self.context} numbers an example, got {_checks.describe(c)}")
        return c[-self.context :].to(like.dtype)


@dataclass(frozen=True)
class Polynomial(Multivariate):
    """The schedule of :func:`polynomial`."""

    def init(self, key: Key) -> Params:
        n = self.numbers
        if not self.context:
            zeros = torch.zeros(n, dtype=torch.float32, device=key.device)
            return {name: zeros.clone() for name in "abc"}
        k1, k2, k_b, k_c = random.split(key, 4).unbind(0)
        return {
            "dense1": nn.dense_init(k1, self.context, self.hidden),
            "dense2": nn.dense_init(k2, self.hidden, self.hidden),
            "a": nn.dense_init(key, self.hidden, n, kernel_init=nn.zeros),
            "b": nn.dense_init(k_b, self.hidden, n),
            "c": nn.dense_init(k_c, self.hidden, n),
        }

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        (low, high), code = self.ends(), self.read(context, t)
        if code is None:
            a, b, c = (params[name] for name in "abc")
        else:
            h = nn.swish(nn.dense(params["dense2"], nn.swish(nn.dense(params["dense1"], code))))
            a, b, c = (nn.dense(params[name], h) for name in "abc")
        c = 1e-3 + F.softplus(c)

        def area(t: Tensor) -> Tensor:
            """Computes the integral of the square from 0 to t, a sum of terms of at least 0."""
            return t * sum(w * (a * (t * x).square() + b * (t * x) + c).square() for x, w in _NODES)

        risen = pinned(area(t) / area(torch.ones_like(t)), t)
        return (low * (1.0 - risen) + high * risen).reshape(self.event_shape)


def polynomial(
    event_shape: Shape,
    context: int = 0,
    *,
    hidden: int | None = None,
    gamma_min: float | None = None,
    gamma_max: float = 5.0,
) -> Schedule:
    """Makes a learned schedule for each dimension, a polynomial of degree 5 between exact endpoints (Sahoo et al.
    2024): gamma'(t) is proportional to (a t**2 + b t + c)**2.

    a, b and c > 0 are parameters of each dimension or, under a context, a network of it with two hidden layers: every
    example then has its own gamma(t). Dimensions share the endpoints; :mod:`purevdm.codes` says for which data the bound
    depends on what lies between.

    Args:
        event_shape: a latent's.
        context: how many numbers of the condition it takes, the last ones of a tensor (B, n), n at least so many; 0 for a
            schedule without a context. A model's code stands there (:mod:`purevdm.codes`).
        hidden: the width of the hidden layers; as many as a latent has numbers where left out, as in the official code.
        gamma_min, gamma_max: the endpoints, which do not learn; as for :func:`fixed_linear`.

    Returns:
        A schedule with the parameters ``{"a": (n,), "b": (n,), "c": (n,)}``, n the numbers of a latent, or
        ``{"dense1", "dense2", "a", "b", "c"}``, each ``{"kernel", "bias"}``.

    Raises:
        TypeError, ValueError: endpoints as for :func:`fixed_linear`, sizes below 1, a context below 0.

    >>> import torch
    >>> from purevdm import random, schedules
    >>> schedule = schedules.polynomial((2, 3), context=4)
    >>> t, codes = torch.tensor([0.0, 0.5, 1.0]), random.normal(random.key(1), (3, 4))
    >>> gamma = schedules.gamma(schedule, schedule.init(random.key(0)), t, codes)
    >>> gamma.shape, gamma[0].unique().tolist(), gamma[2].unique().tolist()
    (torch.Size([3, 2, 3]), [-13.300000190734863], [5.0])
    """
    low, high = line(gamma_min, gamma_max)
    return Polynomial(low, high, *_sizes(event_shape, context, hidden))


def _sizes(event_shape: Shape, context: int, hidden: int | None) -> tuple[tuple[int, ...], int, int]:
    shape = _checks.integers("event_shape", event_shape, 1)
    units = math.prod(shape) if hidden is None else _checks.integer("hidden", hidden, 1)
    return shape, _checks.integer("context", context, 0), units


@dataclass(frozen=True)
class MultivariateMLP(Multivariate):
    """The schedule of :func:`multivariate_mlp`."""

    def init(self, key: Key) -> Params:
        (low, high), (k2, k_int, k3) = self.endpoints, random.split(key, 3).unbind(0)
        small, hidden = nn.normal(1e-2), self.hidden
        first = nn.dense_init(key, 1, 1, kernel_init=nn.constant(high - low))
        return {
            "l1": first | {"bias": torch.tensor([low], dtype=torch.float32, device=key.device)},
            "l2": nn.dense_init(k2, self.context + 1, hidden, kernel_init=small),
            "l_int": nn.dense_init(k_int, hidden, hidden, kernel_init=small),
            "l3": nn.dense_init(k3, hidden, self.numbers, bias=False, kernel_init=small),
        }

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        code, b, w = self.read(context, t), params["l1"]["bias"][0], params["l1"]["kernel"][0, 0].abs()

        def bump(t: Tensor) -> Tensor:
            inputs = t[None] if code is None else torch.cat([code, t[None]])
            h = torch.tanh(0.5 * nn.monotone_dense(params["l2"], 2.0 * inputs - 1.0, None))
            h = torch.tanh(0.5 * nn.monotone_dense(params["l_int"], h, None))
            return nn.monotone_dense(params["l3"], h, None) / fixed(self.hidden)

        start, end = bump(torch.zeros_like(t)), bump(torch.ones_like(t))
        risen = (w * t + (bump(t) - start)) / (w + (end - start))
        return (b + w * pinned(risen, t)).reshape(self.event_shape)


def multivariate_mlp(
    event_shape: Shape,
    context: int = 0,
    *,
    hidden: int | None = None,
    gamma_min: float | None = None,
    gamma_max: float = 5.0,
) -> Schedule:
    """Makes a learned monotone network for each dimension: a line, plus two hidden layers of the context and t, whose
    kernels enter by their absolute values (the network that Sahoo et al. 2024 compare to), rescaled to exact endpoints.

    Arguments and errors are those of :func:`polynomial`; the endpoints, which all dimensions share, learn.

    Returns:
        A schedule with the parameters ``{"l1", "l2", "l_int", "l3"}``, each ``{"kernel", "bias"}``, the last without a bias.

    >>> from purevdm import schedules, testing
    >>> testing.check_schedule(schedules.multivariate_mlp((3,), hidden=16), event_shape=(3,))
    """
    low, high = line(gamma_min, gamma_max)
    return MultivariateMLP(low, high, *_sizes(event_shape, context, hidden))
