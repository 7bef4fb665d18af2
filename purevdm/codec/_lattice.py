"""The lattices of the latents z_0, ..., z_T, and Gaussians on them as integer frequencies that add up to 2**24.

Latent z_i at time i / T is k_i delta_i with an integer k_i. Its lattice's step delta_i is the narrower of the standard
deviations of the two conditionals that touch it, q(z_i given z_{i-1}) and p(z_i given z_{i+1}). gamma is rounded to 2**-20
with a dither that keeps it clear of boundaries, and from there on all is exactly rounded arithmetic: the same lattices on
every machine.

The weight of lattice point k is exp(-(k - m)**2 / (2 w**2)), the density itself, for a mean m and a standard deviation
("width") w in lattice steps. By Poisson's summation formula its sum, mean and variance are those of the continuous Gaussian
up to parts of exp(-2 pi**2 w**2), 3e-9 for w = 1. So latents on a lattice as coarse as the narrower conditional cost what
continuous ones would, and need few initial bits. Means are rounded to ``PHASES`` parts of a step, together 1 / 128 of a
standard deviation: (1 / 128)**2 / 24 nats a number.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from purevdm import schedules
from purevdm._vdm import VDM
from purevdm.codec._arithmetic import Floats, Integers, exp, expm1, rounded, widest
from purevdm.codec._network import cast, device_of
from purevdm.types import Params

_FINE = 2.0**20
_STEEPEST = 60.0
_WIDEST = 16.0
_ESCAPE = 16


class Table(NamedTuple):
    """The frequencies of one width.

    Attributes:
        rows: (phases, symbols) float32, integers. Symbol s stands for the points whose offset from the mean's point,
            shifted down by ``shift`` bits, is ``s - half + 1``; the last symbol, if ``escape``, for all points beyond.
            Each row adds up to 2**24 less the number of symbols, as the coder adds 1 to each.
        half: half the number of points or blocks of them.
        shift: wide Gaussians are coded by blocks of 2**shift points, evenly likely within a block.
        phases: parts of a step to which the mean is rounded, a power of 2.
    """

    rows: NDArray[np.float32]
    half: int
    shift: int
    phases: int
    escape: bool


WIDTHS = exp(np.arange(20 << 10, dtype=np.float64) * 2.0**-10)
"""The widths that there are tables for."""
PHASES = np.where(WIDTHS < 2.0 * _WIDEST, 2 ** np.sum([WIDTHS * 2.0**j < 128 for j in range(7)], axis=0), 1)
"""The number of phases of each."""
_EDGES = exp((np.arange(1, 20 << 10, dtype=np.float64) - 0.5) * 2.0**-10)


def width_index(width: Floats) -> Integers:
    """Finds the indices of the nearest of ``WIDTHS``; widths are at least 1."""
    if not (width < _EDGES[-1]).all():
        raise ValueError("schedule: expected neighbouring steps of comparable size, got one 4e8 times another")
    return np.searchsorted(_EDGES, width).astype(np.int64)


@functools.lru_cache(maxsize=4096)
def table(index: int, escape: bool) -> Table:
    """Makes the table of a width: with an escape, 8 standard deviations to each side; without one, 6."""
    width, parts = float(WIDTHS[index]), int(PHASES[index])
    shift = max(0, math.frexp(width / _WIDEST)[1] - 1)
    half = int(np.ceil((8.0 if escape else 6.0) * width / 2**shift)) + 1
    block = np.arange(1 - half, half + 1)
    centre = (block + 0.5) * 2**shift - 0.5 if shift else block.astype(np.float64)
    off = (centre - (np.arange(parts) / parts)[:, None]) / width
    weights = np.floor(exp(-0.5 * off * off) * 2.0**40).astype(np.int64)
    return Table(frequencies(weights, _ESCAPE if escape else None), half, shift, parts, escape)


def frequencies(weights: Integers, beyond: int | None = None) -> NDArray[np.float32]:
    """Turns rows of weights into rows of frequencies that add up to 2**24 less the number of symbols; what rounding leaves
    goes to the likeliest symbol. ``beyond`` is the frequency of a further symbol at the end."""
    n, symbols = weights.shape
    total = 2**24 - symbols - (0 if beyond is None else beyond + 1)
    rows = np.floor(weights * (float(total) / weights.sum(1, keepdims=True)))
    rows[np.arange(n), rows.argmax(1)] += total - rows.sum(1)  # sums of integers below 2**53
    if beyond is not None:
        rows = np.concatenate([rows, np.full((n, 1), float(beyond))], 1)
    return rows.astype(np.float32)


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


def levels(model: VDM, params: Params, steps: int, n: int, cond: Any = None, dither: int | None = None) -> Levels:
    """Computes the levels of a schedule, for all examples, or for n examples where gamma depends on their conditions;
    rounded with the dither given, or with the one that keeps gamma furthest from boundaries."""
    times = torch.arange(steps + 1, dtype=torch.float64, device=device_of(params)) / steps
    own, cond = cast(params["schedule"], torch.float64), cast(cond, torch.float64)
    with torch.no_grad():
        if model.schedule.contextual:
            gammas = torch.stack([schedules.gamma(model.schedule, own, t.expand(n), cond) for t in times])
        else:
            gammas = schedules.gamma(model.schedule, own, times)
    gamma = gammas.double().cpu().numpy().reshape(steps + 1, n if model.schedule.contextual else 1, -1)
    if not (np.abs(gamma) <= _STEEPEST).all():
        raise ValueError(f"schedule: expected gamma(t) in [-60, 60], got values from {gamma.min()} to {gamma.max()}")
    gamma = gamma * _FINE
    dither = widest(gamma) if dither is None else dither
    whole = rounded(gamma, dither)[0]
    if not (np.diff(whole, axis=0) > 0).all():
        raise ValueError(f"timesteps: expected gamma(t) to rise by at least 1e-6 in each of {steps} steps; take fewer")
    return _levels(whole / _FINE, dither)


def _levels(gamma: Floats, dither: int) -> Levels:
    up, down = exp(gamma), exp(-gamma)
    sigma, alpha_0 = np.sqrt(1.0 / (1.0 + down)), np.sqrt(1.0 / (1.0 + up[0]))
    c = -expm1(gamma[:-1] - gamma[1:])
    std_q, std_p = sigma.copy(), np.ones_like(sigma)
    std_q[1:] *= np.sqrt(c)
    std_p[:-1] = sigma[:-1] * np.sqrt(c)
    delta = np.minimum(std_q, std_p)
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
