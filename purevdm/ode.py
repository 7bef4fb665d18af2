"""Ordinary differential equations for a batch: fixed grids of Runge-Kutta steps, and adaptive steps of orders 5 and 8.

A state is a tuple of tensors with a leading axis B, one row an example, and ``field(t, state) -> slopes`` gives its
derivative at the times t, (B,). An :class:`Integrator` takes the state from ``start`` to ``stop``, either direction. In
eager the loop is Python's. Under ``torch.compile`` it is one ``torch.while_loop``.

>>> import torch
>>> from purevdm import ode
>>> def field(t, state):
...     return (-state[0],)
>>> done = ode.dopri5(rtol=1e-8, atol=1e-8)(field, (torch.ones(2, 1, dtype=torch.float64),), torch.zeros(2), torch.ones(2))
>>> bool((done.state[0] - torch.tensor(-1.0).exp()).abs().max() < 1e-7)
True
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, _tableaus, _values

__all__ = ["Integrator", "Solution", "dop853", "dopri5", "heun", "rk4"]

State = tuple[Tensor, ...]
Field = Callable[[Tensor, State], State]


class Solution(NamedTuple):
    """What an integrator gives.

    Attributes:
        state: the state at ``stop``. An example that did not get there is NaN in a compiled graph, and an error in eager.
        evaluations: how often each example's field was evaluated while it was on its way, int64 (B,).
    """

    state: State
    evaluations: Tensor


@_values.by_content
class Integrator(NamedTuple):
    """A way to integrate.

    Attributes:
        solve: ``solve(field, state, start, stop) -> Solution``, with start and stop (B,).
    """

    solve: Callable[[Field, State, Tensor, Tensor], Solution]

    def __call__(self, field: Field, state: State, start: Tensor, stop: Tensor) -> Solution:
        """Integrates. In eager, derivatives pass through the steps that were taken."""
        if not isinstance(state, tuple) or not state:
            raise TypeError(f"state: expected a tuple of tensors, got {_checks.describe(state)}")
        for name, time in (("start", start), ("stop", stop)):
            _checks.shaped(name, _checks.floating(name, time), state[0].shape[:1])
        return self.solve(field, state, start.to(state[0].dtype), stop.to(state[0].dtype))


# Runge-Kutta steps


class Stages(NamedTuple):
    """A tableau in tensors, so that one evaluation of the field in a loop serves every stage."""

    nodes: Tensor
    rows: Tensor
    weights: Tensor
    errors: Tensor


def _in_tensors(tableau: _tableaus.Tableau, like: Tensor) -> Stages:
    n = len(tableau.nodes)
    rows, errors = ([[*row, *[0.0] * (n - len(row))] for row in part] for part in (tableau.rows, tableau.errors))
    parts = (tableau.nodes, rows, tableau.weights, errors)
    return Stages(*(torch.tensor(part, dtype=like.dtype, device=like.device) for part in parts))


def _along(h: Tensor, x: Tensor) -> Tensor:
    """A number an example, (B,), shaped to broadcast against (B, ...)."""
    return h.reshape(h.shape + (1,) * (x.ndim - 1))


def _sum(weights: Tensor, slopes: State, h: Tensor) -> State:
    """h times the weighted sum of the slopes, each (stages, B, ...)."""
    return tuple(_along(h, k[0]) * torch.tensordot(weights, k, 1) for k in slopes)


def _plus(a: State, b: State) -> State:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _evaluated(stages: Stages, field: Field, stage: Tensor, t: Tensor, h: Tensor, state: State, slopes: State) -> State:
    """The slopes with that of one stage put in."""
    row = stages.rows.index_select(0, stage)[0]
    found = field(t + stages.nodes.index_select(0, stage) * h, _plus(state, _sum(row, slopes, h)))
    return tuple(k.index_copy(0, stage, new[None]) for k, new in zip(slopes, found, strict=True))


# Fixed grids


def heun(steps: int | Tensor) -> Integrator:
    """Heun's method, of order 2, in even steps: two evaluations each.

    Args:
        steps: how many; in an integer tensor of shape (), one compiled graph serves every number.

    Raises:
        TypeError, ValueError: steps below 1 or of the wrong form. From the integrator, in eager: a state that is not
            finite; the example and the step are named.
    """
    return Integrator(partial(_fixed, _tableaus.HEUN, _checks.count("steps", steps)))


def rk4(steps: int | Tensor) -> Integrator:
    """The classical Runge-Kutta method, of order 4, in even steps: four evaluations each. Arguments as :func:`heun`."""
    return Integrator(partial(_fixed, _tableaus.RK4, _checks.count("steps", steps)))


def _fixed(
    tableau: _tableaus.Tableau, steps: int | Tensor, field: Field, state: State, start: Tensor, stop: Tensor
) -> Solution:
    stages, n, width = _in_tensors(tableau, start), len(tableau.nodes), len(state)
    total = torch.as_tensor(steps, dtype=torch.int64)
    count = total.to(start.device)
    h = (stop - start) / count

    def unfinished(host: Tensor, *rest: Tensor) -> Tensor:
        return host < total * n

    def evaluate(host: Tensor, here: Tensor, broken: Tensor, *rest: Tensor) -> State:
        state, slopes = rest[:width], rest[width:]
        step, stage = here // n, here % n
        slopes = _evaluated(stages, field, stage, start + h * step, h, state, slopes)
        last = stage == n - 1
        moved = _plus(state, _sum(stages.weights, slopes, h))
        new = tuple(torch.where(last, a, b) for a, b in zip(moved, state, strict=True))
        broken = torch.where((broken < 0) & ~_finite(new), step, broken)
        return host + 1, here + 1, broken, *new, *slopes

    slopes = tuple(y.new_zeros((n, *y.shape)) for y in state)
    zero = torch.zeros((), dtype=torch.int64)
    begin = (zero, torch.zeros(1, dtype=torch.int64, device=start.device), torch.full_like(start, -1, dtype=torch.int64))
    _, _, broken, *rest = _while(unfinished, evaluate, (*begin, *state, *slopes))

    def error() -> Exception:
        i = int((_checks.plain(broken) >= 0).nonzero()[0])
        step = int(_checks.plain(broken)[i])
        at = (_checks.plain(start) + _checks.plain(h) * step)[i]
        return ValueError(f"field: expected finite slopes, got NaN or infinity in example {i}, step {step}, from {at:.6g}")

    if _checks.readable(broken):
        _checks.verify([_checks.Fact(broken < 0, error)])
    return Solution(tuple(rest[:width]), (count * n).expand(len(start)).clone())


# An adaptive pair


class Adaptive(NamedTuple):
    """The settings of :func:`dopri5` and :func:`dop853`."""

    tableau: _tableaus.Tableau
    rtol: float | Tensor
    atol: float | Tensor
    limit: int | Tensor


def dopri5(rtol: float | Tensor = 1e-5, atol: float | Tensor = 1e-5, limit: int | Tensor = 10_000) -> Integrator:
    """The pair of orders 5 and 4 of Dormand & Prince (1980), each example with steps of its own: six evaluations each.

    A step is taken where its estimated error is at most atol + rtol |y|, in the root mean square over each tensor of the
    state; the ratio e of the worst tensor counts. The next step is 0.9 e**(-1/5) times as long, between a fifth and five
    times. The first moves the state by a hundredth of its size.

    Args:
        rtol, atol: the tolerances, above 0. In tensors of shape (), one compiled graph serves all.
        limit: the most steps, taken or rejected.

    Raises:
        TypeError, ValueError: tolerances or a limit out of range. From the integrator, in eager: an example that did not
            arrive within the limit, or whose slopes are not finite. The example, the time and the step are named.
    """
    return _pair(_tableaus.DOPRI5, rtol, atol, limit)


def dop853(rtol: float | Tensor = 1e-5, atol: float | Tensor = 1e-5, limit: int | Tensor = 10_000) -> Integrator:
    """DOP853, the method of order 8 of Dormand & Prince (Hairer, Norsett & Wanner 1993, sec. II.10), each example with steps
    of its own: twelve evaluations each.

    The error e = e_5**2 / sqrt(e_5**2 + 0.01 e_3**2) is from estimates of orders 5 and 3. The next step is 0.9 e**(-1/8)
    times as long. The rest, and the arguments, as :func:`dopri5`.
    """
    return _pair(_tableaus.DOP853, rtol, atol, limit)


def _pair(tableau: _tableaus.Tableau, rtol: float | Tensor, atol: float | Tensor, limit: int | Tensor) -> Integrator:
    settings = Adaptive(tableau, _tolerance("rtol", rtol), _tolerance("atol", atol), _checks.count("limit", limit))
    return Integrator(partial(_adaptive, settings))


def _tolerance(name: str, x: float | Tensor) -> float | Tensor:
    if isinstance(x, Tensor):
        _checks.shaped(name, _checks.floating(name, x), ())
        if _checks.readable(x):
            error = ValueError(f"{name}: expected a finite number above 0, got {_checks.plain(x).item()}")
            _checks.verify([_checks.Fact((x > 0) & x.isfinite(), lambda: error)])
    elif _checks.real(name, x) <= 0.0:
        raise ValueError(f"{name}: expected a number above 0, got {x}")
    return x


def _adaptive(settings: Adaptive, field: Field, state: State, start: Tensor, stop: Tensor) -> Solution:
    dtype, device = start.dtype, start.device
    tableau = settings.tableau
    stages, n, width = _in_tensors(tableau, start), len(tableau.nodes), len(state)
    # Copies: a loop may not be given one tensor twice.
    rtol, atol = (torch.as_tensor(x, dtype=dtype, device=device).clone() for x in (settings.rtol, settings.atol))
    limit = torch.as_tensor(settings.limit, dtype=torch.int64, device=device)
    span = stop - start
    # Steps below this change nothing in the time.
    least = 16.0 * torch.finfo(dtype).eps * torch.maximum(start.abs(), stop.abs())

    def unfinished(stage: Tensor, steps: Tensor, left: Tensor, size: Tensor, *rest: Tensor) -> Tensor:
        return ((left != 0) & (size > 0)).any() & (steps < limit).all()

    def evaluate(stage: Tensor, steps: Tensor, left: Tensor, size: Tensor, taken: Tensor, *rest: Tensor) -> State:
        state, slopes = rest[:width], rest[width:]
        active = (left != 0) & (size > 0)
        # The last step ends at `stop` exactly, and the one before it leaves no crumb.
        whole = left.abs()
        length = torch.where(size >= whole, whole, torch.minimum(size, 0.5 * whole).where(size > 0.5 * whole, size))
        h = torch.where(active, span.sign() * length, 0.0)
        slopes = _evaluated(stages, field, stage, stop - left, h, state, slopes)

        # At the first stage of all: the length of the first step.
        first, last = stage == 0, stage == n - 1
        start_size = 0.01 * _size(state, state, rtol, atol) / _size(tuple(k[0] for k in slopes), state, rtol, atol)
        start_size = torch.minimum(start_size.nan_to_num(0.0, 0.0, 0.0).clamp(min=1e-3 * whole), whole)

        # At the last one: whether to take the step, and how long the next is.
        new = _plus(state, _sum(stages.weights, slopes, h))
        larger = tuple(torch.maximum(a.abs(), b.abs()) for a, b in zip(state, new, strict=True))
        error, *coarser = (_size(_sum(weights, slopes, h), larger, rtol, atol) for weights in stages.errors.unbind(0))
        for rough in coarser:
            error = (error * error / torch.sqrt(error.square() + 0.01 * rough.square())).where(error > 0, error)
        taken_now = last & active & (error <= 1.0)  # not where it is NaN
        factor = (0.9 * error ** (-1.0 / tableau.order)).nan_to_num(0.2, 5.0, 0.2).clamp(0.2, 5.0)
        factor = torch.where(taken_now, factor, factor.clamp(max=1.0))
        following = length * factor
        following = torch.where(taken_now | (following > least), following, 0.0)  # 0 gives up
        size = torch.where(first, start_size, torch.where(last & active, following, size))
        left = torch.where(taken_now, torch.where(length >= whole, 0.0, left - h), left)

        def kept(k: Tensor) -> Tensor:
            """The slopes for the next stage: after a step its last is the first, and no rest of it remains."""
            begin = torch.where(_along(taken_now, k[0]), k[-1], k[0])
            return torch.where(last, torch.cat([begin[None], torch.zeros_like(k[1:])]), k)

        state = tuple(torch.where(_along(taken_now, a), a, b) for a, b in zip(new, state, strict=True))
        following_stage = torch.where(last, 1, stage + 1)
        return following_stage, steps + last, left, size, taken + (last & active), *state, *map(kept, slopes)

    slopes = tuple(y.new_zeros((n, *y.shape)) for y in state)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    begin = (zero, zero.clone(), span.clone(), span.abs(), torch.zeros_like(start, dtype=torch.int64))
    _, _, left, size, taken, *rest = _while(unfinished, evaluate, (*begin, *state, *slopes))
    _refuse(left, size, taken, start, stop)
    arrived = left == 0
    return Solution(tuple(torch.where(_along(arrived, y), y, math.nan) for y in rest[:width]), 1 + (n - 1) * taken)


def _size(e: State, y: State, rtol: Tensor, atol: Tensor) -> Tensor:
    """The size of e in units of what is tolerated at y, (B,). Derivatives do not pass: steps are as long as they are."""
    e, y = (tuple(part.detach() for part in parts) for parts in (e, y))
    ratios = ((a / (atol + rtol * b.abs())).square().reshape(len(a), -1).mean(1).sqrt() for a, b in zip(e, y, strict=True))
    return torch.stack(list(ratios)).amax(0)


# What both share


def _while(condition: Callable[..., Tensor], step: Callable[..., State], state: State) -> State:
    if torch.compiler.is_compiling():
        if torch.is_grad_enabled() and any(y.requires_grad for y in state):
            raise RuntimeError("integrator: a compiled loop passes no derivatives; take them in eager, or detach the state")
        return torch.while_loop(condition, step, state)
    while True:
        going = condition(*state)
        if _checks.mapped(going):
            raise RuntimeError(
                "integrator: torch.func.vmap cannot map over a loop that ends when every example has arrived; give all "
                "examples in one batch, or integrate by a fixed grid such as purevdm.ode.rk4"
            )
        if not going:
            return state
        state = step(*state)


def _finite(state: State) -> Tensor:
    return torch.stack([y.isfinite().reshape(len(y), -1).all(1) for y in state]).all(0)


def _refuse(left: Tensor, size: Tensor, taken: Tensor, start: Tensor, stop: Tensor) -> None:
    """An error, in eager, where an example did not arrive."""
    if not _checks.readable(left):
        return

    def error() -> Exception:
        i = int((_checks.plain(left) != 0).nonzero()[0])
        at, to, steps = (_checks.plain(stop) - _checks.plain(left))[i], _checks.plain(stop)[i], int(_checks.plain(taken)[i])
        where = f"example {i} stopped at {at:.6g} on its way to {to:.6g}, after {steps} steps"
        if _checks.plain(size)[i] > 0:
            return ValueError(f"limit: {where}; give a larger limit or larger tolerances")
        return ValueError(f"field: {where}; its slopes are not finite there, or change faster than any step resolves")

    _checks.verify([_checks.Fact(left == 0, error)])
