"""Convolutions with kernels of 3 by fewer multiplications: Winograd's F(4, 3) along each axis (Lavin & Gray 2016).

Four neighbouring outputs of a filter of three taps are a bilinear map of six inputs and the taps: A [(G g) * (B d)], with
six products in place of twelve. Along two axes that makes 36 in place of 144, so a convolution is 36 small matrix products
between two cheap changes of basis. The interpolation points 0, +-1/sqrt(2), +-sqrt(2) and infinity keep the rounding error
at twice that of PyTorch's direct sum with channels last, as compiled graphs have it; the usual 0, +-1, +-2 make it four
times.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm import _checks
from purevdm._compile import settled
from purevdm.nn.initialisers import Params

__all__ = ["filtered", "winograd"]

EXACT = (torch.float32, torch.float64)  # the transforms cost a bit, and half precision has none to spare
TAPS, OUT = 3, 4
WINDOW = OUT + TAPS - 1
POINTS = (0.0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2.0), -math.sqrt(2.0))  # and infinity


def _others(j: int) -> list[float]:
    return [p for k, p in enumerate(POINTS) if k != j]


def _coefficients(roots: Sequence[float]) -> list[float]:
    """Of the monic polynomial with these roots, the constant first."""
    c = [1.0]
    for root in roots:
        c = [low - root * high for low, high in zip([0.0, *c], [*c, 0.0], strict=True)]
    return c


DATA = [[*_coefficients(_others(j)), 0.0] for j in range(len(POINTS))] + [_coefficients(POINTS)]
KERNEL = [[p**i / math.prod(p - q for q in _others(j)) for i in range(TAPS)] for j, p in enumerate(POINTS)]
KERNEL += [[float(i == TAPS - 1) for i in range(TAPS)]]
OUTPUT = [[*(p**i for p in POINTS), float(i == OUT - 1)] for i in range(OUT)]


def winograd(params: Params, min_channels: int = 32) -> Params:
    """The same parameters for sampling and evaluation on a CPU: the kernels of three taps along each axis that have at
    least ``min_channels`` channels on both sides, transformed for Winograd's F(4, 3).

    ``nn.conv`` takes either form. Compiled, a convolution along two axes has a quarter of its multiplications, and gains the
    more, the wider it is (``examples/benchmark.py --parts convolution``); its rounding error is about twice that of the
    direct one which it replaces there. In eager it is slower. It is for inference: train the kernels themselves. A
    convolution with a stride of 2 computes every place and drops the rest, with as many multiplications as before.

    Args:
        params: nested dicts, of a model or a network or a layer: each ``{"kernel": (n_out, n_in, 3, ...), ...}`` in it
            becomes ``{"winograd": {"data": (6, 6), "kernel": (6, ..., n_in, n_out), "output": (4 ** rank, 6 ** rank)},
            ...}`` of the kernel's dtype.
        min_channels: kernels narrower than that stay as they are, since the change of basis would cost more than it saves.

    Raises:
        TypeError, ValueError: no dict, ``min_channels`` below 1, a kernel of less than float32's precision, or not one
            kernel to transform.

    >>> import torch
    >>> from purevdm import nn, random
    >>> params = nn.conv_init(random.key(0), 32, 32)
    >>> x = random.normal(random.key(1), (32, 8, 8))
    >>> torch.allclose(nn.conv(nn.winograd(params), x), nn.conv(params, x), atol=1e-5)
    True
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"params: expected a dict of parameters, got {_checks.describe(params)}")
    min_channels = _checks.integer("min_channels", min_channels, 1)
    found = []

    def visit(tree: Any, path: str) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        kernel: Any = tree.get("kernel")
        if not _transformable(kernel, min_channels):
            return {name: visit(part, f"{path}[{name!r}]") for name, part in tree.items()}
        if kernel.dtype not in EXACT:
            raise TypeError(f"{path}['kernel']: expected float32 or float64, got {_checks.describe(kernel)}")
        found.append(path)
        return {"winograd": _transform(kernel), **{name: part for name, part in tree.items() if name != "kernel"}}

    transformed: Params = visit(params, "params")
    if not found:
        raise ValueError(f"params: expected a kernel of {TAPS} taps an axis and at least {min_channels} channels, got none")
    return transformed


def _transformable(kernel: Any, min_channels: int) -> bool:
    return (
        isinstance(kernel, Tensor)
        and 3 <= kernel.ndim <= 5
        and all(size == TAPS for size in kernel.shape[2:])
        and min(kernel.shape[:2]) >= min_channels
    )


def _transform(kernel: Tensor) -> Params:
    def matrix(rows: list[list[float]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64, device=kernel.device)

    rank, taps, spread = kernel.ndim - 2, matrix(KERNEL), kernel.double()
    for _ in range(rank):
        spread = torch.tensordot(spread, taps, ([2], [1]))  # takes the first axis left, adds its own at the end
    output = functools.reduce(torch.kron, [matrix(OUTPUT)] * rank)
    parts = {"data": matrix(DATA), "kernel": spread.movedim((0, 1), (-1, -2)).contiguous(), "output": output}
    return {name: part.to(kernel.dtype) for name, part in parts.items()}


def _filter(x: Tensor, data: Tensor, kernel: Tensor, output: Tensor, bias: Tensor | None) -> Tensor:
    """On a batch (B, n_in, *space). Channels come last inside: their vectors go through all loops unbroken."""
    rank, space = x.ndim - 2, x.shape[2:]
    tiles = [-(-n // OUT) for n in space]
    edges = [(1, OUT * t + 1 - n) for n, t in zip(space, tiles, strict=True)]
    y = settled(F.pad(x.movedim(1, -1), (0, 0, *(e for pair in reversed(edges) for e in pair))))
    for axis in range(rank):
        # (B, *tiles so far, *windows so far, places, ..., n_in): the next axis is cut in windows, and they are transformed.
        windows = y.unfold(1 + 2 * axis, WINDOW, OUT).movedim(1 + 2 * axis, 1 + axis).unsqueeze(2 + 2 * axis)
        y = settled((windows * data.reshape(WINDOW, *(1,) * (rank - axis), WINDOW)).sum(-1))
    y = y.flatten(0, rank).flatten(1, -2).transpose(0, 1) @ kernel.flatten(0, rank - 1)  # (6 ** rank, B * tiles, n_out)
    y = (output @ y.flatten(1)).reshape(*(OUT,) * rank, x.shape[0], *tiles, -1)
    y = y.movedim(tuple(range(rank)), tuple(range(2, 2 + 2 * rank, 2)))  # each tile's outputs beside the tile
    y = settled(y.contiguous() if bias is None else y + bias)
    y = y.reshape(x.shape[0], *(OUT * t for t in tiles), -1)
    for axis, n in enumerate(space, start=1):
        y = y.narrow(axis, 0, n)
    return y.movedim(-1, 1)


def _filtered(x: Tensor, data: Tensor, kernel: Tensor, output: Tensor, bias: Tensor | None) -> Tensor:
    """With any axes before the channels, one example's or a batch's or more."""
    channels = 1 - kernel.ndim  # the channels' axis, from the end
    y = _filter(x.reshape(-1, *x.shape[channels:]), data, kernel, output, bias)
    return y.reshape(*x.shape[:channels], *y.shape[1:])


def _filtered_batch(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, data: Tensor, kernel: Tensor, output: Tensor, bias: Tensor | None
) -> tuple[Tensor, int]:
    if all(axis is None for axis in in_dims[1:]):
        return _FILTERED(x.movedim(in_dims[0], 0), data, kernel, output, bias), 0
    # An ensemble of kernels: one after another.
    arguments: Any = list(zip((x, data, kernel, output, bias), in_dims, strict=True))
    each = ([a if axis is None else a.select(axis, i) for a, axis in arguments] for i in range(info.batch_size))
    return torch.stack([_FILTERED(*one) for one in each]), 0


_library = torch.library.Library("purevdm", "FRAGMENT")
_library.define("winograd(Tensor x, Tensor data, Tensor kernel, Tensor output, Tensor? bias) -> Tensor")
_library.impl("winograd", _filtered, "CompositeImplicitAutograd")
torch.library.register_vmap("purevdm::winograd", _filtered_batch, lib=_library)

_FILTERED = torch.ops.purevdm.winograd.default


def filtered(params: Params, x: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of stride 1 with zero padding by a transformed kernel: (n_in, *space) to (n_out, *space)."""
    n_in, rank = params["kernel"].shape[-2], params["kernel"].ndim - 2
    if x.ndim != 1 + rank or x.shape[0] != n_in:
        raise ValueError(f"x: expected {n_in} channels and {rank} axes of space, got {_checks.describe(x)}")
    if x.dtype not in EXACT:
        raise TypeError(f"x: a kernel transformed by nn.winograd takes float32 or float64, got {_checks.describe(x)}")
    return _FILTERED(x, params["data"], params["kernel"], params["output"], bias)  # type: ignore[no-any-return]
