"""Laws of noise schedules."""

from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm.schedules import Schedule, gamma, gamma_and_slope
from purevdm.testing._law import compiled, equal, floats, initialised, repeated, require, slopes, trying, way, wide
from purevdm.types import Key, Params, Shape

__all__ = ["check_schedule"]

TIMES = 4097  # at which gamma must rise
SEE = "schedules.gamma(schedule, params, torch.linspace(0, 1, 129))"
SEE_SLOPE = "schedules.gamma_and_slope(schedule, params, torch.linspace(0, 1, 129))"


def check_schedule(
    schedule: Schedule,
    *,
    params: Params | None = None,
    event_shape: Shape | None = None,
    context: Any = None,
    key: Key | None = None,
    compile: bool = False,
) -> None:
    """Checks a schedule against the laws that the bound rests on.

    ``init`` is a function of its key. gamma is pure, finite and strictly increasing over 4097 times, a number or of the
    event's shape, in the dtype of t. Its derivative, which weighs the continuous-time loss (eq. 17), integrates to
    gamma(1) - gamma(0), and its gradient is that of differences. Endpoints that it declares are its own.

    Args:
        schedule: the schedule.
        params: its parameters, for instance trained ones; ``init``'s where left out.
        event_shape: of the data, if gamma may be of that shape.
        context: of one example, for a contextual schedule.
        key: a key.
        compile: whether the compiled schedule must give the same, too.

    Raises:
        LawError: a law does not hold; the message says which, by how much, and how to see it.

    >>> import torch
    >>> from purevdm import schedules, testing
    >>> testing.check_schedule(schedules.monotone_mlp())
    >>> falling = schedules.Schedule.of(lambda key: {}, lambda params, t: 5.0 - 18.3 * t)
    >>> testing.check_schedule(falling)
    Traceback (most recent call last):
    purevdm.testing._law.LawError: gamma must increase strictly in t
      found:     gamma(0) = 5, gamma(0.0078125) = 4.85703
      to see it: schedules.gamma(schedule, params, torch.tensor([0, 0.0078125], dtype=torch.float64))
    """
    _checks.instance("schedule", schedule, Schedule, "a Schedule such as purevdm.schedules.learned_linear()")
    found = initialised("schedule", schedule.init, random.key(0) if key is None else key)
    params = found if params is None else params
    before = {name: leaf.clone() for name, leaf in floats(params)[0].items()}

    def at(t: Tensor, p: Params = params) -> Tensor:
        return gamma(schedule, p, t, repeated(context if t.dtype == torch.float32 else wide(context), len(t)))

    narrow = trying("gamma must take a time in [0, 1]", SEE, lambda: at(torch.linspace(0, 1, 129)))
    law = "gamma must return a number" + ("" if event_shape is None else f", or {tuple(event_shape)}") + " for one time"
    own = tuple(narrow.shape[1:])
    require(own in ((), None if event_shape is None else tuple(event_shape)), law, f"{own}", f"{SEE}.shape")
    require(narrow.dtype == torch.float32, "gamma must be of the dtype of t", f"{narrow.dtype} for float32", f"{SEE}.dtype")
    bad = int((~narrow.isfinite()).sum())
    require(bad == 0, "gamma must be finite", f"{bad} of 129 values are not", SEE)
    for times in (129, TIMES):
        g = _rising(at, wide(params), torch.linspace(0, 1, times, dtype=torch.float64))

    middle = (torch.arange(TIMES, dtype=torch.float64) + 0.5) / TIMES
    slope = gamma_and_slope(schedule, wide(params), middle, repeated(wide(context), TIMES))[1].reshape(TIMES, -1)
    i = int(slope.amin(1).argmin())
    see = f"schedules.gamma_and_slope(schedule, params, torch.tensor([{middle[i]:g}], dtype=torch.float64))"
    require((slope >= 0).all(), "gamma must increase strictly in t", f"gamma'({middle[i]:g}) = {slope[i].min():g}", see)
    rise, integral = g[-1] - g[0], slope.mean(0)
    worst = int((integral - rise).abs().argmax())
    text = f"{integral[worst]:.6g}, where gamma rises by {rise[worst]:.6g}"
    law = "gamma's derivative must integrate to gamma(1) - gamma(0), within a hundredth"
    require(((integral - rise).abs() <= 0.01 * rise).all(), law, text, SEE_SLOPE)
    _slope_learns(schedule, wide(params), middle[::128], wide(context))

    if schedule.endpoints is not None:
        start = at(torch.tensor([0.0, 1.0], dtype=torch.float64), wide(found)).reshape(2, -1)
        ends = torch.tensor(schedule.endpoints, dtype=torch.float64)[:, None]
        holds = ((start - ends).abs() <= 1e-4 * (1 + ends.abs())).all()
        text = f"{schedule.endpoints} declared, gamma(0) = {start[0, 0]:g}, gamma(1) = {start[1, 0]:g}"
        law = "endpoints must be gamma(0) and gamma(1) of the initial parameters"
        require(holds, law, text, "schedule.endpoints")
    law = "gamma must leave its parameters as they are"
    require(equal(before, floats(params)[0]), law, "other parameters after a call", SEE)
    if compile:
        compiled("gamma", lambda: at(torch.linspace(0, 1, 129)), narrow, SEE, 1e-5)


def _rising(at: Any, params: Params, t: Tensor) -> Tensor:
    """Computes gamma at the times, (n, dimensions), which must rise from each to the next."""
    g = at(t, params).reshape(t.shape[0], -1)
    falls = ~(g.diff(dim=0) > 0).all(1)
    i = int(falls.nonzero()[0]) if falls.any() else 0
    j = int((g[i + 1] - g[i]).argmin())
    text = f"gamma({t[i]:g}) = {g[i, j]:g}, gamma({t[i + 1]:g}) = {g[i + 1, j]:g}"
    text += f" in dimension {j}" if g.shape[1] > 1 else ""
    see = f"schedules.gamma(schedule, params, torch.tensor([{t[i]:g}, {t[i + 1]:g}], dtype=torch.float64))"
    require(not falls.any(), "gamma must increase strictly in t", text, see)
    return g


def _slope_learns(schedule: Schedule, params: Params, t: Tensor, context: Any) -> None:
    """Checks the gradient of gamma's derivative, along each leaf that gamma or its derivative passes a gradient to. It need
    hold at one of several points, as a step may cross a kink."""
    leaves, with_others = floats(params)
    weights = torch.cos(torch.arange(len(t), dtype=torch.float64))
    for name, leaf in leaves.items():

        def part(j: int, leaf: Tensor, name: str = name) -> Tensor:
            """Reduces gamma, or its derivative, to a number."""
            found = gamma_and_slope(schedule, with_others({name: leaf}), t, repeated(context, len(t)))[j]
            return (found.reshape(t.shape[0], -1).mean(1) * weights).sum()

        of_gamma, of_slope = (torch.func.grad(part, argnums=1)(j, leaf) for j in range(2))
        if not (of_gamma.any() or of_slope.any()):
            continue
        for moved in (leaf, leaf + 0.013 * way(leaf), leaf - 0.031 * way(leaf)):
            got, want = slopes(lambda leaf: part(1, leaf), moved, way(leaf))
            size = (of_slope * way(leaf)).abs().sum() + want.abs()
            if holds := bool((got - want).abs() <= 1e-3 * size + 1e-6):
                break
        text = f"{got:.6g} along {name}, and {want:.6g} by differences"
        require(holds, "the gradient of gamma's derivative must be that of differences", text, SEE_SLOPE)
