"""Patterns from feature maps to tokens: what they group, the way back, and what is refused."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from purevdm import random
from purevdm.networks import _adapter


@st.composite
def patterns(draw):
    """Any pattern of the allowed form: axes shuffled, the channels last, cut into groups."""
    axes = list("dhw"[: draw(st.integers(1, 3))])
    order = draw(st.permutations(axes))
    groups, i = [], 0
    while i < len(order):
        n = draw(st.integers(1, len(order) - i))
        groups.append(order[i] if n == 1 and draw(st.booleans()) else f"({' '.join(order[i : i + n])})")
        i += n
    return f"c {' '.join(axes)} -> {' '.join(groups)} c"


@given(patterns(), st.integers(0, 1000))
def test_there_and_back(pattern, seed):
    space = tuple(random.randint(random.key(seed), (_adapter.rank(pattern),), 1, 5).tolist())
    x = random.normal(random.key(seed), (3, *space))
    tokens = _adapter.tokens(pattern, x)
    assert tokens.shape[-1] == 3
    assert torch.equal(_adapter.feature_map(pattern, tokens, space), x)


def test_rows_columns_and_slices():
    x = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal(_adapter.tokens("c h w -> h w c", x)[1], x[:, 1].T)
    assert torch.equal(_adapter.tokens("c h w -> w h c", x)[1], x[:, :, 1].T)
    volume = torch.arange(48).reshape(2, 2, 3, 4)
    assert torch.equal(_adapter.tokens("c d h w -> d (h w) c", volume)[1], volume[:, 1].flatten(1).T)


@pytest.mark.parametrize(
    "pattern",
    [
        "c h w",
        "c h w -> h -> w c",
        "c h w -> (h w c)",
        "c h w -> c (h w)",
        "h w c -> (h w) c",
        "c h w -> h c",
        "c h w -> (h h) w c",
        "c h w -> (h w) x c",
        "c h h -> (h h) c",
        "c h w -> () (h w) c",
        "c (h p) w -> (h p w) c",
        "c ... -> (...) c",
        "c h w -> (h w c",
        "c h w -> h w 1 c",
        "c -> c",
        "c a b d e -> (a b d e) c",
        "",
        2,
    ],
)
def test_bad_patterns_are_refused(pattern):
    with pytest.raises((TypeError, ValueError), match="adapter: expected an einops pattern"):
        _adapter.rank(pattern)
