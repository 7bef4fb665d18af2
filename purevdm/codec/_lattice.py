"""Gaussians on a lattice, as integer frequencies that add up to 2**24.

The weight of lattice point k is exp(-(k - m)**2 / (2 w**2)), the density itself, for a mean m and a standard deviation
("width") w in lattice steps. By Poisson's summation formula its sum, mean and variance are those of the continuous Gaussian
up to parts of exp(-2 pi**2 w**2), 3e-9 for w = 1. So latents on a lattice as coarse as the narrower conditional cost what
continuous ones would, and need few initial bits.

Means are rounded to ``phases`` parts of a step, together 1 / 128 of a standard deviation: (1 / 128)**2 / 24 nats a number.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from purevdm.codec._arithmetic import Floats, Integers, exp

BITS = 24
NARROW = 1.0
"""The least width: a lattice's step is the narrower standard deviation of the two that touch it."""
FINE = 128
_GRID = 2.0**-10  # of the logarithms of widths
_WIDEST = 16.0
_EDGES = NARROW * exp((np.arange(1, 20 << 10, dtype=np.float64) - 0.5) * _GRID)
ESCAPE = 16


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


def width_index(width: Floats) -> Integers:
    """The index of the nearest width that there is a table for; widths are at least 1.

    Raises:
        ValueError: a width beyond 4e8.
    """
    if not (width < _EDGES[-1]).all():
        raise ValueError("schedule: expected neighbouring steps of comparable size, got one 4e8 times another")
    return np.searchsorted(_EDGES, width).astype(np.int64)


def phases(index: Integers) -> Integers:
    """The number of phases of each width."""
    return _PHASES[index]


def _width(index: Integers) -> Floats:
    return NARROW * exp(np.asarray(index, np.float64) * _GRID)


def _phases() -> Integers:
    width = _width(np.arange(len(_EDGES) + 1))
    fine = np.left_shift(1, sum((width * 2.0**j < FINE).astype(np.int64) for j in range(7)))
    return np.where(width < 2.0 * _WIDEST, fine, 1)


_PHASES = _phases()


@functools.lru_cache(maxsize=4096)
def table(index: int, escape: bool) -> Table:
    """The table of a width: with an escape, 8 standard deviations to each side; without one, 6."""
    width = float(_width(np.array(index)))
    shift = 0
    while width >= _WIDEST * 2.0 ** (shift + 1):
        shift += 1
    parts = int(phases(np.array(index)))
    half = int(np.ceil((8.0 if escape else 6.0) * width / 2**shift)) + 1
    block = np.arange(1 - half, half + 1)
    centre = (block + 0.5) * 2**shift - 0.5 if shift else block.astype(np.float64)
    off = (centre - (np.arange(parts) / parts)[:, None]) / width
    weights = np.floor(exp(-0.5 * off * off) * 2.0**40).astype(np.int64)
    rows = frequencies(weights, ESCAPE) if escape else frequencies(weights)
    return Table(rows, half, shift, parts, escape)


def frequencies(weights: Integers, beyond: int | None = None) -> NDArray[np.float32]:
    """Rows of weights as rows of frequencies that add up to 2**24 less the number of symbols; what rounding leaves goes to
    the likeliest symbol. ``beyond`` is the frequency of a further symbol at the end."""
    n, symbols = weights.shape
    total = 2**BITS - symbols - (0 if beyond is None else beyond + 1)
    rows = np.floor(weights * (float(total) / weights.sum(1, keepdims=True)))
    rows[np.arange(n), rows.argmax(1)] += total - rows.sum(1)  # sums of integers below 2**53
    if beyond is not None:
        rows = np.concatenate([rows, np.full((n, 1), float(beyond))], 1)
    return rows.astype(np.float32)
