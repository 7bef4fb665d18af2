"""A stack of bits: what is pushed under a distribution takes -log2 of its probability, and popping draws from it.

The coder is constriction's ANS (asymmetric numeral systems, Duda 2009), with 24 bits of precision. It is given integer
frequencies alone, whose sums are exact, so that it makes the same decisions on every machine.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from purevdm.codec._arithmetic import Integers
from purevdm.codec._errors import CodecError
from purevdm.codec._lattice import Table, table

_CHUNK = 2**21  # frequencies at once: 8 MB
_DIGIT = 16  # bits of a far offset that are pushed at once
_REACH = 2**45


def _coder() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise ImportError("purevdm.codec needs the package constriction: pip install 'purevdm[codec]'") from error
    return constriction.stream


class Stack:
    """Bits on a stack, as 32-bit words."""

    def __init__(self, words: NDArray[np.uint32]):
        stream = _coder()
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

    # Symbols with frequencies

    def push(self, symbols: Integers, rows: NDArray[np.float32], which: Integers | None = None) -> None:
        """Symbols (n,), the first on top, each under its row of frequencies, ``rows[which]`` or ``rows`` themselves."""
        n, size = len(symbols), rows.shape[1]
        if n and not (symbols.min() >= 0 and symbols.max() < size):
            raise CodecError("damaged: latents out of reach of one another")
        for part in reversed(list(_parts(n, size))):
            self._ans.encode_reverse(symbols[part].astype(np.int32), self._rows, _taken(rows, which, part))

    def pop(self, n: int, rows: NDArray[np.float32], which: Integers | None = None) -> Integers:
        found = [self._ans.decode(self._rows, _taken(rows, which, part)) for part in _parts(n, rows.shape[1])]
        return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)

    # Evenly likely integers

    def push_evenly(self, values: Integers, sizes: Integers) -> None:
        """Integers (n,) from [0, size), the first on top; sizes up to 2**23."""
        if len(values) and not (values.min() >= 0 and (values < sizes).all()):
            raise CodecError("damaged: latents out of reach of one another")
        several = sizes > 1
        if several.any():
            self._ans.encode_reverse(values[several].astype(np.int32), self._evenly, sizes[several].astype(np.int32))

    def pop_evenly(self, sizes: Integers) -> Integers:
        values, several = np.zeros(len(sizes), np.int64), sizes > 1
        if several.any():
            values[several] = self._ans.decode(self._evenly, sizes[several].astype(np.int32))
        return values

    # Points of a lattice under Gaussians

    def push_points(self, points: Integers, means: Integers, widths: Integers, escape: bool) -> None:
        """Lattice points (n,) under Gaussians of means (n,), in phases, and of width indices, (n,) or one for all, (1,)."""
        for one, where in reversed(list(_groups(widths, len(points), escape))):
            self._push_group(points[where], means[where], one)

    def pop_points(self, means: Integers, widths: Integers, escape: bool) -> Integers:
        points = np.empty(len(means), np.int64)
        for one, where in _groups(widths, len(means), escape):
            points[where] = self._pop_group(means[where], one)
        return points

    def _push_group(self, points: Integers, means: Integers, one: Table) -> None:
        centre, phase = _split(means, one)
        off = points - centre
        symbols = (off >> one.shift) + (one.half - 1)
        far = (symbols < 0) | (symbols >= 2 * one.half)
        if one.escape and far.any():
            self._push_far(off[far], one)
            symbols[far] = 2 * one.half
        elif far.any():
            raise CodecError("damaged: latents out of reach of one another")
        if one.shift:
            near = off[~far]
            self._push_low(near & (2**one.shift - 1), one.shift)
        self.push(symbols, one.rows, phase)

    def _pop_group(self, means: Integers, one: Table) -> Integers:
        centre, phase = _split(means, one)
        symbols = self.pop(len(means), one.rows, phase)
        far = symbols == 2 * one.half
        off = (symbols - (one.half - 1)) << one.shift
        if one.shift:
            off[~far] |= self._pop_low(int((~far).sum()), one.shift)
        if one.escape and far.any():
            off[far] = self._pop_far(int(far.sum()), one)
        return centre + off

    def _push_low(self, low: Integers, bits: int) -> None:
        for at in range(0, bits, _DIGIT):
            self.push_evenly((low >> at) & (2**_DIGIT - 1), np.full(len(low), 2 ** min(_DIGIT, bits - at)))

    def _pop_low(self, n: int, bits: int) -> Integers:
        low = np.zeros(n, np.int64)
        for at in reversed(range(0, bits, _DIGIT)):
            low |= self.pop_evenly(np.full(n, 2 ** min(_DIGIT, bits - at))) << at
        return low

    # Far points: sign, length and digits of what they are beyond the table, as Elias's gamma code

    def _push_far(self, off: Integers, one: Table) -> None:
        above = off >= 0
        beyond = np.where(above, off + 1 - ((one.half + 1) << one.shift), -off - ((one.half - 1) << one.shift))  # from 1
        if beyond.max() >= _REACH:
            raise CodecError("damaged: latents out of reach of one another")
        length = np.frexp(beyond.astype(np.float64))[1].astype(np.int64) - 1
        for at in range(0, 48, _DIGIT):
            digits = np.clip(length - at, 0, _DIGIT)
            self.push_evenly((beyond - (1 << length)) >> at & ((1 << digits) - 1), 1 << digits)
        self.push_evenly(2 * length + above, np.full(len(off), 128))

    def _pop_far(self, n: int, one: Table) -> Integers:
        head = self.pop_evenly(np.full(n, 128))
        above, length = (head & 1).astype(bool), head >> 1
        if length.max(initial=0) >= 46:
            raise CodecError("damaged: latents out of reach of one another")
        beyond = 1 << length
        for at in reversed(range(0, 48, _DIGIT)):
            digits = np.clip(length - at, 0, _DIGIT)
            beyond += self.pop_evenly(1 << digits) << at
        return np.where(above, beyond - 1 + ((one.half + 1) << one.shift), -beyond - ((one.half - 1) << one.shift))


def _noise(seed: int, n: int) -> NDArray[np.uint32]:
    """Pseudo-random words: SplitMix64 (Steele, Lea, Flood 2014) of consecutive integers."""
    x = (np.arange(n, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x >> np.uint64(32)).astype(np.uint32)


def _parts(n: int, size: int) -> Iterator[slice]:
    step = max(1, _CHUNK // size)
    return (slice(i, min(n, i + step)) for i in range(0, n, step))


def _taken(rows: NDArray[np.float32], which: Integers | None, part: slice) -> NDArray[np.float32]:
    return np.ascontiguousarray(rows[part] if which is None else rows[which[part]])


def _split(means: Integers, one: Table) -> tuple[Integers, Integers]:
    """The point of a mean, and its phase."""
    bits = one.phases.bit_length() - 1
    return means >> bits, means & (one.phases - 1)


def _groups(widths: Integers, n: int, escape: bool) -> Iterator[tuple[Table, Any]]:
    """The tables of numbers, and where each is used."""
    if widths.size == 1:
        yield table(int(widths[0]), escape), slice(0, n)
        return
    for index in np.unique(widths):
        yield table(int(index), escape), np.flatnonzero(widths == index)
