"""The bytes of a file: a head, blocks that decode alone, an index. All integers are little-endian.

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

import struct
import zlib
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from purevdm.codec._errors import CodecError

MAGIC, VERSION = b"\x93PVDM\r\n\x1a", 1
_HEAD, _BLOCK = struct.Struct("<BBBBIII16sB"), struct.Struct("<4sIIII")
_B, _I, _E = b"PVDB", b"PVDI", b"PVDE"
_CRC, _WORD = struct.Struct("<I"), struct.Struct("<Q")
DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
_PORTABLE, _CONDITIONED = 1, 2
OWN_DITHER = 255  # each round has its own
MOST_STEPS = 2**20
MOST_LANES = 2**14
_AHEAD = 2**20


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
    """A block as the file tells of it.

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


# Writing


def head_bytes(head: Head) -> bytes:
    flags = _PORTABLE * head.portable + _CONDITIONED * head.conditioned
    fixed = (VERSION, flags, DTYPES.index(head.dtype), head.dither, head.timesteps, head.vocab_size, head.seed, head.model)
    text = head.machine.encode()
    shape = struct.pack(f"<{len(head.event_shape)}I", *head.event_shape)
    body = MAGIC + _HEAD.pack(*fixed, len(head.event_shape)) + shape + struct.pack("<H", len(text)) + text
    return body + _CRC.pack(zlib.crc32(body))


def block_bytes(number: int, payload: Payload) -> bytes:
    numbers = _varints([payload.initial, len(payload.rounds), *payload.rounds])
    body = payload.data + payload.cond + numbers + payload.words.astype("<u4").tobytes()
    head = _BLOCK.pack(_B, number, sum(payload.rounds), len(body), zlib.crc32(body))
    return head + _CRC.pack(zlib.crc32(head)) + body


def end_bytes(offsets: list[int], at: int) -> bytes:
    index = _I + struct.pack(f"<I{len(offsets)}Q", len(offsets), *offsets)
    return index + _CRC.pack(zlib.crc32(index)) + _WORD.pack(at) + _E


def _varints(numbers: list[int]) -> bytes:
    """Each integer in groups of 7 bits, the lowest first, the last without its eighth bit."""
    found = bytearray()
    for number in numbers:
        while number > 127:
            found.append(number & 127 | 128)
            number >>= 7
        found.append(number)
    return bytes(found)


# Reading


def read_head(file: BinaryIO) -> Head:
    """The head of a file.

    Raises:
        CodecError: it is none of ours, of a later version, or damaged.
    """
    file.seek(0)
    start = file.read(len(MAGIC) + _HEAD.size)
    if start[: len(MAGIC)] != MAGIC:
        raise CodecError(f"expected a file of purevdm.codec, got one that starts with {start[:8]!r}")
    if len(start) > len(MAGIC) and start[len(MAGIC)] > VERSION:
        raise CodecError(f"expected format {VERSION}, got {start[len(MAGIC)]}; a later purevdm wrote it, or it is damaged")
    damaged = CodecError("damaged or cut short in its head")
    if len(start) < len(MAGIC) + _HEAD.size:
        raise damaged
    _, flags, dtype, dither, steps, values, seed, model, axes = _HEAD.unpack_from(start, len(MAGIC))
    sizes = file.read(4 * axes + 2)
    if len(sizes) < 4 * axes + 2:
        raise damaged
    text = file.read(struct.unpack_from("<H", sizes, 4 * axes)[0])
    check = file.read(4)
    if len(check) < 4 or _CRC.unpack(check)[0] != zlib.crc32(start + sizes + text):
        raise damaged
    shape = struct.unpack_from(f"<{axes}I", sizes)
    if dtype >= len(DTYPES) or not 1 <= steps <= MOST_STEPS:
        raise damaged
    portable, conditioned = bool(flags & _PORTABLE), bool(flags & _CONDITIONED)
    form = (DTYPES[dtype], dither, steps, values, seed, model, shape)
    return Head(portable, conditioned, *form, text.decode(errors="replace"))


def head_size(head: Head) -> int:
    return len(head_bytes(head))


def read_blocks(file: BinaryIO, head: Head) -> tuple[tuple[Block, ...], bool]:
    """The blocks whose heads are whole, in the order of their numbers, and whether there is an index that names just them.
    Where it is damaged or missing they are searched for."""
    end = file.seek(0, 2)
    offsets = _index(file, end)
    if offsets is not None:
        found = [block for offset in offsets if (block := _block(file, offset, end)) is not None]
        if [block.number for block in found] == list(range(len(offsets))):
            return tuple(found), True
    return tuple(_search(file, head_size(head), end)), False


def _index(file: BinaryIO, end: int) -> tuple[int, ...] | None:
    tail = _at(file, end - 12, 12)
    if tail is None or tail[8:] != _E:
        return None
    start = _WORD.unpack(tail[:8])[0]
    start_of_it = _at(file, start, 8) if start < end else None
    if start_of_it is None or start_of_it[:4] != _I:
        return None
    count = _CRC.unpack(start_of_it[4:])[0]
    index = _at(file, start, 12 + 8 * count) if start + 12 + 8 * count == end - 12 else None
    if index is None or _CRC.unpack(index[-4:])[0] != zlib.crc32(index[:-4]):
        return None
    return struct.unpack(f"<{count}Q", index[8:-4])


def _block(file: BinaryIO, offset: int, end: int) -> Block | None:
    head = _at(file, offset, _BLOCK.size + 4) if offset + _BLOCK.size + 4 <= end else None
    if head is None or head[:4] != _B or _CRC.unpack(head[-4:])[0] != zlib.crc32(head[:-4]):
        return None
    _, number, examples, size, _ = _BLOCK.unpack(head[:-4])
    return Block(number, examples, offset, len(head) + size) if offset + len(head) + size <= end else None


def _search(file: BinaryIO, at: int, end: int) -> list[Block]:
    found: dict[int, Block] = {}
    while at < end:
        window = _at(file, at, min(_AHEAD, end - at)) or b""
        step = window.find(_B)
        if step < 0:
            at += max(1, len(window) - len(_B) + 1)
            continue
        block = _block(file, at + step, end)
        if block is not None:
            found.setdefault(block.number, block)
        at += step + (len(_B) if block is None else block.size)
    return [found[number] for number in sorted(found)]


def read_payload(file: BinaryIO, block: Block, head: Head) -> Payload:
    """A block's content.

    Raises:
        CodecError: it is damaged.
    """
    damaged = CodecError(f"block {block.number}: damaged")
    record = _at(file, block.offset, block.size)
    if record is None:
        raise damaged
    body = record[_BLOCK.size + 4 :]
    if _CRC.unpack_from(record, 16)[0] != zlib.crc32(body):
        raise damaged
    digests = 16 if head.conditioned else 8
    try:
        initial, at = _varint(body, digests)
        count, at = _varint(body, at)
        rounds = []
        for _ in range(min(count, len(body))):
            size, at = _varint(body, at)
            rounds.append(size)
    except IndexError:
        raise damaged from None
    words = body[at:]
    if len(rounds) != count or sum(rounds) != block.examples or len(words) % 4:
        raise damaged
    if not all(1 <= size <= MOST_LANES for size in rounds):
        raise damaged
    return Payload(body[:8], body[8:digests], initial, tuple(rounds), np.frombuffer(words, "<u4").astype(np.uint32))


def _varint(body: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (body[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if not body[at - 1] & 128:
            return number, at
        if shift > 35:
            raise IndexError


def _at(file: BinaryIO, offset: int, size: int) -> bytes | None:
    if offset < 0:
        return None
    file.seek(offset)
    found = file.read(size)
    return found if len(found) == size else None
