"""The stack: what is pushed is popped, at the cost that the frequencies say."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from purevdm.codec import _lattice
from purevdm.codec._stack import CodingError, Stack


def words(n, seed=0):
    return np.random.default_rng(seed).integers(1, 2**32, n, dtype=np.uint32)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 300),
    st.lists(st.floats(1.0, 1e5), min_size=1, max_size=4),
    st.sampled_from([0.0, 3.0, 1e3, 1e9]),
)
def test_points_come_back_wherever_they_are(seed, n, widths, far):
    """Under one width or several, near their means or beyond the tables."""
    rng = np.random.default_rng(seed)
    index = _lattice.width_index(np.array(widths))
    index = index[:1] if len(widths) == 1 else rng.choice(index, n)
    means = rng.integers(-(2**20), 2**20, n)
    each = np.broadcast_to(index, (n,))
    points = means // _lattice.PHASES[each] + np.rint(far * rng.standard_cauchy(n)).clip(-(2**40), 2**40).astype(np.int64)
    start = words(10)
    stack = Stack(start)
    stack.push_points(points, means, index, True)
    assert np.array_equal(stack.pop_points(means, index, True), points)
    assert np.array_equal(stack.words(), start)


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.floats(1.0, 300.0), st.booleans())
def test_what_is_popped_can_be_pushed_back(seed, n, width, escape):
    """Popping draws from the Gaussian, and pushing what was drawn restores the stack."""
    start = words(2000 + n, seed)
    stack, index = Stack(start), _lattice.width_index(np.array([width]))
    means = np.random.default_rng(seed).integers(-1000, 1000, n)
    points = stack.pop_points(means, index, escape)
    assert stack.bits < 32 * len(start)
    stack.push_points(points, means, index, escape)
    assert np.array_equal(stack.words(), start)


def test_popped_points_are_gaussian():
    stack, index = Stack(words(200_000)), _lattice.width_index(np.array([3.0]))
    points = stack.pop_points(np.full(100_000, 50), index, False)
    mean, width = 50 / _lattice.PHASES[index][0], 3.0
    assert abs(points.mean() - mean) < 5 * width / 100_000**0.5
    assert abs(points.std() / width - 1) < 5 / (2 * 100_000) ** 0.5


def test_symbols_cost_their_frequencies_exactly():
    rows = _lattice.frequencies(np.array([[5, 3, 0, 8]]))
    stack = Stack(words(4))
    before, symbols = stack.bits, np.array([0, 1, 3] * 10_000)
    stack.push(symbols, rows, np.zeros(len(symbols), np.int64))
    want = -np.log2((rows[0] + 1) / 2**24)[symbols].sum()
    assert abs(stack.bits - before - want) < 2


@given(st.lists(st.integers(0, 48), min_size=1, max_size=50), st.integers(0, 2**32 - 1))
def test_bits_come_back(bits, seed):
    bits = np.array(bits)
    values = np.random.default_rng(seed).integers(0, 1 << bits)
    stack = Stack(words(3))
    stack.push_bits(values, bits)
    assert np.array_equal(stack.pop_bits(bits), values)


def test_points_out_of_reach_are_refused_without_an_escape():
    index = _lattice.width_index(np.array([1.0]))
    with pytest.raises(CodingError, match="out of reach"):
        Stack(words(4)).push_points(np.array([100]), np.array([0]), index, False)
    with pytest.raises(CodingError, match="out of reach"):
        Stack(words(4)).push_points(np.array([2**50]), np.array([0]), index, True)


def test_scrambling_twice_undoes_it():
    start = words(50)
    stack = Stack(start)
    stack.scramble(3, 100)
    changed = stack.words() != start
    assert changed[22:48].all()
    assert not changed[:22].any()
    assert not changed[48:].any()
    stack.scramble(3, 100)
    assert np.array_equal(stack.words(), start)
    tiny = Stack(words(2))
    tiny.scramble(1, 100)
    assert np.array_equal(tiny.words(), words(2))


def test_noise_is_fresh_whatever_was_pushed_before():
    """Points that all lie a standard deviation above their means: popped as they were pushed, noise would be so, too."""
    index, n = _lattice.width_index(np.array([4.0])), 20_000
    means = np.zeros(n, np.int64)
    found = []
    for scrambled in (False, True):
        stack = Stack(words(4))
        stack.push_points(np.full(n, 4), means, index, True)
        if scrambled:
            stack.scramble(1, n)
        found.append(stack.pop_points(means[: n // 2], index, False).mean() / 4.0)
    error = (n // 2) ** -0.5
    assert found[0] > 8 * error
    assert abs(found[1]) < 5 * error
