"""Ordinary differential equations for a batch: fixed grids of Runge-Kutta steps, and adaptive steps of orders 5 and 8.

A state is a tuple of tensors with a leading axis B, one row an example, and ``field(t, state) -> slopes`` gives its
derivative at the times t, (B,), of the dtype of the state or of ``start`` and ``stop``, whichever is wider. An
:class:`Integrator` takes the state from ``start`` to ``stop``, either direction, and adds it up in float32 at least. In
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
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _adaptive, _checks, _tableaus
from purevdm._runge_kutta import Field, Rated, Solution, State, along, finite, in_tensors, loop, plus, point, put, total

__all__ = ["Integrator", "Solution", "dop853", "dopri5", "heun", "rk4"]


class Integrator(NamedTuple):
    """A way to integrate.

    Attributes:
        solve: ``solve(field, state, start, stop) -> Solution``, with start and stop (B,).
        quadrature: ``quadrature(field, state, start, stop, rated) -> Solution``, with the integral behind the state, for an
            integrator that has a rule of its own for integrals along the way; None for one that takes it as a part of the
            state.
    """

    solve: Callable[[Field, State, Tensor, Tensor], Solution]
    quadrature: Callable[[Field, State, Tensor, Tensor, Rated], Solution] | None = None

    def __call__(self, field: Field, state: State, start: Tensor, stop: Tensor) -> Solution:
        """Integrates. In eager, derivatives pass through the steps that were taken."""
        way = _Way(state, start, stop)
        done = self.solve(way.field(field), way.state, way.start, way.stop)
        return Solution(way.narrow(done.state), done.evaluations)

    def along(self, field: Field, rated: Rated, state: State, start: Tensor, stop: Tensor) -> tuple[Solution, Tensor]:
        """Integrates, and beside it a rate along the way, which the field does not depend on.

        Args:
            field, state, start, stop: as in a call.
            rated: ``rated(t, state) -> (slopes, rate)``: what the field gives, and the rate of each example, (B,).

        Returns:
            The solution, and the integral of the rate, (B,). Evaluations count those of either function.
        """
        way = _Way(state, start, stop)

        def together(t: Tensor, state: State) -> State:
            slopes, rate = rated(t, state)
            return *slopes, rate

        extended = way.field(together)
        if self.quadrature is None:
            zero = torch.zeros_like(start, dtype=way.state[0].dtype)
            done = self.solve(lambda t, state: extended(t, state[:-1]), (*way.state, zero), way.start, way.stop)
        else:

            def apart(t: Tensor, state: State) -> Any:
                found = extended(t, state)
                return found[:-1], found[-1]

            done = self.quadrature(way.field(field), way.state, way.start, way.stop, apart)
        return Solution(way.narrow(done.state[:-1]), done.evaluations), done.state[-1].to(state[0].dtype)


class _Way:
    """A state and its times as they are integrated, once all have the form they should: in float32 at least, and the times
    as exactly as they are given. The field is given the state in its own dtype, and times in that of state and times."""

    def __init__(self, state: State, start: Tensor, stop: Tensor) -> None:
        if not isinstance(state, tuple) or not state:
            raise TypeError(f"state: expected a tuple of tensors, got {_checks.describe(state)}")
        for i, y in enumerate(state):
            _checks.floating(f"state[{i}]", y)
        for name, time in (("start", start), ("stop", stop)):
            _checks.shaped(name, _checks.floating(name, time), state[0].shape[:1])
        self.own = tuple(y.dtype for y in state)
        self.wide = reduce(torch.promote_types, self.own, torch.float32)
        self.time = reduce(torch.promote_types, (stop.dtype, *self.own), start.dtype)
        self.state = tuple(y.to(self.wide) for y in state)
        self.start, self.stop = (t.to(torch.promote_types(self.time, torch.float32)) for t in (start, stop))

    def narrow(self, state: State) -> State:
        return tuple(y.to(dtype) for y, dtype in zip(state, self.own, strict=True))

    def field(self, field: Field) -> Field:
        """The field between states as they are integrated."""
        return lambda t, state: tuple(k.to(self.wide) for k in field(t.to(self.time), self.narrow(state)))


# Fixed grids


def heun(steps: int | Tensor, *, failures: str = "raise") -> Integrator:
    """Heun's method, of order 2, in even steps: two evaluations each.

    Args:
        steps: how many; in an integer tensor of shape (), one compiled graph serves every number.
        failures: what becomes of an example whose state is not finite: "raise" for an error, in eager, "nan" to leave that
            example NaN, as a compiled graph does, and the others as they are.

    Raises:
        TypeError, ValueError: steps below 1 or of the wrong form. From the integrator, in eager: a state that is not
            finite; the example and the step are named.
    """
    return _grid(_tableaus.HEUN, steps, failures)


def rk4(steps: int | Tensor, *, failures: str = "raise") -> Integrator:
    """The classical Runge-Kutta method, of order 4, in even steps: four evaluations each. Arguments as :func:`heun`."""
    return _grid(_tableaus.RK4, steps, failures)


FAILURES = ("raise", "nan")


def _grid(tableau: _tableaus.Tableau, steps: int | Tensor, failures: str) -> Integrator:
    failures = _checks.choice("failures", failures, FAILURES)
    return Integrator(partial(_fixed, tableau, _checks.count("steps", steps), failures=failures))


def _fixed(
    tableau: _tableaus.Tableau,
    steps: int | Tensor,
    field: Field,
    state: State,
    start: Tensor,
    stop: Tensor,
    failures: str = "raise",
) -> Solution:
    stages, n, width = in_tensors(tableau, start, state), len(tableau.nodes), len(state)
    wanted = torch.as_tensor(steps, dtype=torch.int64, device=None if isinstance(steps, Tensor) else "cpu")
    count = wanted.to(start.device)
    h = (stop - start) / count

    def unfinished(host: Tensor, *rest: Tensor) -> Tensor:
        return host < wanted * n

    def evaluate(host: Tensor, here: Tensor, broken: Tensor, *rest: Tensor) -> State:
        state, slopes = rest[:width], rest[width:]
        step, stage = here // n, here % n
        slopes = put(slopes, stage, field(*point(stages, stage, start + h * step, h, state, slopes)))
        last = stage == n - 1
        moved = plus(state, total(stages.weights, slopes, h))
        new = tuple(torch.where(last, a, b) for a, b in zip(moved, state, strict=True))
        broken = torch.where((broken < 0) & ~finite(new), step, broken)
        return host + 1, here + 1, broken, *new, *slopes

    slopes = tuple(y.new_zeros((n, *y.shape)) for y in state)
    zero = torch.zeros((), dtype=torch.int64, device="cpu")
    begin = (zero, torch.zeros(1, dtype=torch.int64, device=start.device), torch.full_like(start, -1, dtype=torch.int64))
    _, _, broken, *rest = loop(unfinished, evaluate, (*begin, *state, *slopes))

    def error() -> Exception:
        i = int((_checks.plain(broken) >= 0).nonzero()[0])
        step = int(_checks.plain(broken)[i])
        at = (_checks.plain(start) + _checks.plain(h) * step)[i]
        return ValueError(f"field: expected finite slopes, got NaN or infinity in example {i}, step {step}, from {at:.6g}")

    if failures == "raise" and _checks.readable(broken):
        _checks.verify([_checks.Fact(broken < 0, error)])
    ends = tuple(torch.where(along(broken < 0, y), y, math.nan) for y in rest[:width])
    return Solution(ends, (count * n).expand(len(start)).clone())


# An adaptive pair


def dopri5(
    rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-5,
    limit: int | Tensor = 10_000,
    *,
    quadrature: int | None = None,
    failures: str = "raise",
) -> Integrator:
    """The pair of orders 5 and 4 of Dormand & Prince (1980), each example with steps of its own: six evaluations each.

    A step is taken where its estimated error is at most atol + rtol |y|, in the root mean square over each tensor of the
    state; the ratio e of the worst tensor counts. The next step is 0.9 e**(-1/5) times as long, between a fifth and five
    times. The first moves the state by a hundredth of its size.

    Args:
        rtol, atol: the tolerances, above 0. In tensors of shape (), one compiled graph serves all.
        limit: the most steps, taken or rejected.
        quadrature: how :meth:`Integrator.along` finds an integral, as that of a divergence. Where left out, it is one more
            number of the state, with the same tolerance: its rate is evaluated at all stages. 2, 3 or 4: by Lobatto's rule
            of so many points a step, of order 2, 4 or 5, the inner ones at states interpolated to order 4. Ends of steps
            are shared, so a step needs one rate fewer than points. That is cheaper where a rate costs more than the
            slopes. But the integral's error steers no step: it may be off by far more than the tolerances, most of all
            by 2 points at small tolerances, and where the rate changes and the state hardly does.
        failures: what becomes of an example that does not arrive: "raise" for an error, in eager, "nan" to leave that
            example NaN, as a compiled graph does, and the others as they are.

    Raises:
        TypeError, ValueError: tolerances or a limit out of range. From the integrator, in eager: an example that did not
            arrive within the limit, or whose slopes are not finite. The example, the time and the step are named.
    """
    if quadrature is not None and _checks.integer("quadrature", quadrature, 1) not in _tableaus.LOBATTO:
        raise ValueError(f"quadrature: expected 2, 3 or 4 points a step, or None, got {quadrature}")
    return _pair(_tableaus.DOPRI5, rtol, atol, limit, failures, quadrature)


def dop853(
    rtol: float | Tensor = 1e-5, atol: float | Tensor = 1e-5, limit: int | Tensor = 10_000, *, failures: str = "raise"
) -> Integrator:
    """DOP853, the method of order 8 of Dormand & Prince (Hairer, Norsett & Wanner 1993, sec. II.10), each example with steps
    of its own: twelve evaluations each.

    The error e = e_5**2 / sqrt(e_5**2 + 0.01 e_3**2) is from estimates of orders 5 and 3. The next step is 0.9 e**(-1/8)
    times as long. The rest, and the arguments, as :func:`dopri5`.
    """
    return _pair(_tableaus.DOP853, rtol, atol, limit, failures)


def _pair(
    tableau: _tableaus.Tableau,
    rtol: float | Tensor,
    atol: float | Tensor,
    limit: int | Tensor,
    failures: str,
    quadrature: int | None = None,
) -> Integrator:
    failures = _checks.choice("failures", failures, FAILURES)
    tolerances = _tolerance("rtol", rtol), _tolerance("atol", atol)
    settings = _adaptive.Adaptive(tableau, *tolerances, _checks.count("limit", limit), failures)
    if quadrature is None:
        return Integrator(partial(_adaptive.integrate, settings))
    beside = settings._replace(tableau=_tableaus.with_quadrature(tableau, quadrature))
    return Integrator(partial(_adaptive.integrate, settings), partial(_adaptive.integrate, beside))


def _tolerance(name: str, x: float | Tensor) -> float | Tensor:
    if isinstance(x, Tensor):
        _checks.shaped(name, _checks.floating(name, x), ())
        if _checks.readable(x):
            error = ValueError(f"{name}: expected a finite number above 0, got {_checks.plain(x).item()}")
            _checks.verify([_checks.Fact((x > 0) & x.isfinite(), lambda: error)])
    elif _checks.real(name, x) <= 0.0:
        raise ValueError(f"{name}: expected a number above 0, got {x}")
    return x
