"""The cipher threefry2x32 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011): 20 rounds of
add, rotate, xor on two 32-bit words, under a key of two words; all int32.

In eager mode an operator computes it in place, in blocks that stay in a processor's cache: each round is five passes over
memory. A compiler is given the rounds one by one, and fuses them into one loop.
"""

from typing import Any

import torch
from torch import Tensor

from purevdm._compile import materialize
from purevdm.types import Key

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
WORD = 0xFFFFFFFF
_BLOCK = 2**17  # words: three arrays of half a mebibyte, shared by the threads


def counted(key: Key, n: int) -> Tensor:
    """Encrypts the 64-bit counters 0, ..., n - 1: two words each, (n, 2)."""
    if torch.compiler.is_compiling():
        return torch.stack(encrypted(key, *_counters(0, n, key.device)), -1)
    return _COUNTED(key, n, True)  # type: ignore[no-any-return]


def mixed(key: Key, n: int) -> Tensor:
    """Encrypts the counters 0, ..., n - 1, and gives the exclusive or of each one's two words, (n,)."""
    if torch.compiler.is_compiling():
        x0, x1 = encrypted(key, *_counters(0, n, key.device))
        return x0 ^ x1
    return _COUNTED(key, n, False)  # type: ignore[no-any-return]


def folded(key: Key, low: Tensor) -> Tensor:
    """Encrypts one counter of 32 bits, of shape (): (2,)."""
    if torch.compiler.is_compiling():
        return torch.stack(encrypted(key, 0, low), -1)
    return _FOLDED(key, low)  # type: ignore[no-any-return]


def encrypted(key: Key, high: Tensor | int, low: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypts the 64-bit counters (high, low) under a key, operation by operation."""
    schedule = _schedule(key)
    x0, x1 = high + schedule[0], low + schedule[1]
    for group in range(5):
        for by in _ROTATIONS[group % 2]:
            # Words used three times a round, expressions repeated, would grow the code by three a round, and take half a
            # minute a draw to compile. In memory, they still fuse into one loop and live in registers.
            x0 = materialize(x0 + x1)
            # int32 has only the arithmetic right shift; the mask takes the copies of the sign away.
            x1 = materialize(((x1 << by) | ((x1 >> (32 - by)) & ((1 << by) - 1))) ^ x0)
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + (schedule[(group + 2) % 3] + (group + 1))
    return x0, x1


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
            torch.bitwise_right_shift(x1, 32 - by, out=spare)
            spare.bitwise_and_((1 << by) - 1).add_(x1, alpha=1 << by)
            torch.bitwise_xor(spare, x0, out=x1)
        x0.add_(schedule[(group + 1) % 3])
        x1.add_(schedule[(group + 2) % 3] + (group + 1))


def _counted(key: Tensor, n: int, both: bool) -> Tensor:
    """Encrypts the counters 0, ..., n - 1 under keys (..., 2): both words, (..., n, 2), or their exclusive or, (..., n)."""
    keys = key.reshape(-1, 2)
    out = torch.empty((len(keys), n, 2) if both else (len(keys), n), dtype=torch.int32, device=key.device)
    columns = max(1, min(n, _BLOCK))
    rows = _BLOCK // columns
    for i in range(0, 0 if key.is_meta else len(keys), rows):
        schedule = _schedule(keys[i : i + rows].unsqueeze(1))
        for start in range(0, n, columns):
            part = out[i : i + rows, start : start + columns]
            x0, x1 = (word + k for word, k in zip(_counters(start, part.shape[1], key.device), schedule, strict=False))
            x0 = x0.expand_as(x1).contiguous()
            _rounds(x0, x1, schedule)
            if both:
                torch.stack([x0, x1], -1, out=part)
            else:
                torch.bitwise_xor(x0, x1, out=part)
    return out.reshape(*key.shape[:-1], *out.shape[1:])


def _folded(key: Tensor, low: Tensor) -> Tensor:
    """Encrypts a counter of 32 bits, (...), under each of keys, (..., 2)."""
    schedule = _schedule(key)
    x0, x1 = torch.broadcast_tensors(schedule[0], low + schedule[1])
    x0, x1 = x0.clone(), x1.clone()
    if not key.is_meta:
        _rounds(x0, x1, schedule)
    return torch.stack([x0, x1], -1)


def _counted_batch(info: Any, in_dims: tuple[Any, ...], key: Tensor, n: int, both: bool) -> tuple[Tensor, int]:
    return _COUNTED(key.movedim(in_dims[0], 0), n, both), 0


def _folded_batch(info: Any, in_dims: tuple[Any, ...], key: Tensor, low: Tensor) -> tuple[Tensor, int]:
    key, low = (x if axis is None else x.movedim(axis, 0) for x, axis in zip((key, low), in_dims, strict=True))
    return _FOLDED(key, low), 0


_library = torch.library.Library("purevdm", "FRAGMENT")
_library.define("threefry_counted(Tensor key, int n, bool both) -> Tensor")
_library.define("threefry_folded(Tensor key, Tensor low) -> Tensor")
_library.impl("threefry_counted", _counted, "CompositeExplicitAutograd")
_library.impl("threefry_folded", _folded, "CompositeExplicitAutograd")
torch.library.register_vmap("purevdm::threefry_counted", _counted_batch, lib=_library)
torch.library.register_vmap("purevdm::threefry_folded", _folded_batch, lib=_library)
_COUNTED, _FOLDED = torch.ops.purevdm.threefry_counted.default, torch.ops.purevdm.threefry_folded.default
