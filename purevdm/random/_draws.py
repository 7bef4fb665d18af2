"""Draws from distributions, each made of a key's bits as JAX makes it."""

import math
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, _facts
from purevdm._compile import fixed
from purevdm._stable import erf
from purevdm.random import _float32, _threefry
from purevdm.random._keys import split, words
from purevdm.random._operators import operator
from purevdm.random._threefry import WORD
from purevdm.types import Key, Shape

# How a floating dtype is filled: the width of the words drawn for it, and the bits of its mantissa.
_FLOATS = {torch.float64: (64, 52), torch.float32: (32, 23), torch.float16: (16, 10), torch.bfloat16: (8, 7)}
_INTEGERS = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)


def _rounded(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=dtype, device="cpu").item()


# The number next to -1 towards 0: the mantissa below 1 is half a step of the one above, hence m + 1.
_ABOVE_MINUS_ONE = {dtype: -1.0 + 2.0 ** -(mantissa + 1) for dtype, (_, mantissa) in _FLOATS.items()}
_SQRT2 = {dtype: _rounded(math.sqrt(2.0), dtype) for dtype in _FLOATS}


def _unit(key: Key, shape: Shape, dtype: torch.dtype) -> Tensor:
    """Draws uniformly from the grid {0, 1, ..., 2**m - 1} / 2**m, m the mantissa's bits: what filling the mantissa of a
    number in [1, 2) and taking 1 away gives, without the detour through its bits (both are exact)."""
    _checks.key("key", key)
    shape = _checks.shape("shape", shape)
    width, mantissa = _FLOATS[_checks.dtype("dtype", dtype, _FLOATS)]
    top = (words(key, shape, width) >> (width - mantissa)) & ((1 << mantissa) - 1)
    return top.to(dtype) * 2.0**-mantissa


def _stretched(unit: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Takes [0, 1) to [low, high), or to low where rounding leaves nothing between."""
    return torch.maximum(low, _float32.multiply_add(unit, high - low, low))


def uniform(
    key: Key, shape: Shape = (), dtype: torch.dtype = torch.float32, minval: float = 0.0, maxval: float = 1.0
) -> Tensor:
    """Draws uniformly from [minval, maxval), in float32, float64, float16 or bfloat16.

    Raises:
        ValueError: minval >= maxval, or bounds that the dtype does not hold.
    """
    unit = _unit(key, shape, dtype)
    low, high = _checks.increasing("minval", minval, "maxval", maxval)
    if (low, high) == (0.0, 1.0):
        return unit
    if max(-low, high, high - low) > torch.finfo(dtype).max:
        raise ValueError(f"minval, maxval: expected bounds whose distance {dtype} holds, got {low} and {high}")
    return _stretched(unit, *(torch.as_tensor(end, dtype=dtype, device=key.device) for end in (low, high)))


def normal(key: Key, shape: Shape = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws standard normals, in float32, float64, float16 or bfloat16: sqrt(2) erfinv(u) of a uniform u on (-1, 1)."""
    return _NORMALS(_unit(key, shape, dtype))  # type: ignore[no-any-return]


def _normals(unit: Tensor) -> Tensor:
    """Makes normals of uniforms."""
    # 1 - low rounds to 2, and doubling is exact: no fused multiply-add can change this draw.
    return _float32.erfinv(unit * 2.0 + fixed(_ABOVE_MINUS_ONE[unit.dtype])) * fixed(_SQRT2[unit.dtype])


def _elementwise(overload: Any, n: int, in_dims: tuple[int], unit: Tensor) -> tuple[Tensor, int]:
    return overload(unit), in_dims[0]


_NORMALS = operator("normals(Tensor unit) -> Tensor", _normals, _elementwise, _normals)


def truncated_normal(
    key: Key, lower: float | Tensor, upper: float | Tensor, shape: Shape = (), dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draws standard normals, given that they lie in (lower, upper).

    Args:
        key, shape, dtype: as for :func:`normal`.
        lower, upper: numbers (infinities too), or tensors that broadcast to the shape.

    Raises:
        ValueError: lower >= upper, which in tensors is read in eager mode only.
    """
    unit = _unit(key, shape, dtype)
    low, high = (_end(name, x, unit) for name, x in (("lower", lower), ("upper", upper)))
    if isinstance(lower, Tensor) or isinstance(upper, Tensor):
        if _facts.readable(low, high):
            error = ValueError("lower, upper: expected lower < upper everywhere, got others")
            _facts.verify([_facts.Fact(low < high, lambda: error)])
    elif not lower < upper:
        raise ValueError(f"lower, upper: expected lower < upper, got {lower} and {upper}")
    root = fixed(_SQRT2[dtype])
    if dtype == torch.float64:
        bounds = [erf(end / root) for end in (low, high)]
    else:  # from 6 on, erf is 1
        ends = (end.double().clamp(-6.0, 6.0) * fixed(_float32.SQRT_HALF) for end in (low, high))
        bounds = [_float32.erf(_float32.rounded(end)).to(dtype) for end in ends]
    x = _float32.erfinv(_stretched(unit, *bounds)) * root
    infinity = torch.full((), math.inf, dtype=dtype, device=key.device)
    return torch.minimum(torch.maximum(x, torch.nextafter(low, infinity)), torch.nextafter(high, -infinity))


def _end(name: str, x: float | Tensor, like: Tensor) -> Tensor:
    """Makes a tensor of a bound: a number, or a tensor of real numbers that broadcasts."""
    if isinstance(x, Tensor):
        if _checks.broadcasting(name, x, like.shape).is_complex() or x.dtype == torch.bool:
            raise TypeError(f"{name}: expected a number or a tensor of real numbers, got {_checks.describe(x)}")
        return x.to(like)
    if not (isinstance(x, float) and math.isinf(x)):
        _checks.real(name, x)
    return torch.as_tensor(x, dtype=like.dtype, device=like.device)


def _remainder64(x: Tensor, span: Tensor) -> Tensor:
    """Computes x mod span, where int64 x stands for the uint64 of the same bits, and 0 < span < 2**63."""
    half = (x >> 1) & 0x7FFFFFFFFFFFFFFF
    rest = ((half % span) << 1) + (x & 1)  # < 2 span, which may not fit: compare in two's complement
    return torch.where((rest < 0) | (rest >= span), rest - span, rest)


def randint(key: Key, shape: Shape, minval: int, maxval: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Draws integers uniformly from [minval, maxval), in int32, int64, int16, int8 or uint8.

    Raises:
        ValueError: minval >= maxval, bounds that the dtype does not hold (maxval may be one past its largest), or 2**63 or
            more values.
    """
    _checks.key("key", key)
    shape = _checks.shape("shape", shape)
    info = torch.iinfo(_checks.dtype("dtype", dtype, _INTEGERS))
    minval = _checks.integer("minval", minval, info.min, info.max)
    maxval = _checks.integer("maxval", maxval, info.min, info.max + 1)
    if not minval < maxval:
        raise ValueError(f"minval, maxval: expected minval < maxval, got {minval} and {maxval}")
    if maxval - minval >= 2**63:
        raise ValueError(f"minval, maxval: expected a span below 2**63, got {maxval - minval}")
    span = torch.full((), maxval - minval, dtype=torch.int64, device=key.device)

    # Two words a draw, (high * 2**width + low) mod span, so that a span that is no power of two is hardly favoured
    # anywhere. Products and sums wrap at the width, as JAX's do.
    if dtype == torch.int64:
        high, low = (words(k, shape, 64) for k in split(key).unbind(0))
        root = _remainder64(torch.full_like(span, 1 << 32), span)
        multiplier = _remainder64(root * root, span)
        offset = _remainder64(_remainder64(high, span) * multiplier + _remainder64(low, span), span)
    else:
        high, low = (words(k, shape, 32).to(torch.int64) & WORD for k in split(key).unbind(0))
        root = (1 << 16) % span
        multiplier = ((root * root) & WORD) % span
        offset = (((high % span) * multiplier + low % span) & WORD) % span
    return (offset + minval).to(dtype)


def bernoulli(key: Key, p: float | Tensor = 0.5, shape: Shape | None = None) -> Tensor:
    """Draws True with probability p: bool, of the given shape or of p's.

    Raises:
        ValueError: a p outside [0, 1], which in a tensor is read in eager mode only.
    """
    _checks.key("key", key)
    if not isinstance(p, Tensor):
        if not 0.0 <= _checks.real("p", p) <= 1.0:
            raise ValueError(f"p: expected a probability in [0, 1], got {p}")
        return _less(key, p, () if shape is None else _checks.shape("shape", shape))
    if _facts.readable(_checks.floating("p", p)):
        holds = (p >= 0.0) & (p <= 1.0)
        _facts.verify([_facts.Fact(holds, lambda: _checks.outside("probabilities in [0, 1]", "p", p))])
    shape = p.shape if shape is None else _checks.shape("shape", shape)
    _checks.together("p", _checks.broadcasting("p", p, shape), key.device)
    return uniform(key, shape, p.dtype) < p.to(key.device)


def _less(key: Key, p: float, shape: Shape) -> Tensor:
    """Compares float32 uniforms, k / 2**23, with p by their bits: k < p 2**23."""
    limit = math.ceil(_rounded(p, torch.float32) * 2.0**23) << 9
    if limit == 0:
        return torch.zeros(shape, dtype=torch.bool, device=key.device)
    return _threefry.below(key, math.prod(shape), limit).reshape(shape)


def rademacher(key: Key, shape: Shape = (), dtype: torch.dtype = torch.int32) -> Tensor:
    """Draws -1 or 1, equally likely, in a dtype that holds -1."""
    _checks.dtype("dtype", dtype, (*_INTEGERS[:-1], *_FLOATS))
    return (2 * bernoulli(key, 0.5, shape).to(torch.int32) - 1).to(dtype)


def gumbel(key: Key, shape: Shape = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws standard Gumbels, -log(-log(u)), in float32, float64, float16 or bfloat16."""
    _checks.dtype("dtype", dtype, _FLOATS)
    u = uniform(key, shape, dtype, torch.finfo(dtype).tiny, 1.0)
    if dtype == torch.float64:
        return -torch.log(-torch.log(u))
    exponential = -_float32.log(u.double(), steps=7).to(dtype)
    return -_float32.log(exponential.double() * 2.0**-7, exponent=7).to(dtype)


def categorical(key: Key, logits: Tensor, shape: Shape | None = None) -> Tensor:
    """Draws indices with probabilities softmax(logits) along the last axis (by the Gumbel trick): int64.

    Args:
        key: a key.
        logits: unnormalised log-probabilities, floating-point, of rank at least 1.
        shape: the result's shape, ending in the logits' shape without the last axis, which is the default.

    Raises:
        ValueError: in eager mode, logits that are NaN or infinite upwards, or no category that is possible.
    """
    _checks.key("key", key)
    if _checks.floating("logits", logits).ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected an axis of at least one category, got {_checks.describe(logits)}")
    batch = tuple(logits.shape[:-1])
    shape = batch if shape is None else _checks.shape("shape", shape)
    lead = len(shape) - len(batch)
    if lead < 0 or shape[lead:] != batch:
        raise ValueError(f"shape: expected a shape that ends in {batch}, the logits' without their last axis, got {shape}")
    if _facts.readable(logits) and logits.numel():
        wanted = "logits: expected numbers or -infinity, with one above it in each distribution"
        error = ValueError(f"{wanted}, got {_checks.describe(logits)} without")
        _facts.verify([_facts.Fact(logits.amax(-1).isfinite(), lambda: error)])
    return torch.argmax(gumbel(key, (*shape[:lead], *logits.shape), logits.dtype) + logits, dim=-1)


def permutation(key: Key, n: int) -> Tensor:
    """Draws a permutation of 0, ..., n - 1, int64: ``x[random.permutation(key, len(x))]`` is x shuffled."""
    _checks.key("key", key)
    order = torch.arange(_checks.integer("n", n, 0), device=key.device)
    # Sorts by fresh 32-bit keys, in as many rounds as make ties (which keep their order) rare.
    for _ in range(math.ceil(3 * math.log(max(1, n)) / math.log(WORD))):
        key, subkey = split(key).unbind(0)
        # Flipping the sign bit makes the signed order the unsigned one.
        order = order[torch.argsort(words(subkey, order.shape, 32) ^ -(2**31), stable=True)]
    return order
