"""Explicit random keys, with the numbers of ``jax.random``.

A **key** is an int32 tensor of shape (2,): the two 32-bit words of a threefry2x32 key, the same bits that JAX keeps as
uint32 (``key.view(torch.uint32)`` shows them). Every function is a pure function of its key: the same key gives the same
draw on any device, in eager, compiled, and under ``torch.func.vmap``. Use a key once; to draw twice, :func:`split` it
first. Results live on the key's device.

Integers and float32 draws are those of ``jax.random`` bit for bit, as it draws on a CPU with fused multiply-adds, and the
same on every CPU here, fused or not: they are made only of operations that IEEE 754 defines to the last bit. In float64,
normals, truncated normals and Gumbels take torch's functions, whose last bits are the machine's. In float16 and bfloat16 a
compiled graph may round less often than eager.

A draw depends on its dtype, as in JAX: each dtype takes other bits of its key's, so float64 draws are not float32 draws with
more digits.

The generator is threefry2x32 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011), and the
way from its words to draws is that of JAX with ``jax_threefry_partitionable=True``, JAX's default: element i of an array
depends on the key and on i alone, so a longer draw begins with the shorter one.

>>> from purevdm import random
>>> k_model, k_noise = random.split(random.key(0))
>>> random.normal(k_noise, (3,))
tensor([-2.4425, -2.0357,  0.2055])
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from purevdm import _checks, _float32
from purevdm._compile import fixed, materialize
from purevdm.types import Key

__all__ = [
    "bernoulli",
    "bits",
    "categorical",
    "fold_in",
    "gumbel",
    "key",
    "normal",
    "permutation",
    "rademacher",
    "randint",
    "split",
    "truncated_normal",
    "uniform",
]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_WORD = 0xFFFFFFFF

# How a floating dtype is filled: the width of the words drawn for it, and the bits of its mantissa.
_FLOATS = {torch.float64: (64, 52), torch.float32: (32, 23), torch.float16: (16, 10), torch.bfloat16: (8, 7)}
_UNSIGNED = {torch.uint8: 8, torch.uint16: 16, torch.uint32: 32, torch.uint64: 64}
_INTEGERS = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)


def _rotate_left(x: Tensor, by: int) -> Tensor:
    # int32 has only the arithmetic right shift; the mask takes the copies of the sign away.
    return (x << by) | ((x >> (32 - by)) & ((1 << by) - 1))


def _threefry2x32(key: Key, high: Tensor | int, low: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypts the 64-bit counters (high, low) under a key, all int32: 20 rounds of add, rotate, xor."""
    if key.is_meta:  # only shapes are asked for
        return low + high, low + high
    k0, k1 = key.unbind(0)
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = high + k0, low + k1
    for group in range(5):
        for by in _ROTATIONS[group % 2]:
            # Words used three times a round, expressions repeated, would grow the code by three a round, and take half a
            # minute a draw to compile. In memory, they still fuse into one loop and live in registers.
            x0 = materialize(x0 + x1)
            x1 = materialize(_rotate_left(x1, by) ^ x0)
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + (schedule[(group + 2) % 3] + (group + 1))
    return x0, x1


def _counters(start: int, n: int, device: torch.device) -> tuple[Tensor | int, Tensor]:
    """The 64-bit counters start, ..., start + n - 1 as int32 words (high, low)."""
    if start + n <= 2**31:
        return 0, torch.arange(start, start + n, dtype=torch.int32, device=device)
    wide = torch.arange(start, start + n, dtype=torch.int64, device=device)
    return (wide >> 32).to(torch.int32), _low_word(wide)


def _low_word(x: Tensor) -> Tensor:
    """The low 32 bits of an int64 tensor, as int32."""
    return (((x & _WORD) ^ 0x80000000) - 0x80000000).to(torch.int32)


def _words(key: Key, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Both output words at the counters 0, 1, ... of an array of this shape."""
    high, low = _counters(0, math.prod(shape), key.device)
    x0, x1 = _threefry2x32(key, high, low)
    return x0.reshape(shape), x1.reshape(shape)


def _bits(key: Key, shape: Sequence[int], width: int) -> Tensor:
    """Random bits: int32 holding 32 of them or the low 16 or 8 (the rest zero); int64 holding 64."""
    x0, x1 = _words(key, shape)
    if width == 64:
        return (x0.to(torch.int64) << 32) | (x1.to(torch.int64) & _WORD)
    word = x0 ^ x1
    return word if width == 32 else word & ((1 << width) - 1)


def _float_dtype(dtype: torch.dtype) -> tuple[int, int]:
    return _FLOATS[_checks.dtype("dtype", dtype, _FLOATS)]


def _unit(key: Key, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uniform on the grid {0, 1, ..., 2**m - 1} / 2**m, m the mantissa's bits: what filling the mantissa of a number in
    [1, 2) and taking 1 away gives, without the detour through its bits (both are exact)."""
    width, mantissa = _float_dtype(dtype)
    word = _bits(key, shape, width)
    top = (word >> (width - mantissa)) & ((1 << mantissa) - 1)
    return top.to(dtype) * 2.0**-mantissa


def key(seed: int, *, device: torch.device | str | None = None) -> Tensor:
    """A key from a seed, as ``jax.random.PRNGKey`` makes it without x64: the words ``[0, seed mod 2**32]``.

    Args:
        seed: any Python integer. Seeds equal modulo 2**32 make the same key, as in JAX.
        device: where the key lives, and with it all that is drawn from it.

    Returns:
        int32, shape (2,).

    Raises:
        TypeError, ValueError: a seed that is not an integer, a device that there is not.
    """
    low = _checks.integer("seed", seed) & _WORD
    device = None if device is None else _checks.device("device", device)
    return torch.tensor([0, low - 2**32 if low >= 2**31 else low], dtype=torch.int32, device=device)


def split(key: Key, num: int | Sequence[int] = 2) -> Tensor:
    """Fresh, independent keys from one, which is then used up: shape (num, 2), or (*num, 2) for a shape.

    Raises:
        TypeError, ValueError: a key or a count of the wrong form.
    """
    _checks.key("key", key)
    shape = _checks.shape("num", num) if isinstance(num, (tuple, list, torch.Size)) else (_checks.integer("num", num, 1),)
    return torch.stack(_words(key, shape), dim=-1)


def fold_in(key: Key, data: int | Tensor) -> Tensor:
    """A fresh key from a key and a number, such as a step's index: shape (2,).

    Args:
        key: a key.
        data: an integer in [0, 2**32), or an integer tensor of shape () (so that a compiled loop can fold in its
            counter). A negative int32 stands for the uint32 with the same bits.

    Raises:
        TypeError, ValueError: a key of the wrong form, or data that is no such integer.
    """
    _checks.key("key", key)
    if isinstance(data, Tensor):
        _checks.shaped("data", data, ())
        if data.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"data: expected an int32 or int64 tensor, got {_checks.describe(data)}")
        if data.dtype == torch.int64:
            _checks.within("data", data, 0, _WORD)
            data = _low_word(data)
        word = data
    else:
        value = _checks.integer("data", data, 0, _WORD)
        word = torch.full((), value - 2**32 if value >= 2**31 else value, dtype=torch.int32, device=key.device)
    return torch.stack(_threefry2x32(key, 0, word))


def bits(key: Key, shape: Sequence[int] = (), dtype: torch.dtype = torch.uint32) -> Tensor:
    """Random bits as unsigned integers, every value equally likely.

    Args:
        key: a key.
        shape: the result's shape.
        dtype: uint8, uint16, uint32 or uint64. (torch computes little with the last three; ``.view`` them as signed.)

    Raises:
        TypeError, ValueError: a key, shape or dtype of the wrong form.
    """
    _checks.key("key", key)
    shape = _checks.shape("shape", shape)
    _checks.dtype("dtype", dtype, _UNSIGNED)
    # A conversion keeps the bits, as a view does, and vmap knows it in every version of torch.
    return _bits(key, shape, _UNSIGNED[dtype]).to(dtype)


def uniform(
    key: Key,
    shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    minval: float | Tensor = 0.0,
    maxval: float | Tensor = 1.0,
) -> Tensor:
    """Uniform on [minval, maxval).

    Args:
        key: a key.
        shape: the result's shape.
        dtype: float32, float64, float16 or bfloat16; each draws other numbers from a key.
        minval, maxval: numbers, or tensors that broadcast to the shape.

    Raises:
        TypeError, ValueError: a key, shape or dtype of the wrong form, minval >= maxval, or bounds whose distance is not
            finite in the dtype; bounds in tensors are read in eager alone.
    """
    _checks.key("key", key)
    shape = _checks.shape("shape", shape)
    unit = _unit(key, shape, dtype)
    given = isinstance(minval, Tensor) or isinstance(maxval, Tensor)
    if not given:
        _checks.increasing("minval", minval, "maxval", maxval)
        if (minval, maxval) == (0.0, 1.0):
            return unit
    low, high = _bound("minval", minval, shape, dtype, key), _bound("maxval", maxval, shape, dtype, key)
    if _checks.readable(low, high):
        held = (high - low).isfinite()
        error = ValueError(f"minval, maxval: expected finite bounds whose distance {dtype} holds, got another")
        _checks.verify([_checks.Fact(held, lambda: error), *(_rising("minval", low, "maxval", high) if given else [])])
    return _stretched(unit, low, high).expand(shape)


def _stretched(unit: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """From [0, 1) to [low, high), or to low alone where rounding leaves nothing between."""
    return torch.maximum(low, _float32.multiply_add(unit, high - low, low))


def _rising(low_name: str, low: Tensor, high_name: str, high: Tensor) -> list[_checks.Fact]:
    """That bounds in tensors are in order, as a fact."""
    if not _checks.readable(low, high):
        return []
    error = ValueError(f"{low_name}, {high_name}: expected {low_name} < {high_name} everywhere, got others")
    return [_checks.Fact(low < high, lambda: error)]


def _bound(name: str, x: float | Tensor, shape: Sequence[int] | None, dtype: torch.dtype, key: Key) -> Tensor:
    """A number, or a tensor of real numbers that broadcasts to the shape, as a tensor."""
    if not isinstance(x, Tensor):
        return torch.as_tensor(_checks.real(name, x), dtype=dtype, device=key.device)
    if _checks.tensor(name, x).is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name}: expected a number or a tensor of real numbers, got {_checks.describe(x)}")
    return _checks.broadcasting(name, x, shape).to(key.device, dtype)


def _round_to(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=dtype, device="cpu").item()


# The number next to -1 towards 0: the mantissa below 1 is half a step of the one above, hence m + 1.
_ABOVE_MINUS_ONE = {dtype: -1.0 + 2.0 ** -(mantissa + 1) for dtype, (_, mantissa) in _FLOATS.items()}
_SQRT2 = {dtype: _round_to(math.sqrt(2.0), dtype) for dtype in _FLOATS}


def normal(key: Key, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal, as sqrt(2) erfinv(u) of a uniform u on (-1, 1).

    Args:
        key: a key.
        shape: the result's shape.
        dtype: float32, float64, float16 or bfloat16; each draws other numbers from a key.

    Raises:
        TypeError, ValueError: a key, shape or dtype of the wrong form.
    """
    _checks.key("key", key)
    _float_dtype(dtype)
    low = fixed(_ABOVE_MINUS_ONE[dtype])
    # 1 - low rounds to 2, and doubling is exact: no fused multiply-add can change this draw.
    u = _unit(key, _checks.shape("shape", shape), dtype) * 2.0 + low
    return _float32.erfinv(u) * fixed(_SQRT2[dtype])


def truncated_normal(
    key: Key,
    lower: float | Tensor,
    upper: float | Tensor,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal, given that it lies in (lower, upper).

    Args:
        key: a key.
        lower, upper: numbers (infinities too), or tensors that broadcast to the shape.
        shape: the result's shape; by default that of lower and upper broadcast.
        dtype: float32, float64, float16 or bfloat16.

    Raises:
        TypeError, ValueError: a key, shape or dtype of the wrong form, or lower >= upper, which in tensors is read in eager
            alone.
    """
    _checks.key("key", key)
    _float_dtype(dtype)
    out_shape = None if shape is None else _checks.shape("shape", shape)
    low, high = (_end(name, x, out_shape, dtype, key) for name, x in (("lower", lower), ("upper", upper)))
    given = isinstance(lower, Tensor) or isinstance(upper, Tensor)
    if not given and not lower < upper:
        raise ValueError(f"lower, upper: expected lower < upper, got {lower} and {upper}")
    if out_shape is None:
        try:
            out_shape = torch.broadcast_shapes(low.shape, high.shape)
        except RuntimeError:
            found = f"{tuple(low.shape)} and {tuple(high.shape)}"
            raise ValueError(f"lower, upper: expected shapes that broadcast, got {found}") from None
    _checks.verify(_rising("lower", low, "upper", high) if given else [])
    root = fixed(_SQRT2[dtype])
    if dtype == torch.float64:
        bounds = [torch.erf(bound / root) for bound in (low, high)]
    else:  # from 6 on, erf is 1
        bounds = [
            _float32.erf(_float32.rounded(bound.double().clamp(-6.0, 6.0) * fixed(_float32.SQRT_HALF))).to(dtype)
            for bound in (low, high)
        ]
    x = _float32.erfinv(_stretched(_unit(key, out_shape, dtype), *bounds).expand(out_shape)) * root
    infinity = torch.full((), math.inf, dtype=dtype, device=key.device)
    return torch.minimum(torch.maximum(x, torch.nextafter(low, infinity)), torch.nextafter(high, -infinity))


def _end(name: str, x: float | Tensor, shape: Sequence[int] | None, dtype: torch.dtype, key: Key) -> Tensor:
    """As :func:`_bound`, and infinite where it is."""
    if isinstance(x, float) and math.isinf(x):
        return torch.full((), x, dtype=dtype, device=key.device)
    return _bound(name, x, shape, dtype, key)


def _remainder64(x: Tensor, span: Tensor) -> Tensor:
    """x mod span, where int64 x stands for the uint64 of the same bits, and 0 < span < 2**63."""
    half = (x >> 1) & 0x7FFFFFFFFFFFFFFF
    rest = ((half % span) << 1) + (x & 1)  # < 2 span, which may not fit: compare in two's complement
    return torch.where((rest < 0) | (rest >= span), rest - span, rest)


def randint(
    key: Key,
    shape: Sequence[int],
    minval: int | Tensor,
    maxval: int | Tensor,
    dtype: torch.dtype = torch.int32,
) -> Tensor:
    """Integers, uniform on [minval, maxval).

    Args:
        key: a key.
        shape: the result's shape.
        minval, maxval: integers that fit the dtype (maxval may be one past its largest), or integer tensors that
            broadcast to the shape (where maxval <= minval in a compiled graph, which reads no values, minval is drawn).
        dtype: int32, int64, int16, int8 or uint8.

    Raises:
        TypeError, ValueError: a key, shape or dtype of the wrong form; bounds that are no integers, do not fit the dtype,
            or with minval >= maxval.
    """
    _checks.key("key", key)
    shape = _checks.shape("shape", shape)
    _checks.dtype("dtype", dtype, _INTEGERS)
    info = torch.iinfo(dtype)
    for name, value in (("minval", minval), ("maxval", maxval)):
        if not isinstance(value, Tensor):
            _checks.integer(name, value, info.min, info.max + (name == "maxval"))
        elif _checks.tensor(name, value).is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name}: expected an integer tensor, got {_checks.describe(value)}")
        else:
            _checks.broadcasting(name, value, shape)
            _checks.within(name, value, info.min, min(info.max + (name == "maxval"), 2**63 - 1))
    if not isinstance(minval, Tensor) and not isinstance(maxval, Tensor):
        if not minval < maxval:
            raise ValueError(f"minval, maxval: expected minval < maxval, got {minval} and {maxval}")
        if maxval - minval >= 2**63:
            raise ValueError(f"minval, maxval: expected a span below 2**63, got {maxval - minval}")
        low = torch.full((), minval, dtype=torch.int64, device=key.device)
        span = torch.full((), maxval - minval, dtype=torch.int64, device=key.device)
    else:
        low = torch.as_tensor(minval, dtype=torch.int64, device=key.device)
        high = torch.as_tensor(maxval, dtype=torch.int64, device=key.device)
        if _checks.readable(low, high):
            error = ValueError("minval, maxval: expected a span below 2**63, got a wider one")
            wide = _checks.Fact((high <= low) | (high - low > 0), lambda: error)
            _checks.verify([*_rising("minval", low, "maxval", high), wide])
        span = (high - low).clamp(min=1)

    # Two words a draw, (high * 2**width + low) mod span, so that a span that is no power of two is hardly favoured
    # anywhere. Products and sums wrap at the width, as JAX's do.
    if dtype == torch.int64:
        high, rest = (_bits(k, shape, 64) for k in split(key).unbind(0))
        root = _remainder64(torch.full_like(span, 1 << 32), span)
        multiplier = _remainder64(root * root, span)
        offset = _remainder64(_remainder64(high, span) * multiplier + _remainder64(rest, span), span)
    else:
        high, rest = (_bits(k, shape, 32).to(torch.int64) & _WORD for k in split(key).unbind(0))
        root = (1 << 16) % span
        multiplier = ((root * root) & _WORD) % span
        offset = (((high % span) * multiplier + rest % span) & _WORD) % span
    return (offset + low).to(dtype).expand(shape)


def bernoulli(key: Key, p: float | Tensor = 0.5, shape: Sequence[int] | None = None) -> Tensor:
    """True with probability p: bool, of the given shape or of p's.

    Raises:
        TypeError, ValueError: a key or shape of the wrong form, or a number p outside [0, 1].
    """
    _checks.key("key", key)
    if isinstance(p, Tensor):
        if _checks.floating("p", p).ndim:
            _checks.together("p", p, key.device)
    elif not 0.0 <= _checks.real("p", p) <= 1.0:
        raise ValueError(f"p: expected a probability in [0, 1], got {p}")
    dtype = p.dtype if isinstance(p, Tensor) else torch.float32
    p = torch.as_tensor(p, dtype=dtype, device=key.device)
    shape = p.shape if shape is None else _checks.shape("shape", shape)
    if _checks.readable(p):
        held = (p >= 0.0) & (p <= 1.0)
        _checks.verify([_checks.Fact(held, lambda: _checks.outside("probabilities in [0, 1]", "p", p))])
    return uniform(key, shape, dtype) < _checks.broadcasting("p", p, shape)


def rademacher(key: Key, shape: Sequence[int] = (), dtype: torch.dtype = torch.int32) -> Tensor:
    """-1 or 1, equally likely.

    Raises:
        TypeError, ValueError: a key or shape of the wrong form, or a dtype without -1.
    """
    _checks.dtype("dtype", dtype, (*_INTEGERS, *_FLOATS))
    if dtype == torch.uint8:
        raise TypeError(f"dtype: expected one that holds -1, got {dtype}")
    return (2 * bernoulli(key, 0.5, shape).to(torch.int32) - 1).to(dtype)


def gumbel(key: Key, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard Gumbel, -log(-log(u)).

    Raises:
        TypeError, ValueError: a key, shape or dtype of the wrong form.
    """
    _float_dtype(dtype)
    u = uniform(key, shape, dtype, torch.finfo(dtype).tiny, 1.0)
    if dtype == torch.float64:
        return -torch.log(-torch.log(u))
    exponential = -_float32.log(u.double(), steps=7).to(dtype)
    return -_float32.log(exponential.double() * 2.0**-7, exponent=7).to(dtype)


def categorical(key: Key, logits: Tensor, axis: int = -1, shape: Sequence[int] | None = None) -> Tensor:
    """Indices drawn with probabilities softmax(logits) along an axis (by the Gumbel trick): int64.

    Args:
        key: a key.
        logits: unnormalised log-probabilities, floating-point, of rank at least 1.
        axis: the axis of the categories.
        shape: the result's shape, ending in the logits' shape without the axis, which is the default.

    Raises:
        TypeError, ValueError: a key, logits, axis or shape of the wrong form; in eager, logits that are NaN or infinite
            upwards, or no category that is possible.
    """
    _checks.key("key", key)
    if _checks.floating("logits", logits).ndim == 0:
        raise ValueError(f"logits: expected at least one axis, got {_checks.describe(logits)}")
    if not -logits.ndim <= _checks.integer("axis", axis) < logits.ndim:
        raise ValueError(f"axis: expected an axis of the logits, {_checks.describe(logits)}, got {axis}")
    if logits.shape[axis] == 0:
        raise ValueError(f"logits: expected at least one category, got {_checks.describe(logits)}")
    axis = axis - logits.ndim if axis >= 0 else axis
    batch = tuple(d for i, d in enumerate(logits.shape, -logits.ndim) if i != axis)
    shape = batch if shape is None else _checks.shape("shape", shape)
    lead = len(shape) - len(batch)
    if lead < 0 or shape[lead:] != batch:
        raise ValueError(f"shape: expected a shape that ends in {batch}, the logits' without their axis, got {shape}")
    if _checks.readable(logits) and logits.numel():
        wanted = "logits: expected numbers or -infinity, with one above it along the axis"
        found = ValueError(f"{wanted}, got {_checks.describe(logits)} without")
        _checks.verify([_checks.Fact(logits.amax(axis).isfinite(), lambda: found)])
    noise = gumbel(key, (*shape[:lead], *logits.shape), logits.dtype)
    return torch.argmax(noise + logits, dim=axis)


def _shuffle(key: Key, x: Tensor, axis: int) -> Tensor:
    """Sorts by fresh 32-bit keys, in as many rounds as make ties (which keep their order) rare."""
    rounds = math.ceil(3 * math.log(max(1, x.numel())) / math.log(_WORD))
    for _ in range(rounds):
        key, subkey = split(key).unbind(0)
        # Flipping the sign bit makes the signed order the unsigned one.
        order = torch.argsort(_bits(subkey, x.shape, 32) ^ -(2**31), dim=axis, stable=True)
        x = torch.take_along_dim(x, order, dim=axis)
    return x


def permutation(key: Key, x: int | Tensor, axis: int = 0, independent: bool = False) -> Tensor:
    """A random permutation.

    Args:
        key: a key.
        x: a tensor to shuffle along an axis, or an integer n for a permutation of 0, ..., n - 1 (int64).
        axis: the axis to shuffle along.
        independent: whether each slice along the axis is shuffled on its own rather than all alike.

    Raises:
        TypeError, ValueError: a key of the wrong form, an x that is neither a tensor nor an integer >= 0, an axis that it
            does not have.
    """
    _checks.key("key", key)
    _checks.integer("axis", axis)
    _checks.boolean("independent", independent)
    if not isinstance(x, Tensor):
        n = _checks.integer("x", x, low=0)
        return _shuffle(key, torch.arange(n, device=key.device), 0)
    if _checks.tensor("x", x).ndim == 0:
        raise ValueError(f"x: expected at least one axis, got {_checks.describe(x)}")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis: expected an axis of x, {_checks.describe(x)}, got {axis}")
    if independent or x.ndim == 1:
        return _shuffle(key, x, axis)
    order = _shuffle(key, torch.arange(x.shape[axis], device=key.device), 0)
    return torch.index_select(x, axis, order)
