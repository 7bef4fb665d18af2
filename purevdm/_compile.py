"""What a compiler is told; in eager all of it does nothing."""

import torch
from torch import Tensor


def settled(x: Tensor) -> Tensor:
    """x itself, which a compiler is told to compute once and keep.

    Inductor repeats the expression of a small intermediate at each of its uses, and with it an expression's awkward
    indices. A strided view is of a value that is there. (Of a dense one: no x made by ``expand``.)
    """
    if not torch.compiler.is_compiling():
        return x
    if x.dtype == torch.bool:
        # Vectors of bool are stored one by one; those of bytes, made from floats, in one go.
        return settled(x.to(torch.float32).to(torch.uint8)) != 0
    return torch.as_strided(x, x.shape, x.stride())


def channels_last(x: Tensor) -> Tensor:
    """x itself, (channels, *space), laid out in memory with the channels of a place next to one another.

    Compiled convolutions and norms run faster so, and hand the layout on: one call at a network's door serves all its
    layers. (Eager ones, on a CPU, do not.)
    """
    return x.movedim(0, -1).contiguous().movedim(-1, 0) if torch.compiler.is_compiling() else x
