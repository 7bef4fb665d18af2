"""Batches: every example once in each epoch, by key and step alone; augmentation; splits."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from purevdm import random
from purevdm.training import data
from purevdm.training.data import Dataset

seeds = st.integers(0, 2**31)


def numbers(n=20):
    x = np.arange(n, dtype=np.uint8).reshape(n, 1)
    return Dataset("numbers", n, (1,), 256, lambda i: x[i], np.arange(n), n)


@given(seeds, st.integers(1, 12), st.integers(1, 30))
def test_each_epoch_takes_every_example_once(seed, n, batch):
    epochs = 3
    steps = -(-epochs * n // batch)
    order = np.concatenate([data.rows(random.key(seed), n, step, batch) for step in range(steps)])
    for e in range(epochs):
        assert sorted(order[e * n : (e + 1) * n]) == list(range(n))
        want = random.permutation(random.fold_in(random.key(seed), e), n).numpy()
        assert (order[e * n : (e + 1) * n] == want).all()


def test_a_step_is_a_function_of_the_key_and_itself():
    a = data.rows(random.key(1), 1000, 77, 64)
    data.rows(random.key(2), 1000, 3, 64)
    assert (data.rows(random.key(1), 1000, 77, 64) == a).all()
    assert not (data.rows(random.key(2), 1000, 77, 64) == a).all()


def test_batches():
    x, labels = data.batch(numbers(), np.array([3, 1, 3]))
    assert x.tolist() == [[3], [1], [3]]
    assert labels.tolist() == [3, 1, 3]
    assert x.dtype == torch.uint8
    # arrays of another byte order become tensors
    reals = Dataset("reals", 3, (2,), None, lambda i: np.arange(6, dtype=">f4").reshape(3, 2)[i])
    assert data.batch(reals, np.array([1]))[0].tolist() == [[2.0, 3.0]]


@given(seeds, st.integers(1, 6))
def test_augmented_images_are_turns_of_their_own(seed, n):
    x = random.randint(random.key(seed), (n, 2, 3, 3), 0, 256, torch.uint8)
    keys = random.split(random.key(seed + 1), n)
    y, flags = data.augment(keys, x)
    for before, after, flag in zip(x, y, flags, strict=True):
        turns = [image.rot90(k, (-2, -1)) for image in (before, before.flip(-1)) for k in range(4)]
        assert any(torch.equal(after, turn) for turn in turns)
        assert flag == 0 or flag == 1
        if flag == 0:
            assert torch.equal(after, before)
    halves = [data.augment(keys[i : i + 1], x[i : i + 1])[0] for i in range(n)]
    assert torch.equal(torch.cat(halves), y)


def test_augmentation_is_as_frequent_as_the_official_one():
    x = torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3).expand(4000, 1, 3, 3)
    y, flags = data.augment(random.split(random.key(0), len(x)), x)
    assert abs(flags.mean() - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    kinds = [(y == turn).all((1, 2, 3)).double().mean() for turn in (x[:1], x[:1].flip(-1), x[:1].rot90(1, (-2, -1)))]
    for found, want in zip(kinds, (1 / 4, 1 / 4, 1 / 12), strict=True):
        assert abs(found - want) < 4 * (want * (1 - want) / 4000) ** 0.5


def test_a_split_shares_out_every_example():
    train, test = data.split(numbers(), random.key(0), 6)
    assert (train.size, test.size) == (14, 6)
    both = np.concatenate([part.take(np.arange(part.size))[:, 0] for part in (train, test)])
    assert sorted(both) == list(range(20))
    assert (train.labels == train.take(np.arange(14))[:, 0]).all()


def taken(**changes):
    return data.batch(numbers()._replace(**changes), np.array([0]))


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: data.rows(random.key(0), 20, 2**60, 4), ValueError, "step: expected an integer"),
        (lambda: data.augment(random.split(random.key(0)), torch.zeros(2, 1, 3, 4)), ValueError, "square"),
        (lambda: data.augment(random.key(0), torch.zeros(2, 1, 4, 4)), ValueError, "keys: expected"),
        (lambda: data.split(numbers(), random.key(0), 20), ValueError, "held_out: expected fewer than the 20 examples"),
        (lambda: data.batch(numbers(), np.array([20])), ValueError, r"indices: expected them in \[0, 19\], got 20 to 20"),
        (lambda: data.batch(numbers(), np.array([-1])), ValueError, "indices"),
        (lambda: data.batch(numbers(), np.array([0.5])), TypeError, "indices"),
        (lambda: taken(take=lambda i: np.ma.masked_equal(i[:, None], 0)), TypeError, "data.take: expected a plain array"),
        (lambda: taken(labels=np.ma.masked_equal(np.arange(20), 0)), TypeError, "data.labels: expected a plain array"),
        (
            lambda: taken(event_shape=(3, 4, 4), take=lambda i: np.zeros((1, 4, 4, 3), np.uint8)),
            ValueError,
            r"data.take: expected the shape \(1, 3, 4, 4\), channels first, got \(1, 4, 4, 3\)",
        ),
    ],
)
def test_bad_input_is_named(call, error, word):
    with pytest.raises(error, match=word):
        call()
