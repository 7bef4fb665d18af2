"""Bits-back coding of a few examples at once, in the order of Bit-Swap (Kingma, Abbeel, Ho 2019, arXiv 1905.06845).

    pop  z_0 ~ q(z_0 given x),          push x under p(x given z_0),
    pop  z_i ~ q(z_i given z_{i-1}),    push z_{i-1} under p(z_{i-1} given z_i),      i = 1, ..., T,
    push z_T under N(0, I).

The net cost is the bound in T steps (Kingma et al. 2021, sec. 6.3; eq. 11 and 13). As each push follows the pop that it
needs, the stack must hold enough for two latents, not for T. Decoding is the same backwards.

The noise of z_{i+1} is popped from what z_{i-1} left on the stack, which is how far it was from its mean under p. That is no
fresh noise where q differs from p: it depends on x. In 50 steps this costs some 1.5 percent. So the top of the stack is
exclusive-ored with pseudo-random words before each pop, which makes what is popped uniform whatever was pushed.

All that the network says is rounded with dithers that are pushed on top: means, to a 128th of a deviation; logarithms of
deviations; and the decoder's estimate and variance alike. Where a learned range leaves p narrower than a step of the lattice
(v below 0), it is coded as wide as one. q is no narrower, so this costs less on average than the bound says.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from purevdm.codec._arithmetic import DITHERS, GUARD, Floats, Integers, exp, guarded, rounded
from purevdm.codec._lattice import PHASES, WIDTHS, Levels, frequencies
from purevdm.codec._network import Denoiser
from purevdm.codec._stack import CodingError, Stack

_BLOCK = 2**18  # numbers that share a dither
_HUGE, _FAR = 2.0**42, 2.0**60  # lattice steps, and parts of them
# Logarithms of probabilities are rounded to a 256th of a nat. They are many and exact, and so kept less far from boundaries.
NATS, FLOOR, _NEAR = 256.0, 20.0, 2.0**-24
_VALUES = 2**21  # probabilities at once
# Logarithms of variances are rounded to a 512th, so those of deviations to WIDTHS' 1024th, of which every fourth is used. Of
# p(x given z_0), to a 128th; beyond e**40 and below e**-40 they are as good as infinite and 0.
_RATIOS, COARSE, _LEVELS, _MOST = 512.0, 4, 128.0, 40.0
_POWERS = np.floor(exp(-np.arange(FLOOR * NATS + 1) / NATS) * 2.0**40).astype(np.int64)
RESERVE = 64


class UnderflowError(Exception):
    """The stack holds too few bits to pop from."""


Fix = Callable[[Floats], Integers]
"""Rounds numbers that the network gave to the same integers at both ends."""


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
        fix = Fixing()
        stack.push_points(k, *_backward(swap, i, above, fix), True)
        fix.push(stack)
        k = above
    stack.push_points(k, np.zeros_like(k), levels.width_p[-1], True)


def _drawn(stack: Stack, mean: Integers, levels: Levels, i: int) -> Integers:
    """Pops z_i under q."""
    k = stack.pop_points(mean, levels.width_q[i], False)
    if stack.bits < RESERVE:
        raise UnderflowError
    return k


def pop(stack: Stack, swap: Swap, n: int) -> Integers:
    """Pops the examples (n, D) that :func:`push` pushed; the stack is as before."""
    levels = swap.levels
    k = stack.pop_points(np.zeros((n, math.prod(swap.denoise.model.event_shape)), np.int64), levels.width_p[-1], True)
    for i in reversed(range(1, len(levels.gamma))):
        below = stack.pop_points(*_backward(swap, i, k, fixed_by(stack)), True)
        stack.push_points(k, _forward(levels, i, below), levels.width_q[i], False)
        stack.scramble(i, k.size)
        k = below
    dithers = pop_dithers(stack, k.size)
    x = _pop_data(stack, swap, k)
    stack.push_points(k, redone(_encoded(swap, x), dithers), levels.width_q[0], False)
    return x


def needed(levels: Levels, size: int) -> float:
    """Estimates how many bits one example of this size must find on the stack: those of z_0 and z_1."""
    # Exponentials of the widths' indices only serve an estimate here.
    return size * float(sum(np.log2(4.1327 * np.exp(levels.width_q[i] / 1024.0)).mean() for i in (0, 1)))


def _encoded(swap: Swap, x: Integers) -> Floats:
    """Computes the mean of q(z_0 given x), in phases, before rounding."""
    model, levels = swap.denoise.model, swap.levels
    f = model.decoder.encode({}, torch.from_numpy(x).reshape(-1, *model.event_shape), dtype=torch.float64)
    return f.reshape(x.shape).numpy() * levels.forward[0] * PHASES[levels.width_q[0]]


def _forward(levels: Levels, i: int, k: Integers) -> Integers:
    """Computes the mean of q(z_i given z_{i-1}), in phases: the same on every machine."""
    mean = k * levels.forward[i] * PHASES[levels.width_q[i]]
    if not (np.abs(mean) < _FAR).all():
        raise CodingError("latents out of range")
    return rounded(mean, 0)[0]


def _backward(swap: Swap, i: int, k: Integers, fix: Fix) -> tuple[Integers, Integers]:
    """Computes the mean of p(z_{i-1} given z_i), in phases, and its width index."""
    levels, reverse = swap.levels, swap.denoise.model.reverse
    eps, *v = _outputs(swap, i, k)
    width = levels.width_p[i - 1]
    log_ratio = reverse.log_ratio(*(_events(swap, a) for a in (levels.gamma[i], levels.gamma[i - 1], *v)))
    if log_ratio is not None:
        width = width + fix(_numbers(swap, log_ratio) * _RATIOS)
        width = np.clip((width + COARSE // 2) // COARSE * COARSE, 0, len(WIDTHS) - 1)
    return fix((levels.back_k[i] * k - levels.back_eps[i] * eps) * PHASES[width]), width


def _given(swap: Swap, k: Integers, fix: Fix) -> tuple[Floats, ...]:
    """Computes what the decoder is given besides z_0: gamma_0, or the logarithm of its variance and the estimate."""
    model, gamma_0 = swap.denoise.model, swap.levels.gamma[0]
    if not model.decoder.takes_estimate:
        return (gamma_0,)
    x_hat, *v = _outputs(swap, 0, k)
    log_var = fix(_numbers(swap, model.reverse.last(*(_events(swap, a) for a in (gamma_0, *v)))) * _LEVELS) / _LEVELS
    log_var = np.clip(log_var, -_MOST, _MOST)
    step = exp(0.5 * log_var) / PHASES[0]
    return log_var, fix(x_hat / step) * step


def _outputs(swap: Swap, i: int, k: Integers) -> list[Floats]:
    """Computes the network's outputs at z_i."""
    levels = swap.levels
    outputs = swap.denoise.outputs(k * levels.delta[i], levels.gamma[i], swap.cond, last=i == 0)
    if not all(np.isfinite(part).all() for part in outputs):
        at = levels.gamma[i].mean()
        raise CodingError(f"network: expected finite outputs, got NaN or infinity at gamma = {at:.4g}")
    return outputs


def _events(swap: Swap, values: Floats) -> Tensor:
    """Gives numbers (n or 1, D or 1) in the shape of events, or to broadcast against it."""
    shape = swap.denoise.model.event_shape
    return torch.from_numpy(values.copy()).reshape(-1, *(shape if values.shape[1] > 1 else (1,) * len(shape)))


def _numbers(swap: Swap, events: Tensor) -> Floats:
    """Gives a single number, (1, 1), or those of events, (n or 1, D)."""
    if events.numel() == 1:
        return events.reshape(1, 1).double().numpy()
    return events.expand(-1, *swap.denoise.model.event_shape).reshape(len(events), -1).double().numpy()


def _blocks(values: Floats) -> list[Floats]:
    """Splits numbers into blocks that share a dither."""
    flat = values.reshape(-1)
    if not (np.abs(flat) < _HUGE).all():
        raise CodingError(f"network: expected noise of about 1, got means up to {np.abs(flat).max():.3g} parts of one")
    return np.split(flat, range(_BLOCK, len(flat), _BLOCK))


def _rounded(values: Floats, guard: float = GUARD) -> tuple[Integers, list[int]]:
    parts = [guarded(block, guard) for block in _blocks(values)]
    return np.concatenate([part for part, _ in parts]).reshape(values.shape), [dither for _, dither in parts]


def redone(values: Floats, dithers: list[int], guard: float = GUARD) -> Integers:
    parts = [rounded(block, dither) for block, dither in zip(_blocks(values), dithers, strict=True)]
    if min(margin for _, margin in parts) < 0.5 * guard:
        raise CodingError("the network computes other numbers here than where the file was written")
    return np.concatenate([part for part, _ in parts]).reshape(values.shape)


class Fixing:
    """Rounds numbers, and keeps their dithers until they are pushed."""

    def __init__(self) -> None:
        self._dithers: list[tuple[list[int], int]] = []

    def __call__(self, values: Floats) -> Integers:
        integers, dithers = _rounded(values)
        self._dithers.append((dithers, values.size))
        return integers

    def push(self, stack: Stack) -> None:
        for dithers, n in reversed(self._dithers):
            _push_dithers(stack, dithers, n)


def fixed_by(stack: Stack) -> Fix:
    """Rounds numbers with the dithers on the stack."""
    return lambda values: redone(values, pop_dithers(stack, values.size))


def _push_dithers(stack: Stack, dithers: list[int], n: int, guard: float = GUARD) -> None:
    stack.push(np.array(dithers), _dither_rows(n, guard))


def pop_dithers(stack: Stack, n: int, guard: float = GUARD) -> list[int]:
    rows = _dither_rows(n, guard)
    return stack.pop(len(rows), rows).tolist()


@functools.lru_cache(maxsize=64)
def _dither_rows(n: int, guard: float) -> NDArray[np.float32]:
    """Computes the frequencies of the dithers of n numbers: the next serves with odds of 1 - exp(-2 guard) for each."""
    sizes = np.array([min(_BLOCK, n - i) for i in range(0, n, _BLOCK)], np.float64)
    one = exp(-2.0 * guard * sizes)[:, None]
    left = np.cumprod(np.concatenate([np.ones_like(one), np.repeat(1.0 - one, DITHERS - 1, 1)], 1), axis=1)
    return frequencies(np.floor(one * left * 2.0**40).astype(np.int64))


def _push_data(stack: Stack, swap: Swap, x: Integers, k: Integers) -> None:
    fix = Fixing()
    given = _given(swap, k, fix)
    for part in reversed(_examples(swap, len(k))):
        values = _log_probs(swap, k, given, part)
        logs, dithers = _rounded(values, _NEAR)
        stack.push(x[part].reshape(-1), data_rows(logs))
        _push_dithers(stack, dithers, values.size, _NEAR)
    fix.push(stack)


def _pop_data(stack: Stack, swap: Swap, k: Integers) -> Integers:
    parts, given = [], _given(swap, k, fixed_by(stack))
    for part in _examples(swap, len(k)):
        values = _log_probs(swap, k, given, part)
        logs = redone(values, pop_dithers(stack, values.size, _NEAR), _NEAR)
        parts.append(stack.pop(len(logs), data_rows(logs)))
    return np.concatenate(parts).reshape(k.shape)


def _examples(swap: Swap, n: int) -> list[slice]:
    model = swap.denoise.model
    step = max(1, _VALUES // (math.prod(model.event_shape) * (model.decoder.vocab_size or 1)))
    return [slice(i, min(n, i + step)) for i in range(0, n, step)]


def _log_probs(swap: Swap, k: Integers, given: tuple[Floats, ...], part: slice) -> Floats:
    """Computes log p(v given z_0) of some examples for every value v, (numbers, values), 256ths of a nat, unrounded."""
    model = swap.denoise.model
    each = (np.broadcast_to(a, k.shape)[part].copy() for a in (k * swap.levels.clean, *given))
    z, level, *estimate = (torch.from_numpy(a).reshape(-1, *model.event_shape) for a in each)
    values = model.decoder.log_probs({}, z, level, None, *estimate).reshape(z.numel(), -1).numpy()  # type: ignore[misc]
    if np.isnan(values).any():
        raise CodingError("decoder: expected log-probabilities that are numbers, got NaN")
    return np.maximum(values, -FLOOR) * NATS


def data_rows(logs: Integers) -> NDArray[np.float32]:
    return frequencies(_POWERS[np.clip(-logs, 0, len(_POWERS) - 1)])
