"""Data from the bytes of a file, block by block."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, _sharding, parallel
from purevdm._door import parse
from purevdm._vdm import VDM
from purevdm.codec import _chain, _container
from purevdm.codec._chain import Callback, Chain
from purevdm.codec._container import CodecError, Head
from purevdm.codec._model import LANES, check, digest
from purevdm.codec._network import denoiser_of, machine
from purevdm.parallel import Group
from purevdm.types import Params


def decode(
    model: VDM, params: Params, data: bytes, cond: Any = None, *, lanes: int | None = None, compile: bool = False
) -> Tensor:
    """Decodes the data that were encoded, bit for bit, in their dtype: (n, *event_shape).

    Args:
        model, params: the model that encoded them.
        data: what :func:`encode` returned, or the content of a file.
        cond, lanes, compile: as :func:`read` takes them.

    Raises:
        CodecError, ImportError: as :func:`read`; no wrong data are returned.
        TypeError: no bytes.
    """
    _checks.instance("data", data, (bytes, bytearray, memoryview), "bytes (read() takes files)")
    return torch.cat(list(read(bytes(data), model, params, cond, lanes=lanes, compile=compile)))


def read(
    path: str | os.PathLike | bytes,
    model: VDM,
    params: Params,
    cond: Any = None,
    *,
    blocks: Iterable[int] | None = None,
    lanes: int | None = None,
    compile: bool = False,
    skip: Callable[[int, CodecError], None] | None = None,
    group: Group | None = None,
    callback: Callback | None = None,
) -> Iterator[Tensor]:
    """Reads the data of a file, block after block: each (n, *event_shape), in the dtype that they had.

    Args:
        path: the file, or the bytes of one.
        model, params: the model that wrote it.
        cond: the condition of all examples that were written, of more behind them, or of those that are read. Each block
            finds its part by the digest that it holds, also where others are lost.
        blocks: the numbers of the blocks to read; all where left out.
        lanes: how many examples the network sees at once; where left out, 32, or what a file for one machine asks for.
        compile: whether to compile the network.
        skip: called as ``skip(number, error)`` for a block that is damaged or missing, which is then left out; where there
            is none, the error is raised.
        group: the processes that share the work: each decodes its turns of the blocks, and all yield all of them.
        callback: called as ``callback(examples, bits)`` after each round; in a group after this process's own.

    Raises:
        CodecError: a file that is cut short or damaged, of another model or condition or a later format, or made for another
            machine. An error of one block is raised when its turn comes.
        FileNotFoundError: no such file.
        ImportError: constriction is not installed.
    """
    source = path if isinstance(path, bytes) else _checks.path("path", path)
    check(model, compile, callback)
    params = _sharding.whole(params)
    lanes = None if lanes is None else _checks.integer("lanes", lanes, 1)
    numbers = None if blocks is None else _checks.integers("blocks", blocks, 0)
    if skip is not None:
        _checks.function("skip", skip)
    if cond is not None or not model.schedule.contextual:
        parse(model, params, cond=cond, n=_rows(cond))

    rank, size = parallel.place(group)

    def fail(number: int, error: CodecError) -> None:
        if skip is None:
            raise error from None
        skip(number, error)

    def decoded() -> Iterator[Tensor]:
        with _container.opened(source) as (file, head, readable, complete):
            whole = complete or numbers is not None
            lost = CodecError("cut short or damaged: blocks may be missing at its end")
            if not whole and skip is None:
                raise lost
            chain = _chain_for(head, model, params, cond, lanes, compile)
            named = {block.number: block for block in readable}
            end = 1 + max(named, default=-1)
            wanted = list(range(end) if numbers is None else numbers)

            def block(number: int) -> Tensor | CodecError:
                try:
                    if number not in named:
                        raise CodecError("missing or damaged")
                    payload = _container.read_payload(file, named[number], head)
                    before = sum(block.examples for block in readable if block.number < number)
                    part = _part(cond, payload.cond, before, named[number].examples)
                    rows = _chain.decode(chain, number, payload, part, callback)
                except CodecError as error:
                    return CodecError(f"block {number}: {error}")
                return torch.from_numpy(rows).reshape(-1, *head.event_shape).to(head.dtype)

            for start in range(0, len(wanted), size):
                turn = wanted[start : start + size]
                mine = block(turn[rank]) if rank < len(turn) else None
                for number, outcome in zip(turn, parallel.of_all(group, mine), strict=False):
                    if isinstance(outcome, Tensor):
                        yield outcome
                    elif outcome is not None:
                        fail(number, outcome)
            if not whole:
                fail(end, lost)

    return decoded()


def _part(cond: Any, wanted: bytes, at: int, n: int) -> Any:
    """Finds a block's part of a condition: behind those of the blocks before it, or wherever its digest is as wanted."""
    for start in (at, *range(_rows(cond) - n + 1)):
        part = _chain.part_of(cond, start, n)
        if _chain.cond_digest(part) == wanted:
            return part
    raise CodecError("cond: expected the condition that these data were encoded with, got another")


def _rows(cond: Any) -> int:
    """Counts the examples that a condition is for, by its first tensor."""
    first = next((leaf for leaf in _checks.leaves(cond).values() if isinstance(leaf, Tensor)), None)
    return 1 if first is None or first.ndim == 0 else len(first)


def _chain_for(head: Head, model: VDM, params: Params, cond: Any, lanes: int | None, compile: bool) -> Chain:
    """Makes the network and levels a file needs; raises a CodecError if it is of another model or for another machine."""
    expected = f"{head.event_shape} of {head.vocab_size} values"
    given = f"{model.event_shape} of {model.decoder.vocab_size} values"
    if expected != given:
        raise CodecError(f"expected a model of events {expected}, as the file holds, got one of {given}")
    if digest(model, params) != head.model:
        kind = "and a network, decoder and reverse process of the same kind"
        raise CodecError(f"expected the parameters that the file was written with, {kind}, got others (another digest)")
    if (cond is not None) != head.conditioned:
        kind = "a condition" if head.conditioned else "no condition"
        raise CodecError(f"cond: expected {kind}, as in encoding, got {_checks.describe(cond)}")
    own = re.search(r'"lanes": (\d+)', head.machine)
    denoise = denoiser_of(model, params, head.portable, lanes or int(own[1] if own else LANES), compile)
    here = "" if head.portable else machine(denoise)
    if here != head.machine:
        raise CodecError(f"expected the machine and the settings that wrote the file, {head.machine}, got {here}")
    return _chain.chain_of(denoise, head.timesteps, head.seed, head.dither)
