"""Exponentials of exactly rounded operations, and rounding that noise does not move."""

import math

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from purevdm.codec import _arithmetic as arithmetic


@given(st.lists(st.floats(-700, 700), min_size=1, max_size=50), st.lists(st.floats(-20, 20) | st.floats(-1e-3, 1e-3)))
def test_exponentials_are_exact_to_rounding(x, less_one):
    want = np.array([math.exp(v) for v in x])
    assert (np.abs(arithmetic.exp(np.array(x)) / want - 1) < 1e-15).all()
    want = np.array([math.expm1(v) for v in less_one])
    assert (np.abs(arithmetic.expm1(np.array(less_one, float)) - want) <= 1e-15 * np.abs(want)).all()


def test_they_are_made_of_the_same_operations_everywhere():
    """The bits that IEEE 754 prescribes for this sequence of operations, which Python's own floats follow, too."""

    def series(r):
        p = 0.0
        for k in range(15, 1, -1):
            p = (p + 1.0) * (r * (1.0 / k))
        return (p + 1.0) * r

    for v in np.random.default_rng(0).uniform(-50, 50, 200).tolist():
        n = round(v * (1.0 / math.log(2.0)))
        r = (v - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
        assert arithmetic.exp(np.array(v)) == math.ldexp(1.0 + series(r), n)


def test_dithers_are_distinct_and_small():
    values = np.linspace(0.4, 0.6, 20_001)
    ups = sorted(int(arithmetic.rounded(values, dither)[0].sum()) for dither in range(arithmetic.DITHERS))
    assert np.diff(ups).min() > 0
    assert np.abs(np.array(ups) - 10_000).max() < 10_000 / 0.1 / 32 + 2


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 30, 20_000]), st.floats(-1e6, 1e6), st.booleans())
def test_whoever_is_off_by_less_than_the_guard_rounds_alike(seed, n, shift, degenerate):
    """Also where all numbers lie on one boundary."""
    rng = np.random.default_rng(seed)
    values = np.full(n, np.floor(shift) + 0.5) if degenerate else rng.normal(shift, 100.0, n)
    whole, dither = arithmetic.guarded(values)
    assert np.abs(whole - values).max() <= 0.54
    noise = rng.choice([-0.99, 0.99], n) * arithmetic.GUARD
    elsewhere, margin = arithmetic.rounded(values + noise, dither)
    assert np.array_equal(elsewhere, whole)
    assert margin > 0


def test_numbers_that_no_dither_clears_take_the_widest_margin():
    values = np.arange(1024 * 1024) / 1024 / 1024
    whole, dither = arithmetic.guarded(values)
    margins = [arithmetic.rounded(values, i)[1] for i in range(arithmetic.DITHERS)]
    assert margins[dither] == max(margins)
    assert np.array_equal(whole, arithmetic.rounded(values, dither)[0])
