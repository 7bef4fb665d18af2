"""Functions of float32 numbers that give the same bits on every machine: those of XLA's code for a CPU.

This repeats that code's arithmetic, operation by operation, with its fused multiply-adds. float32 numbers are kept in
float64, which holds their products exactly. So no compiler changes a bit by fusing a product with a sum. Rounding to
float64 and then to float32 gives the same as rounding once: always for a sum, product, quotient or root. For a fused
multiply-add it fails about once in 2**29, and for none of the 2**23 possible normals and Gumbels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from purevdm._compile import fixed, materialize


def multiply_add(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Computes scale * x + shift, rounded once for float32, as XLA's fused multiply-add is, on every device."""
    if x.dtype != torch.float32:
        return x * scale + shift
    return (x.double() * scale.double() + shift.double()).float()


def _rounded_constants(*values: float) -> tuple[float, ...]:
    return tuple(torch.tensor(values, dtype=torch.float32, device="cpu").tolist())


def rounded(x: Tensor) -> Tensor:
    """Rounds float64 x to the 24 bits of float32 (a normal number of it), ties to even."""
    if not torch.compiler.is_compiling():
        return x.float().double()
    # Inductor has no vector code for these casts on a CPU, and before torch 2.13 takes such a pair away. Adding 2**29 x,
    # which is exact, pushes the same 29 bits out.
    x = materialize(x)
    high = x * 2.0**29
    return (high + x) - high


def _polynomial(x: Tensor, coefficients: Sequence[Tensor | float]) -> Tensor:
    """Computes Horner's scheme from the highest power down, a fused multiply-add a step."""
    first, *middle, last = (c if isinstance(c, Tensor) else fixed(c) for c in coefficients)
    p = x * first
    for c in middle:
        p = rounded(p + c) * x
    return rounded(p + last)


SQRT_HALF, _LN2_HIGH, _LN2_LOW = _rounded_constants(0.70710677, 0.693359375, -0.00021219444)
_LOG = (
    _rounded_constants(0.070376836, -0.1151461, 0.116769984),
    _rounded_constants(-0.12420141, 0.14249323, -0.16668057),
    _rounded_constants(0.20000714, -0.24999994, 0.3333333),
)


def log(x: Tensor, exponent: int = 0, steps: int = 5) -> Tensor:
    """Computes log(2**exponent x), for x from 2**-2**steps to 1: Cephes' logf."""
    if x.is_meta:
        return x
    # x = 2**e m with m in [sqrt(1/2), sqrt(2)): scaling by powers of two is exact, and needs no look at the bits.
    m, e = x, torch.full_like(x, exponent)
    for shift in (2**i for i in reversed(range(steps))):
        # In memory, as each m is used three times: a compiler would repeat the first 3**steps times.
        small = m < fixed(SQRT_HALF) * 2.0 ** (1 - shift)
        m, e = materialize(torch.where(small, m * 2.0**shift, m)), materialize(torch.where(small, e - shift, e))
    y = materialize(m - 1.0)
    square = rounded(y * y)
    cube = rounded(square * y)
    low = _polynomial(cube, (*(_polynomial(y, row) for row in _LOG), rounded(fixed(_LN2_LOW) * e)))
    return rounded(rounded(rounded(y - 0.5 * square) + low) + fixed(_LN2_HIGH) * e)


_LOG1P_NEAR = _rounded_constants(0.41421357)[0]
_LOG1P_ABOVE = _rounded_constants(4.527e-05, 0.49854103, 6.5787325, 29.911919, 60.94967, 57.112965, 20.039553)
_LOG1P_BELOW = _rounded_constants(1.0, 15.062909, 83.04757, 221.7624, 309.09872, 216.42789, 60.11866)


def log1p(x: Tensor) -> Tensor:
    """Computes log(1 + x), for x in (-1, 0]: Cephes' log1p near 0."""
    square = rounded(x * x)
    cube = rounded(square * x)
    ratio = rounded(_polynomial(x, _LOG1P_ABOVE) / _polynomial(x, _LOG1P_BELOW))
    near = rounded(x + rounded(rounded(cube * ratio) - 0.5 * square))
    return torch.where(x > -fixed(_LOG1P_NEAR), near, log(rounded(1.0 + x)))


_ERF_ONE = _rounded_constants(3.7439213)[0]
_ERF_ABOVE = _rounded_constants(0.00022905065, 0.003408291, 0.050955694, 0.18520832, 1.1283791)
_ERF_BELOW = _rounded_constants(-1.1791603e-07, 2.3547966e-05, 0.0010179626, 0.01407047, 0.11098505, 0.49746925, 1.0)


def erf(x: Tensor) -> Tensor:
    """Computes erf, which is 1 from 3.74 on: Eigen's rational approximation."""
    if x.is_meta:
        return x
    square = rounded(x * x)
    y = rounded(rounded(x * _polynomial(square, _ERF_ABOVE)) / _polynomial(square, _ERF_BELOW))
    return torch.where(x.abs() < fixed(_ERF_ONE), y, x.sign())


# Giles, "Approximating the erfinv function" (GPU Computing Gems, 2012), single precision: two polynomials in
# w = -log(1 - x**2), the first about 2.5, the second in sqrt(w) about 3.
# fmt: off
_ERFINV_CENTRE = _rounded_constants(
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06,
    0.00021858087, -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
)
_ERFINV_TAIL = _rounded_constants(
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
    -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
)
# fmt: on


def erfinv(x: Tensor) -> Tensor:
    """Computes erfinv on [-1, 1]. float64 is torch's; shorter dtypes compute in float32, as XLA does."""
    if x.dtype == torch.float64 or x.is_meta:
        return torch.erfinv(x)
    y = materialize(x.double())
    log = materialize(log1p(rounded(-y * y)))
    near = log > -5.0
    w = rounded(torch.where(near, -2.5 - log, rounded(torch.sqrt(-log)) - 3.0))
    pairs = zip(_ERFINV_CENTRE, _ERFINV_TAIL, strict=True)
    p = _polynomial(w, [torch.where(near, w.new_full((), fixed(centre)), fixed(tail)) for centre, tail in pairs])
    return (torch.where(y.abs() == 1.0, math.inf, p) * y).to(x.dtype)
