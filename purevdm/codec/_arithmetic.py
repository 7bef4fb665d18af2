"""Numbers that are the same on every machine: exponentials made of exactly rounded operations, and guarded rounding.

IEEE 754 fixes the bits of a sum, a product, a quotient and a root, but not those of an exponential, which differ by library
and by instruction set. NumPy's loops round each operation of its own, so nothing here is fused.
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

GUARD = 2.0**-20
"""How far from a rounding boundary every rounded number is kept, in units of what it is rounded to."""
DITHERS = 64
# ln 2 in two parts, the first with 32 zeros at its end, so that products with small integers are exact (fdlibm's).
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10


def exp(x: Floats) -> Floats:
    """Computes exp(x) to an error of a few 1e-16 of it, for x in [-700, 700]."""
    n = np.rint(x * (1.0 / math.log(2.0)))
    return np.ldexp(1.0 + _series((x - n * _LN2_HIGH) - n * _LN2_LOW), n.astype(np.int32))


def expm1(x: Floats) -> Floats:
    """Computes exp(x) - 1 to an error of a few 1e-16 of it."""
    near = np.abs(x) < 0.35
    return np.where(near, _series(np.where(near, x, 0.0)), exp(x) - 1.0)


def _series(r: Floats) -> Floats:
    """Computes exp(r) - 1 for |r| <= 0.35, by its power series up to r**15."""
    p = np.zeros_like(r)
    for k in range(15, 1, -1):
        p = (p + 1.0) * (r * (1.0 / k))
    return (p + 1.0) * r


def rounded(values: Floats, dither: int) -> tuple[Integers, float]:
    """Rounds numbers with a dither, which adds 1/2 and up to a thirty-second more or less before rounding down, and says how
    far the nearest of them is from a boundary, where it would go elsewhere."""
    moved = values + (0.5 + 2.0**-10 * ((dither + 1) // 2 if dither % 2 else -(dither // 2)))
    down = np.floor(moved)
    part = moved - down
    margin = float(np.minimum(part, 1.0 - part).min(initial=0.5))
    return down.astype(np.int64), margin


def guarded(values: Floats, guard: float = GUARD) -> tuple[Integers, int]:
    """Rounds numbers with the first dither that keeps all of them ``guard`` away from a boundary, and gives that dither.

    Numbers that differ by less than ``guard``, rounded with the same dither, give the same integers. The first dither serves
    n numbers spread evenly with a probability of exp(-2 n guard). If none does, the one with the widest margin is taken.
    """
    for dither in range(DITHERS):
        integers, margin = rounded(values, dither)
        if margin >= guard:
            return integers, dither
    dither = widest(values)
    return rounded(values, dither)[0], dither


def widest(values: Floats) -> int:
    """Finds the dither with the widest margin."""
    return max(range(DITHERS), key=lambda dither: rounded(values, dither)[1])
