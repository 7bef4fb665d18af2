"""The cipher threefry2x32 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011): 20 rounds of
add, rotate, xor on two 32-bit words, under a key of two words; all int32.

Operators compute it in place, in blocks that stay in a processor's cache: each round is five passes over memory. A compiler
traces one operator for a draw, and not some 180 operations. Inductor, which makes code, is told these, and fuses them into
one loop.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purevdm._compile import OLD, constant, exporting
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


def pairs(key: Key, n: int) -> Tensor:
    """Encrypts the 64-bit counters 0, ..., n - 1: two words each, (n, 2)."""
    return (_pairs_by_rounds if _by_rounds() else _OPS.threefry_pairs)(key, n)  # type: ignore[no-any-return]


def mixed(key: Key, n: int) -> Tensor:
    """Encrypts the counters 0, ..., n - 1, and gives the exclusive or of each one's two words, (n,)."""
    return (_mixed_by_rounds if _by_rounds() else _OPS.threefry_mixed)(key, n)  # type: ignore[no-any-return]


def below(key: Key, n: int, limit: int) -> Tensor:
    """Says which numbers of :func:`mixed`, without a sign, are below a limit in [1, 2**32], (n,); in eager mode."""
    return _OPS.threefry_below(key, n, limit)  # type: ignore[no-any-return]


def folded(key: Key, low: Tensor) -> Tensor:
    """Encrypts one counter of 32 bits, of shape (): (2,)."""
    return (_folded_by_rounds if _by_rounds() else _OPS.threefry_folded)(key, low)  # type: ignore[no-any-return]


# Operation by operation


def _by_rounds() -> bool:
    """Says whether the rounds are traced: into programs that ``torch.export`` makes, which then need no operators of this
    library, and by older compilers."""
    if not torch.compiler.is_compiling():
        return False
    return OLD or exporting() or not _known_to_inductor()


@constant
def _known_to_inductor() -> bool:
    """Tells inductor the rounds of each operator."""
    from torch._inductor import decomposition

    rounds = {"pairs": _pairs_by_rounds, "mixed": _mixed_by_rounds, "folded": _folded_by_rounds}
    decomposition.decompositions.update({getattr(_OPS, f"threefry_{name}").default: f for name, f in rounds.items()})
    decomposition.fast_random_decomps.cache_clear()  # the same table with more in it
    return True


def _pairs_by_rounds(key: Tensor, n: int) -> Tensor:
    return torch.stack(encrypted(key.unsqueeze(-2), *_counters(0, n, key.device)), -1)


def _mixed_by_rounds(key: Tensor, n: int) -> Tensor:
    x0, x1 = encrypted(key.unsqueeze(-2), *_counters(0, n, key.device))
    return x0 ^ x1


def _folded_by_rounds(key: Tensor, low: Tensor) -> Tensor:
    return torch.stack(encrypted(key, 0, low), -1)


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


def _folded_batch(info: Any, in_dims: tuple[Any, ...], key: Tensor, low: Tensor) -> tuple[Tensor, int]:
    n = info.batch_size
    key, low = (
        x.expand(n, *x.shape) if axis is None else x.movedim(axis, 0) for x, axis in zip((key, low), in_dims, strict=True)
    )
    return _OPS.threefry_folded(key, low), 0


def _with_keys_first(op: str) -> Callable[..., tuple[Tensor, int]]:
    def batch(info: Any, in_dims: tuple[Any, ...], key: Tensor, *rest: int) -> tuple[Tensor, int]:
        return getattr(torch.ops.purevdm, op)(key.movedim(in_dims[0], 0), *rest), 0

    return batch


_library = torch.library.Library("purevdm", "FRAGMENT")
for _name, _rest, _run, _batch in (
    ("threefry_pairs", "SymInt n", _pairs, _with_keys_first("threefry_pairs")),
    ("threefry_mixed", "SymInt n", _mixed, _with_keys_first("threefry_mixed")),
    ("threefry_below", "SymInt n, int limit", _below, _with_keys_first("threefry_below")),
    ("threefry_folded", "Tensor low", _folded, _folded_batch),
):
    _library.define(f"{_name}(Tensor key, {_rest}) -> Tensor")
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_vmap(f"purevdm::{_name}", _batch, lib=_library)
_OPS = torch.ops.purevdm
