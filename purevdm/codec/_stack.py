"""A stack of bits: what is pushed under a distribution takes -log2 of its probability, and popping draws from it.

The coder is constriction's ANS (asymmetric numeral systems, Duda 2009), with 24 bits of precision. It is given integer
frequencies only, whose sums are exact, so that it makes the same decisions on every machine.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from purevdm.codec._arithmetic import Integers
from purevdm.codec._lattice import Table, table

_CHUNK = 2**21  # frequencies at once: 8 MB
_DIGIT = 16  # bits that are pushed at once
_REACH = 45  # bits of a far offset


class CodingError(ValueError):
    """Numbers that cannot be coded: not finite, out of reach of one another, or others than where they were encoded."""


class Stack:
    """Bits on a stack, as 32-bit words. What is pushed first of an array is on top."""

    def __init__(self, words: NDArray[np.uint32]):
        try:
            from constriction import stream
        except ImportError as error:
            raise ImportError("purevdm.codec needs the package constriction: pip install 'purevdm[codec]'") from error
        self._made = stream.stack.AnsCoder
        self._ans = self._made(np.ascontiguousarray(words, np.uint32))
        self._rows, self._evenly = stream.model.Categorical(perfect=False), stream.model.Uniform()

    def words(self) -> NDArray[np.uint32]:
        return self._ans.get_compressed()  # type: ignore[no-any-return]

    @property
    def bits(self) -> int:
        return int(self._ans.num_valid_bits())

    def scramble(self, seed: int, n: int) -> None:
        """Exclusive-ors the words that n numbers are popped from, but for the two on top, with pseudo-random ones. Doing it
        twice undoes it."""
        words = self.words()
        count = min(n // 4 + 1, len(words) - 2)
        if count > 0:
            words[-2 - count : -2] ^= _noise(seed, count)
            self._ans = self._made(words)

    def push(self, symbols: Integers, rows: NDArray[np.float32], which: Integers | None = None) -> None:
        """Pushes symbols (n,), each under its row of frequencies, ``rows[which]`` or ``rows`` themselves."""
        for part in reversed(list(_parts(len(symbols), rows.shape[1]))):
            self._ans.encode_reverse(symbols[part].astype(np.int32), self._rows, _taken(rows, which, part))

    def pop(self, n: int, rows: NDArray[np.float32], which: Integers | None = None) -> Integers:
        parts = [self._ans.decode(self._rows, _taken(rows, which, part)) for part in _parts(n, rows.shape[1])]
        return np.concatenate(parts).astype(np.int64)

    def push_bits(self, values: Integers, bits: Integers) -> None:
        """Pushes evenly likely integers (n,) of so many bits each (n,), at most 48."""
        for at, some, sizes in _digits(bits):
            self._ans.encode_reverse((values[some] >> at & (sizes - 1)).astype(np.int32), self._evenly, sizes)

    def pop_bits(self, bits: Integers) -> Integers:
        values = np.zeros(len(bits), np.int64)
        for at, some, sizes in reversed(list(_digits(bits))):
            values[some] |= self._ans.decode(self._evenly, sizes).astype(np.int64) << at
        return values

    def push_points(self, points: Integers, means: Integers, widths: Integers, escape: bool) -> None:
        """Pushes lattice points under Gaussians of means, in phases, and of width indices, which broadcast."""
        flat, centres = points.reshape(-1), means.reshape(-1)
        for one, where in reversed(list(_groups(widths, means.shape, escape))):
            self._push_group(flat[where], centres[where], one)

    def pop_points(self, means: Integers, widths: Integers, escape: bool) -> Integers:
        centres, points = means.reshape(-1), np.empty(means.size, np.int64)
        for one, where in _groups(widths, means.shape, escape):
            points[where] = self._pop_group(centres[where], one)
        return points.reshape(means.shape)

    def _push_group(self, points: Integers, means: Integers, one: Table) -> None:
        off = points - means // one.phases
        symbols = (off >> one.shift) + (one.half - 1)
        far = (symbols < 0) | (symbols >= 2 * one.half)
        if far.any():
            if not one.escape:
                raise CodingError("latents out of reach of one another")
            self._push_far(off[far], one)
            symbols[far] = 2 * one.half
        if one.shift:
            self.push_bits(off[~far] & (2**one.shift - 1), np.full(int((~far).sum()), one.shift))
        self.push(symbols, one.rows, means & (one.phases - 1))

    def _pop_group(self, means: Integers, one: Table) -> Integers:
        symbols = self.pop(len(means), one.rows, means & (one.phases - 1))
        far = symbols == 2 * one.half
        off = (symbols - (one.half - 1)) << one.shift
        if one.shift:
            off[~far] |= self.pop_bits(np.full(int((~far).sum()), one.shift))
        if far.any():
            off[far] = self._pop_far(int(far.sum()), one)
        return means // one.phases + off

    def _push_far(self, off: Integers, one: Table) -> None:
        """Pushes sign, length and digits of what points are beyond the table, as Elias's gamma code."""
        above = off >= 0
        beyond = np.where(above, off + 1 - ((one.half + 1) << one.shift), -off - ((one.half - 1) << one.shift))  # from 1
        length = np.frexp(beyond.astype(np.float64))[1].astype(np.int64) - 1
        if length.max() >= _REACH:
            raise CodingError("latents out of reach of one another")
        self.push_bits(beyond - (1 << length), length)
        self.push_bits(2 * length + above, np.full(len(off), 7))

    def _pop_far(self, n: int, one: Table) -> Integers:
        head = self.pop_bits(np.full(n, 7))
        above, length = (head & 1).astype(bool), head >> 1
        if length.max() >= _REACH:
            raise CodingError("latents out of reach of one another")
        beyond = (1 << length) + self.pop_bits(length)
        return np.where(above, beyond - 1 + ((one.half + 1) << one.shift), -beyond - ((one.half - 1) << one.shift))


def _noise(seed: int, n: int) -> NDArray[np.uint32]:
    """Makes pseudo-random words: SplitMix64 (Steele, Lea, Flood 2014) of consecutive integers."""
    x = (np.arange(n, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x >> np.uint64(32)).astype(np.uint32)


def _parts(n: int, size: int) -> Iterator[slice]:
    step = max(1, _CHUNK // size)
    return (slice(i, min(n, i + step)) for i in range(0, n, step))


def _taken(rows: NDArray[np.float32], which: Integers | None, part: slice) -> NDArray[np.float32]:
    return np.ascontiguousarray(rows[part] if which is None else rows[which[part]])


def _digits(bits: Integers) -> Iterator[tuple[int, NDArray[np.bool_], NDArray[np.int32]]]:
    """Yields where each digit starts, which integers have it, and how many values it has."""
    for at in range(0, int(bits.max(initial=0)), _DIGIT):
        some = bits > at
        yield at, some, (1 << np.minimum(bits[some] - at, _DIGIT)).astype(np.int32)


def _groups(widths: Integers, shape: tuple[int, ...], escape: bool) -> Iterator[tuple[Table, Any]]:
    """Yields the tables of numbers of a shape, and where each is used."""
    if widths.size == 1:
        yield table(int(widths.item()), escape), slice(None)
        return
    flat = np.broadcast_to(widths, shape).reshape(-1)
    for index in np.unique(flat):
        yield table(int(index), escape), np.flatnonzero(flat == index)
