"""The network of the 2D example: its layers by hand, any event."""

import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from purevdm import networks, random


@given(st.integers(0, 2**31), st.floats(-13.3, 5.0))
def test_it_is_the_official_example_written_out(seed, gamma):
    network = networks.mlp(16)
    params = network.init(random.key(seed), (2,))
    z = random.normal(random.key(seed + 1), (2,))
    h = torch.cat([z, torch.tensor([2 * (gamma + 13.3) / 18.3 - 1])])
    angles = torch.tensor([2.0**n * 2 * math.pi for n in range(8)]) * h[:, None]
    h = torch.cat([h, angles.sin().flatten(), angles.cos().flatten()])
    assert h.shape == (51,)
    for name in ("dense1", "dense2"):
        h = F.silu(h @ params[name]["kernel"] + params[name]["bias"])
    want = h @ params["dense3"]["kernel"] + params["dense3"]["bias"]
    torch.testing.assert_close(network.apply(params, z, torch.tensor(gamma)), want, rtol=1e-3, atol=1e-3)


@given(st.lists(st.integers(1, 3), max_size=3), st.integers(0, 2), st.integers(1, 3))
def test_any_event(shape, cond_dim, layers):
    network = networks.mlp(4, layers, fourier=(0,), cond_dim=cond_dim)
    params = network.init(random.key(0), tuple(shape))
    cond = torch.ones(cond_dim) if cond_dim else None
    z = random.normal(random.key(1), tuple(shape))
    assert network.apply(params, z, torch.tensor(0.0), cond).shape == z.shape


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: networks.mlp(0), ValueError, "hidden"),
        (lambda: networks.mlp(layers=0), ValueError, "layers"),
        (lambda: networks.mlp(gamma_max=-20.0), TypeError, "gamma_min"),
        (lambda: networks.mlp(gamma_min=5.0, gamma_max=-20.0), ValueError, "gamma_min"),
        (lambda: networks.mlp().init(random.key(0), 2), TypeError, "event_shape"),
        (lambda: networks.mlp().apply({}, torch.zeros(2), torch.zeros(3)), ValueError, "gamma"),
        (lambda: networks.mlp().apply({}, torch.zeros(2), torch.zeros(()), torch.zeros(1)), ValueError, "cond"),
    ],
)
def test_bad_input_is_named(call, error, word):
    with pytest.raises(error, match=word):
        call()
