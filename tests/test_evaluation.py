"""The bound of a data set: known answers, batches that must not matter, errors over examples."""

import math

import pytest
import sources
import torch

import purevdm
from purevdm import evaluation, networks, random, schedules
from purevdm.networks import Condition


def test_the_entropy_of_independent_pixels():
    p = torch.tensor([0.5, 0.1, 0.1, 0.3], dtype=torch.float64)
    model = purevdm.vdm(sources.categorical(p), schedules.fixed_linear(-9.0, 8.0), (20,), 4, dtype=torch.float64)
    x = random.categorical(random.key(0), p.log().expand(600, 20, 4))
    batches = [(x[i : i + 250], None) for i in range(0, 600, 250)]
    done = []
    found = evaluation.evaluate(
        model, {"network": {}, "schedule": {}}, batches, random.key(1), passes=3, callback=done.append
    )
    assert abs(found.total.mean - sources.entropy(p) / math.log(2)) < 4 * found.total.error
    assert math.isclose(found.total.mean, found.diffusion.mean + found.prior.mean + found.recon.mean)
    assert (found.examples, found.passes, done) == (600, 3, [250, 250, 100])
    # more passes leave less noise
    once = evaluation.evaluate(model, {"network": {}, "schedule": {}}, batches, random.key(1), passes=1)
    assert found.diffusion.error < once.diffusion.error


def test_one_batch_by_hand_with_conditions_and_a_smaller_one():
    model = purevdm.vdm(networks.mlp(8, classes=3, cond_dim=1), schedules.learned_linear(), (2,), 16, timesteps=10)
    params, x = model.init(random.key(0)), random.randint(random.key(1), (5, 2), 0, 16)
    cond = Condition(vector=torch.ones(5, 1), label=torch.arange(5) % 3)

    def rows_of(cond, rows):
        return Condition(*(None if c is None else c[rows] for c in cond))

    batches = [(x[rows], rows_of(cond, rows)) for rows in (slice(3), slice(3, None))]
    shapes = []

    def elbo(params, x, key, cond):
        shapes.append(tuple(x.shape))
        return model.elbo(params, x, key, cond)

    found = evaluation.evaluate(model, params, batches, random.key(2), passes=2, elbo=elbo)
    assert shapes == [(3, 2)] * 2 + [(2, 2)] * 2
    total = []
    for j, (batch, given) in enumerate(batches):
        keys = random.split(random.fold_in(random.key(2), j), 2)
        each = torch.stack([model.elbo(params, batch, k, given).total for k in keys]).mean(0)
        total.append(each)
    bits = torch.cat(total) / (2 * math.log(2))
    assert math.isclose(found.total.mean, bits.mean(), rel_tol=1e-5)
    assert math.isclose(found.total.error, bits.std() / math.sqrt(5), rel_tol=1e-4)
    assert str(found.total) == f"{found.total.mean:.4f} +- {found.total.error:.4f}"


def test_bad_input_is_named():
    model = purevdm.vdm(networks.mlp(8), schedules.learned_linear(), (2,), 16)
    params = model.init(random.key(0))
    with pytest.raises(ValueError, match="batches"):
        evaluation.evaluate(model, params, [], random.key(0))
    with pytest.raises(ValueError, match="passes"):
        evaluation.evaluate(model, params, [], random.key(0), passes=0)
    with pytest.raises(TypeError, match="key"):
        evaluation.evaluate(model, params, [], 0)
