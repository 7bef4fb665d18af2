"""Data to bytes and back."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, _files, _sharding, parallel, parts
from purevdm._batches import pairs
from purevdm._door import parse
from purevdm._vdm import VDM
from purevdm.codec import _chain, _codes, _container
from purevdm.codec._chain import Callback, Chain
from purevdm.codec._container import Block, CodecError, Head, Info, info
from purevdm.codec._network import denoiser_of, machine, require_float64
from purevdm.model import direct
from purevdm.parallel import Group
from purevdm.types import Params

__all__ = ["Block", "CodecError", "Info", "decode", "encode", "info", "read", "write"]

LANES = 32
STEPS = 250


def encode(
    model: VDM,
    params: Params,
    x: Tensor,
    cond: Any = None,
    *,
    timesteps: int | None = None,
    lanes: int = LANES,
    portable: bool = True,
    compile: bool = False,
    seed: int = 0,
    callback: Callback | None = None,
) -> bytes:
    """Encodes data as bytes, which :func:`decode` turns back into the same data: a file of one block.

    Args:
        model, params: the model, with a decoder of finitely many values, without parameters, whose latents have the data's
            shape (``decoders.discrete``, ``discretised_gaussian``), no subspace, and any reverse process. With a code of
            :mod:`purevdm.codes` the file holds the codes, too.
        x: data, (n, *event_shape), integers.
        cond: their condition, as the network takes it. It is not part of the bytes: decoding takes it again.
        timesteps, lanes, portable, compile, seed, callback: as :func:`write` takes them.

    Raises:
        TypeError, ValueError: bad arguments, as the model's functions name them; real data; a network that computes in less
            than float64 (with ``portable``) or whose output is not finite; more steps than gamma rises in.
        ImportError: constriction is not installed.

    >>> import purevdm
    >>> from purevdm import codec, networks, random, schedules
    >>> model = purevdm.vdm(networks.mlp(16), schedules.learned_linear(-6.0, 4.0), event_shape=(8,), vocab_size=16)
    >>> params = model.init(random.key(0))
    >>> x = random.randint(random.key(1), (20, 8), 0, 16)
    >>> data = codec.encode(model, params, x, timesteps=10)
    >>> bool((codec.decode(model, params, data) == x).all())
    True
    >>> codec.info(data).examples
    20
    """
    if _checks.tensor("x", x).ndim == 0 or len(x) == 0:
        raise ValueError(f"x: expected at least one example, got {_checks.describe(x)}")
    return b"".join(_pieces(model, params, [(x, cond)], timesteps, lanes, portable, compile, seed, callback))


def write(
    path: str | os.PathLike,
    model: VDM,
    params: Params,
    batches: Iterable[Any],
    *,
    timesteps: int | None = None,
    lanes: int = LANES,
    portable: bool = True,
    compile: bool = False,
    seed: int = 0,
    group: Group | None = None,
    callback: Callback | None = None,
) -> Info:
    """Writes a file, whole or not at all: a file or a link of that name is replaced at the end.

    Each batch is a block, which decodes by itself. Initial bits are paid for one example of each, some 6 bits per dimension
    of it at T = 250. So take blocks of many examples. Only one of them is in memory.

    Args:
        path: the file.
        model, params: as :func:`encode` takes them.
        batches: an iterable of x, (x,) or (x, cond), such as :mod:`purevdm.evaluation` takes; all of one dtype, and all or
            none with a condition.
        timesteps: T; the model's own where left out, or 250 where that is continuous time. The rate falls with T, as the
            bound does, and time grows with it.
        lanes: how many examples the network sees at once; 32 where left out.
        portable: whether to compute in float64, so that the bytes decode on any machine: the default. Otherwise in the
            model's dtype: sooner, but only for the same machine, versions and settings.
        compile: whether to compile the network.
        seed: makes the initial bits.
        group: the processes that share the work, of :func:`purevdm.parallel.join`. Each goes through the same batches, and
            encodes its turns of them; the first writes the file, that which one process would write.
        callback: called as ``callback(examples, bits)`` after each round, with what it cost; in a group after this process's
            own, which :func:`purevdm.parallel.counted` adds up.

    Returns:
        What :func:`info` says of the file.

    Raises:
        TypeError, ValueError, ImportError: as :func:`encode`; nothing is written then.
        OSError: a path that cannot be written, or a full disk; the file that was there stays.
    """
    path = _checks.path("path", path)
    pieces = _pieces(model, params, batches, timesteps, lanes, portable, compile, seed, callback, group)
    if group is not None and group.rank > 0:
        for _ in pieces:
            pass
    else:
        with _files.replaced(path) as draft, _files.naming(draft), draft.open("xb") as file:
            file.writelines(pieces)
    parallel.barrier()
    return info(path)


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
    _check(model, compile, callback)
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


def _pieces(
    model: VDM,
    params: Params,
    batches: Iterable[Any],
    timesteps: int | None,
    lanes: int,
    portable: bool,
    compile: bool,
    seed: int,
    callback: Callback | None,
    group: Group | None = None,
) -> Iterator[bytes]:
    """Yields a file's head, its blocks and its index."""
    rank, size = parallel.place(group)
    _check(model, compile, callback)
    params = _sharding.whole(params)
    lanes, portable = _checks.integer("lanes", lanes, 1, _container.MOST_LANES), _checks.boolean("portable", portable)
    steps = model.timesteps or STEPS if timesteps is None else timesteps
    steps = _checks.integer("timesteps", steps, 1, _container.MOST_STEPS)
    seed = _checks.integer("seed", seed, 0, 2**32 - 1)
    ends: list[int] = []
    mine = b""

    def turns() -> Iterator[bytes]:
        for block in parallel.of_all(group, mine):
            if block:
                ends.append(ends[-1] + len(block))
                yield block

    for number, (x, cond) in enumerate(pairs(batches)):
        parse(model, params, x, cond=cond)
        if number == 0:
            chain = _chain.chain_of(denoiser_of(model, params, portable, lanes, compile), steps, seed)
            if portable:
                one = chain.swap(_codes.stand_in(chain.denoise, _chain.part_of(chain.cast(cond), 0, 1), 1), 1)
                require_float64(chain.denoise, one.levels.gamma[-1], one.cond)
            head = _head(chain, model, params, portable, x, cond)
            yield _container.head_bytes(head)
            ends.append(len(_container.head_bytes(head)))
        if x.dtype != head.dtype:
            raise TypeError(f"batches[{number}]: expected {head.dtype}, as the first, got {_checks.describe(x)}")
        if (cond is not None) != head.conditioned:
            raise ValueError(f"batches[{number}]: expected a condition with all batches or with none")
        if number % size == rank:
            mine = _container.block_bytes(number, _chain.encode(chain, number, x, cond, callback))
        if number % size == size - 1:
            yield from turns()
            mine = b""
    if not ends:
        raise ValueError("batches: expected at least one, got none")
    yield from turns()
    yield _container.end_bytes(ends)


def _head(chain: Chain, model: VDM, params: Params, portable: bool, x: Tensor, cond: Any) -> Head:
    return Head(
        portable=portable,
        conditioned=cond is not None,
        dtype=x.dtype,
        dither=_container.OWN_DITHER if chain.fixed is None else chain.fixed.dither,
        timesteps=chain.timesteps,
        vocab_size=model.decoder.vocab_size or 0,
        seed=chain.seed,
        model=_digest(model, params),
        event_shape=model.event_shape,
        machine="" if portable else machine(chain.denoise),
    )


def _part(cond: Any, digest: bytes, at: int, n: int) -> Any:
    """Finds a block's part of a condition: behind those of the blocks before it, or wherever its digest is the block's."""
    for start in (at, *range(_rows(cond) - n + 1)):
        part = _chain.part_of(cond, start, n)
        if _chain.cond_digest(part) == digest:
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
    if _digest(model, params) != head.model:
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


def _check(model: VDM, compile: bool, callback: Callback | None) -> None:
    """Checks what all of these functions take."""
    direct(_checks.instance("model", model, VDM, "a purevdm VDM"), "files", coded=True)
    _codes.codable(model.code)
    if model.decoder.log_probs is None or model.decoder.vocab_size is None:
        raise ValueError(
            f"model.decoder: expected finitely many values (decoders.discrete), got {model.decoder.support}, which would "
            "need infinitely many bits"
        )
    _checks.boolean("compile", compile)
    if callback is not None:
        _checks.function("callback", callback)


def _digest(model: VDM, params: Params) -> bytes:
    """Computes 16 bytes by which another model differs from this: in its parameters and in what a network's output means."""
    network, reverse, decoder = model.network, model.reverse, model.decoder
    text = f"{network.predicts} {network.self_condition} {network.residual}"
    if reverse != parts.posterior() or decoder.takes_estimate:  # the first files had no others
        text += re.sub(" at 0x[0-9a-f]+", "", f" {network.outputs} {reverse!r} {decoder!r}")
    if model.code is not None:
        text += re.sub(" at 0x[0-9a-f]+", "", f" {model.code!r}")
    return _chain.tree_digest(params, 16, text)
