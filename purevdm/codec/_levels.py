"""The lattices of the latents z_0, ..., z_T, and the coefficients that lead from one to another.

Latent z_i at time i / T is k_i delta_i with an integer k_i. Its lattice's step delta_i is the narrower of the standard
deviations of the two conditionals that touch it, q(z_i given z_{i-1}) and p(z_i given z_{i+1}).

gamma comes from the schedule in float64, is rounded to 2**-20 with a dither that keeps it clear of boundaries, and from
there on all is exactly rounded arithmetic: the same lattices on every machine.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from purevdm import schedules
from purevdm.codec._arithmetic import Floats, Integers, exp, expm1, rounded, widest
from purevdm.codec._lattice import NARROW, width_index
from purevdm.codec._network import device_of
from purevdm.types import Params
from purevdm.vdm import VDM

_FINE = 2.0**20
_STEEPEST = 60.0


class Levels(NamedTuple):
    """gamma at the times 0, 1/T, ..., 1, as lattices need it: float64 (T + 1, n or 1, D or 1), for n examples of D numbers.

    ``dither`` is what it was rounded with.
    """

    gamma: Floats
    dither: int

    @property
    def steps(self) -> int:
        return len(self.gamma) - 1

    def delta(self, i: int) -> Floats:
        """The step of z_i's lattice."""
        return np.minimum(self._std_q(i), self._std_p(i)) * (1.0 / NARROW)

    def width_q(self, i: int) -> Integers:
        """The width of q(z_i given z_{i-1}), for i = 0 of q(z_0 given x)."""
        return width_index(self._std_q(i) / self.delta(i))

    def width_p(self, i: int) -> Integers:
        """The width of p(z_i given z_{i+1}), for i = T of p(z_T)."""
        return width_index(self._std_p(i) / self.delta(i))

    def forward(self, i: int) -> Floats:
        """a in the mean a k_{i-1} of q(z_i given z_{i-1}), in lattice steps."""
        return self._ratio(i) * self.delta(i - 1) / self.delta(i)

    def backward(self, i: int) -> tuple[Floats, Floats]:
        """a and b in the mean a k_i - b eps of p(z_{i-1} given z_i), in lattice steps (App. A, eq. 34)."""
        scale = self._ratio(i) * self.delta(i - 1)
        return self.delta(i) / scale, self._c(i) * self._sigma(i) / scale

    def data(self) -> tuple[Floats, Floats]:
        """a in the mean a f of q(z_0 given x), in lattice steps, and z_0 / alpha_0 for one of them."""
        alpha, delta = self._alpha(0), self.delta(0)
        return alpha / delta, delta / alpha

    def _alpha(self, i: int) -> Floats:
        return np.sqrt(1.0 / (1.0 + exp(self.gamma[i])))

    def _sigma(self, i: int) -> Floats:
        return np.sqrt(1.0 / (1.0 + exp(-self.gamma[i])))

    def _ratio(self, i: int) -> Floats:
        """alpha_i / alpha_{i-1}."""
        return np.sqrt((1.0 + exp(self.gamma[i - 1])) / (1.0 + exp(self.gamma[i])))

    def _c(self, i: int) -> Floats:
        return -expm1(self.gamma[i - 1] - self.gamma[i])

    def _std_q(self, i: int) -> Floats:
        return self._sigma(i) * np.sqrt(self._c(i)) if i else self._sigma(0)

    def _std_p(self, i: int) -> Floats:
        return self._sigma(i) * np.sqrt(self._c(i + 1)) if i < self.steps else np.ones_like(self.gamma[i])


def levels(model: VDM, params: Params, steps: int, n: int, cond: Any = None, dither: int | None = None) -> Levels:
    """The levels of a schedule, for all examples, or for n examples where gamma depends on their conditions; rounded with
    the dither given, or with the one that keeps gamma furthest from boundaries.

    Raises:
        ValueError: a schedule that does not rise by at least 2**-20 from step to step, or leaves [-60, 60].
    """
    device = device_of(params)
    t = torch.arange(steps + 1, dtype=torch.float64, device=device) / steps
    with torch.no_grad():
        if model.schedule.contextual:
            each = [schedules.gamma(model.schedule, params["schedule"], time.expand(n), cond) for time in t]
            found = torch.stack(each).reshape(steps + 1, n, -1)
        else:
            found = schedules.gamma(model.schedule, params["schedule"], t).reshape(steps + 1, 1, -1)
    gamma = found.double().cpu().numpy()
    if not (np.abs(gamma) <= _STEEPEST).all():
        raise ValueError(f"schedule: expected gamma(t) in [-60, 60], got values from {gamma.min()} to {gamma.max()}")
    gamma = gamma * _FINE
    dither = widest(gamma) if dither is None else dither
    whole = rounded(gamma, dither)[0]
    if not (np.diff(whole, axis=0) > 0).all():
        raise ValueError(f"timesteps: expected gamma(t) to rise by at least 1e-6 in each of {steps} steps; take fewer")
    return Levels(whole / _FINE, dither)
