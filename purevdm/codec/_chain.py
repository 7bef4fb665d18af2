"""A block: examples in rounds, each of which pops from what the rounds before it pushed.

The first round pops initial words, which a seed makes, and so is a single example. Rounds then grow with the stack up to the
number of lanes. So initial bits are paid for one example of a block, and the network still sees many at once.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optree
import torch
from numpy.typing import NDArray
from torch import Tensor

from purevdm import random
from purevdm.codec import _swap
from purevdm.codec._arithmetic import DITHERS, Floats, Integers
from purevdm.codec._container import Payload
from purevdm.codec._errors import CodecError, UnboundedError
from purevdm.codec._levels import Levels, levels
from purevdm.codec._network import Denoiser, cast
from purevdm.codec._stack import Stack
from purevdm.codec._swap import Swap, UnderflowError

_SPARE = 1.05
_FEW = 96
_SIZES = np.array([DITHERS])


class Chain(NamedTuple):
    """What all blocks of a file share. ``fixed`` are the levels of a schedule that sees no condition."""

    denoise: Denoiser
    timesteps: int
    seed: int
    fixed: Levels | None


Told = Callable[[int, int], None]
"""Called with the examples of each round and the bits that it cost."""


def encode(chain: Chain, number: int, x: Tensor, cond: Any, lanes: int, told: Told | None = None) -> Payload:
    """A block of examples x, (n, *event_shape)."""
    rows = x.reshape(x.shape[0], -1).to(torch.int64).cpu().numpy()
    digest, cond = cond_digest(cond), _cast(chain, cond)
    first = _levels(chain, cond, 0, 1)
    need = _swap.needed(first, rows.shape[1]) * _SPARE + _FEW
    initial = int(need / 32) + 2
    while True:
        found = _from(chain, number, rows, cond, lanes, initial, need, told)
        if found is not None:
            rounds, words = found
            return Payload(data_digest(rows, number), digest, initial, rounds, words)
        initial *= 2


def _from(
    chain: Chain, number: int, rows: Integers, cond: Any, lanes: int, initial: int, need: float, told: Told | None
) -> tuple[tuple[int, ...], NDArray[np.uint32]] | None:
    """The rounds of a block, and its words; None if there are too few initial words for a single example."""
    stack, rounds, at = Stack(words(chain.seed, number, initial)), [], 0
    while at < len(rows):
        before, size = stack.bits, max(1, min(lanes, len(rows) - at, int(stack.bits / need)))
        kept = stack.words()
        try:
            _push_round(stack, chain, rows[at : at + size], part_of(cond, at, size))
        except UnderflowError:
            if size == 1:
                return None
            stack, need = Stack(kept), need * 1.5
            continue
        rounds.append(size)
        at += size
        if told is not None:
            told(size, stack.bits - before)
    return tuple(rounds), stack.words()


def decode(chain: Chain, number: int, payload: Payload, cond: Any, told: Told | None = None) -> Integers:
    """A block's examples, int64 (n, D).

    Raises:
        CodecError: they are not the ones that were encoded.
    """
    if payload.cond != cond_digest(cond):
        raise CodecError("cond: expected the condition that these data were encoded with, got another")
    cond = _cast(chain, cond)
    if not len(payload.words) or payload.words[-1] == 0:
        raise CodecError("damaged")
    stack, found, at = Stack(payload.words), [], sum(payload.rounds)
    for size in reversed(payload.rounds):
        before = stack.bits
        at -= size
        try:
            found.append(_pop_round(stack, chain, size, part_of(cond, at, size)))
        except UnboundedError as error:
            raise CodecError(f"damaged ({error})") from None
        if told is not None:
            told(size, before - stack.bits)
    rows = np.concatenate(found[::-1])
    left = stack.words()
    whole = len(left) == payload.initial and np.array_equal(left, words(chain.seed, number, payload.initial))
    if not whole or data_digest(rows, number) != payload.data:
        raise CodecError("the data are not those that were encoded: another network, condition or arithmetic, or damage")
    return rows


def _push_round(stack: Stack, chain: Chain, rows: Integers, cond: Any) -> None:
    found = _levels(chain, cond, 0, len(rows))
    _swap.push(stack, Swap(chain.denoise, found, cond), rows)
    if chain.fixed is None:
        stack.push_evenly(np.array([found.dither]), _SIZES)


def _pop_round(stack: Stack, chain: Chain, size: int, cond: Any) -> Integers:
    dither = int(stack.pop_evenly(_SIZES)[0]) if chain.fixed is None else None
    return _swap.pop(stack, Swap(chain.denoise, _levels(chain, cond, 0, size, dither), cond), size)


def _levels(chain: Chain, cond: Any, at: int, size: int, dither: int | None = None) -> Levels:
    if chain.fixed is not None:
        return chain.fixed
    part = part_of(cond, at, size)
    return levels(chain.denoise.model, chain.denoise.params, chain.timesteps, size, part, dither)


def first(chain: Chain, cond: Any) -> tuple[Floats, Any]:
    """gamma(1) of the first example, and its condition."""
    one = part_of(_cast(chain, cond), 0, 1)
    return _levels(chain, one, 0, 1).gamma[-1], one


def part_of(cond: Any, at: int, size: int) -> Any:
    """The condition of some examples."""
    return None if cond is None else optree.tree_map(lambda leaf: leaf[at : at + size], cond)


def _cast(chain: Chain, cond: Any) -> Any:
    """A condition in the dtype that the network computes in."""
    return cast(cond, chain.denoise.model.dtype)


def words(seed: int, number: int, n: int) -> NDArray[np.uint32]:
    """The words that a block's stack starts with: random ones, of which the last is not 0."""
    drawn = random.bits(random.fold_in(random.key(seed, device="cpu"), number), (n,))
    found = drawn.view(torch.int32).numpy().view(np.uint32).copy()
    found[-1] |= 1
    return found


def data_digest(rows: Integers, number: int) -> bytes:
    """8 bytes by which other data are told from these."""
    digest = hashlib.blake2b(f"{number} {rows.shape}".encode(), digest_size=8)
    digest.update(np.ascontiguousarray(rows, "<i8").tobytes())
    return digest.digest()


def cond_digest(cond: Any) -> bytes:
    """8 bytes by which another condition is told from this one; none for none."""
    if cond is None:
        return b""
    return tree_digest(cond, 8)


def tree_digest(tree: Any, size: int, text: str = "") -> bytes:
    """A digest of a tree's tensors with their paths, whatever their floating-point dtype, and of a text."""
    digest = hashlib.blake2b(text.encode(), digest_size=size)
    paths, leaves, _ = optree.tree_flatten_with_path(tree)
    for path, leaf in zip(paths, leaves, strict=True):
        wide = leaf.detach().cpu()
        wide = wide.to(torch.complex128 if wide.is_complex() else torch.float64 if wide.is_floating_point() else torch.int64)
        digest.update(f"{'.'.join(map(str, path))} {tuple(leaf.shape)} {wide.dtype}".encode())
        digest.update(wide.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.digest()
