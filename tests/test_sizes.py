"""The distribution of sizes: counted, smoothed, drawn; masks of sizes; bad input."""

import math

import pytest
import torch

from purevdm import random, sizes

KEY = random.key(0)
N = torch.tensor([2, 2, 2, 4])


def test_counts_are_frequencies_and_smoothed():
    plain, smooth = sizes.counts(N, 4, smoothing=0.0), sizes.counts(N, 4)
    every = torch.arange(1, 5)
    torch.testing.assert_close(plain.log_prob(every).exp(), torch.tensor([0, 0.75, 0, 0.25], dtype=torch.float64))
    torch.testing.assert_close(smooth.log_prob(every).exp(), torch.tensor([1, 4, 1, 2], dtype=torch.float64) / 8)
    assert plain.log_prob(torch.tensor([[1]])).tolist() == [[-math.inf]]
    assert smooth == sizes.counts(N.to(torch.int32), 4)
    assert smooth._replace(weights=(1.0,)) == sizes.Sizes((1.0,))


def test_draws_are_of_the_distribution():
    known, n = sizes.counts(N, 4), 20_000
    drawn = known.sample(KEY, n)
    assert drawn.dtype == torch.int64
    p = known.log_prob(torch.arange(1, 5)).exp()
    found = torch.bincount(drawn, minlength=5)[1:] / n
    assert ((found - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()


def test_masks_hold_the_first_elements():
    mask = sizes.mask(torch.tensor([1, 3]), (3, 2, 2))
    assert mask.shape == (2, 3, 1, 1)
    assert mask.squeeze().tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: sizes.mask(torch.tensor([1, 4]), (3, 2)), ValueError, r"n: expected integers in \[1, 3\].*from 1 to 4"),
        (lambda: sizes.mask(torch.tensor([0]), (3, 2)), ValueError, r"n: expected integers in \[1, 3\]"),
        (lambda: sizes.mask(torch.tensor([1.0]), (3, 2)), TypeError, "n: expected integers"),
        (lambda: sizes.mask(torch.tensor([True]), (3, 2)), TypeError, "n: expected integers"),
        (lambda: sizes.mask(torch.tensor([[1]]), (3, 2)), ValueError, "n: expected shape"),
        (lambda: sizes.mask(torch.tensor([1]), ()), ValueError, "event_shape: expected"),
        (lambda: sizes.counts(N, 3), ValueError, r"n: expected integers in \[1, 3\]"),
        (lambda: sizes.counts(N[:0], 3), ValueError, "n: expected at least one size"),
        (lambda: sizes.counts(N, 0), ValueError, "most"),
        (lambda: sizes.counts(N, 4, smoothing=-1.0), ValueError, "smoothing"),
        (lambda: sizes.counts(N, 4).log_prob(torch.tensor(5)), ValueError, r"n: expected integers in \[1, 4\]"),
        (lambda: sizes.counts(N, 4).sample(KEY, 0), ValueError, "n: expected"),
    ],
)
def test_bad_input_is_named(call, error, word):
    with pytest.raises(error, match=word):
        call()
