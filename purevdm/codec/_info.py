"""What a file tells without its model."""

import io
import math
import os
from typing import BinaryIO, NamedTuple

import torch

from purevdm import _checks, _files
from purevdm.codec import _container
from purevdm.codec._container import Block, Head
from purevdm.codec._errors import CodecError


class Info(NamedTuple):
    """What a file tells without its model.

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
    """What a file, or the bytes of one, tell without their model.

    Raises:
        CodecError: no file of this kind, a later format, or a damaged head.
        FileNotFoundError: no such file.
        ValueError: no regular file.
    """
    with io.BytesIO(file) if isinstance(file, bytes) else _files.regular(_checks.path("file", file)).open("rb") as source:
        head, blocks, complete = opened(source)
        initial = stack = 0
        for block in blocks:
            try:
                payload = _container.read_payload(source, block, head)
            except CodecError:
                complete = False
                continue
            initial, stack = initial + 32 * payload.initial, stack + 32 * len(payload.words)
        return Info(
            examples=sum(block.examples for block in blocks),
            event_shape=head.event_shape,
            vocab_size=head.vocab_size,
            dtype=head.dtype,
            timesteps=head.timesteps,
            portable=head.portable,
            machine=head.machine,
            model=head.model.hex(),
            size=source.seek(0, 2),
            initial_bits=initial,
            stack_bits=stack,
            complete=complete,
            blocks=blocks,
        )


def opened(file: BinaryIO) -> tuple[Head, tuple[Block, ...], bool]:
    head = _container.read_head(file)
    return head, *_container.read_blocks(file, head)
