"""Fixed grids: the same even steps for every example."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from purevdm import _checks, _facts
from purevdm.ode._integrator import Field, Integrator, Solution, State
from purevdm.ode._runge_kutta import HEUN, RK4, Tableau, column, in_tensors, loop, plus, point, put, total


def heun(steps: int | Tensor, *, failures: str = "raise") -> Integrator:
    """Integrates by Heun's method, of order 2, in even steps: two evaluations each.

    Args:
        steps: how many; in an integer tensor of shape (), one compiled graph serves every number.
        failures: what becomes of an example whose state is not finite. "raise" is an error, in eager mode. "nan" leaves that
            example NaN, as a compiled graph does, and the others as they are.

    Raises:
        TypeError, ValueError: steps below 1 or of the wrong form. From the integrator, in eager mode: a state that is not
            finite; the example and the step are named.
    """
    return Fixed(HEUN, _checks.count("steps", steps), _checks.choice("failures", failures, ("raise", "nan")))


def rk4(steps: int | Tensor, *, failures: str = "raise") -> Integrator:
    """Integrates by the classical Runge-Kutta method, of order 4, in even steps: four evaluations each; as :func:`heun`."""
    return heun(steps, failures=failures)._replace(tableau=RK4)


@dataclass(frozen=True)
class Fixed(Integrator):
    """The integrator of :func:`heun` and :func:`rk4`."""

    tableau: Tableau
    steps: int | Tensor
    failures: str = "raise"

    def solve(self, field: Field, state: State, start: Tensor, stop: Tensor) -> Solution:
        stages, n, width = in_tensors(self.tableau, start, state), len(self.tableau.nodes), len(state)
        steps = torch.as_tensor(self.steps, dtype=torch.int64, device=None if isinstance(self.steps, Tensor) else "cpu")
        count = steps.to(start.device)
        h = (stop - start) / count

        def unfinished(host: Tensor, *rest: Tensor) -> Tensor:
            return host < steps * n

        def evaluate(host: Tensor, here: Tensor, broken: Tensor, *rest: Tensor) -> State:
            state, slopes = rest[:width], rest[width:]
            step, stage = here // n, here % n
            slopes = put(slopes, stage, field(*point(stages, stage, start + h * step, h, state, slopes)))
            last = stage == n - 1
            moved = plus(state, total(stages.weights, slopes, h))
            new = tuple(torch.where(last, a, b) for a, b in zip(moved, state, strict=True))
            finite = torch.stack([y.isfinite().reshape(y.shape[0], -1).all(1) for y in new]).all(0)
            broken = torch.where((broken < 0) & ~finite, step, broken)
            return host + 1, here + 1, broken, *new, *slopes

        slopes = tuple(y.new_zeros((n, *y.shape)) for y in state)
        host = torch.zeros((), dtype=torch.int64, device="cpu")
        here = torch.zeros(1, dtype=torch.int64, device=start.device)
        begin = (host, here, torch.full_like(start, -1, dtype=torch.int64), *state, *slopes)
        _, _, broken, *rest = loop(unfinished, evaluate, begin)

        def error() -> Exception:
            at_step, times = (_facts.plain(x) for x in (broken, start + h * broken))
            i = int((at_step >= 0).nonzero()[0])
            got = f"NaN or infinity in example {i}, step {at_step[i]}, from {times[i]:.6g}"
            return ValueError(f"field: expected finite slopes, got {got}")

        if self.failures == "raise" and _facts.readable(broken):
            _facts.verify([_facts.Fact(broken < 0, error)])
        ends = tuple(torch.where(column(broken < 0, y), y, math.nan) for y in rest[:width])
        return Solution(ends, (count * n).expand(len(start)).clone())
