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
from purevdm.codec import _codes, _swap
from purevdm.codec._arithmetic import DITHERS, Integers
from purevdm.codec._container import CodecError, Payload
from purevdm.codec._lattice import Levels, levels
from purevdm.codec._network import Denoiser, cast
from purevdm.codec._stack import CodingError, Stack
from purevdm.codec._swap import Swap, UnderflowError

_SPARE = 1.05
_FEW = 96
_DITHER_BITS = np.array([DITHERS.bit_length() - 1])

Callback = Callable[[int, int], None]
"""Called with the examples of each round and the bits that it cost."""


class Chain(NamedTuple):
    """What all blocks of a file share. ``fixed`` are the levels of a schedule that sees no condition."""

    denoise: Denoiser
    timesteps: int
    seed: int
    fixed: Levels | None

    def swap(self, cond: Any, n: int, dither: int | None = None) -> Swap:
        """Gives what both ends know of n examples with these conditions."""
        model, params = self.denoise.model, self.denoise.params
        return Swap(self.denoise, self.fixed or levels(model, params, self.timesteps, n, cond, dither), cond)

    def cast(self, cond: Any) -> Any:
        """Casts a condition to the dtype that the network computes in."""
        return cast(cond, self.denoise.model.dtype)


def chain_of(denoise: Denoiser, timesteps: int, seed: int, dither: int | None = None) -> Chain:
    """Makes the chain of a file; ``dither`` is the one that the file says."""
    model = denoise.model
    fixed = None if model.schedule.contextual else levels(model, denoise.params, timesteps, 1, None, dither)
    return Chain(denoise, timesteps, seed, fixed)


def encode(chain: Chain, number: int, x: Tensor, cond: Any, callback: Callback | None = None) -> Payload:
    """Encodes a block of examples x, (n, *event_shape)."""
    rows = x.reshape(x.shape[0], -1).to(torch.int64).cpu().numpy()
    digest, cond = cond_digest(cond), chain.cast(cond)
    one = chain.swap(_codes.stand_in(chain.denoise, part_of(cond, 0, 1), 1), 1)
    need = (_swap.needed(one.levels, rows.shape[1]) + _codes.needed(chain.denoise.model.code)) * _SPARE + _FEW
    initial = int(need / 32) + 2
    while (rounds := push_rounds(chain, number, rows, cond, initial, need, callback)) is None:
        initial *= 2
    return Payload(data_digest(rows, number), digest, initial, *rounds)


def push_rounds(
    chain: Chain, number: int, rows: Integers, cond: Any, initial: int, need: float, callback: Callback | None = None
) -> tuple[tuple[int, ...], NDArray[np.uint32]] | None:
    """Pushes a block in rounds: their sizes and its words, or None if initial words are too few for a single example."""
    stack, rounds, at = Stack(initial_words(chain.seed, number, initial)), [], 0
    while at < len(rows):
        before, kept = stack.bits, stack.words()
        size = max(1, min(chain.denoise.lanes, len(rows) - at, int(before / need)))
        some, part, taken = rows[at : at + size], part_of(cond, at, size), None
        try:
            if chain.denoise.model.code is not None:
                taken = _codes.take(stack, chain.denoise, some, part)
                part = _codes.joined(chain.denoise, taken.codes, part)
            swap = chain.swap(part, size)
            _swap.push(stack, swap, some)
        except UnderflowError:
            if size == 1:
                return None
            stack, need = Stack(kept), need * 1.5
            continue
        if chain.fixed is None:
            stack.push_bits(np.array([swap.levels.dither]), _DITHER_BITS)
        if taken is not None:
            _codes.put(stack, chain.denoise, taken)
        rounds.append(size)
        at += size
        if callback is not None:
            callback(size, stack.bits - before)
    return tuple(rounds), stack.words()


def decode(chain: Chain, number: int, payload: Payload, cond: Any, callback: Callback | None = None) -> Integers:
    """Decodes a block's examples, int64 (n, D); raises a CodecError if they are not those that were encoded."""
    cond = chain.cast(cond)
    if not len(payload.words) or payload.words[-1] == 0:
        raise CodecError("damaged")
    stack, parts, at, denoise = Stack(payload.words), [], sum(payload.rounds), chain.denoise
    for size in reversed(payload.rounds):
        before, given = stack.bits, None
        at -= size
        try:
            own = part = part_of(cond, at, size)
            if denoise.model.code is not None:
                given = _codes.get(stack, denoise, size)
                part = _codes.joined(denoise, given[0], own)
            dither = int(stack.pop_bits(_DITHER_BITS)[0]) if chain.fixed is None else None
            parts.append(_swap.pop(stack, chain.swap(part, size, dither), size))
            if given is not None:
                _codes.give_back(stack, denoise, parts[-1], own, *given)
        except CodingError as error:
            raise CodecError(f"damaged, or of another network or arithmetic ({error})") from None
        if callback is not None:
            callback(size, before - stack.bits)
    rows, left = np.concatenate(parts[::-1]), stack.words()
    whole = len(left) == payload.initial and np.array_equal(left, initial_words(chain.seed, number, payload.initial))
    if not whole or data_digest(rows, number) != payload.data:
        raise CodecError("the data are not those that were encoded: another network, condition or arithmetic, or damage")
    return rows


def part_of(cond: Any, at: int, size: int) -> Any:
    """Takes the condition of some examples."""
    return optree.tree_map(lambda leaf: leaf[at : at + size], cond)


def initial_words(seed: int, number: int, n: int) -> NDArray[np.uint32]:
    """Makes the words that a block's stack starts with: random ones, of which the last is not 0."""
    bits = random.bits(random.fold_in(random.key(seed, device="cpu"), number), (n,))
    words = bits.view(torch.int32).numpy().view(np.uint32).copy()
    words[-1] |= 1
    return words


def data_digest(rows: Integers, number: int) -> bytes:
    """Computes 8 bytes by which other data differ from these."""
    digest = hashlib.blake2b(f"{number} {rows.shape}".encode(), digest_size=8)
    digest.update(np.ascontiguousarray(rows, "<i8").tobytes())
    return digest.digest()


def cond_digest(cond: Any) -> bytes:
    """Computes 8 bytes by which another condition differs from this one; none for none."""
    return b"" if cond is None else tree_digest(cond, 8)


def tree_digest(tree: Any, size: int, text: str = "") -> bytes:
    """Computes a digest of a tree's tensors with their paths, whatever their floating-point dtype, and of a text."""
    digest = hashlib.blake2b(text.encode(), digest_size=size)
    paths, leaves, _ = optree.tree_flatten_with_path(tree)
    for path, leaf in zip(paths, leaves, strict=True):
        wide = leaf.detach().cpu()
        wide = wide.to(torch.complex128 if wide.is_complex() else torch.float64 if wide.is_floating_point() else torch.int64)
        digest.update(f"{'.'.join(map(str, path))} {tuple(leaf.shape)} {wide.dtype}".encode())
        digest.update(wide.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.digest()
