"""Adaptive Runge-Kutta steps, each example with its own: the loop behind ``purevdm.ode.dopri5`` and ``dop853``."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, _tableaus
from purevdm._runge_kutta import Field, Rated, Solution, State, along, in_tensors, loop, plus, point, put, total


class Adaptive(NamedTuple):
    """The settings of an adaptive pair.

    Attributes:
        tableau: the pair; with the inner points of a quadrature behind its stages, if it has one.
        rtol, atol: the tolerances.
        limit: the most steps.
        failures: "raise" for an error, in eager, where an example does not arrive; "nan" to leave it NaN.
    """

    tableau: _tableaus.Tableau
    rtol: float | Tensor
    atol: float | Tensor
    limit: int | Tensor
    failures: str = "raise"


def integrate(
    settings: Adaptive, field: Field, state: State, start: Tensor, stop: Tensor, rated: Rated | None = None
) -> Solution:
    """Takes the state from ``start`` to ``stop``; NaN where an example did not arrive.

    Every turn of the loop evaluates one stage of all examples. With ``rated``, the state that it gives ends with the
    integral of a rate along the way, by the tableau's quadrature. The rate decides nothing but that it is finite.
    """
    dtype, device = start.dtype, start.device
    stages, width = in_tensors(settings.tableau, start, state), len(state)
    n, points = len(settings.tableau.weights), len(settings.tableau.nodes)
    if rated is not None:
        state = *state, torch.zeros_like(start, dtype=state[0].dtype)
    parts = len(state)
    # Copies: a loop may not be given one tensor twice.
    rtol, atol = (torch.as_tensor(x, dtype=state[0].dtype, device=device).clone() for x in (settings.rtol, settings.atol))
    limit = torch.as_tensor(settings.limit, dtype=torch.int64, device=device)
    span = stop - start
    # Steps below this change nothing in the time.
    least = 16.0 * torch.finfo(dtype).eps * torch.maximum(start.abs(), stop.abs())

    def unfinished(stage: Tensor, steps: Tensor, left: Tensor, size: Tensor, *rest: Tensor) -> Tensor:
        return ((left != 0) & (size > 0)).any() & (steps < limit).all()

    def evaluate(stage: Tensor, steps: Tensor, left: Tensor, size: Tensor, taken: Tensor, *rest: Tensor) -> State:
        (state, integral), slopes = (rest[:width], rest[width:parts]), rest[parts:]
        active = (left != 0) & (size > 0)
        # The last step ends at `stop` exactly, and the one before it leaves no crumb.
        whole = left.abs()
        length = torch.where(size >= whole, whole, torch.minimum(size, 0.5 * whole).where(size > 0.5 * whole, size))
        h = torch.where(active, span.sign() * length, 0.0)
        here = point(stages, stage, stop - left, h, state, slopes[:width])
        if rated is None:
            found = field(*here)
        else:
            found = _either(stages.quadrature.index_select(0, stage) != 0, rated, field, *here)
        slopes = put(slopes, stage, found)
        moves, rates = slopes[:width], slopes[width:]

        # At the first stage of all: the length of the first step.
        first, last = stage == 0, stage == points - 1
        start_size = 0.01 * _size(state, state, rtol, atol) / _size(tuple(k[0] for k in moves), state, rtol, atol)
        start_size = torch.minimum(start_size.to(dtype).nan_to_num(0.0, 0.0, 0.0).clamp(min=1e-3 * whole), whole)

        # At the last one: whether to take the step, and how long the next is.
        new = plus(state, total(stages.weights, moves, h))
        larger = tuple(torch.maximum(a.abs(), b.abs()) for a, b in zip(state, new, strict=True))
        error, *coarser = (_size(total(weights, moves, h), larger, rtol, atol) for weights in stages.errors.unbind(0))
        for rough in coarser:
            error = (error * error / torch.sqrt(error.square() + 0.01 * rough.square())).where(error > 0, error)
        sums = plus(integral, total(stages.quadrature, rates, h))
        for one in sums:
            error = torch.where(one.detach().isfinite(), error, math.nan)
        taken_now = last & active & (error <= 1.0)  # not where it is NaN
        factor = (0.9 * error.to(dtype) ** (-1.0 / settings.tableau.order)).nan_to_num(0.2, 5.0, 0.2).clamp(0.2, 5.0)
        factor = torch.where(taken_now, factor, factor.clamp(max=1.0))
        following = length * factor
        following = torch.where(taken_now | (following > least), following, 0.0)  # 0 gives up
        size = torch.where(first, start_size, torch.where(last & active, following, size))
        left = torch.where(taken_now, torch.where(length >= whole, 0.0, left - h), left)

        def kept(k: Tensor) -> Tensor:
            """The slopes for the next stage: after a step its last is the first, and no rest of it remains."""
            begin = torch.where(along(taken_now, k[0]), k[n - 1], k[0])
            return torch.where(last, torch.cat([begin[None], torch.zeros_like(k[1:])]), k)

        pairs = zip((*new, *sums), (*state, *integral), strict=True)
        reached = tuple(torch.where(along(taken_now, a), a, b) for a, b in pairs)
        following_stage = torch.where(last, 1, stage + 1)
        return following_stage, steps + last, left, size, taken + (last & active), *reached, *map(kept, slopes)

    slopes = tuple(y.new_zeros((points, *y.shape)) for y in state)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    begin = (zero, zero.clone(), span.clone(), span.abs(), torch.zeros_like(start, dtype=torch.int64))
    _, _, left, size, taken, *rest = loop(unfinished, evaluate, (*begin, *state, *slopes))
    if settings.failures == "raise":
        _refuse(left, size, taken, start, stop)
    ends = tuple(torch.where(along(left == 0, y), y, math.nan) for y in rest[:parts])
    return Solution(ends, 1 + (points - 1) * taken)


def _either(counts: Tensor, rated: Rated, field: Field, t: Tensor, state: State) -> State:
    """The slopes with the rate behind them, which is 0 where it does not count."""

    def with_rate(t: Tensor, *state: Tensor) -> State:
        slopes, rate = rated(t, state)
        return *(k.clone() for k in slopes), rate.clone()  # a branch may not give back what it was given

    def without(t: Tensor, *state: Tensor) -> State:
        return *(k.clone() for k in field(t, state)), torch.zeros_like(t, dtype=state[0].dtype)

    if torch.compiler.is_compiling():
        return torch.cond(counts, with_rate, without, (t, *state))
    return (with_rate if counts else without)(t, *state)


def _size(e: State, y: State, rtol: Tensor, atol: Tensor) -> Tensor:
    """The size of e in units of what is tolerated at y, (B,). Derivatives do not pass: steps are as long as they are."""
    e, y = (tuple(part.detach() for part in parts) for parts in (e, y))
    ratios = ((a / (atol + rtol * b.abs())).square().reshape(len(a), -1).mean(1).sqrt() for a, b in zip(e, y, strict=True))
    return torch.stack(list(ratios)).amax(0)


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
        return ValueError(f"field: {where}; what it gives is not finite there, or changes faster than any step resolves")

    _checks.verify([_checks.Fact(left == 0, error)])
