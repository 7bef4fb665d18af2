"""Data to bytes, block by block."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from purevdm import _checks, _files, _sharding, parallel
from purevdm._batches import pairs
from purevdm._door import parse
from purevdm._vdm import VDM
from purevdm.codec import _chain, _codes, _container
from purevdm.codec._chain import Callback, Chain
from purevdm.codec._container import Head, Info, info
from purevdm.codec._model import LANES, STEPS, check, digest
from purevdm.codec._network import denoiser_of, machine, require_float64
from purevdm.parallel import Group
from purevdm.types import Params


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
    check(model, compile, callback)
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
        model=digest(model, params),
        event_shape=model.event_shape,
        machine="" if portable else machine(chain.denoise),
    )
