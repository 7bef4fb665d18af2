"""Monotone layers: rising for any parameters, with bases of the right form."""

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


@given(seeds, st.integers(1, 4), bases, weights, st.floats(0.1, 5))
def test_outputs_rise_with_each_input_through_layers(seed, n, base, weights, scale):
    k_first, k_second, k_x = random.split(random.key(seed), 3)
    first, second = (nn.dense_init(k, a, b) for k, a, b in ((k_first, n, 9), (k_second, 9, 3)))
    for params in (first, second):
        params["kernel"] = (params["kernel"] * scale).double()
        params["bias"] = random.normal(k_x, params["bias"].shape, torch.float64)
    x = random.normal(k_x, (n,), torch.float64)
    for i in range(n):
        moved = x.repeat(50, 1)
        moved[:, i] = line(-4, 4, 50)
        rise = nn.monotone_dense(second, nn.monotone_dense(first, moved, base, weights), base, weights).diff(dim=0)
        assert (rise >= -1e-12).all()
        assert base == "relu" or rise.max() > 0  # all of a layer's relus may be off


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
    grads = torch.func.grad(lambda p: nn.monotone_dense(p, x, None).sum())(params)
    torch.testing.assert_close(grads["kernel"], before.sign() * x[:, None])
    assert torch.equal(params["kernel"], before)
    large = nn.monotone_activation(torch.tensor([1e4, -1e4]).repeat(8, 1).T, base)
    assert large.isfinite().all()
    slope = torch.func.grad(lambda x: nn.monotone_activation(x, base).sum())(torch.tensor([1e4, -1e4]).repeat(8, 1).T)
    assert slope.isfinite().all()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(base="gelu"), "base: expected one of 'relu'"),
        (dict(weights=(1, 1)), "weights"),
        (dict(weights=(0, 0, 0)), "weights"),
        (dict(weights=(1, -1, 1)), "weights"),
    ],
)
def test_what_is_not_monotone_is_named(options, word):
    with pytest.raises(ValueError, match=word):
        nn.monotone_activation(torch.zeros(2), **options)
