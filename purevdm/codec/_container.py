"""The bytes of a file: a head, blocks that decode by themselves, an index. All integers are little-endian.

    head    magic (8), version (1), flags (1), dtype (1), dither (1), timesteps (4), values (4), seed (4), model digest (16),
            number of axes (1), their sizes (4 each), length of the machine's text (2), the text, CRC-32 (4)
    block   "PVDB", number (4), examples (4), payload size (4), CRC-32 of the payload (4), CRC-32 of these 20 bytes (4),
            payload
    index   "PVDI", blocks (4), the offset of each (8 each), CRC-32 (4)
    tail    the index's offset (8), "PVDE"

A payload is the digest of the data (8), that of the condition (8, if there is one), the number of initial words, the number
of rounds and their sizes, as ``_varints`` writes them, and the words of the stack (4 each).

Nothing that a file says about sizes is believed before its checksum is, nor allocated before the bytes are there.
"""

import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from purevdm import _checks, _files

MAGIC, VERSION = b"\x93PVDM\r\n\x1a", 1
_HEAD, _BLOCK = struct.Struct("<BBBBIII16sB"), struct.Struct("<4sIIII")
_B, _I, _E = b"PVDB", b"PVDI", b"PVDE"
_CRC = struct.Struct("<I")
DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
_PORTABLE, _CONDITIONED = 1, 2
OWN_DITHER = 255  # each round has its own
MOST_STEPS = 2**20
MOST_LANES = 2**14
_LONGEST = 2**17  # of a head: it has at most 255 axes and 2**16 bytes of text
_AHEAD = 2**14  # bytes in which a block is searched for


class CodecError(ValueError):
    """A file that is damaged, cut short, of another model, of a later format, or made for another machine; the message says
    which, and where."""


class Head(NamedTuple):
    """What a file says of all its blocks."""

    portable: bool
    conditioned: bool
    dtype: torch.dtype
    dither: int
    timesteps: int
    vocab_size: int
    seed: int
    model: bytes
    event_shape: tuple[int, ...]
    machine: str


class Block(NamedTuple):
    """A block, as the file describes it.

    Attributes:
        number: its position, from 0.
        examples: how many it holds.
        offset: where it starts, in bytes.
        size: its bytes, with its 24 of overhead.
    """

    number: int
    examples: int
    offset: int
    size: int


class Payload(NamedTuple):
    """A block's content."""

    data: bytes
    cond: bytes
    initial: int
    rounds: tuple[int, ...]
    words: NDArray[np.uint32]


class Info(NamedTuple):
    """What a file says of itself, without its model.

    Attributes:
        examples: how many the readable blocks hold.
        event_shape, vocab_size, dtype: their form.
        timesteps: T.
        portable: whether it decodes on every machine; if not, ``machine`` says on which, as JSON.
        model: the digest of the parameters, in hexadecimal.
        size: the file's bytes.
        initial_bits: what the stacks held before any data.
        stack_bits: what they hold with the data.
        complete: whether the index is there, and every block that it names.
        blocks: the blocks whose heads are readable.
    """

    examples: int
    event_shape: tuple[int, ...]
    vocab_size: int
    dtype: torch.dtype
    timesteps: int
    portable: bool
    machine: str
    model: str
    size: int
    initial_bits: int
    stack_bits: int
    complete: bool
    blocks: tuple[Block, ...]

    @property
    def rate(self) -> float:
        """The whole file, bits per dimension."""
        return 8.0 * self.size / self._numbers

    @property
    def net(self) -> float:
        """What the stacks grew by, bits per dimension: an estimate of the bound in T steps."""
        return (self.stack_bits - self.initial_bits) / self._numbers

    @property
    def _numbers(self) -> int:
        return max(1, self.examples * math.prod(self.event_shape))


def info(file: str | os.PathLike | bytes) -> Info:
    """Reads what a file, or the bytes of one, say of themselves, without their model.

    Raises:
        CodecError: no file of this kind, a later format, or a damaged head.
        FileNotFoundError: no such file.
        ValueError: no regular file.
    """
    with opened(file if isinstance(file, bytes) else _checks.path("file", file)) as (source, head, blocks, complete):
        initial = stack = 0
        for block in blocks:
            try:
                payload = read_payload(source, block, head)
            except CodecError:
                complete = False
                continue
            initial, stack = initial + 32 * payload.initial, stack + 32 * len(payload.words)
        examples, size = sum(block.examples for block in blocks), source.seek(0, io.SEEK_END)
        form = (head.event_shape, head.vocab_size, head.dtype, head.timesteps, head.portable, head.machine, head.model.hex())
        return Info(examples, *form, size, initial, stack, complete, blocks)


# Writing


def head_bytes(head: Head) -> bytes:
    flags = _PORTABLE * head.portable + _CONDITIONED * head.conditioned
    fixed = (VERSION, flags, DTYPES.index(head.dtype), head.dither, head.timesteps, head.vocab_size, head.seed, head.model)
    text = head.machine.encode()
    shape = struct.pack(f"<{len(head.event_shape)}I", *head.event_shape)
    return sealed(MAGIC + _HEAD.pack(*fixed, len(head.event_shape)) + shape + struct.pack("<H", len(text)) + text)


def block_bytes(number: int, payload: Payload) -> bytes:
    numbers = _varints([payload.initial, len(payload.rounds), *payload.rounds])
    body = payload.data + payload.cond + numbers + payload.words.astype("<u4").tobytes()
    return sealed(_BLOCK.pack(_B, number, sum(payload.rounds), len(body), zlib.crc32(body))) + body


def end_bytes(ends: list[int]) -> bytes:
    """Gives the index and the tail, from where the head and each block end."""
    return sealed(_I + struct.pack(f"<I{len(ends) - 1}Q", len(ends) - 1, *ends[:-1])) + struct.pack("<Q", ends[-1]) + _E


def sealed(content: bytes) -> bytes:
    """Gives content and its checksum."""
    return content + _CRC.pack(zlib.crc32(content))


def _varints(numbers: list[int]) -> bytes:
    """Writes each integer in groups of 7 bits, the lowest first, the last without its eighth bit."""
    written = bytearray()
    for number in numbers:
        while number > 127:
            written.append(number & 127 | 128)
            number >>= 7
        written.append(number)
    return bytes(written)


# Reading


@contextmanager
def opened(source: Path | bytes) -> Iterator[tuple[BinaryIO, Head, tuple[Block, ...], bool]]:
    """Opens a file, or the bytes of one: itself, its head, the blocks whose heads are whole, in the order of their numbers,
    and whether it ends in an index that names just them."""
    with _files.regular(source).open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        head, blocks = _read_head(file), _find_blocks(file, file.seek(0, io.SEEK_END))
        ends = [*(block.offset for block in blocks), blocks[-1].offset + blocks[-1].size] if blocks else [0]
        numbered, last = [block.number for block in blocks] == list(range(len(blocks))), end_bytes(ends)
        yield file, head, blocks, bool(blocks) and numbered and _at(file, ends[-1], len(last) + 1) == last


def _read_head(file: BinaryIO) -> Head:
    start = file.read(_LONGEST)
    if start[:8] != MAGIC:
        raise CodecError(f"expected a file of purevdm.codec, got one that starts with {start[:8]!r}")
    if len(start) > 8 and start[8] > VERSION:
        raise CodecError(f"expected format {VERSION}, got {start[8]}; a later purevdm wrote it, or it is damaged")
    try:
        _, flags, dtype, dither, steps, values, seed, model, axes = _HEAD.unpack_from(start, 8)
        *shape, length = struct.unpack_from(f"<{axes}IH", start, 8 + _HEAD.size)
        text = 8 + _HEAD.size + 4 * axes + 2
        end = text + length
        if start[: end + 4] == sealed(start[:end]) and 1 <= steps <= MOST_STEPS:
            form = (
                DTYPES[dtype],
                dither,
                steps,
                values,
                seed,
                model,
                tuple(shape),
                start[text:end].decode(errors="replace"),
            )
            return Head(bool(flags & _PORTABLE), bool(flags & _CONDITIONED), *form)
    except (struct.error, IndexError):
        pass
    raise CodecError("damaged or cut short in its head")


def _block(file: BinaryIO, offset: int, end: int) -> Block | None:
    head = _at(file, offset, _BLOCK.size + 4) if offset + _BLOCK.size + 4 <= end else b""
    if head[:4] != _B or head != sealed(head[:-4]):
        return None
    _, number, examples, size, _ = _BLOCK.unpack(head[:-4])
    return Block(number, examples, offset, len(head) + size) if offset + len(head) + size <= end else None


def _find_blocks(file: BinaryIO, end: int) -> tuple[Block, ...]:
    """Finds the blocks whose heads are whole. What is between them is passed over."""
    blocks: dict[int, Block] = {}
    at = 0
    while at < end:
        window = _at(file, at, _AHEAD)
        step = window.find(_B)
        block = None if step < 0 else _block(file, at + step, end)
        if block is not None:
            blocks.setdefault(block.number, block)
            at = block.offset + block.size
        else:
            at += max(1, len(window) - len(_B) + 1) if step < 0 else step + len(_B)
    return tuple(blocks[number] for number in sorted(blocks))


def read_payload(file: BinaryIO, block: Block, head: Head) -> Payload:
    """Reads a block's content; raises a CodecError if it is damaged."""
    record = _at(file, block.offset, block.size)
    content = record[_BLOCK.size + 4 :]
    if record[16:20] == _CRC.pack(zlib.crc32(content)):
        body = io.BytesIO(content)
        digests = body.read(8), body.read(8 if head.conditioned else 0)
        try:
            initial, count = _varint(body), _varint(body)
            rounds = tuple(_varint(body) for _ in range(count))
        except IndexError:
            rounds = ()
        words = body.read()
        if sum(rounds) == block.examples > 0 and max(rounds) <= MOST_LANES and min(rounds) > 0 and len(words) % 4 == 0:
            return Payload(*digests, initial, rounds, np.frombuffer(words, "<u4").astype(np.uint32))
    raise CodecError("damaged")


def _varint(body: BinaryIO) -> int:
    number = 0
    for shift in range(0, 42, 7):
        byte = body.read(1)[0]
        number |= (byte & 127) << shift
        if byte < 128:
            return number
    raise IndexError


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
