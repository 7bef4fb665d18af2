"""Adaptive Runge-Kutta steps, each example with its own: the loop behind ``purevdm.ode.dopri5`` and ``dop853``."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, _tableaus
from purevdm._runge_kutta import Field, Rated, State, along, in_tensors, loop, plus, point, put, total


class Adaptive(NamedTuple):
    """The settings of an adaptive pair.

    Attributes:
        tableau: the pair; with nodes of a quadrature behind its stages, if it has one.
        rtol, atol: the tolerances.
        limit: the most steps.
    """

    tableau: _tableaus.Tableau
    rtol: float | Tensor
    atol: float | Tensor
    limit: int | Tensor


class Arrival(NamedTuple):
    """Where the loop left the examples: NaN where they did not arrive."""

    state: State
    integral: Tensor
    evaluations: Tensor


def integrate(
    settings: Adaptive, field: Field, state: State, start: Tensor, stop: Tensor, rated: Rated | None = None
) -> Arrival:
    """Takes the state from ``start`` to ``stop``, and the integral of a rate along the way.

    Every turn of the loop evaluates one stage of all examples. The nodes of a quadrature follow a step's stages. There
    ``rated`` gives the rate, which decides nothing but that it is finite.
    """
    dtype, device = start.dtype, start.device
    tableau = settings.tableau
    stages, width = in_tensors(tableau, start), len(state)
    nodes = len(tableau.quadrature)
    n = len(tableau.nodes) - nodes
    # Copies: a loop may not be given one tensor twice.
    rtol, atol = (torch.as_tensor(x, dtype=dtype, device=device).clone() for x in (settings.rtol, settings.atol))
    limit = torch.as_tensor(settings.limit, dtype=torch.int64, device=device)
    span = stop - start
    # Steps below this change nothing in the time.
    least = 16.0 * torch.finfo(dtype).eps * torch.maximum(start.abs(), stop.abs())

    def unfinished(stage: Tensor, steps: Tensor, left: Tensor, size: Tensor, *rest: Tensor) -> Tensor:
        return ((left != 0) & (size > 0)).any() & (steps < limit).all()

    def evaluate(
        stage: Tensor, steps: Tensor, left: Tensor, size: Tensor, taken: Tensor, done: Tensor, step: Tensor, *rest: Tensor
    ) -> State:
        state, slopes = rest[:width], rest[width:]
        active = (left != 0) & (size > 0)
        # The last step ends at `stop` exactly, and the one before it leaves no crumb.
        whole = left.abs()
        length = torch.where(size >= whole, whole, torch.minimum(size, 0.5 * whole).where(size > 0.5 * whole, size))
        h = torch.where(active, span.sign() * length, 0.0)
        here = point(stages, stage, stop - left, h, state, slopes)
        if rated is None:
            found = field(*here)
        else:
            found, rate = _either(stage >= n, rated, field, *here)
            step = step + stages.quadrature.index_select(0, stage) * h * rate
        slopes = put(slopes, stage, found)

        # At the first stage of all: the length of the first step.
        first, last = stage == 0, stage == n + nodes - 1
        start_size = 0.01 * _size(state, state, rtol, atol) / _size(tuple(k[0] for k in slopes), state, rtol, atol)
        start_size = torch.minimum(start_size.nan_to_num(0.0, 0.0, 0.0).clamp(min=1e-3 * whole), whole)

        # At the last one: whether to take the step, and how long the next is.
        new = plus(state, total(stages.weights, slopes, h))
        larger = tuple(torch.maximum(a.abs(), b.abs()) for a, b in zip(state, new, strict=True))
        error, *coarser = (_size(total(weights, slopes, h), larger, rtol, atol) for weights in stages.errors.unbind(0))
        for rough in coarser:
            error = (error * error / torch.sqrt(error.square() + 0.01 * rough.square())).where(error > 0, error)
        error = torch.where(step.detach().isfinite(), error, math.nan)
        taken_now = last & active & (error <= 1.0)  # not where it is NaN
        factor = (0.9 * error ** (-1.0 / tableau.order)).nan_to_num(0.2, 5.0, 0.2).clamp(0.2, 5.0)
        factor = torch.where(taken_now, factor, factor.clamp(max=1.0))
        following = length * factor
        following = torch.where(taken_now | (following > least), following, 0.0)  # 0 gives up
        size = torch.where(first, start_size, torch.where(last & active, following, size))
        left = torch.where(taken_now, torch.where(length >= whole, 0.0, left - h), left)
        done = done + torch.where(taken_now, step, 0.0)

        def kept(k: Tensor) -> Tensor:
            """The slopes for the next stage: after a step its last is the first, and no rest of it remains."""
            begin = torch.where(along(taken_now, k[0]), k[n - 1], k[0])
            return torch.where(last, torch.cat([begin[None], torch.zeros_like(k[1:])]), k)

        state = tuple(torch.where(along(taken_now, a), a, b) for a, b in zip(new, state, strict=True))
        following_stage = torch.where(last, 1, stage + 1)
        step = torch.where(last, 0.0, step)
        return following_stage, steps + last, left, size, taken + (last & active), done, step, *state, *map(kept, slopes)

    slopes = tuple(y.new_zeros((n + nodes, *y.shape)) for y in state)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    begin = (zero, zero.clone(), span.clone(), span.abs(), torch.zeros_like(start, dtype=torch.int64))
    sums = (torch.zeros_like(start), torch.zeros_like(start))
    _, _, left, size, taken, done, _, *rest = loop(unfinished, evaluate, (*begin, *sums, *state, *slopes))
    _refuse(left, size, taken, start, stop)
    arrived = left == 0
    ends = tuple(torch.where(along(arrived, y), y, math.nan) for y in rest[:width])
    return Arrival(ends, torch.where(arrived, done, math.nan), 1 + (n + nodes - 1) * taken)


def _either(node: Tensor, rated: Rated, field: Field, t: Tensor, state: State) -> tuple[State, Tensor]:
    """The slopes with the rate at a node, and without it, as 0, at a stage."""

    def with_rate(t: Tensor, *state: Tensor) -> State:
        slopes, rate = rated(t, state)
        return *(k.clone() for k in slopes), rate.clone()  # a branch may not give back what it was given

    def without(t: Tensor, *state: Tensor) -> State:
        return *(k.clone() for k in field(t, state)), torch.zeros_like(t)

    if torch.compiler.is_compiling():
        found = torch.cond(node, with_rate, without, (t, *state))
    else:
        found = (with_rate if node else without)(t, *state)
    return found[:-1], found[-1]


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
