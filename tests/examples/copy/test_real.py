"""Real data of several shapes: a whitened table, correlations and entropy in closed form, whole runs."""

import math

import pytest
import real
import torch
from processes import figures

from purevdm import random


def test_the_table_is_whitened_by_its_training_rows_and_split_by_key():
    train, test = real.table(random.key(0))
    assert (train.shape, test.shape) == ((427, 24), (142, 24))
    torch.testing.assert_close(train.T.cov(correction=0), torch.eye(24), rtol=0, atol=1e-4)
    assert train.mean(0).abs().max() < 1e-5
    assert test.std(0).median() > 0.8
    assert max(column.unique(return_counts=True)[1].max() for column in train.T) <= 5
    assert not torch.equal(train, real.table(random.key(1))[0])


@pytest.mark.parametrize("shape", [(6,), (3, 4)])
def test_draws_have_the_correlations_and_the_entropy_of_their_source(shape):
    n = 50_000
    x = real.correlated(random.key(0), n, shape).double()
    assert x.shape == (n, 1, *shape)
    places = torch.cartesian_prod(*(torch.arange(size) for size in shape)).reshape(math.prod(shape), -1)
    want = real.RHO ** (places[:, None] - places).abs().sum(-1).double()
    assert (x.flatten(1).T.cov() - want).abs().max() < 5 * math.sqrt(2 / n)
    exact = 0.5 * torch.logdet(2 * math.pi * math.e * want).item()
    assert abs(real.entropy(shape) - exact) < 1e-9


def test_a_table_s_run_begins_near_the_single_gaussian():
    lines = figures("real.py", "table", "--steps", 4, "--passes", 2, "--no-compile")
    bound, gaussian, mixture = (float(lines[name].split()[0]) for name in ("test bound", "1 Gaussians", "4 Gaussians"))
    assert abs(bound - gaussian) < 6
    assert abs(mixture - gaussian) < 3
    assert "142 examples of 24 numbers" in lines["test bound"]


def test_a_series_run_prints_what_it_promises():
    lines = figures("real.py", "series", "--steps", 2, "--passes", 1, "--no-compile")
    bound, truth, alone = (float(lines[name].split()[0]) for name in ("test bound", "entropy", "independent"))
    assert truth < alone
    assert truth < bound < 2 * alone
