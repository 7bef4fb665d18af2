"""Bits-back coding of a few examples at once, in the order of Bit-Swap (Kingma, Abbeel, Ho 2019, arXiv 1905.06845).

    pop  z_0 ~ q(z_0 given x),          push x under p(x given z_0),
    pop  z_i ~ q(z_i given z_{i-1}),    push z_{i-1} under p(z_{i-1} given z_i),      i = 1, ..., T,
    push z_T under N(0, I).

The net cost is the bound in T steps (Kingma et al. 2021, sec. 6.3; eq. 11 and 13). As each push follows the pop that it
needs, the stack must hold enough for two latents, not for T. Decoding is the same backwards.

The noise of z_{i+1} is popped from what z_{i-1} left on the stack, which is how far it was from its mean under p. That is no
fresh noise where q differs from p: it knows x. In 50 steps this costs some 1.5 percent. So the top of the stack is
exclusive-ored with pseudo-random words before each pop, which makes what is popped uniform whatever was pushed.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from purevdm.codec._arithmetic import DITHERS, GUARD, Floats, Integers, exp, guarded, rounded
from purevdm.codec._errors import CodecError, UnboundedError
from purevdm.codec._lattice import frequencies, phases
from purevdm.codec._levels import Levels
from purevdm.codec._network import Denoiser
from purevdm.codec._stack import Stack

_BLOCK = 2**18  # numbers that share a dither
_HUGE, _FAR = 2.0**42, 2.0**60  # lattice steps, and parts of them
# Logarithms of probabilities are rounded to a 256th of a nat. They are many and exact, and so kept less far from boundaries.
_NATS, _FLOOR, _NEAR = 256.0, 20.0, 2.0**-24
_VALUES = 2**21  # probabilities at once
_POWERS = np.floor(exp(-np.arange(_FLOOR * _NATS + 1) / _NATS) * 2.0**40).astype(np.int64)
_RESERVE = 64


class UnderflowError(Exception):
    """The stack holds too few bits to pop from."""


class Swap(NamedTuple):
    """What both ends know: the network, the levels, and the conditions of these examples."""

    denoise: Denoiser
    levels: Levels
    cond: Any = None


def push(stack: Stack, swap: Swap, x: Integers) -> None:
    """Pushes examples (n, D).

    Raises:
        UnderflowError: the stack holds too few bits; it is of no use then.
        UnboundedError: a network whose output is not finite.
    """
    levels, shape = swap.levels, x.shape
    mean, dithers = _rounded(_phased(_encoded(swap, x) * levels.forward[0], levels.width_q[0]))
    k = _pop(stack, mean, levels.width_q[0], False)
    _enough(stack)
    _push_data(stack, swap, x, k)
    _push_dithers(stack, dithers, x.size)
    for i in range(1, levels.steps + 1):
        stack.scramble(i, x.size)
        above = _pop(stack, _forward(levels, i, k), levels.width_q[i], False)
        _enough(stack)
        mean, dithers = _rounded(_backward(swap, i, above))
        _push(stack, k, mean, levels.width_p[i - 1], True)
        _push_dithers(stack, dithers, x.size)
        k = above
    last = levels.steps
    _push(stack, k, np.zeros(shape, np.int64), levels.width_p[last], True)


def pop(stack: Stack, swap: Swap, n: int) -> Integers:
    """Examples (n, D) that :func:`push` pushed; the stack is as before.

    Raises:
        CodecError: what is on the stack was not pushed so.
    """
    levels, shape = swap.levels, (n, int(np.prod(swap.denoise.model.event_shape)))
    k = _pop(stack, np.zeros(shape, np.int64), levels.width_p[levels.steps], True)
    for i in range(levels.steps, 0, -1):
        dithers = _pop_dithers(stack, k.size)
        mean = _redone(_backward(swap, i, k), dithers)
        below = _pop(stack, mean, levels.width_p[i - 1], True)
        _push(stack, k, _forward(levels, i, below), levels.width_q[i], False)
        stack.scramble(i, k.size)
        k = below
    dithers = _pop_dithers(stack, k.size)
    x = _pop_data(stack, swap, k)
    mean = _redone(_phased(_encoded(swap, x) * levels.forward[0], levels.width_q[0]), dithers)
    _push(stack, k, mean, levels.width_q[0], False)
    return x


def needed(levels: Levels, size: int) -> float:
    """About how many bits one example of this size must find on the stack: those of z_0 and z_1."""
    # Exponentials of the widths' indices only serve an estimate here.
    spread = sum(np.log2(4.1327 * np.exp(levels.width_q[i] / 1024.0)).mean() for i in (0, 1))
    return float(spread) * size


# Conditionals


def _phased(mean: Floats, width: Integers) -> Floats:
    return mean * phases(width).astype(np.float64)


def _forward(levels: Levels, i: int, k: Integers) -> Integers:
    """The mean of q(z_i given z_{i-1}), in phases: the same on every machine."""
    mean = _phased(k * levels.forward[i], levels.width_q[i])
    if not (np.abs(mean) < _FAR).all():
        raise CodecError("damaged: latents out of range")
    return rounded(mean, 0)[0]


def _backward(swap: Swap, i: int, k: Integers) -> Floats:
    """The mean of p(z_{i-1} given z_i), in phases, before rounding."""
    levels = swap.levels
    eps = swap.denoise.eps(k * levels.delta[i], levels.gamma[i], swap.cond)
    if not np.isfinite(eps).all():
        raise UnboundedError(
            f"network: expected finite outputs, got NaN or infinity at gamma = {levels.gamma[i].mean():.4g}"
        )
    return _phased(levels.back_k[i] * k - levels.back_eps[i] * eps, levels.width_p[i - 1])


def _encoded(swap: Swap, x: Integers) -> Floats:
    """Data as real numbers."""
    model = swap.denoise.model
    f = model.decoder.encode({}, torch.from_numpy(x).reshape(-1, *model.event_shape), dtype=torch.float64)
    return f.reshape(x.shape).numpy()


# Rounding that every machine repeats


def _rounded(values: Floats, guard: float = GUARD) -> tuple[Integers, list[int]]:
    flat = values.reshape(-1)
    if not (np.abs(flat) < _HUGE).all():
        raise UnboundedError(f"network: expected noise of about 1, got means up to {np.abs(flat).max():.3g} lattice steps")
    parts = [guarded(flat[i : i + _BLOCK], guard) for i in range(0, len(flat), _BLOCK)]
    return np.concatenate([part for part, _ in parts]).reshape(values.shape), [dither for _, dither in parts]


def _redone(values: Floats, dithers: list[int], guard: float = GUARD) -> Integers:
    flat = values.reshape(-1)
    if not (np.abs(flat) < _HUGE).all():
        raise CodecError("damaged: latents out of range")
    parts = []
    for j, dither in enumerate(dithers):
        part, margin = rounded(flat[j * _BLOCK : (j + 1) * _BLOCK], dither)
        if margin < 0.5 * guard:
            raise CodecError("damaged, or the network computes other numbers here than where the file was written")
        parts.append(part)
    return np.concatenate(parts).reshape(values.shape)


def _push_dithers(stack: Stack, dithers: list[int], n: int, guard: float = GUARD) -> None:
    stack.push(np.array(dithers), _dither_rows(n, guard))


def _pop_dithers(stack: Stack, n: int, guard: float = GUARD) -> list[int]:
    rows = _dither_rows(n, guard)
    return stack.pop(len(rows), rows).tolist()


@functools.lru_cache(maxsize=64)
def _dither_rows(n: int, guard: float) -> NDArray[np.float32]:
    """The frequencies of the dithers of n numbers: the next serves with odds of 1 - exp(-2 guard) for each."""
    sizes = np.array([min(_BLOCK, n - i) for i in range(0, n, _BLOCK)], np.float64)
    one = exp(-2.0 * guard * sizes)[:, None]
    left = np.cumprod(np.concatenate([np.ones_like(one), np.repeat(1.0 - one, DITHERS - 1, 1)], 1), axis=1)
    return frequencies(np.floor(one * left * 2.0**40).astype(np.int64))


# Points and data on the stack


def _push(stack: Stack, points: Integers, means: Integers, widths: Integers, escape: bool) -> None:
    stack.push_points(points.reshape(-1), means.reshape(-1), _spread(widths, points.shape), escape)


def _pop(stack: Stack, means: Integers, widths: Integers, escape: bool) -> Integers:
    return stack.pop_points(means.reshape(-1), _spread(widths, means.shape), escape).reshape(means.shape)


def _spread(widths: Integers, shape: tuple[int, ...]) -> Integers:
    return widths.reshape(-1) if widths.size == 1 else np.broadcast_to(widths, shape).reshape(-1)


def _push_data(stack: Stack, swap: Swap, x: Integers, k: Integers) -> None:
    for part in reversed(_examples(swap, len(k))):
        values = _log_probs(swap, k, part)
        logs, dithers = _rounded(values, _NEAR)
        stack.push(x[part].reshape(-1), _data_rows(logs))
        _push_dithers(stack, dithers, values.size, _NEAR)


def _pop_data(stack: Stack, swap: Swap, k: Integers) -> Integers:
    found = []
    for part in _examples(swap, len(k)):
        values = _log_probs(swap, k, part)
        logs = _redone(values, _pop_dithers(stack, values.size, _NEAR), _NEAR)
        found.append(stack.pop(len(logs), _data_rows(logs)))
    return np.concatenate(found).reshape(k.shape)


def _examples(swap: Swap, n: int) -> list[slice]:
    model = swap.denoise.model
    step = max(1, _VALUES // (math.prod(model.event_shape) * (model.decoder.vocab_size or 1)))
    return [slice(i, min(n, i + step)) for i in range(0, n, step)]


def _log_probs(swap: Swap, k: Integers, part: slice) -> Floats:
    """log p(v given z_0) of some examples for every value v, (numbers, values), 256ths of a nat, before rounding."""
    model, levels = swap.denoise.model, swap.levels
    gamma = levels.gamma[0] if len(levels.gamma[0]) == 1 else levels.gamma[0][part]
    clean = levels.clean if len(levels.gamma[0]) == 1 else levels.clean[part]
    z = torch.from_numpy(k[part] * clean)
    like = (len(z), *model.event_shape)
    gamma_0 = torch.from_numpy(np.broadcast_to(gamma, z.shape).copy()).reshape(like)
    found = model.decoder.log_probs({}, z.reshape(like), gamma_0)  # type: ignore[misc]
    values = found.reshape(z.numel(), -1).numpy()
    if np.isnan(values).any():
        raise UnboundedError("decoder: expected log-probabilities that are numbers, got NaN")
    return np.maximum(values, -_FLOOR) * _NATS


def _data_rows(logs: Integers) -> NDArray[np.float32]:
    return frequencies(_POWERS[np.clip(-logs, 0, len(_POWERS) - 1)])


def _enough(stack: Stack) -> None:
    if stack.bits < _RESERVE:
        raise UnderflowError
