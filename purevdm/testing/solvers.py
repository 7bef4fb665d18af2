"""Laws of solvers."""

import math
from functools import partial

import torch
from torch import Tensor

from purevdm import _checks, decoders, process, random
from purevdm._vdm import vdm
from purevdm.schedules import Schedule
from purevdm.solvers import Solver
from purevdm.testing import sources
from purevdm.testing._law import require, trying
from purevdm.types import Key, Params

__all__ = ["check_solver"]

STD = 0.4  # of the source
SEE = "model.sample(params, key, {n}, steps=steps, solver=solver, trajectory=True), on testing.sources.gaussian(0.4)"


def check_solver(solver: Solver, order: int | None = None, *, grid: str = "gamma", key: Key | None = None) -> None:
    """Checks a solver against a source whose flow and marginals are known: x ~ N(0, 0.4**2), in float64.

    In many steps it draws from the source, within 7 standard errors and 2 %. A deterministic solver follows the exact flow
    besides: halving its steps divides its error by 2**order or more.

    Args:
        solver: the solver.
        order: of a deterministic solver; None for one that draws noise.
        grid: "gamma" or "time", as for ``model.sample``; under "time" steps are uneven in gamma.
        key: a key.

    Raises:
        LawError: a law does not hold; the message says which, by how much, and how to see it.

    >>> from purevdm import solvers, testing
    >>> testing.check_solver(solvers.dpmpp_2m(), order=2)
    >>> testing.check_solver(solvers.ddim(), order=2)
    Traceback (most recent call last):
    purevdm.testing._law.LawError: the error must fall with order 2 in the step
      found:     order 0.99, from 80 steps to 160; errors of 0.0154 and 0.00775 of the norm
      to see it: model.sample(params, key, 4, steps=steps, solver=solver, trajectory=True), on testing.sources.gaussian(0.4)
    """
    _checks.instance("solver", solver, Solver, "a Solver such as purevdm.solvers.ddim()")
    order = order if order is None else _checks.integer("order", order, 1)
    key = random.key(0) if key is None else key
    schedule, decoder = Schedule.of(lambda key: {}, _bent), decoders.gaussian()
    model = vdm(sources.gaussian(STD), schedule, (50,), decoder=decoder, dtype=torch.float64)
    ends = _bent({}, torch.tensor([0.0, 1.0], dtype=torch.float64))
    scales = torch.sqrt((process.alpha(ends) * STD) ** 2 + process.sigma(ends) ** 2)

    def latents(n: int, steps: int) -> tuple[Tensor, Tensor]:
        params: Params = {"network": {}, "schedule": {}}
        z = model.sample(params, key, n, steps=steps, solver=solver, grid=grid, trajectory=True).z
        return z[0], z[-1]

    if order is not None:
        errors = []
        for steps in (80, 160):
            first, last = trying("a step must run", SEE.format(n=4), partial(latents, 4, steps))
            want = first * scales[0] / scales[1]
            errors.append(((last - want).norm() / want.norm()).item())
        rate = math.log2(errors[0] / errors[1])
        text = f"order {rate:.2f}, from 80 steps to 160; errors of {errors[0]:.3g} and {errors[1]:.3g} of the norm"
        holds = rate > order - 0.25 or errors[1] < 1e-12
        require(holds, f"the error must fall with order {order} in the step", text, SEE.format(n=4))
    law, see = "many steps must draw from the source", SEE.format(n=200)
    last = trying("a step must run", see, partial(latents, 200, 320))[1]
    spread, exact, n = last.std().item(), scales[0].item(), last.numel()
    text = f"a standard deviation of {spread:.4g} for {exact:.4g}, of {n} numbers"
    require(abs(spread - exact) <= 7 * exact / math.sqrt(2 * n) + 0.02 * exact, law, text, see)
    centre = last.mean().item() / (exact / math.sqrt(n))
    require(abs(centre) <= 7, law, f"a mean {centre:.1f} standard errors from 0", see)


def _bent(params: dict, t: Tensor) -> Tensor:
    return -6.0 + 10.0 * t + torch.sin(3.0 * t)
