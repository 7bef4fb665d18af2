"""Keys, and the bits that they give: threefry2x32 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2,
3", 2011), used as JAX does."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._compile import materialize
from purevdm.types import Key, Shape

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
WORD = 0xFFFFFFFF
_UNSIGNED = {torch.uint8: 8, torch.uint16: 16, torch.uint32: 32, torch.uint64: 64}


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
    """Gives the 64-bit counters start, ..., start + n - 1 as int32 words (high, low)."""
    if start + n <= 2**31:
        return 0, torch.arange(start, start + n, dtype=torch.int32, device=device)
    wide = torch.arange(start, start + n, dtype=torch.int64, device=device)
    return (wide >> 32).to(torch.int32), _low_word(wide)


def _low_word(x: Tensor) -> Tensor:
    """Gives the low 32 bits of an int64 tensor, as int32."""
    return (((x & WORD) ^ 0x80000000) - 0x80000000).to(torch.int32)


def _words(key: Key, shape: Shape) -> tuple[Tensor, Tensor]:
    """Gives both output words at the counters 0, 1, ... of an array of this shape."""
    high, low = _counters(0, math.prod(shape), key.device)
    x0, x1 = _threefry2x32(key, high, low)
    return x0.reshape(shape), x1.reshape(shape)


def words(key: Key, shape: Shape, width: int) -> Tensor:
    """Draws random bits: int32 holding 32 of them or the low 16 or 8 (the rest zero); int64 holding 64."""
    x0, x1 = _words(key, shape)
    if width == 64:
        return (x0.to(torch.int64) << 32) | (x1.to(torch.int64) & WORD)
    word = x0 ^ x1
    return word if width == 32 else word & ((1 << width) - 1)


def key(seed: int, *, device: torch.device | str | None = None) -> Tensor:
    """Makes a key from a seed, as ``jax.random.PRNGKey`` does without x64: the words ``[0, seed mod 2**32]``.

    Args:
        seed: any Python integer. Seeds equal modulo 2**32 make the same key, as in JAX.
        device: where the key lives, and with it all that is drawn from it.

    Returns:
        int32, shape (2,).
    """
    low = _checks.integer("seed", seed) & WORD
    device = None if device is None else _checks.device("device", device)
    return torch.tensor([0, low - 2**32 if low >= 2**31 else low], dtype=torch.int32, device=device)


def split(key: Key, num: int | Sequence[int] = 2) -> Tensor:
    """Makes fresh, independent keys from one, which is then used up: shape (num, 2), or (*num, 2) for a shape."""
    _checks.key("key", key)
    shape = _checks.shape("num", num) if isinstance(num, (tuple, list)) else (_checks.integer("num", num, 1),)
    return torch.stack(_words(key, shape), dim=-1)


def fold_in(key: Key, data: int | Tensor) -> Tensor:
    """Makes a fresh key, (2,), from a key and a number, such as a step's index.

    ``data`` is an integer in [0, 2**32), or an int32 or int64 tensor of shape (), so that a compiled loop can fold in its
    counter. A negative int32 stands for the uint32 with the same bits.
    """
    _checks.key("key", key)
    if not isinstance(data, Tensor):
        data = torch.full((), _checks.integer("data", data, 0, WORD), dtype=torch.int64, device=key.device)
    elif _checks.shaped("data", data, ()).dtype not in (torch.int32, torch.int64):
        raise TypeError(f"data: expected an int32 or int64 tensor, got {_checks.describe(data)}")
    elif data.dtype == torch.int64:
        _checks.within("data", data, 0, WORD)
    return torch.stack(_threefry2x32(key, 0, _low_word(data) if data.dtype == torch.int64 else data))


def bits(key: Key, shape: Shape = (), dtype: torch.dtype = torch.uint32) -> Tensor:
    """Draws random bits as unsigned integers, every value equally likely.

    ``dtype`` is uint8, uint16, uint32 or uint64. (torch computes little with the last three; ``.view`` them as signed.)
    """
    shape = _checks.shape("shape", shape)
    width = _UNSIGNED[_checks.dtype("dtype", dtype, _UNSIGNED)]
    # A conversion keeps the bits, as a view does, and vmap knows it in every version of torch.
    return words(_checks.key("key", key), shape, width).to(dtype)
