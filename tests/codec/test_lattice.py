"""Gaussians on a lattice: frequencies that add up, moments of the continuous Gaussian."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from purevdm.codec import _lattice as lattice


@settings(max_examples=60)
@given(st.floats(1.0, 4000.0), st.booleans())
def test_tables_add_up_and_have_the_gaussians_moments(width, escape):
    index = int(lattice.width_index(np.array(width)))
    table = lattice.table(index, escape)
    near = lattice.NARROW * math.exp(index / 1024)
    assert abs(near / width - 1) < 6e-4
    rows = table.rows.astype(np.float64)
    assert (rows == np.floor(rows)).all()
    assert (rows >= 0).all()
    assert (rows.sum(1) == 2**24 - rows.shape[1]).all()
    p = (rows + 1) / 2**24
    off = (np.arange(1 - table.half, table.half + 1) + 0.5) * 2**table.shift - 0.5
    p = p[:, : len(off)]
    mean = p @ off
    # each symbol has 2**-24 more than it should; the escape takes 1e-6
    assert np.abs(mean - np.arange(table.phases) / table.phases).max() < 2e-4 * near
    variance = (p @ off**2) - mean**2
    assert np.abs(variance / near**2 - 1).max() < 0.01
    assert table.phases * near >= 31


def test_a_lattice_as_coarse_as_the_gaussian_has_its_entropy():
    """By Poisson's summation formula, up to exp(-2 pi**2): what each phase costs is the differential entropy."""
    p = (lattice.table(0, True).rows[:, :-1].astype(np.float64) + 1) / 2**24
    entropy = -(p * np.log(p)).sum(1)
    assert np.abs(entropy - 0.5 * math.log(2 * math.pi * math.e)).max() < 1e-4


def test_the_widest_width_is_named():
    with pytest.raises(ValueError, match="schedule: expected neighbouring steps of comparable size"):
        lattice.width_index(np.array(1e9))


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 17, 256]))
def test_frequencies_follow_weights(seed, symbols):
    weights = np.random.default_rng(seed).integers(0, 2**40, (8, symbols))
    rows = lattice.frequencies(weights)
    assert (rows.sum(1) == 2**24 - symbols).all()
    share = weights / weights.sum(1, keepdims=True)
    assert np.abs(rows / rows.sum(1, keepdims=True) - share).max() < symbols / 2**23
