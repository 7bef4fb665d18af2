"""Turns a feature map into the tokens of an attention, by an einops pattern, and back."""

import re
from collections.abc import Iterable, Sequence

from einops import rearrange
from torch import Tensor

from purevdm import _checks

DEFAULTS = {1: "c l -> l c", 2: "c h w -> (h w) c", 3: "c d h w -> (d h w) c"}


def patterns(adapter: str | Sequence[str]) -> tuple[str, ...]:
    """Lists one pattern or several."""
    if isinstance(adapter, str):
        return (adapter,)
    if isinstance(adapter, (bytes, dict, Tensor)) or not isinstance(adapter, Iterable):
        raise TypeError(f"adapter: expected an einops pattern or several, got {_checks.describe(adapter)}")
    return tuple(adapter)


def rank(pattern: str) -> int:
    """Checks a pattern and counts the axes of space of its feature map.

    Left of the arrow are the feature map's axes, the channels first. Right of it are the same axes, grouped: the channels
    last, ungrouped; before them what attends to one another; before that, if anything, what is kept apart.
    So ``"c h w -> (h w) c"`` lets all positions attend to all, ``"c h w -> h w c"`` those of each row (axial attention),
    ``"c d h w -> d (h w) c"`` those of each slice.

    Raises:
        TypeError, ValueError: a pattern that is not a string, not invertible, or with the channels elsewhere.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"adapter: expected an einops pattern such as {DEFAULTS[2]!r}, got {_checks.describe(pattern)}")

    def refused(reason: str) -> ValueError:
        return ValueError(f"adapter: expected an einops pattern such as {DEFAULTS[2]!r}, got {pattern!r}: {reason}")

    sides = [side.strip() for side in pattern.split("->")]
    if len(sides) != 2:
        raise refused("it needs one arrow")
    if any(c.isspace() and c != " " for c in pattern):
        raise refused("only spaces may separate names")
    left, right = sides
    axes = left.split()
    groups = re.findall(r"\([^()]*\)|[^\s()]+|[()]", right)
    for name in [*axes, *(name for group in groups for name in group.strip("()").split())]:
        if not name.isidentifier():
            raise refused(f"{name!r} is not the name of an axis (left of the arrow, axes stand alone)")
    placed = [name for group in groups for name in group.strip("()").split()]
    if not 2 <= len(axes) <= 4:
        raise refused("left of the arrow stand the channels and one to three axes of space")
    if sorted(axes) != sorted(placed) or len(set(axes)) != len(axes) or any(g in {"(", ")", "()"} for g in groups):
        raise refused("it is not invertible: each axis must stand once on each side")
    if groups[-1] != axes[0] or len(groups) < 2:
        raise refused(f"the last axis on the right must be the channels alone, {axes[0]!r}")
    return len(axes) - 1


def tokens(pattern: str, x: Tensor) -> Tensor:
    """Rearranges a feature map (channels, *space) into tokens, (..., tokens, channels)."""
    return rearrange(x, pattern)


def feature_map(pattern: str, tokens: Tensor, space: tuple[int, ...]) -> Tensor:
    """Rearranges tokens into the feature map (channels, *space) that they came from."""
    left, right = (side.strip() for side in pattern.split("->"))
    return rearrange(tokens, f"{right} -> {left}", **dict(zip(left.split()[1:], space, strict=True)))
