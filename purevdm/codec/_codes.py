"""The codes of examples in a file, for models that have them (:mod:`purevdm.codes`).

    pop  c ~ q(c given x),    code x given c,    push c under p(c).

The net cost is the KL divergence of the bound. A Gaussian code is a point of a lattice whose step is a 64th, and where q is
narrower than a step it is coded as wide as one. How likely a k-hot code is under its encoder is not known: it is the one of
the k largest logits, and costs log2 C(m, k) bits.

Decoding pops c, decodes x given it, and pushes c under q, as the stack was.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from purevdm import coded
from purevdm._compile import exact
from purevdm.codec._arithmetic import Floats, Integers
from purevdm.codec._lattice import PHASES, WIDTHS, frequencies
from purevdm.codec._network import Denoiser, device_of
from purevdm.codec._stack import CodingError, Stack
from purevdm.codec._swap import (
    COARSE,
    FLOOR,
    NATS,
    RESERVE,
    Fix,
    Fixing,
    UnderflowError,
    data_rows,
    pop_dithers,
    redone,
)
from purevdm.codes import Code, Gaussian, KHot, OneHot

_STEP = 2.0**-6
_PER_NAT = 1024.0  # WIDTHS' indices
_PRIOR = np.array(round(-math.log(_STEP) * _PER_NAT))


def codable(code: Code | None) -> None:
    """Refuses a code that is none of the library's."""
    if code is not None and not isinstance(code, (Gaussian, OneHot, KHot)):
        raise ValueError(f"model: expected a code of purevdm.codes for files, got {code!r}")


def needed(code: Code | None) -> float:
    """Estimates how many bits the code of one example takes from the stack at most."""
    return 0.0 if code is None else code.size * math.log2(8.0 / _STEP)


def stand_in(denoise: Denoiser, cond: Any, n: int) -> Any:
    """Makes a condition of n examples with codes of zeros, to see what levels there are."""
    code = denoise.model.code
    return cond if code is None else _joined(denoise, np.zeros((n, code.size)), cond)


# Codes on the stack


class Taken(NamedTuple):
    """The codes of some examples: the points of a Gaussian's lattice, (n, m), or the places of ones, (n, 1) or (n, k); and
    the dithers that their distributions were rounded with."""

    codes: Integers
    fix: Fixing


def take(stack: Stack, denoise: Denoiser, x: Integers, cond: Any) -> Taken:
    """Pops the codes of examples x, (n, D), under q. After an UnderflowError the stack is of no use."""
    code, fix = denoise.model.code, Fixing()
    out = _outputs(denoise, x, cond)
    if isinstance(code, KHot):
        return Taken(np.argsort(-out.numpy(), 1, "stable")[:, : code.k], fix)
    if isinstance(code, OneHot):
        codes = stack.pop(len(x), _rows(out, fix))[:, None]
    else:
        codes = stack.pop_points(*_normal(code, out, fix), False)  # type: ignore[arg-type]
    if stack.bits < RESERVE:
        raise UnderflowError
    return Taken(codes, fix)


def put(stack: Stack, denoise: Denoiser, taken: Taken) -> None:
    """Pushes codes under p, and their dithers on top."""
    code, codes = denoise.model.code, taken.codes
    if isinstance(code, Gaussian):
        stack.push_points(codes, np.zeros_like(codes), _PRIOR, True)
    elif isinstance(code, OneHot):
        stack.push(codes[:, 0], _chances(np.ones((1, code.size))), np.zeros(len(codes), np.int64))
    else:
        ones = np.zeros((len(codes), code.size), np.int64)  # type: ignore[union-attr]
        np.put_along_axis(ones, codes, 1, 1)
        left = code.k - np.cumsum(ones, 1) + ones  # type: ignore[union-attr]  # of the ones, from each number on
        for j in reversed(range(ones.shape[1])):
            stack.push(ones[:, j], _coins(ones.shape[1] - j), left[:, j])
    taken.fix.push(stack)


def get(stack: Stack, denoise: Denoiser, n: int) -> tuple[Integers, list[list[int]]]:
    """Pops what :func:`put` pushed for n examples: their codes, and the dithers."""
    code = denoise.model.code
    if isinstance(code, Gaussian):
        dithers = [pop_dithers(stack, n * code.size) for _ in range(2)]
        return stack.pop_points(np.zeros((n, code.size), np.int64), _PRIOR, True), dithers
    if isinstance(code, OneHot):
        dithers = [pop_dithers(stack, n * code.size)]
        return stack.pop(n, _chances(np.ones((1, code.size))), np.zeros(n, np.int64))[:, None], dithers
    left, columns = np.full(n, code.k), []  # type: ignore[union-attr]
    for j in range(code.size):  # type: ignore[union-attr]
        numbers = code.size - j  # type: ignore[union-attr]
        columns.append(stack.pop(n, _coins(numbers), left.clip(0, numbers)))
        left = left - columns[-1]
    if left.any():
        raise CodingError("a code of another number of ones")
    return np.nonzero(np.stack(columns, 1))[1].reshape(n, -1), []


def give_back(stack: Stack, denoise: Denoiser, x: Integers, cond: Any, codes: Integers, dithers: list[list[int]]) -> None:
    """Pushes the codes of decoded examples under q, so that the stack is as before :func:`take`."""
    code = denoise.model.code
    if isinstance(code, KHot):
        return
    out, rest = _outputs(denoise, x, cond), iter(dithers)

    def fix(values: Floats) -> Integers:
        return redone(values, next(rest))

    if isinstance(code, OneHot):
        stack.push(codes[:, 0], _rows(out, fix))
    else:
        stack.push_points(codes, *_normal(code, out, fix), False)  # type: ignore[arg-type]


def joined(denoise: Denoiser, codes: Integers, cond: Any) -> Any:
    """Gives the condition of examples with their codes, as networks take it."""
    code = denoise.model.code
    values: Floats = codes * _STEP if isinstance(code, Gaussian) else np.eye(code.size)[codes].sum(1)  # type: ignore[union-attr, assignment]
    return _joined(denoise, values, cond)


def _joined(denoise: Denoiser, values: Floats, cond: Any) -> Any:
    return coded.joined(torch.from_numpy(values).to(device_of(denoise.params), denoise.model.dtype), cond)


# Distributions


def _outputs(denoise: Denoiser, x: Integers, cond: Any) -> Tensor:
    """Computes what the encoder says of examples (n, D), float64, some at a time, as the network sees them."""
    model, params, device = denoise.model, denoise.params, device_of(denoise.params)
    parts = []
    with torch.no_grad(), exact(device):
        for i in range(0, len(x), denoise.lanes):
            some = torch.from_numpy(x[i : i + denoise.lanes]).reshape(-1, *model.event_shape).to(device)
            f = model.decoder.encode({}, some, None, model.dtype)
            parts.append(model.code.encode(params["code"], f).double().cpu())  # type: ignore[union-attr]
    out = torch.cat(parts)
    if not out.isfinite().all():
        raise CodingError("code.encoder: expected finite outputs, got NaN or infinity")
    return out


def _normal(code: Gaussian, out: Tensor, fix: Fix) -> tuple[Integers, Integers]:
    """Computes the means, in phases, and the width indices of q(c given x)."""
    mean, variance = (part.numpy() for part in code.moments(out))
    width = fix((0.5 * np.log(variance) - math.log(_STEP)) * _PER_NAT)
    width = np.clip((width + COARSE // 2) // COARSE * COARSE, 0, len(WIDTHS) - 1)
    return fix(mean / _STEP * PHASES[width]), width


def _rows(out: Tensor, fix: Fix) -> Any:
    """Computes the frequencies of classes, (n, m)."""
    return data_rows(fix(np.maximum(torch.log_softmax(out, 1).numpy(), -FLOOR) * NATS))


def _chances(weights: Floats) -> Any:
    """Makes rows of frequencies in these proportions."""
    return frequencies(np.floor(weights * 2.0**30).astype(np.int64))


def _coins(numbers: int) -> Any:
    """Gives, for a first of so many numbers, the frequencies of 0 and 1 where 0, ..., ``numbers`` of them are ones."""
    ones = np.arange(numbers + 1.0)
    return _chances(np.stack([numbers - ones, ones], 1) / numbers)
