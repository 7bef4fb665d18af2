"""The bound: with ideal output distributions it is the entropy, in continuous time and in steps; n-step losses tend to the
continuous one; the noise of a batch."""

import math

import ideal
import numpy as np
import pytest
import torch
from parts import changed

from purevdm import bfn, networks, random
from purevdm.bfn import bound, flows, normal, outputs, process
from purevdm.testing.sources import entropy, mean_and_error

F64 = torch.float64
NO_PARAMS = {"network": {}}
P = torch.tensor([0.55, 0.05, 0.1, 0.3], dtype=F64)
DIMENSIONS, EXAMPLES = 16, 2000


def draw(p):
    return random.categorical(random.key(7), p.log(), shape=(EXAMPLES, DIMENSIONS))


def bits(model, x):
    """Each example's bound and its entropy's estimate -log p(x), both by dimension, nats."""
    return model.nll_bound(NO_PARAMS, x, random.key(8)).total / DIMENSIONS


options = dict(event_shape=(DIMENSIONS,), dtype=F64)
COIN = torch.tensor([0.2, 0.8], dtype=F64)
IDEAL = {
    "discrete": (P, bfn.discrete(ideal.classes(P), classes=4, beta_1=3.0, classes_last=True, **options)),
    "binary": (COIN, bfn.discrete(ideal.coins(0.8), classes=2, beta_1=2.0, **options)),
    "discretised": (COIN, bfn.discretised(ideal.two_bins(0.8, 0.5), bins=2, sigma_1=0.5, std_bounds=None, **options)),
}


@pytest.mark.parametrize("timesteps", [0, 1, 6])
@pytest.mark.parametrize("kind", IDEAL)
def test_ideal_outputs_give_the_entropy(kind, timesteps):
    """Messages cost their mutual information with the data, in any number of steps, and the reconstruction the rest."""
    p, model = IDEAL[kind]
    x = draw(p)
    total = bits(model._replace(timesteps=timesteps, draws=4), x)
    mean, error = mean_and_error(total + (p.log()[x].mean(1) + entropy(p)))  # less the data's own fluctuation
    assert abs(mean - entropy(p)) < 4 * error
    assert error < 0.02


@pytest.mark.parametrize("kind", IDEAL)
def test_worse_outputs_give_more(kind):
    p, model = IDEAL[kind]
    apply = model.network.apply
    worse = model._replace(network=changed(model.network, apply=lambda *given, **rest: 0.7 * apply(*given, **rest)))
    x = draw(p)
    for timesteps in (0, 6):
        off = bits(worse._replace(timesteps=timesteps), x) - bits(model._replace(timesteps=timesteps), x)
        mean, error = mean_and_error(off)
        assert mean > 4 * error


def test_a_gaussian_source_gives_its_differential_entropy():
    std, sigma_1 = 0.8, 0.05
    network = ideal.gaussian(std, sigma_1)
    left = 1 / (sigma_1**-2 - 1 + std**-2)  # the posterior's variance at t = 1
    model = bfn.continuous(network, sigma_1=sigma_1, recon_std=math.sqrt(left), **options)
    x = std * random.normal(random.key(0), (EXAMPLES, DIMENSIONS), F64)
    terms = model.nll_bound(NO_PARAMS, x, random.key(1))
    for term, want in (
        (terms.diffusion, 0.5 * math.log(left**-1 * std**2)),
        (terms.recon, 0.5 * math.log(2 * math.pi * math.e * left)),
    ):
        mean, error = mean_and_error(term / DIMENSIONS)
        assert abs(mean - want) < 4 * error
    assert not terms.prior.any()


def hermite(n, axes):
    """Nodes and weights for the mean under a standard normal over some axes."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    weights = weights / weights.sum()
    grid = np.stack(np.meshgrid(*[nodes] * axes, indexing="ij"), -1).reshape(-1, axes)
    product = np.prod(np.stack(np.meshgrid(*[weights] * axes, indexing="ij"), -1).reshape(-1, axes), -1)
    return torch.tensor(grid), torch.tensor(product)


@pytest.mark.parametrize("kind", ["discretised", "discrete"])
def test_losses_in_steps_tend_to_the_continuous_one(kind):
    """For an output distribution that never changes, without any randomness: by quadrature over the sender's noise."""
    if kind == "discretised":
        flow, output = flows.Normal(0.4), outputs.Normals(bfn.binned(5), None)
        out, x = (torch.tensor(0.3, dtype=F64), torch.tensor(0.4, dtype=F64)), torch.tensor(1)
        eps, weights = hermite(60, 1)
        eps = eps[:, 0]
    else:
        flow, output = flows.Categorical(2, 2.0), IDEAL["binary"][1].output
        out, x = (torch.tensor([0.3, 0.7], dtype=F64).log(),), torch.tensor(0)
        eps, weights = hermite(30, 2)
    h = output.encode(x, F64)

    def loss(n):
        times = torch.arange(n + 1, dtype=F64) / n
        gains = flow.gain(times[:-1], times[1:])

        def kl(gain):
            each = torch.func.vmap(lambda e: output.step_loss(out, x, h, gain, e[None]).sum())(eps)
            return each @ weights

        return torch.func.vmap(kl)(gains).sum()

    limit = process.continuous_loss(h, output.mean(out), flow.snr(torch.tensor(1.0, dtype=F64))).sum()
    off = torch.stack([loss(n) / limit - 1 for n in (1, 4, 16, 64, 256)]).abs()
    assert off[-1] < 1e-2
    torch.testing.assert_close(off[-2] / off[-1], torch.tensor(4.0, dtype=F64), rtol=0.1, atol=0)  # first order in 1/n
    assert (off.diff() < 0).all()


@pytest.mark.parametrize("kind", ["continuous", "discretised", "discrete"])
def test_a_network_s_losses_in_many_steps_are_near_the_continuous_one(kind):
    options = dict(event_shape=(3,), dtype=F64, reconstruction=False)
    model = {
        "continuous": bfn.continuous(networks.mlp(8, predicts="v"), sigma_1=0.1, **options),
        "discretised": bfn.discretised(networks.mlp(8, outputs=2, predicts="v"), bins=7, sigma_1=0.1, **options),
        "discrete": bfn.discrete(networks.mlp(8, fourier=()), classes=5, beta_1=2.0, **options),
    }[kind]
    params = model.init(random.key(0))
    x = random.randint(random.key(1), (1, 3), 0, 5).long()
    x = (0.3 * x.double() - 0.6 if kind == "continuous" else x).expand(4000, 3)
    many = model._replace(timesteps=1000)
    with torch.no_grad():
        means = [mean_and_error(m.nll_bound(params, x, random.key(2)).diffusion) for m in (model, many)]
    (a, a_error), (b, b_error) = means
    assert abs(a - b) < 4 * math.hypot(a_error, b_error) + 0.01 * a
    # pairs of opposite noises keep the estimate's variance from growing with the number of steps
    assert b_error < 3 * a_error


def test_steps_start_where_the_last_ended():
    s, t = bound.step_of(torch.tensor([0.1, 0.7, 1.0]), 10)
    torch.testing.assert_close(s, torch.tensor([0.0, 0.6, 0.9]))
    torch.testing.assert_close(t, torch.tensor([0.1, 0.7, 1.0]))
    model = bfn.continuous(networks.mlp(4), (2,), 0.1, timesteps=3)
    t = model.draw(random.key(0), 6).t
    torch.testing.assert_close(t.sort().values, torch.tensor([1, 1, 2, 2, 3, 3]) / 3)


def test_the_noise_of_rows_is_the_rows_of_the_noise():
    model = bfn.discrete(networks.mlp(4), (2,), 3, 1.0, timesteps=5, draws=2)
    seeds = model.seeds(random.key(3), 5)
    whole, part = model.draw(seeds, 5), model.draw(seeds.rows(slice(1, 3)), 2)
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[1:3], b)
    assert whole.sender.shape == (5, 4, 2, 3)  # pairs, each with its opposite
    assert torch.equal(whole.sender[:, :2], -whole.sender[:, 2:])
    assert model._replace(timesteps=0).draw(random.key(3), 5).sender is None


def test_clipping_bounds_the_loss_of_a_wild_network():
    """Near t = 0 an error of the noise is an error of the data without limit; the paper clamps the data."""
    model = bfn.continuous(ideal._network(lambda params, seen, t, **rest: 40.0 + seen), (2,), 0.1, decoder=bfn.binned(4))
    x = random.randint(random.key(0), (64, 2), 0, 4)
    noise = model.draw(random.key(1), 64)
    t = noise.t
    found = bound.bound(model, {"network": {}}, x, noise).diffusion
    at_most = 0.5 * normal.rate(t, 0.1) * 2 * (1 + 0.75) ** 2
    assert (found <= at_most * 1.001).all()
    free = bfn.continuous(model.network, (2,), 0.1, decoder=bfn.binned(4), clip=False)
    assert (bound.bound(free, {"network": {}}, x, noise).diffusion > found).any()
