"""Series and fields: their correlations and entropy in closed form, whole runs."""

import math

import fields
import pytest
import torch
from test_density import run

from purevdm import random


@pytest.mark.parametrize("shape", [(6,), (3, 4)])
def test_draws_have_the_correlations_and_the_entropy_of_their_source(shape):
    rho, n = 0.7, 50_000
    x = fields.correlated(random.key(0), n, shape, rho).double()
    assert x.shape == (n, 1, *shape)
    places = torch.cartesian_prod(*(torch.arange(size) for size in shape)).reshape(math.prod(shape), -1)
    want = rho ** (places[:, None] - places).abs().sum(-1).double()
    assert (x.flatten(1).T.cov() - want).abs().max() < 5 * math.sqrt(2 / n)
    numbers = math.prod(shape)
    exact = 0.5 * torch.logdet(2 * math.pi * math.e * want).item() / numbers
    assert abs(fields.entropy(shape, rho) - exact) < 1e-9


@pytest.mark.parametrize("kind", [(), ("--field",)])
def test_a_run_prints_what_it_promises(kind, monkeypatch, capsys):
    arguments = (*kind, "--size", 6, "--steps", 2, "--batch", 4, "--test", 8, "--eager")
    lines = run(fields.main, monkeypatch, capsys, *arguments)
    bound, truth, alone = (float(lines[name].split()[0]) for name in ("test bound", "entropy", "independent numbers"))
    assert truth < alone < bound + 1  # an untrained network is near the bound of independent numbers
    assert bound < alone + 2
