"""Tokens to bytes and back by a masked diffusion as an any-order autoregressive model (:mod:`purevdm.masked.order`).

The tokens of an example are coded one after another, in an order that a seed draws, each under the network's probabilities
given those before it. So the bytes take what these cost, -log2 p in that order, and some 66 more. There are no latents, and
no initial bits. In fewer ``steps`` several tokens are coded at once, each given those of the steps before, for more bits.

**They decode on every machine.** The network runs in float64. Its log probabilities are rounded to a 256th of a nat with
one of 64 dithers, which is chosen so that none lies near a boundary, and coded; the rest is integers and exactly rounded
operations, as in :mod:`purevdm.codec`. What cannot be decoded is refused by the checksum of its data.
"""

import itertools
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import optree
import torch
from numpy.typing import NDArray
from torch import Tensor

from purevdm import _checks, random
from purevdm._door import batch_axes, parse
from purevdm.codec import _container
from purevdm.codec._arithmetic import DITHERS, Floats, Integers, exp, guarded, rounded
from purevdm.codec._chain import cond_digest, data_digest, tree_digest
from purevdm.codec._container import DTYPES, CodecError
from purevdm.codec._lattice import frequencies
from purevdm.codec._network import Float64Only, cast, device_of
from purevdm.codec._stack import Stack
from purevdm.masked import MaskedDiffusion, order
from purevdm.masked.bound import log_probs
from purevdm.types import Params

__all__ = ["decode_tokens", "encode_tokens"]

MAGIC = b"\x93PVDO\r\n\x1a\x01"
_HEAD = struct.Struct("<BIIII16s8s8s")
_PARTS = 256.0  # of a nat, to which log probabilities are rounded
_LEAST = -40.0  # nats; what is less likely has the least frequency anyway
_DITHER_BITS = np.array([DITHERS.bit_length() - 1])
LANES = 256


class Coder(NamedTuple):
    """What both ends know: the model in float64, its parameters, n examples' conditions, and the order of their tokens.

    Attributes:
        rank: the place of each token in its example's order, (n, tokens).
        steps: in how many steps tokens are coded.
        lanes: how many examples the network sees at once.
    """

    model: MaskedDiffusion
    params: Params
    cond: Any
    rank: Tensor
    steps: int
    lanes: int

    def units(self) -> Iterator[tuple[slice, int, int]]:
        """Yields what is coded at once: some examples, and the ranks from one to another."""
        n, tokens = self.rank.shape
        ends = [tokens * i // self.steps for i in range(self.steps + 1)]
        for first, last in itertools.pairwise(ends):
            for at in range(0, n, self.lanes):
                yield slice(at, min(n, at + self.lanes)), first, last

    def log_probs(self, x: Tensor, rows: slice, first: int, last: int) -> tuple[Floats, Tensor]:
        """Computes log probabilities of the tokens from one rank to another given those before, (examples * tokens, K), and
        where these tokens are, bool (examples, tokens). Of x, (n, tokens), only tokens of lower ranks are read."""
        model, rank, part = self.model, self.rank[rows], optree.tree_map(lambda leaf: leaf[rows], self.cond)
        n, tokens = rank.shape
        z = torch.where(rank < first, x[rows], model.corruption.classes).reshape(n, *model.event_shape)
        count = torch.full((n,), float(tokens), dtype=torch.float64, device=rank.device)
        with torch.no_grad():
            level = order.level(model, self.params, count - first, count, part)
            log_p = log_probs(model, self.params["network"], z, level, part)
        now = (rank >= first) & (rank < last)
        return log_p.reshape(n, tokens, -1)[now].cpu().numpy(), now


def encode_tokens(
    model: MaskedDiffusion,
    params: Params,
    x: Tensor,
    cond: Any = None,
    *,
    steps: int | None = None,
    lanes: int = LANES,
    seed: int = 0,
    callback: Callable[[int, int], None] | None = None,
) -> bytes:
    """Encodes tokens as bytes by an any-order model (:mod:`purevdm.masked.order`), which :func:`decode_tokens` turns back.

    They take -log2 p of the tokens, each given those before it in an order that the seed draws for each example, and some 66
    bytes more. There are no latents, and no initial bits. Like files, they decode on every machine.

    Args:
        model, params: a masked diffusion, not one with uniform noise.
        x: data, (n, *event_shape), integers. All are coded: padding would be, too.
        cond: their condition, which is not part of the bytes: decoding takes it again.
        steps: in how many steps the tokens of an example are coded, each of which applies the network; as many as it has
            tokens where left out, which takes the fewest bits.
        lanes: how many examples the network sees at once.
        seed: of the orders.
        callback: called as ``callback(tokens, bits)`` after each step of some examples, with what it cost.

    Raises:
        TypeError, ValueError: bad arguments, as the model's methods name them; a network that computes in less than float64
            or whose output is not finite.
        ImportError: constriction is not installed.

    >>> from purevdm import codec, masked, networks, random
    >>> model = masked.diffusion(networks.transformer(16, 1, positions=True), None, (8,), 4, classes_last=True)
    >>> params, x = model.init(random.key(0)), random.randint(random.key(1), (200, 8), 0, 4)
    >>> data = codec.encode_tokens(model, params, x)
    >>> bool((codec.decode_tokens(model, params, data) == x).all()), len(data) < 480  # 400 without a model
    (True, True)
    """
    params = parse(order.masking(model), params, x, cond=cond).params
    tokens = x[0].numel()
    steps = tokens if steps is None else _checks.integer("steps", steps, 1, tokens)
    lanes, seed = _checks.integer("lanes", lanes, 1, 2**31 - 1), _checks.integer("seed", seed, 0, 2**32 - 1)
    coder = _coder(model, params, cond, len(x), steps, lanes, seed)
    callback = (lambda tokens, bits: None) if callback is None else _checks.function("callback", callback)
    flat = x.reshape(len(x), -1).to(torch.int64)
    stack = Stack(np.zeros(0, np.uint32))
    with Float64Only():
        coder.log_probs(flat[:1], slice(0, 1), 0, 1)
    for rows, first, last in reversed(list(coder.units())):
        before = stack.bits
        log_p, now = coder.log_probs(flat, rows, first, last)
        integers, dither = guarded(_values(log_p))
        symbols = flat[rows][now].cpu().numpy()
        stack.push(symbols, _table(integers))
        stack.push_bits(np.array([dither]), _DITHER_BITS)
        callback(len(symbols), stack.bits - before)
    digests = _digest(model, params), cond_digest(cond) or bytes(8), data_digest(flat.cpu().numpy(), 0)
    head = MAGIC + _HEAD.pack(DTYPES.index(x.dtype), len(x), steps, coder.lanes, seed, *digests)
    return _container.sealed(head + stack.words().astype("<u4").tobytes())


def decode_tokens(model: MaskedDiffusion, params: Params, data: bytes, cond: Any = None) -> Tensor:
    """Decodes the tokens that were encoded, in their dtype: (n, *event_shape).

    Args:
        model, params, cond: those that encoded them.
        data: what :func:`encode_tokens` returned.

    Raises:
        CodecError, ImportError: no such bytes, damaged ones, another model or condition; no wrong data are returned.
        TypeError, ValueError: bad arguments.
    """
    _checks.instance("data", data, (bytes, bytearray, memoryview), "bytes")
    params = parse(order.masking(model), params, cond=cond).params
    content, size = bytes(data), len(MAGIC) + _HEAD.size
    if content[: len(MAGIC)] != MAGIC:
        raise CodecError(f"expected what codec.encode_tokens returned, got bytes that start with {content[:9]!r}")
    if len(content) < size + 4 or _container.sealed(content[:-4]) != content or (len(content) - size) % 4:
        raise CodecError("damaged or cut short")
    kind, n, steps, lanes, seed, *digests = _HEAD.unpack(content[len(MAGIC) : size])
    if _digest(model, params) != digests[0]:
        raise CodecError("expected the model and the parameters that the data were encoded with, got others")
    batch_axes(cond, n)
    if (cond_digest(cond) or bytes(8)) != digests[1]:
        raise CodecError("cond: expected the condition that the data were encoded with, got another")
    coder = _coder(model, params, cond, n, steps, lanes, seed)
    stack, x = Stack(np.frombuffer(content[size:-4], "<u4").astype(np.uint32)), torch.zeros_like(coder.rank)
    for rows, first, last in coder.units():
        dither = int(stack.pop_bits(_DITHER_BITS)[0])
        log_p, now = coder.log_probs(x, rows, first, last)
        symbols = stack.pop(len(log_p), _table(rounded(_values(log_p), dither)[0]))
        x[rows][now] = torch.from_numpy(symbols).to(x.device)
    if len(stack.words()) or data_digest(x.cpu().numpy(), 0) != digests[2]:
        raise CodecError("the data are not those that were encoded: another network or arithmetic")
    return x.reshape(n, *model.event_shape).to(DTYPES[kind])


def _coder(model: MaskedDiffusion, params: Params, cond: Any, n: int, steps: int, lanes: int, seed: int) -> Coder:
    device = device_of(params)
    model = model._replace(network=model.network.computing_in(None), dtype=torch.float64)
    keys, tokens = random.split(random.key(seed, device=device), n), torch.Size(model.event_shape).numel()
    drawn = torch.func.vmap(lambda key: random.bits(key, (tokens,)))(keys).view(torch.int32)
    rank = drawn.argsort(dim=1, stable=True).argsort(dim=1)
    return Coder(model, cast(params, torch.float64), cast(cond, torch.float64), rank, steps, lanes)


def _values(log_p: Floats) -> Floats:
    """Gives log probabilities in units of their rounding."""
    if not np.isfinite(log_p).all():
        raise ValueError("network: expected an output that is finite, got one that is not")
    return np.maximum(log_p, _LEAST) * _PARTS


def _table(integers: Integers) -> NDArray[np.float32]:
    """Makes rows of frequencies of rounded log probabilities."""
    return frequencies(np.floor(exp(integers / _PARTS) * 2.0**40).astype(np.int64))


def _digest(model: MaskedDiffusion, params: Params) -> bytes:
    """Computes 16 bytes by which another model differs from this one: its parameters, and what a network's output means."""
    return tree_digest(params, 16, f"{model.corruption} {model.event_shape} {model.classes_last} {model.network.residual}")
