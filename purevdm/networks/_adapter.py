"""Turns a feature map into the tokens of an attention, by an einops pattern, and back."""

import re
from collections.abc import Sequence

import torch
from einops import EinopsError, rearrange
from torch import Tensor

from purevdm import _checks

DEFAULTS = {1: "c l -> l c", 2: "c h w -> (h w) c", 3: "c d h w -> (d h w) c"}


def patterns(adapter: str | Sequence[str]) -> tuple[str, ...]:
    """Lists one pattern or several, each checked, and all of one rank."""
    if not isinstance(adapter, (str, list, tuple)):
        raise TypeError(f"adapter: expected an einops pattern or several, got {_checks.describe(adapter)}")
    listed = (adapter,) if isinstance(adapter, str) else tuple(adapter)
    if len({rank(pattern) for pattern in listed}) != 1:
        raise ValueError(f"adapter: expected patterns of as many axes, at least one, got {adapter!r}")
    return listed


def rank(pattern: str) -> int:
    """Checks a pattern and counts the axes of space of its feature map.

    Left of the arrow are the feature map's axes, the channels first. Right of it are the same axes, grouped: the channels
    last, ungrouped; before them what attends to one another; before that, if anything, what is kept apart.

    Raises:
        TypeError, ValueError: a pattern that is not a string, not invertible, or with the channels elsewhere.
    """
    wanted = f"adapter: expected an einops pattern such as {DEFAULTS[2]!r}"
    if not isinstance(pattern, str):
        raise TypeError(f"{wanted}, got {_checks.describe(pattern)}")
    left, _, right = pattern.partition("->")
    axes, groups = left.split(), right.split()
    names = re.sub("[()]", " ", right).split()
    good = 2 <= len(axes) <= 4 and sorted(names) == sorted(set(axes)) == sorted(axes) and all(map(str.isidentifier, axes))
    try:
        if not good or groups[-1] != axes[0] or "()" in right.replace(" ", ""):
            raise EinopsError("the channels stand first on the left and last on the right, each axis once on each side")
        tokens(pattern, torch.empty((1,) * len(axes), device="meta"))
    except EinopsError as error:
        raise ValueError(f"{wanted}, got {pattern!r}: {error}") from None
    return axes_of_space(pattern)


def axes_of_space(pattern: str) -> int:
    """Counts the axes of space of a checked pattern's feature map."""
    return len(pattern.partition("->")[0].split()) - 1


def tokens(pattern: str, x: Tensor) -> Tensor:
    """Rearranges a feature map (channels, *space), or a batch of them, into tokens, (..., tokens, channels)."""
    left, right = pattern.split("->")
    return rearrange(x, f"... {left} -> ... {right}")


def feature_map(pattern: str, tokens: Tensor, space: tuple[int, ...]) -> Tensor:
    """Rearranges tokens into the feature map (channels, *space), or the batch of them, that they came from."""
    left, right = (side.strip() for side in pattern.split("->"))
    return rearrange(tokens, f"... {right} -> ... {left}", **dict(zip(left.split()[1:], space, strict=True)))
