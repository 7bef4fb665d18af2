"""Bits-back coding of a few examples at once, in the order of Bit-Swap (Kingma, Abbeel, Ho 2019, arXiv 1905.06845).

    pop  z_0 ~ q(z_0 given x),          push x under p(x given z_0),
    pop  z_i ~ q(z_i given z_{i-1}),    push z_{i-1} under p(z_{i-1} given z_i),      i = 1, ..., T,
    push z_T under N(0, I).

The net cost is the bound in T steps (Kingma et al. 2021, sec. 6.3; eq. 11 and 13). As each push follows the pop that it
needs, the stack must hold enough for two latents, not for T. Decoding is the same backwards.

The noise of z_{i+1} is popped from what z_{i-1} left on the stack, which is how far it was from its mean under p. That is no
fresh noise where q differs from p: it depends on x. In 50 steps this costs some 1.5 percent. So the top of the stack is
exclusive-ored with pseudo-random words before each pop, which makes what is popped uniform whatever was pushed.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from purevdm.codec._arithmetic import DITHERS, GUARD, Floats, Integers, exp, guarded, rounded
from purevdm.codec._lattice import PHASES, Levels, frequencies
from purevdm.codec._network import Denoiser
from purevdm.codec._stack import CodingError, Stack

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
    cond: Any


def push(stack: Stack, swap: Swap, x: Integers) -> None:
    """Pushes examples (n, D). After an UnderflowError the stack is of no use."""
    levels = swap.levels
    mean, dithers = _rounded(_encoded(swap, x))
    k = _drawn(stack, mean, levels, 0)
    _push_data(stack, swap, x, k)
    _push_dithers(stack, dithers, x.size)
    for i in range(1, len(levels.gamma)):
        stack.scramble(i, x.size)
        above = _drawn(stack, _forward(levels, i, k), levels, i)
        mean, dithers = _rounded(_backward(swap, i, above))
        stack.push_points(k, mean, levels.width_p[i - 1], True)
        _push_dithers(stack, dithers, x.size)
        k = above
    stack.push_points(k, np.zeros_like(k), levels.width_p[-1], True)


def _drawn(stack: Stack, mean: Integers, levels: Levels, i: int) -> Integers:
    """z_i, popped under q."""
    k = stack.pop_points(mean, levels.width_q[i], False)
    if stack.bits < _RESERVE:
        raise UnderflowError
    return k


def pop(stack: Stack, swap: Swap, n: int) -> Integers:
    """Pops the examples (n, D) that :func:`push` pushed; the stack is as before."""
    levels = swap.levels
    k = stack.pop_points(np.zeros((n, math.prod(swap.denoise.model.event_shape)), np.int64), levels.width_p[-1], True)
    for i in reversed(range(1, len(levels.gamma))):
        dithers = _pop_dithers(stack, k.size)
        below = stack.pop_points(_redone(_backward(swap, i, k), dithers), levels.width_p[i - 1], True)
        stack.push_points(k, _forward(levels, i, below), levels.width_q[i], False)
        stack.scramble(i, k.size)
        k = below
    dithers = _pop_dithers(stack, k.size)
    x = _pop_data(stack, swap, k)
    stack.push_points(k, _redone(_encoded(swap, x), dithers), levels.width_q[0], False)
    return x


def needed(levels: Levels, size: int) -> float:
    """About how many bits one example of this size must find on the stack: those of z_0 and z_1."""
    # Exponentials of the widths' indices only serve an estimate here.
    return size * float(sum(np.log2(4.1327 * np.exp(levels.width_q[i] / 1024.0)).mean() for i in (0, 1)))


def _encoded(swap: Swap, x: Integers) -> Floats:
    """The mean of q(z_0 given x), in phases, before rounding."""
    model, levels = swap.denoise.model, swap.levels
    f = model.decoder.encode({}, torch.from_numpy(x).reshape(-1, *model.event_shape), dtype=torch.float64)
    return f.reshape(x.shape).numpy() * levels.forward[0] * PHASES[levels.width_q[0]]


def _forward(levels: Levels, i: int, k: Integers) -> Integers:
    """The mean of q(z_i given z_{i-1}), in phases: the same on every machine."""
    mean = k * levels.forward[i] * PHASES[levels.width_q[i]]
    if not (np.abs(mean) < _FAR).all():
        raise CodingError("latents out of range")
    return rounded(mean, 0)[0]


def _backward(swap: Swap, i: int, k: Integers) -> Floats:
    """The mean of p(z_{i-1} given z_i), in phases, before rounding."""
    levels = swap.levels
    eps = swap.denoise.eps(k * levels.delta[i], levels.gamma[i], swap.cond)
    if not np.isfinite(eps).all():
        at = levels.gamma[i].mean()
        raise CodingError(f"network: expected finite outputs, got NaN or infinity at gamma = {at:.4g}")
    return (levels.back_k[i] * k - levels.back_eps[i] * eps) * PHASES[levels.width_p[i - 1]]


def _blocks(values: Floats) -> list[Floats]:
    """The numbers that share a dither."""
    flat = values.reshape(-1)
    if not (np.abs(flat) < _HUGE).all():
        raise CodingError(f"network: expected noise of about 1, got means up to {np.abs(flat).max():.3g} lattice steps")
    return np.split(flat, range(_BLOCK, len(flat), _BLOCK))


def _rounded(values: Floats, guard: float = GUARD) -> tuple[Integers, list[int]]:
    parts = [guarded(block, guard) for block in _blocks(values)]
    return np.concatenate([part for part, _ in parts]).reshape(values.shape), [dither for _, dither in parts]


def _redone(values: Floats, dithers: list[int], guard: float = GUARD) -> Integers:
    parts = [rounded(block, dither) for block, dither in zip(_blocks(values), dithers, strict=True)]
    if min(margin for _, margin in parts) < 0.5 * guard:
        raise CodingError("the network computes other numbers here than where the file was written")
    return np.concatenate([part for part, _ in parts]).reshape(values.shape)


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


def _push_data(stack: Stack, swap: Swap, x: Integers, k: Integers) -> None:
    for part in reversed(_examples(swap, len(k))):
        values = _log_probs(swap, k, part)
        logs, dithers = _rounded(values, _NEAR)
        stack.push(x[part].reshape(-1), _data_rows(logs))
        _push_dithers(stack, dithers, values.size, _NEAR)


def _pop_data(stack: Stack, swap: Swap, k: Integers) -> Integers:
    parts = []
    for part in _examples(swap, len(k)):
        values = _log_probs(swap, k, part)
        logs = _redone(values, _pop_dithers(stack, values.size, _NEAR), _NEAR)
        parts.append(stack.pop(len(logs), _data_rows(logs)))
    return np.concatenate(parts).reshape(k.shape)


def _examples(swap: Swap, n: int) -> list[slice]:
    model = swap.denoise.model
    step = max(1, _VALUES // (math.prod(model.event_shape) * (model.decoder.vocab_size or 1)))
    return [slice(i, min(n, i + step)) for i in range(0, n, step)]


def _log_probs(swap: Swap, k: Integers, part: slice) -> Floats:
    """log p(v given z_0) of some examples for every value v, (numbers, values), 256ths of a nat, before rounding."""
    model, levels = swap.denoise.model, swap.levels
    clean, gamma_0 = (np.broadcast_to(each, k.shape)[part] for each in (levels.clean, levels.gamma[0]))
    z, gamma = (torch.from_numpy(a.copy()).reshape(-1, *model.event_shape) for a in (k[part] * clean, gamma_0))
    values = model.decoder.log_probs({}, z, gamma).reshape(z.numel(), -1).numpy()  # type: ignore[misc]
    if np.isnan(values).any():
        raise CodingError("decoder: expected log-probabilities that are numbers, got NaN")
    return np.maximum(values, -_FLOOR) * _NATS


def _data_rows(logs: Integers) -> NDArray[np.float32]:
    return frequencies(_POWERS[np.clip(-logs, 0, len(_POWERS) - 1)])
