"""Data to bytes and back."""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, _files
from purevdm._batches import pairs
from purevdm._vdm import VDM
from purevdm.codec import _chain, _container
from purevdm.codec._chain import Chain
from purevdm.codec._container import Block, Head
from purevdm.codec._errors import CodecError
from purevdm.codec._info import Info, info, opened
from purevdm.codec._levels import levels
from purevdm.codec._network import Denoiser, denoiser_of, machine, require_float64
from purevdm.model import direct, parse
from purevdm.types import Params

__all__ = ["Block", "CodecError", "Info", "decode", "encode", "info", "read", "write"]

LANES = 32
STEPS = 250


# In memory


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
    callback: Callable[[int, int], None] | None = None,
) -> bytes:
    """Data as bytes, which :func:`decode` turns back into the same data; one block of a file as :func:`write` writes it.

    Args:
        model, params: the model, with a decoder of finitely many values.
        x: data, (n, *event_shape), integers.
        cond: their condition, as the network takes it. It is not part of the bytes: decoding takes it again.
        timesteps: T; the model's own where left out, or 250 where that is continuous time. The rate falls with T, as the
            bound does, and time grows with it.
        lanes: how many examples the network sees at once.
        portable: whether to compute in float64, so that the bytes decode on any machine. Otherwise in the model's dtype:
            sooner, for the same machine, versions and settings alone.
        compile: whether to compile the network.
        seed: makes the initial bits.
        callback: called as ``callback(examples, bits)`` after each round, with what it cost.

    Returns:
        The bytes. What they cost, :func:`info` tells.

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
    >>> found = codec.info(data)
    >>> found.examples, 0 < found.net < found.rate
    (20, True)
    """
    if _checks.tensor("x", x).ndim == 0 or len(x) == 0:
        raise ValueError(f"x: expected at least one example, got {_checks.describe(x)}")
    file = io.BytesIO()
    _write(file, model, params, [(x, cond)], Writing(timesteps, lanes, portable, compile, seed, callback))
    return file.getvalue()


def decode(
    model: VDM, params: Params, data: bytes, cond: Any = None, *, lanes: int | None = None, compile: bool = False
) -> Tensor:
    """The data that were encoded, bit for bit, in their dtype: (n, *event_shape).

    Args:
        model, params: the model that encoded them.
        data: what :func:`encode` returned, or the content of a file.
        cond: the condition of all of them.
        lanes, compile: as :func:`read` takes them.

    Raises:
        CodecError: damaged data, or another model, condition, format or machine; no wrong data are returned.
        TypeError: no bytes.
        ImportError: constriction is not installed.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"data: expected bytes, got {_checks.describe(data)}; read() takes files")
    with io.BytesIO(data) as file:
        head, blocks, complete = opened(file)
        if not complete:
            raise CodecError("damaged or cut short; read() finds what is intact")
        if cond is not None:
            _one_each(cond, sum(block.examples for block in blocks))
        parts = list(_read(file, head, blocks, blocks, model, params, Reading(cond=cond, lanes=lanes, compile=compile)))
    return torch.cat(parts) if parts else torch.empty((0, *model.event_shape), dtype=head.dtype)


# In files


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
    callback: Callable[[int, int], None] | None = None,
) -> Info:
    """Writes a file, whole or not at all: a file or a link of that name is replaced at the end.

    Each batch is a block, which decodes alone. Initial bits are paid for one example of each, some 6 bits per dimension of
    it at T = 250. So take blocks of many examples. Only one of them is in memory.

    Args:
        path: the file.
        model, params: as :func:`encode` takes them.
        batches: an iterable of x, (x,) or (x, cond), such as :mod:`purevdm.evaluation` takes; all of one dtype, and all or
            none with a condition.
        timesteps, lanes, portable, compile, seed, callback: as :func:`encode` takes them.

    Returns:
        What :func:`info` tells of the file.

    Raises:
        TypeError, ValueError, ImportError: as :func:`encode`; nothing is written then.
        OSError: a path that cannot be written, or a full disk; the file that was there stays.
    """
    path = _checks.path("path", path)
    options = Writing(timesteps, lanes, portable, compile, seed, callback)
    with _files.replaced(path) as draft, _files.naming(draft), draft.open("xb") as file:
        _write(file, model, params, batches, options)
    return info(path)


def read(
    path: str | os.PathLike,
    model: VDM,
    params: Params,
    conds: Iterable[Any] | None = None,
    *,
    cond: Any = None,
    blocks: Iterable[int] | None = None,
    lanes: int | None = None,
    compile: bool = False,
    skip: Callable[[int, CodecError], None] | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """The data of a file, block after block: each (n, *event_shape), in the dtype that they had.

    Args:
        path: the file.
        model, params: the model that wrote it.
        conds: the conditions of the blocks that are read, one after another.
        cond: instead of them, the condition of all examples that were written, as :func:`decode` takes it, or of more behind
            them. Where blocks are lost, those behind them find their part by the digest of it that they hold.
        blocks: the numbers of the blocks to read; all where left out.
        lanes: how many examples the network sees at once: those of a round where left out. A file for one machine takes its
            own number.
        compile: whether to compile the network.
        skip: called as ``skip(number, error)`` for a block that is damaged, which is then left out; where there is none, the
            error is raised.
        callback: called as ``callback(examples, bits)`` after each round.

    Raises:
        CodecError: a file that is damaged, of another model or a later format, or made for another machine. An error of one
            block is raised when its turn comes.
        FileNotFoundError: no such file.
        ImportError: constriction is not installed.
    """
    file = _checks.path("path", path)
    _checks.instance("model", model, VDM, "a purevdm VDM")
    wanted = None if blocks is None else _checks.integers("blocks", blocks, 0)
    if conds is not None and (isinstance(conds, (Tensor, str, bytes, dict)) or not isinstance(conds, Iterable)):
        raise TypeError(f"conds: expected the conditions of blocks, got {_checks.describe(conds)}")
    if cond is not None:
        if conds is not None:
            raise ValueError("cond: expected None where conds are given")
        _one_each(cond)
    options = Reading(conds, cond, lanes, compile, skip, callback)
    options.check()
    return _blocks(file, model, params, wanted, options)


def _blocks(path: Path, model: VDM, params: Params, wanted: Sequence[int] | None, options: "Reading") -> Iterator[Tensor]:
    with _files.regular(path).open("rb") as file:
        head, found, complete = opened(file)
        named = {block.number: block for block in found}
        last = max(named, default=-1)
        chosen = [named.get(i, Block(i, 0, -1, 0)) for i in (range(last + 1) if wanted is None else wanted)]
        yield from _read(file, head, tuple(chosen), found, model, params, options)
        if wanted is None and not complete:
            error = CodecError("cut short, or damaged in its index: what is missing at its end cannot be told")
            if options.skip is None:
                raise error
            options.skip(last + 1, error)


# What they share


class Writing(NamedTuple):
    """The options of :func:`encode` and :func:`write`."""

    timesteps: int | None
    lanes: int
    portable: bool
    compile: bool
    seed: int
    callback: Callable[[int, int], None] | None

    def checked(self, model: VDM) -> "Writing":
        """The options with the steps filled in."""
        _checks.boolean("portable", self.portable)
        _checks.boolean("compile", self.compile)
        if self.callback is not None:
            _checks.function("callback", self.callback)
        steps = model.timesteps or STEPS if self.timesteps is None else self.timesteps
        return self._replace(
            timesteps=_checks.integer("timesteps", steps, 1, _container.MOST_STEPS),
            lanes=_checks.integer("lanes", self.lanes, 1, _container.MOST_LANES),
            seed=_checks.integer("seed", self.seed, 0, 2**32 - 1),
        )


class Reading(NamedTuple):
    """The options of :func:`read`; those of :func:`decode` are among them."""

    conds: Iterable[Any] | None = None
    cond: Any = None
    lanes: int | None = None
    compile: bool = False
    skip: Callable[[int, CodecError], None] | None = None
    callback: Callable[[int, int], None] | None = None

    def check(self) -> None:
        for name, called in (("skip", self.skip), ("callback", self.callback)):
            if called is not None:
                _checks.function(name, called)
        if self.lanes is not None:
            _checks.integer("lanes", self.lanes, 1)
        _checks.boolean("compile", self.compile)


def _write(file: BinaryIO, model: VDM, params: Params, batches: Iterable[Any], options: Writing) -> None:
    _finite_values(model)
    steps, lanes, portable, compile, seed, callback = options.checked(model)
    assert steps is not None
    chain: Chain | None = None
    offsets: list[int] = []
    for number, (x, cond) in enumerate(pairs(batches)):
        parse(model, params, x, cond=cond)
        if chain is None:
            denoise = denoiser_of(model, params, portable, lanes, compile)
            chain = _chain_of(denoise, steps, seed, None)
            head = Head(
                portable=portable,
                conditioned=cond is not None,
                dtype=x.dtype,
                dither=_container.OWN_DITHER if chain.fixed is None else chain.fixed.dither,
                timesteps=steps,
                vocab_size=model.decoder.vocab_size or 0,
                seed=seed,
                model=_digest(model, params),
                event_shape=model.event_shape,
                machine="" if portable else machine(denoise),
            )
            if portable:
                require_float64(denoise, *_chain.first(chain, cond))
            file.write(_container.head_bytes(head))
        if x.dtype != head.dtype:
            raise TypeError(f"batches[{number}]: expected {head.dtype}, as the first, got {_checks.describe(x)}")
        if (cond is not None) != head.conditioned:
            raise ValueError(f"batches[{number}]: expected a condition with all batches or with none")
        offsets.append(file.tell())
        file.write(_container.block_bytes(number, _chain.encode(chain, number, x, cond, lanes, callback)))
    if chain is None:
        raise ValueError("batches: expected at least one, got none")
    file.write(_container.end_bytes(offsets, file.tell()))


def _read(
    file: BinaryIO,
    head: Head,
    blocks: tuple[Block, ...],
    found: tuple[Block, ...],
    model: VDM,
    params: Params,
    options: Reading,
) -> Iterator[Tensor]:
    """The data of some blocks, out of all that were found."""
    options.check()
    denoise = _reader(head, model, params, options)
    chain = _chain_of(denoise, head.timesteps, head.seed, head.dither)
    given = None if options.conds is None else iter(options.conds)
    for block in blocks:
        cond = None if given is None else next(given, None)
        try:
            if block.offset < 0:
                raise CodecError("missing or damaged")
            payload = _container.read_payload(file, block, head)
            if options.cond is not None:
                cond = _part(options.cond, block, found, payload.cond)
            _fits(cond, head, block)
            rows = _chain.decode(chain, block.number, payload, cond, options.callback)
        except CodecError as error:
            named = error if str(error).startswith("block") else CodecError(f"block {block.number}: {error}")
            if options.skip is None:
                raise named from None
            options.skip(block.number, named)
            continue
        yield torch.from_numpy(rows).reshape(-1, *head.event_shape).to(head.dtype)


def _part(whole: Any, block: Block, found: tuple[Block, ...], digest: bytes) -> Any:
    """A block's part of the condition of all examples: behind those of the blocks before it, or, where some of these are
    lost, at the first place from there whose digest is the block's."""
    before = [other.examples for other in found if other.number < block.number]
    at = sum(before)
    last = at if len(before) == block.number else _rows(whole) - block.examples
    parts = (_chain.part_of(whole, start, block.examples) for start in range(at, last + 1))
    expected = _chain.part_of(whole, at, block.examples)
    return next((part for part in parts if _chain.cond_digest(part) == digest), expected)


def _reader(head: Head, model: VDM, params: Params, options: Reading) -> Denoiser:
    """The network as a file needs it.

    Raises:
        CodecError: the file is of another model, or made for another machine.
    """
    _finite_values(model)
    form = (model.event_shape, model.decoder.vocab_size)
    if form != (head.event_shape, head.vocab_size):
        raise CodecError(
            f"expected a model of events {head.event_shape} of {head.vocab_size} values, as the file holds, got one of "
            f"{form[0]} of {form[1]}"
        )
    if not model.schedule.contextual:
        parse(model, params)
    if _digest(model, params) != head.model:
        raise CodecError("expected the parameters that the file was written with, got others (their digest is another)")
    denoise = denoiser_of(model, params, head.portable, options.lanes or LANES, options.compile)
    if not head.portable:
        denoise = denoise._replace(piece=_own_lanes(head)) if options.lanes is None else denoise
        here = machine(denoise)
        if here != head.machine:
            raise CodecError(f"expected the machine and the settings that wrote the file, {head.machine}, got {here}")
    return denoise


def _own_lanes(head: Head) -> int:
    try:
        return int(json.loads(head.machine)["lanes"])
    except (ValueError, KeyError, TypeError):
        return LANES


def _chain_of(denoise: Denoiser, steps: int, seed: int, dither: int | None) -> Chain:
    own = denoise.model.schedule.contextual
    fixed = None if own else levels(denoise.model, denoise.params, steps, 1, None, dither)
    return Chain(denoise, steps, seed, fixed)


def _finite_values(model: VDM) -> None:
    direct(_checks.instance("model", model, VDM, "a purevdm VDM"), "files", chain=True)
    if model.decoder.log_probs is None or model.decoder.vocab_size is None:
        raise ValueError(
            f"model.decoder: expected finitely many values (decoders.discrete), got {model.decoder.support}, which would "
            "need infinitely many bits"
        )


def _fits(cond: Any, head: Head, block: Block) -> None:
    if (cond is not None) != head.conditioned:
        with_one = "a condition" if head.conditioned else "no condition"
        raise CodecError(f"cond: expected {with_one}, as in encoding, got {_checks.describe(cond)}")
    if cond is not None:
        _one_each(cond, block.examples)


def _one_each(cond: Any, n: int | None = None) -> None:
    n = _rows(cond) if n is None else n
    for leaf in optree.tree_leaves(cond):
        if isinstance(leaf, Tensor) and (leaf.layout != torch.strided or leaf.is_meta):
            raise TypeError(f"cond: expected a dense tensor with values, got {_checks.describe(leaf)}")
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != n:
            raise CodecError(f"cond: expected one for each of {n} examples, got {_checks.describe(leaf)}")


def _rows(cond: Any) -> int:
    """How many examples a condition is for, by its first leaf."""
    first = next(iter(optree.tree_leaves(cond)), None)
    return len(first) if isinstance(first, Tensor) and first.ndim else 0


def _digest(model: VDM, params: Params) -> bytes:
    network = model.network
    return _chain.tree_digest(params, 16, f"{network.predicts} {network.self_condition} {network.residual}")
