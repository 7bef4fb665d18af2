"""Sinusoids: their frequencies and their order."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from purevdm import nn, random

seeds = st.integers(0, 2**31)


@given(st.floats(0, 1000), st.integers(4, 33))
def test_timestep_embedding(t, dim):
    e = nn.timestep_embedding(torch.tensor(t, dtype=torch.float64), dim)
    half = dim // 2
    assert e.shape == (dim,)
    torch.testing.assert_close(e[:half] ** 2 + e[half : 2 * half] ** 2, torch.ones(half, dtype=torch.float64))
    assert math.isclose(e[0], math.sin(t), abs_tol=1e-9)
    assert math.isclose(e[half - 1], math.sin(t / 10000), abs_tol=1e-9)
    assert dim % 2 == 0 or e[-1] == 0


@given(seeds, st.lists(st.integers(-2, 8), min_size=1, max_size=4), st.integers(1, 4))
def test_fourier_features_are_channel_major(seed, exponents, channels):
    x = random.normal(random.key(seed), (channels, 2, 3))
    y = nn.fourier_features(x, exponents)
    n = len(exponents)
    assert y.shape == (2 * channels * n, 2, 3)
    for c in range(channels):
        for j, e in enumerate(exponents):
            angle = 2 * math.pi * 2.0**e * x[c]
            torch.testing.assert_close(y[c * n + j], angle.sin())
            torch.testing.assert_close(y[(channels + c) * n + j], angle.cos())


def test_too_few_features_are_refused():
    with pytest.raises(ValueError, match="dim"):
        nn.timestep_embedding(torch.tensor(0.0), 3)
