"""Adaptive Runge-Kutta steps, each example with its own."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from purevdm import _checks, _facts
from purevdm.ode._integrator import Field, Integrator, Solution, State
from purevdm.ode._runge_kutta import (
    DOPRI5,
    LOBATTO,
    Tableau,
    column,
    in_tensors,
    loop,
    plus,
    point,
    put,
    total,
    with_quadrature,
)


def dopri5(
    rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-5,
    limit: int | Tensor = 10_000,
    *,
    quadrature: int | None = None,
    failures: str = "raise",
) -> Integrator:
    """Integrates by the pair of orders 5 and 4 of Dormand & Prince (1980), each example in steps of its own: six evaluations
    each.

    A step is taken where its estimated error is at most atol + rtol |y|, in the root mean square over each tensor of the
    state, over numbers that are not 0 or do not stay so; the ratio e of the worst tensor counts. The next step is
    0.9 e**(-1/5) times as long, between a fifth and five times. The first moves the state by a hundredth of its size.

    Args:
        rtol, atol: the tolerances, above 0. In tensors of shape (), one compiled graph serves all.
        limit: the most steps, taken or rejected.
        quadrature: how :meth:`Integrator.along` computes an integral, as that of a divergence. Where left out, it is one
            more number of the state, with the same tolerance: its rate is evaluated at all stages. 2, 3 or 4: by Lobatto's
            rule of so many points a step, of order 2, 4 or 5. Steps share their ends, so each needs one rate fewer than
            points: cheaper, where a rate costs more than the slopes. But the integral's error steers no step. It may be off
            by far more than the tolerances, most of all by 2 points, and where the rate changes and the state hardly does.
        failures: what becomes of an example that does not arrive, as for :func:`heun`.

    Raises:
        TypeError, ValueError: tolerances or a limit out of range. From the integrator, in eager mode: an example that did
            not arrive within the limit, or whose slopes are not finite. The example, the time and the step are named.
    """
    if quadrature is not None and _checks.integer("quadrature", quadrature, 1) not in LOBATTO:
        raise ValueError(f"quadrature: expected 2, 3 or 4 points a step, or None, got {quadrature}")
    failures = _checks.choice("failures", failures, ("raise", "nan"))
    tolerances = _tolerance("rtol", rtol), _tolerance("atol", atol)
    return Adaptive(*tolerances, _checks.count("limit", limit), quadrature, failures)


def _tolerance(name: str, x: float | Tensor) -> float | Tensor:
    if isinstance(x, Tensor):
        _checks.shaped(name, _checks.floating(name, x), ())
        if _facts.readable(x):
            error = ValueError(f"{name}: expected a finite number above 0, got {_facts.plain(x).item()}")
            _facts.verify([_facts.Fact((x > 0) & x.isfinite(), lambda: error)])
    else:
        _checks.positive(name, x)
    return x


@dataclass(frozen=True)
class Adaptive(Integrator):
    """The integrator of :func:`dopri5`."""

    rtol: float | Tensor
    atol: float | Tensor
    limit: int | Tensor
    quadrature: int | None = None
    failures: str = "raise"

    def solve(self, field: Field, state: State, start: Tensor, stop: Tensor) -> Solution:
        return self._solve(DOPRI5, field, None, state, start, stop)

    def solve_along(self, field: Field, rated: Field, state: State, start: Tensor, stop: Tensor) -> Solution:
        if self.quadrature is None:
            return super().solve_along(field, rated, state, start, stop)
        return self._solve(with_quadrature(DOPRI5, self.quadrature), field, rated, state, start, stop)

    def _solve(
        self, tableau: Tableau, field: Field, rated: Field | None, state: State, start: Tensor, stop: Tensor
    ) -> Solution:
        """Takes the state from ``start`` to ``stop``: every turn of the loop evaluates one stage of all examples. With
        ``rated``, the state that it gives ends with the integral of a rate, by the tableau's quadrature."""
        dtype, device = start.dtype, start.device
        stages, width = in_tensors(tableau, start, state), len(state)
        n, points = len(tableau.weights), len(tableau.nodes)
        if rated is not None:
            state = *state, torch.zeros_like(start, dtype=state[0].dtype)
        parts = len(state)
        # Copies: a loop may not be given one tensor twice.
        rtol, atol = (torch.as_tensor(x, dtype=state[0].dtype, device=device).clone() for x in (self.rtol, self.atol))
        limit = torch.as_tensor(self.limit, dtype=torch.int64, device=device)
        span = stop - start
        # Steps below this change nothing in the time.
        least = 16.0 * torch.finfo(dtype).eps * torch.maximum(start.abs(), stop.abs())

        def unfinished(stage: Tensor, steps: Tensor, left: Tensor, size: Tensor, *rest: Tensor) -> Tensor:
            return ((left != 0) & (size > 0)).any() & (steps < limit).all()

        def evaluate(stage: Tensor, steps: Tensor, left: Tensor, size: Tensor, taken: Tensor, *rest: Tensor) -> State:
            (state, integral), slopes = (rest[:width], rest[width:parts]), rest[parts:]
            active = (left != 0) & (size > 0)
            # The last step ends at `stop` exactly, and the one before it leaves at least half a step.
            whole = left.abs()
            length = torch.where(size >= whole, whole, torch.minimum(size, 0.5 * whole).where(size > 0.5 * whole, size))
            h = torch.where(active, span.sign() * length, 0.0)
            here = point(stages, stage, stop - left, h, state, slopes[:width])
            if rated is None:
                new_slopes = field(*here)
            else:
                new_slopes = _either(stages.quadrature.index_select(0, stage) != 0, rated, field, *here)
            slopes = put(slopes, stage, new_slopes)
            moves, rates = slopes[:width], slopes[width:]

            # At the first stage of all: the length of the first step.
            first, last = stage == 0, stage == points - 1
            start_size = 0.01 * _size(state, state, rtol, atol) / _size(tuple(k[0] for k in moves), state, rtol, atol)
            start_size = torch.minimum(start_size.to(dtype).nan_to_num(0.0, 0.0, 0.0).clamp(min=1e-3 * whole), whole)

            # At the last one: whether to take the step, and how long the next is.
            new = plus(state, total(stages.weights, moves, h))
            larger = tuple(torch.maximum(a.abs(), b.abs()) for a, b in zip(state, new, strict=True))
            error = _size(total(stages.error, moves, h), larger, rtol, atol)
            sums = plus(integral, total(stages.quadrature, rates, h))
            for one in sums:  # a rate that is not finite rejects a step, and steers it in no other way
                error = torch.where(one.detach().isfinite(), error, math.nan)
            taken_now = last & active & (error <= 1.0)  # not where it is NaN
            factor = (0.9 * error.to(dtype) ** (-1.0 / 5.0)).nan_to_num(0.2, 5.0, 0.2).clamp(0.2, 5.0)
            factor = torch.where(taken_now, factor, factor.clamp(max=1.0))
            following = length * factor
            following = torch.where(taken_now | (following > least), following, 0.0)  # 0 gives up
            size = torch.where(first, start_size, torch.where(last & active, following, size))
            left = torch.where(taken_now, torch.where(length >= whole, 0.0, left - h), left)

            def kept(k: Tensor) -> Tensor:
                """Gives the slopes for the next stage: after a step its last is the first, and the rest are cleared."""
                begin = torch.where(column(taken_now, k[0]), k[n - 1], k[0])
                return torch.where(last, torch.cat([begin[None], torch.zeros_like(k[1:])]), k)

            pairs = zip((*new, *sums), (*state, *integral), strict=True)
            reached = tuple(torch.where(column(taken_now, a), a, b) for a, b in pairs)
            following_stage = torch.where(last, 1, stage + 1)
            return following_stage, steps + last, left, size, taken + (last & active), *reached, *map(kept, slopes)

        slopes = tuple(y.new_zeros((points, *y.shape)) for y in state)
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        begin = (zero, zero.clone(), span.clone(), span.abs(), torch.zeros_like(start, dtype=torch.int64))
        _, _, left, size, taken, *rest = loop(unfinished, evaluate, (*begin, *state, *slopes))
        if self.failures == "raise" and _facts.readable(left):
            _facts.verify([_facts.Fact(left == 0, lambda: _stopped(left, size, taken, stop))])
        ends = tuple(torch.where(column(left == 0, y), y, math.nan) for y in rest[:parts])
        return Solution(ends, 1 + (points - 1) * taken)


def _either(counts: Tensor, rated: Field, field: Field, t: Tensor, state: State) -> State:
    """Gives the slopes and the rate, or 0 in its place at a stage where the rate does not count."""

    def with_rate(t: Tensor, *state: Tensor) -> State:
        return tuple(k.clone() for k in rated(t, state))  # a branch may not give back what it was given

    def without(t: Tensor, *state: Tensor) -> State:
        return *(k.clone() for k in field(t, state)), torch.zeros_like(t, dtype=state[0].dtype)

    if torch.compiler.is_compiling():
        return torch.cond(counts, with_rate, without, (t, *state))
    return (with_rate if counts else without)(t, *state)


def _size(e: State, y: State, rtol: Tensor, atol: Tensor) -> Tensor:
    """Gives the size of e in units of what is tolerated at y, (B,). No derivative passes: a step's length is a constant."""
    e, y = (tuple(part.detach() for part in parts) for parts in (e, y))

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        there = ((a != 0) | (b != 0)).reshape(a.shape[0], -1).sum(1).clamp(min=1)
        return ((a / (atol + rtol * b.abs())).square().reshape(a.shape[0], -1).sum(1) / there).sqrt()

    return torch.stack([ratio(a, b) for a, b in zip(e, y, strict=True)]).amax(0)


def _stopped(left: Tensor, size: Tensor, taken: Tensor, stop: Tensor) -> ValueError:
    """Names the first example that did not arrive, and why."""
    left, size, taken, stop = (_facts.plain(x) for x in (left, size, taken, stop))
    i = int((left != 0).nonzero()[0])
    where = f"example {i} stopped at {(stop - left)[i]:.6g} on its way to {stop[i]:.6g}, after {int(taken[i])} steps"
    if size[i] > 0:
        return ValueError(f"limit: {where}; give a larger limit or larger tolerances")
    return ValueError(f"field: {where}; what it gives is not finite there, or changes faster than any step resolves")
