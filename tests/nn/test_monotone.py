"""Monotone layers: in the asked direction for any parameters, with bases of the right form."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from purevdm import nn, random

seeds = st.integers(0, 2**31)
bases = st.sampled_from(sorted(nn.CONVEX))
weights = st.tuples(*[st.integers(0, 5)] * 3).filter(any)


def line(low=-6.0, high=6.0, n=241):
    return torch.linspace(low, high, n, dtype=torch.float64)


@given(seeds, st.lists(st.integers(-1, 1), min_size=1, max_size=4).filter(any), bases, weights, st.floats(0.1, 5))
def test_each_input_keeps_its_direction_through_layers(seed, directions, base, weights, scale):
    keys = random.split(random.key(seed), 4)
    n = len(directions)
    first, second = (nn.dense_init(k, a, b) for k, a, b in zip(keys, (n, 9), (9, 3), strict=False))
    for params in (first, second):
        params["kernel"] = (params["kernel"] * scale).double()
        params["bias"] = random.normal(keys[3], params["bias"].shape, torch.float64)
    x = random.normal(keys[2], (n,), torch.float64)
    for i, direction in enumerate(directions):
        moved = x.repeat(50, 1)
        moved[:, i] = line(-4, 4, 50)
        h = nn.monotone_dense(first, moved, directions, base, weights)
        rise = nn.monotone_dense(second, h, 1, base, weights).diff(dim=0)
        if direction:
            assert (direction * rise >= -1e-12).all()
            assert base == "relu" or (direction * rise).max() > 0  # all of a layer's relus may be off


def test_a_free_input_is_a_plain_dense_layer():
    params = nn.dense_init(random.key(0), 3, 4)
    x = random.normal(random.key(1), (5, 3))
    torch.testing.assert_close(nn.monotone_dense(params, x, 0, None), nn.dense(params, x))
    mixed = nn.monotone_dense(params, x, (1, 0, -1), None)
    kernel = torch.stack([params["kernel"][0].abs(), params["kernel"][1], -params["kernel"][2].abs()])
    torch.testing.assert_close(mixed, x @ kernel)


@pytest.mark.parametrize("base", nn.CONVEX)
def test_bases_and_their_three_forms(base):
    x = line()
    f = nn.CONVEX[base](x)
    assert (f.diff() >= 0).all()
    assert (f.diff().diff() >= -1e-9).all()
    assert f[120].abs() < 1e-12
    assert f[0] > -1.1
    convex, concave, saturated = (
        nn.monotone_activation(x[:, None], base, w)[:, 0] for w in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    )
    torch.testing.assert_close(convex, f)
    torch.testing.assert_close(concave, -f.flip(0))
    torch.testing.assert_close(saturated, -saturated.flip(0))
    assert (saturated.diff() >= 0).all()
    slope = saturated.diff() / x.diff()
    assert slope[120] > 10 * slope[0]  # steep at zero, flat far off
    assert saturated.abs().max() < 2.5


@given(st.integers(1, 40), weights)
def test_groups_share_the_units(units, weights):
    """-2 tells the groups apart: -1 + exp(-2), -2 and f(-1) - f(1), under elu."""
    y = nn.monotone_activation(torch.full((units,), -2.0), "elu", weights)
    counts = [(y - value).abs().lt(1e-4).sum().item() for value in (math.expm1(-2), -2.0, math.expm1(-1) - 1)]
    assert sum(counts) == units
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - units * weight / sum(weights)) <= 1


@given(seeds, bases)
def test_gradients_flow_to_the_free_kernel(seed, base):
    params = nn.dense_init(random.key(seed), 3, 6)
    before = params["kernel"].clone()
    x = random.normal(random.key(seed + 1), (3,))
    grads = torch.func.grad(lambda p: nn.monotone_dense(p, x, 1, None).sum())(params)
    torch.testing.assert_close(grads["kernel"], before.sign() * x[:, None])
    assert torch.equal(params["kernel"], before)
    large = nn.monotone_activation(torch.tensor([1e4, -1e4]).repeat(8, 1).T, base)
    assert large.isfinite().all()
    slope = torch.func.grad(lambda x: nn.monotone_activation(x, base).sum())(torch.tensor([1e4, -1e4]).repeat(8, 1).T)
    assert slope.isfinite().all()


PARAMS = nn.dense_init(random.key(0), 2, 3)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        (dict(direction=2), ValueError, "direction"),
        (dict(direction=(1,)), ValueError, "one for each of the 2 inputs"),
        (dict(direction=(1, 0.5)), TypeError, "direction"),
        (dict(activation="gelu"), ValueError, "gelu.*falls before it rises"),
        (dict(activation="tanh"), ValueError, "not convex"),
        (dict(activation="cosine"), ValueError, "base"),
        (dict(weights=(1, 1)), ValueError, "weights"),
        (dict(weights=(0, 0, 0)), ValueError, "weights"),
        (dict(weights=(1, -1, 1)), ValueError, "weights"),
        (dict(weights=(1, math.nan, 1)), ValueError, "weights"),
    ],
)
def test_bad_input_is_named(options, error, word):
    with pytest.raises(error, match=word):
        nn.monotone_dense(PARAMS, torch.zeros(2), **options)
