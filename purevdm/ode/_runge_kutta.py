"""Runge-Kutta steps for a batch, in tensors, and the loop that takes them: shared by fixed and adaptive grids."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._compile import exact
from purevdm.ode._integrator import State
from purevdm.ode._tableaus import Tableau


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
        if torch.is_grad_enabled() and any(y.requires_grad for y in state):
            raise RuntimeError(
                "integrator: a compiled loop passes no derivatives; take them in eager mode, or detach the state"
            )
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


def finite(state: State) -> Tensor:
    """Tells which examples are finite, (B,)."""
    return torch.stack([y.isfinite().reshape(y.shape[0], -1).all(1) for y in state]).all(0)
