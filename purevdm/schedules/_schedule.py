"""What a schedule is, its values at the times of a batch, and the range that they must keep to."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, _facts
from purevdm._compile import exact, exporting, refuse_zero_derivatives
from purevdm._layout import laid_out
from purevdm._stable import expm1
from purevdm._values import Value
from purevdm.types import Key, Params


class Schedule(Value):
    """A noise schedule. Derive from it and write its methods, or give two functions to :meth:`of`.

    Attributes:
        endpoints: gamma(0) and gamma(1) as it starts, for networks that embed gamma between them. None: a model computes
            them from the schedule's initial parameters.
        contextual: whether gamma takes a context: the example's condition, as the model's functions are given it (MuLAN,
            Sahoo et al. 2024, arXiv 2312.13236).
        observe: for schedules whose parameters hold statistics of the diffusion losses (:mod:`purevdm.importance`):
            ``observe(params, t, losses) -> branches``, those of ``params`` that a batch with these times and losses, each
            (B,), nats, moves. None where there are none.
    """

    endpoints: tuple[float, float] | None = None
    contextual: bool = False
    observe: Callable[..., Params] | None = None

    def init(self, key: Key) -> Params:
        """Makes fresh parameters."""
        raise NotImplementedError

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        """Gives gamma at one time t in [0, 1], shape (): of shape () or of one latent's, of t's dtype, strictly increasing
        in t. A contextual schedule is given one example's context, too.

        In T steps all is given in float64, parameters and context too, so tensors made here are to be of t's dtype."""
        raise NotImplementedError

    def with_gamma_min(self, gamma_min: float) -> "Schedule":
        """Gives the schedule with this gamma_min, if it was made without one: :func:`purevdm.vdm` calls it with the one that
        suits the data (:func:`gamma_min_for`). Others stay as they are."""
        return self

    @staticmethod
    def of(
        init: Callable[[Key], Params],
        gamma: Callable[..., Tensor],
        *,
        endpoints: tuple[float, float] | None = None,
        contextual: bool = False,
    ) -> "Schedule":
        """Makes a schedule of one's own functions, with the arguments of the methods."""
        return Functions(init, gamma, endpoints, contextual)


@dataclass(frozen=True)
class Functions(Schedule):
    """A schedule made of two functions."""

    own_init: Callable[[Key], Params]
    own_gamma: Callable[..., Tensor]
    endpoints: tuple[float, float] | None = None
    contextual: bool = False

    def init(self, key: Key) -> Params:
        return self.own_init(key)

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        return self.own_gamma(params, t, *context)


class Levels(NamedTuple):
    """The noise levels that the bound of a batch needs. Each field is (B,) or (B, *event_shape), the first two without
    the leading axis where no context tells examples apart.

    Attributes:
        gamma_0, gamma_1: gamma at the times 0 and 1.
        gamma_t: gamma at each example's time.
        weight: the weight of its diffusion loss: gamma'(t) in continuous time (eq. 17), T expm1(gamma(t) - gamma(s)) in T
            steps (eq. 14).
    """

    gamma_0: Tensor
    gamma_1: Tensor
    gamma_t: Tensor
    weight: Tensor


def gamma(schedule: Schedule, params: Params, t: Tensor, context: Any = None) -> Tensor:
    """Gives gamma at any number of times.

    Args:
        schedule, params: the schedule and its parameters.
        t: times in [0, 1], floating-point, of any shape.
        context: for a contextual schedule, one context a time: t is then of shape (n,), and so is each tensor's first axis.
            Other schedules ignore it.

    Returns:
        A number or a tensor of the event's shape for each time: ``t.shape`` or ``(*t.shape, *event_shape)``.

    Raises:
        TypeError, ValueError: times that are not floating-point; no context for a contextual schedule.
    """
    params = optree.tree_map(laid_out, params)  # type: ignore[arg-type, assignment]
    values = _over_times(schedule, params, _flat(schedule, t, context), context)
    return values.reshape((*t.shape, *values.shape[1:]))


def gamma_and_slope(schedule: Schedule, params: Params, t: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
    """Gives gamma(t) and its derivative gamma'(t), each as :func:`gamma` returns it, by reverse-mode differentiation.

    So a further backward pass goes through both in one graph, and its gradients are right: those of a forward-mode
    derivative lack terms for the operations that :mod:`purevdm.likelihood.flow` names. They do, too, in an exported
    program, which has forward mode as ``torch.export`` (2.13) cannot trace the other, and where gamma is of the event's
    shape: write such operations out there, as a layer norm by means. :func:`purevdm.testing.check_schedule` finds the
    second case. Arguments and errors are those of :func:`gamma`.
    """
    params = optree.tree_map(laid_out, params)  # type: ignore[arg-type, assignment]
    flat = _flat(schedule, t, context).clone()  # times that were expanded take no tangents

    def of(params: Params, t: Tensor) -> Tensor:
        return _over_times(schedule, params, t, context)

    def backward(cotangent: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gives gamma, and the derivative of its product with a cotangent, or of its sum."""
        values, pull = torch.func.vjp(partial(of, params), flat)  # type: ignore[misc]
        return values, pull(torch.ones_like(values) if cotangent is None else cotangent)[0]

    refuse_zero_derivatives()
    with exact(t.device):
        if exporting():
            # The parameters get zero tangents made here: those that PyTorch makes itself have no storage.
            still = optree.tree_map(torch.zeros_like, params)  # type: ignore[arg-type]
            values, slope = torch.func.jvp(of, (params, flat), (still, torch.ones_like(flat)))  # type: ignore[misc]
        else:
            values, slope = backward(None)
            # Many numbers of one time: `backward` is linear in the cotangent, and its transpose is the slope.
            if values.ndim > 1:
                transposed = torch.func.vjp(lambda c: backward(c)[1], torch.zeros_like(values))[1]  # type: ignore[misc]
                slope = transposed(torch.ones_like(flat))[0]
    return values.reshape((*t.shape, *values.shape[1:])), slope.reshape((*t.shape, *slope.shape[1:]))


def over_step(schedule: Schedule, params: Params, t: Tensor, timesteps: int, context: Any = None) -> tuple[Tensor, Tensor]:
    """Gives gamma(s) and gamma(t) of the steps of 1 / T that end at times t, (n,), as :func:`gamma` does, in float64.

    In a step gamma rises by some 18 / T, and rounding to float32 moves it by up to 5e-7 (and t by 3e-8): the rise would be
    5e-5 off at T = 1,000, and 6e-3 at T = 100,000. Times are taken to be the fractions i / T next to them.
    """
    wide = partial(laid_out, dtype=torch.float64)
    params, context = optree.tree_map(wide, params), optree.tree_map(wide, context)  # type: ignore[arg-type, assignment]
    t = t.double()
    t = t + ((t * timesteps).round() / timesteps - t).detach()  # a derivative in t stays
    gamma_s, gamma_t = (gamma(schedule, params, at, context) for at in (t - 1.0 / timesteps, t))
    return gamma_s, gamma_t


def levels(schedule: Schedule, params: Params, t: Tensor, timesteps: int = 0, context: Any = None) -> Levels:
    """Gives the noise levels of a batch at its times t, (B,), in continuous time or, with ``timesteps`` > 0, in T steps,
    where each time is one of 1/T, ..., 1."""
    if schedule.contextual:
        zero, one = torch.zeros_like(t), torch.ones_like(t)
    else:
        zero, one = torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device).unbind(0)
    gamma_0, gamma_1 = (gamma(schedule, params, end, context) for end in (zero, one))
    if timesteps == 0:
        return Levels(gamma_0, gamma_1, *gamma_and_slope(schedule, params, t, context))
    gamma_s, gamma_t = over_step(schedule, params, t, timesteps, context)
    return Levels(gamma_0, gamma_1, gamma_t.to(t.dtype), (timesteps * expm1(gamma_t - gamma_s)).to(t.dtype))


def _over_times(schedule: Schedule, params: Params, t: Tensor, context: Any) -> Tensor:
    """Gives gamma at times (n,), each with its context."""
    with exact(t.device):
        if schedule.contextual:
            return torch.func.vmap(lambda t, c: schedule.gamma(params, t, c))(t, context)
        return torch.func.vmap(lambda t: schedule.gamma(params, t))(t)


def _flat(schedule: Schedule, t: Tensor, context: Any) -> Tensor:
    _checks.floating("t", t)
    if schedule.contextual and context is None:
        raise ValueError("cond: expected the condition that the schedule takes for its context, got None")
    return t.reshape(-1)


# The range


# Beyond, alpha and sigma, exp(-gamma), or expm1(gamma_1 - gamma_0) leave the dtype's range.
LIMITS = {torch.float32: 40.0, torch.float64: 300.0}


def limit(dtype: torch.dtype) -> float:
    """Gives the greatest size of gamma in a dtype."""
    return LIMITS.get(dtype, LIMITS[torch.float32])


def slack(dtype: torch.dtype) -> float:
    """Gives by how much gamma may seem to fall between two near times: what rounding makes of a rise."""
    return 256.0 * torch.finfo(dtype).eps


def increasing(schedule: Schedule, params: Params, like: Tensor, context: Any = None) -> list[_facts.Fact]:
    """Gives the fact that gamma is finite, within its dtype's limit, and increases, in the dtype and on the device of
    ``like``: at nine times; under a context at five, for every example."""
    if not _facts.readable(like):
        return []
    with torch.no_grad():
        t = torch.linspace(0.0, 1.0, 5 if schedule.contextual else 9, dtype=like.dtype, device=like.device)
        n = next((len(leaf) for leaf in _checks.leaves(context).values() if leaf.ndim), 1) if schedule.contextual else 1
        if schedule.contextual:
            values = torch.stack([gamma(schedule, params, time.expand(n), context) for time in t])
        else:
            values = gamma(schedule, params, t)
    most = limit(like.dtype)

    def error() -> Exception:
        at_times = _facts.plain(values).double().cpu().reshape(len(t), n, -1)
        bad = ~(at_times.isfinite() & (at_times.abs() <= most))
        bad[1:] |= ~(at_times.diff(dim=0) > 0)
        i = int(bad.any(2).any(0).int().argmax())
        wanted = f"strictly increasing, from {-most:g} at least to {most:g} at most"
        got = ", ".join(f"{value:.4g}" for value in at_times[:: len(t) // 4, i].mean(1).tolist())
        means = " (means over dimensions)" if at_times.shape[2] > 1 else ""
        example = f" in example {i}" if schedule.contextual else ""
        times = "at t = 0, 1/4, 1/2, 3/4, 1"
        return ValueError(f"schedule: expected gamma(t) to be {wanted}, got {got} {times}{means}{example}")

    return [_facts.Fact((values.abs() <= most).all() & (values.diff(dim=0) > 0).all(), error)]


def rising(levels: Levels, timesteps: int = 0) -> list[_facts.Fact]:
    """Gives the fact that gamma is finite and does not fall where a batch's bound looks at it, for every example."""
    gamma_0, gamma_1, gamma_t, weight = levels
    if not _facts.readable(gamma_t):
        return []
    few = slack(gamma_t.dtype)

    def error() -> Exception:
        low, high, least = (_facts.plain(v).double().min() for v in (gamma_t - gamma_0, gamma_1 - gamma_t, weight))
        rise = "its derivative" if timesteps == 0 else f"{timesteps} expm1 of its rise"
        return ValueError(
            "schedule: expected gamma(t) to be finite and to increase at the times of every example, got "
            f"gamma(t) - gamma(0) of {low:.4g} at least, gamma(1) - gamma(t) of {high:.4g}, and {rise} of {least:.4g}"
        )

    inside = (gamma_t - gamma_0 >= -few) & (gamma_1 - gamma_t >= -few)
    return [_facts.Fact(inside & (weight >= -few * max(timesteps, 16)) & weight.isfinite(), error)]
