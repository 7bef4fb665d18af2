"""What every integrator of a batch shares: its form, and the dtypes that it computes in."""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._values import Value

State: TypeAlias = tuple[Tensor, ...]
Field: TypeAlias = Callable[[Tensor, State], State]


class Solution(NamedTuple):
    """The end of an integration.

    Attributes:
        state: the state at ``stop``. An example that did not get there is NaN in a compiled graph and with
            ``failures="nan"``, and an error in eager mode.
        evaluations: how often each example's field was evaluated until it arrived, int64 (B,).
    """

    state: State
    evaluations: Tensor


class Integrator(Value):
    """Takes the state of a batch from one time to another. Derive from it and write :meth:`solve`."""

    def solve(self, field: Field, state: State, start: Tensor, stop: Tensor) -> Solution:
        """Integrates a state of one dtype, float32 or float64, from ``start`` to ``stop``, (B,)."""
        raise NotImplementedError

    def solve_along(self, field: Field, rated: Field, state: State, start: Tensor, stop: Tensor) -> Solution:
        """Integrates as :meth:`solve`, with the integral of a rate last in the state: as one more number of the state,
        unless an integrator has a rule of its own for integrals."""
        integral = torch.zeros_like(start, dtype=state[0].dtype)
        return self.solve(lambda t, state: rated(t, state[:-1]), (*state, integral), start, stop)

    def __call__(self, field: Field, state: State, start: Tensor, stop: Tensor) -> Solution:
        """Integrates. In eager mode, derivatives pass through the steps that were taken."""
        wide = _Wide(state, start, stop)
        done = self.solve(wide.field(field), wide.state, wide.start, wide.stop)
        return Solution(wide.narrow(done.state), done.evaluations)

    def along(self, field: Field, rated: Field, state: State, start: Tensor, stop: Tensor) -> tuple[Solution, Tensor]:
        """Integrates the field, and a rate along the solution that the field does not depend on.

        Args:
            field, state, start, stop: as in a call.
            rated: ``rated(t, state) -> (*slopes, rate)``: what the field gives, and the rate of each example, (B,).

        Returns:
            The solution, and the integral of the rate, (B,). Evaluations count those of either function.
        """
        wide = _Wide(state, start, stop)
        done = self.solve_along(wide.field(field), wide.field(rated), wide.state, wide.start, wide.stop)
        return Solution(wide.narrow(done.state[:-1]), done.evaluations), done.state[-1].to(state[0].dtype)


class _Wide:
    """A checked state and its times in the dtypes of the integration: float32 at least, and the times as exactly as they are
    given. The field takes the state in its own dtype, and times in that of state and times."""

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
        return lambda t, state: tuple(k.to(self.wide) for k in field(t.to(self.time), self.narrow(state)))
