"""Runge-Kutta steps for a batch: their coefficients, those of order 5 by Dormand & Prince (1980), and the loop that takes
them, on fixed and adaptive grids."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from purevdm import _facts
from purevdm._compile import exact, while_loop
from purevdm.ode._integrator import State


class Tableau(NamedTuple):
    """The coefficients of an explicit Runge-Kutta step.

    Stage i is at t + nodes[i] h, from the slopes before it with the weights rows[i]. The step ends by ``weights``, and
    ``error`` estimates its error; a tableau that has it ends with the first stage of the next step. ``interpolant`` and
    ``quadrature`` are those of :func:`with_quadrature`.
    """

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...] = ()
    interpolant: tuple[float, ...] = ()
    quadrature: tuple[float, ...] = ()


HEUN = Tableau((0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2))
RK4 = Tableau((0.0, 1 / 2, 1 / 2, 1.0), ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
_LAST = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
DOPRI5 = Tableau(
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _LAST,
    ),
    (*_LAST, 0.0),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    (
        -12715105075 / 11282082432,
        0.0,
        87487479700 / 32700410799,
        -10690763975 / 1880347072,
        701980252875 / 199316789632,
        -1453857185 / 822651844,
        69997945 / 29380423,
    ),
)


# Lobatto's rules on [0, 1] by their number of points: the inner points, their weight, and that of either end.
LOBATTO: dict[int, tuple[tuple[float, ...], float, float]] = {
    2: ((), 0.0, 1 / 2),
    3: ((0.5,), 2 / 3, 1 / 6),
    4: ((0.5 - math.sqrt(1 / 20), 0.5 + math.sqrt(1 / 20)), 5 / 12, 1 / 12),
}


def with_quadrature(tableau: Tableau, count: int) -> Tableau:
    """Gives a pair with the points of Lobatto's rule, of order 2 count - 2.

    They are the first stage, the last, and inner points behind them. At those the state is known to order 4: y + h b(theta)
    . slopes, with

        b(theta) = theta w + theta (1 - theta) (first - w + theta (2 w - first - last + (1 - theta) d)),

    w the weights, d the tableau's ``interpolant``, first and last the unit vectors of those stages (Hairer, Norsett & Wanner
    1993, sec. II.6).
    """
    n = len(tableau.nodes)
    inner, weight, end = LOBATTO[count]

    def b(theta: float, i: int) -> float:
        w, d, first, last = tableau.weights[i], tableau.interpolant[i], float(i == 0), float(i == n - 1)
        rest = 2.0 * w - first - last + (1.0 - theta) * d
        return theta * w + theta * (1.0 - theta) * (first - w + theta * rest)

    rows = (tuple(b(theta, i) for i in range(n)) for theta in inner)
    quadrature = (end, *[0.0] * (n - 2), end, *[weight] * len(inner))
    return tableau._replace(nodes=(*tableau.nodes, *inner), rows=(*tableau.rows, *rows), quadrature=quadrature)


class Stages(NamedTuple):
    """A tableau in tensors, so that one evaluation of the field in a loop serves every stage."""

    nodes: Tensor
    rows: Tensor
    weights: Tensor
    error: Tensor
    quadrature: Tensor


def in_tensors(tableau: Tableau, start: Tensor, state: State) -> Stages:
    """Gives the nodes in the dtype of times, the rest in the state's."""
    n = len(tableau.nodes)

    def filled(row: tuple[float, ...]) -> list[float]:
        return [*row, *[0.0] * (n - len(row))]

    parts = (list(map(filled, tableau.rows)), *map(filled, (tableau.weights, tableau.error, tableau.quadrature)))
    nodes = torch.tensor(tableau.nodes, dtype=start.dtype, device=start.device)
    return Stages(nodes, *(torch.tensor(part, dtype=state[0].dtype, device=start.device) for part in parts))


def column(h: Tensor, x: Tensor) -> Tensor:
    """Shapes a number an example, (B,), to broadcast against (B, ...)."""
    return h.reshape(h.shape + (1,) * (x.ndim - 1))


def total(weights: Tensor, slopes: State, h: Tensor) -> State:
    """Gives h times the weighted sum of the slopes, each (stages, B, ...)."""
    with exact(h.device):
        return tuple(column(h.to(k.dtype), k[0]) * torch.tensordot(weights, k, 1) for k in slopes)


def plus(a: State, b: State) -> State:
    """Adds two states."""
    return tuple(x + y for x, y in zip(a, b, strict=True))


def point(stages: Stages, stage: Tensor, t: Tensor, h: Tensor, state: State, slopes: State) -> tuple[Tensor, State]:
    """Gives the time and the state at which a stage evaluates the field."""
    row = stages.rows.index_select(0, stage)[0]
    return t + stages.nodes.index_select(0, stage) * h, plus(state, total(row, slopes, h))


def put(slopes: State, stage: Tensor, new: State) -> State:
    """Gives the slopes with those of one stage put in."""
    return tuple(k.index_copy(0, stage, one[None]) for k, one in zip(slopes, new, strict=True))


def loop(condition: Callable[..., Tensor], step: Callable[..., State], state: State) -> State:
    """Steps while the condition holds: Python's loop in eager mode, one ``torch.while_loop`` in a compiled graph."""
    if torch.compiler.is_compiling():
        return while_loop(condition, step, state, "integrator")
    while True:
        going = condition(*state)
        if _facts.mapped(going):
            raise RuntimeError(
                "integrator: torch.func.vmap cannot map over a loop that ends when every example has arrived; give all "
                "examples in one batch, or integrate by a fixed grid such as purevdm.ode.rk4"
            )
        if not going:
            return state
        state = step(*state)
