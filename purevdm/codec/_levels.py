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
from purevdm._vdm import VDM
from purevdm.codec._arithmetic import Floats, Integers, exp, expm1, rounded, widest
from purevdm.codec._lattice import NARROW, width_index
from purevdm.codec._network import cast, device_of
from purevdm.types import Params

_FINE = 2.0**20
_STEEPEST = 60.0


class Levels(NamedTuple):
    """What both ends need of each latent. Arrays are (T + 1, n or 1, D or 1), for n examples of D numbers; those that lead
    from z_{i-1} to z_i or back are at i.

    Attributes:
        gamma: its gamma, float64.
        delta: its lattice's step.
        width_q: the width index of q(z_i given z_{i-1}), at 0 of q(z_0 given x).
        width_p: that of p(z_i given z_{i+1}), at T of p(z_T).
        forward: a in the mean a k_{i-1} of q(z_i given z_{i-1}), in lattice steps; at 0, in the mean a f of q(z_0 given x).
        back_k, back_eps: a and b in the mean a k_i - b eps of p(z_{i-1} given z_i), in lattice steps (App. A, eq. 34).
        clean: z_0 / alpha_0 for a lattice step: (n or 1, D or 1).
        dither: what gamma was rounded with.
    """

    gamma: Floats
    delta: Floats
    width_q: Integers
    width_p: Integers
    forward: Floats
    back_k: Floats
    back_eps: Floats
    clean: Floats
    dither: int

    @property
    def steps(self) -> int:
        return len(self.gamma) - 1


def _made(gamma: Floats, dither: int) -> Levels:
    up, down = exp(gamma), exp(-gamma)
    sigma, alpha_0 = np.sqrt(1.0 / (1.0 + down)), np.sqrt(1.0 / (1.0 + up[0]))
    c = -expm1(gamma[:-1] - gamma[1:])
    std_q, std_p = sigma.copy(), np.ones_like(sigma)
    std_q[1:] *= np.sqrt(c)
    std_p[:-1] = sigma[:-1] * np.sqrt(c)
    delta = np.minimum(std_q, std_p) * (1.0 / NARROW)
    scale = np.sqrt((1.0 + up[:-1]) / (1.0 + up[1:])) * delta[:-1]  # alpha_i / alpha_{i-1}, in units of z_{i-1}'s lattice
    none = np.zeros_like(gamma[:1])
    return Levels(
        gamma=gamma,
        delta=delta,
        width_q=width_index(std_q / delta),
        width_p=width_index(std_p / delta),
        forward=np.concatenate([(alpha_0 / delta[0])[None], scale / delta[1:]]),
        back_k=np.concatenate([none, delta[1:] / scale]),
        back_eps=np.concatenate([none, c * sigma[1:] / scale]),
        clean=delta[0] / alpha_0,
        dither=dither,
    )


def levels(model: VDM, params: Params, steps: int, n: int, cond: Any = None, dither: int | None = None) -> Levels:
    """The levels of a schedule, for all examples, or for n examples where gamma depends on their conditions; rounded with
    the dither given, or with the one that keeps gamma furthest from boundaries.

    Raises:
        ValueError: a schedule that does not rise by at least 2**-20 from step to step, or leaves [-60, 60].
    """
    device = device_of(params)
    t = torch.arange(steps + 1, dtype=torch.float64, device=device) / steps
    own, cond = cast(params["schedule"], torch.float64), cast(cond, torch.float64)
    with torch.no_grad():
        if model.schedule.contextual:
            each = [schedules.gamma(model.schedule, own, time.expand(n), cond) for time in t]
            found = torch.stack(each).reshape(steps + 1, n, -1)
        else:
            found = schedules.gamma(model.schedule, own, t).reshape(steps + 1, 1, -1)
    gamma = found.double().cpu().numpy()
    if not (np.abs(gamma) <= _STEEPEST).all():
        raise ValueError(f"schedule: expected gamma(t) in [-60, 60], got values from {gamma.min()} to {gamma.max()}")
    gamma = gamma * _FINE
    dither = widest(gamma) if dither is None else dither
    whole = rounded(gamma, dither)[0]
    if not (np.diff(whole, axis=0) > 0).all():
        raise ValueError(f"timesteps: expected gamma(t) to rise by at least 1e-6 in each of {steps} steps; take fewer")
    return _made(whole / _FINE, dither)
