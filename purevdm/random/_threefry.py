"""The cipher threefry2x32 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011): 20 rounds of
add, rotate, xor on two 32-bit words, under a key of two words; all int32.

Operators compute it in place, in blocks that stay in a processor's cache: each round is five passes over memory. A compiler
that makes code is told the rounds one by one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purevdm._compile import in_front
from purevdm.random._operators import operator
from purevdm.types import Key

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
# In tensors, as torch would make one of a number at each use.
_SHIFTS, _MASKS = (
    {by: torch.tensor(number(by), dtype=torch.int32, device="cpu") for group in _ROTATIONS for by in group}
    for number in (lambda by: 32 - by, lambda by: (1 << by) - 1)
)
_SIGN = torch.tensor(-(2**31), dtype=torch.int32, device="cpu")
_PARITY = 0x1BD11BDA
WORD = 0xFFFFFFFF
_BLOCK = 2**17  # words: three arrays of half a mebibyte, shared by the threads


def _words(key: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Encrypts the counters 0, ..., n - 1 under keys (..., 2): (..., n)."""
    return encrypted(key.unsqueeze(-2), *_counters(0, n, key.device))


def _mixed_by_rounds(key: Tensor, n: int) -> Tensor:
    x0, x1 = _words(key, n)
    return x0 ^ x1


def encrypted(key: Key, high: Tensor | int, low: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypts the 64-bit counters (high, low) under a key, operation by operation."""
    schedule = _schedule(key)
    x0, x1 = high + schedule[0], low + schedule[1]
    for group in range(5):
        for by in _ROTATIONS[group % 2]:
            # Words used three times a round, expressions repeated, would grow the code by three a round, and take half a
            # minute a draw to compile. In memory, they still fuse into one loop and live in registers.
            x0 = _kept(x0 + x1)
            # int32 has only the arithmetic right shift; the mask takes the copies of the sign away.
            x1 = _kept(((x1 << by) | ((x1 >> (32 - by)) & ((1 << by) - 1))) ^ x0)
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + (schedule[(group + 2) % 3] + (group + 1))
    return x0, x1


def _kept(x: Tensor) -> Tensor:
    """Gives x itself, which inductor computes once."""
    return torch.as_strided(x, x.shape, x.stride())


def _schedule(key: Key) -> tuple[Tensor, Tensor, Tensor]:
    k0, k1 = key.unbind(-1)
    return k0, k1, k0 ^ k1 ^ _PARITY


def _counters(start: int, n: int, device: torch.device) -> tuple[Tensor | int, Tensor]:
    """Gives the 64-bit counters start, ..., start + n - 1 as int32 words (high, low)."""
    if start + n <= 2**31:
        return 0, torch.arange(start, start + n, dtype=torch.int32, device=device)
    wide = torch.arange(start, start + n, dtype=torch.int64, device=device)
    return (wide >> 32).to(torch.int32), low_word(wide)


def low_word(x: Tensor) -> Tensor:
    """Gives the low 32 bits of an int64 tensor, as int32."""
    return (((x & WORD) ^ 0x80000000) - 0x80000000).to(torch.int32)


# In place, for many keys at once


def _rounds(x0: Tensor, x1: Tensor, schedule: tuple[Tensor, ...]) -> None:
    """Encrypts in place what :func:`_schedule`'s first two words were added to."""
    spare = torch.empty_like(x1)
    for group in range(5):
        for by in _ROTATIONS[group % 2]:
            x0.add_(x1)
            torch.bitwise_right_shift(x1, _SHIFTS[by], out=spare)
            spare.bitwise_and_(_MASKS[by]).add_(x1, alpha=1 << by)
            torch.bitwise_xor(spare, x0, out=x1)
        x0.add_(schedule[(group + 1) % 3])
        x1.add_(schedule[(group + 2) % 3] + (group + 1))


def _blocks(key: Tensor, n: int, out: Tensor, finish: Callable[[Tensor, Tensor, Tensor], Any]) -> Tensor:
    """Encrypts the counters 0, ..., n - 1 under keys (..., 2), block by block; ``finish`` writes what comes of two words to
    the block's part of out, (keys, n, ...)."""
    keys = key.reshape(-1, 2)
    if key.is_meta:
        return out.reshape(*key.shape[:-1], *out.shape[1:])
    columns = max(1, min(n, _BLOCK))
    rows = _BLOCK // columns
    for i in range(0, len(keys), rows):
        schedule = _schedule(keys[i : i + rows].unsqueeze(1))
        for start in range(0, n, columns):
            part = out[i : i + rows, start : start + columns]
            x0, x1 = (word + k for word, k in zip(_counters(start, part.shape[1], key.device), schedule, strict=False))
            x0 = x0.expand_as(x1).contiguous()
            _rounds(x0, x1, schedule)
            finish(x0, x1, part)
    return out.reshape(*key.shape[:-1], *out.shape[1:])


def _pairs(key: Tensor, n: int) -> Tensor:
    out = torch.empty((key.numel() // 2, n, 2), dtype=torch.int32, device=key.device)
    return _blocks(key, n, out, lambda x0, x1, part: torch.stack([x0, x1], -1, out=part))


def _mixed(key: Tensor, n: int) -> Tensor:
    out = torch.empty((key.numel() // 2, n), dtype=torch.int32, device=key.device)
    return _blocks(key, n, out, lambda x0, x1, part: torch.bitwise_xor(x0, x1, out=part))


def _below(key: Tensor, n: int, limit: int) -> Tensor:
    out = torch.empty((key.numel() // 2, n), dtype=torch.bool, device=key.device)
    last = torch.tensor(limit - 1 - 2**31, dtype=torch.int32, device="cpu")

    def compare(x0: Tensor, x1: Tensor, part: Tensor) -> None:
        # Flipping the sign bit makes the signed order the unsigned one.
        torch.le(x0.bitwise_xor_(x1).bitwise_xor_(_SIGN), last, out=part)

    return _blocks(key, n, out, compare)


def _folded(key: Tensor, low: Tensor) -> Tensor:
    """Encrypts a counter of 32 bits, (...), under each of keys, (..., 2)."""
    schedule = _schedule(key)
    x0, x1 = schedule[0].clone(), low + schedule[1]
    if not key.is_meta:
        _rounds(x0, x1, schedule)
    return torch.stack([x0, x1], -1)


# Operators


def _keys_first(overload: Any, n: int, in_dims: tuple[Any, ...], key: Tensor, *rest: int) -> tuple[Tensor, int]:
    return overload(key.movedim(in_dims[0], 0), *rest), 0


def _both_first(overload: Any, n: int, in_dims: tuple[Any, ...], *given: Tensor) -> tuple[Tensor, int]:
    return overload(*(in_front(x, axis, n) for x, axis in zip(given, in_dims, strict=True))), 0


_PAIRS = operator(
    "threefry_pairs(Tensor key, SymInt n) -> Tensor", _pairs, _keys_first, lambda key, n: torch.stack(_words(key, n), -1)
)
_MIXED = operator("threefry_mixed(Tensor key, SymInt n) -> Tensor", _mixed, _keys_first, _mixed_by_rounds)
_BELOW = operator(
    "threefry_below(Tensor key, SymInt n, int limit) -> Tensor",
    _below,
    _keys_first,
    lambda key, n, limit: (_mixed_by_rounds(key, n) ^ -(2**31)) <= limit - 1 - 2**31,
)
_FOLDED = operator(
    "threefry_folded(Tensor key, Tensor low) -> Tensor",
    _folded,
    _both_first,
    lambda key, low: torch.stack(encrypted(key, 0, low), -1),
)


def pairs(key: Key, n: int) -> Tensor:
    """Encrypts the 64-bit counters 0, ..., n - 1: two words each, (n, 2)."""
    return _PAIRS(key, n)  # type: ignore[no-any-return]


def mixed(key: Key, n: int) -> Tensor:
    """Encrypts the counters 0, ..., n - 1, and gives the exclusive or of each one's two words, (n,)."""
    return _MIXED(key, n)  # type: ignore[no-any-return]


def below(key: Key, n: int, limit: int) -> Tensor:
    """Says which numbers of :func:`mixed`, without a sign, are below a limit in [1, 2**32], (n,)."""
    return _BELOW(key, n, limit)  # type: ignore[no-any-return]


def folded(key: Key, low: Tensor) -> Tensor:
    """Encrypts one counter of 32 bits, of shape (): (2,)."""
    return _FOLDED(key, low)  # type: ignore[no-any-return]
