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
    ("pattern", "reason"),
    [
        ("c h w", "one arrow"),
        ("c h w -> h -> w c", "one arrow"),
        ("c h w -> (h w c)", "channels alone"),
        ("c h w -> c (h w)", "channels alone"),
        ("h w c -> (h w) c", "channels alone"),
        ("c h w -> h c", "not invertible"),
        ("c h w -> (h h) w c", "not invertible"),
        ("c h w -> (h w) x c", "not invertible"),
        ("c h h -> (h h) c", "not invertible"),
        ("c h w -> () (h w) c", "not invertible"),
        ("c h w\n-> (h w) c", "only spaces"),
        ("c (h p) w -> (h p w) c", "axes stand alone"),
        ("c ... -> (...) c", "not the name of an axis"),
        ("c h w -> (h w c", "not the name|not invertible"),
        ("c h w -> h w 1 c", "not the name of an axis"),
        ("c -> c", "one to three axes"),
        ("c a b d e -> (a b d e) c", "one to three axes"),
    ],
)
def test_bad_patterns_are_refused_with_the_reason(pattern, reason):
    with pytest.raises(ValueError, match=reason):
        _adapter.rank(pattern)


def test_a_pattern_is_a_string():
    with pytest.raises(TypeError, match="adapter"):
        _adapter.rank(2)
