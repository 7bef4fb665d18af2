"""The bound: with ideal output distributions it is the entropy, in continuous time and in steps; n-step losses tend to the
continuous one; the noise of a batch."""

import math

import ideal
import pytest
import torch
from parts import changed

from purevdm import bfn, networks, random
from purevdm.bfn import bound, outputs
from purevdm.testing.sources import entropy, mean_and_error

F64 = torch.float64
NO_PARAMS = {"network": {}}
P = torch.tensor([0.55, 0.05, 0.1, 0.3], dtype=F64)
DIMENSIONS, EXAMPLES = 16, 2000


def draw(p):
    return random.categorical(random.key(7), p.log(), shape=(EXAMPLES, DIMENSIONS))


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
    total = model._replace(timesteps=timesteps, draws=4).nll_bound(NO_PARAMS, x, random.key(8)).total / DIMENSIONS
    mean, error = mean_and_error(total + (p.log()[x].mean(1) + entropy(p)))  # minus the data's own fluctuation
    assert abs(mean - entropy(p)) < 4 * error
    assert error < 0.02


@pytest.mark.parametrize("timesteps", [0, 6])
@pytest.mark.parametrize("kind", IDEAL)
def test_worse_outputs_give_more(kind, timesteps):
    p, model = IDEAL[kind]
    model, apply = model._replace(timesteps=timesteps), model.network.apply
    worse = model._replace(network=changed(model.network, apply=lambda *given, **rest: 0.7 * apply(*given, **rest)))
    worse, best = (m.nll_bound(NO_PARAMS, draw(p), random.key(8)).total for m in (worse, model))
    mean, error = mean_and_error(worse - best)
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


def test_many_short_steps_cost_what_they_do_in_float64():
    """n times the logarithm of a number near 1: rounding that number to float32 would cost 1 per cent at n = 100,000."""
    n, x = 100_000, torch.arange(64) % 3
    log_p = torch.log_softmax(random.normal(random.key(0), (64, 3), F64), -1)
    offsets, sender = torch.eye(3, dtype=F64)[x, None] - torch.eye(3, dtype=F64), random.normal(random.key(1), (8, 64, 3))
    sender, gain = torch.cat([sender, -sender]).double(), torch.tensor(3.0 / n, dtype=F64)
    given = [part.float() for part in (log_p, offsets, sender, gain)]
    got = n * outputs.mixture_loss(*given)
    along = (offsets * sender[..., None, :]).sum(-1)
    of_draws = torch.logsumexp(log_p - 0.5 * gain * offsets.square().sum(-1) - gain.sqrt() * along, -1)
    atol = 8 * torch.finfo(torch.float32).eps * n * gain.sqrt().item()  # of each draw's first order, which pairs take away
    torch.testing.assert_close(got.double(), -n * of_draws.mean(0), rtol=0, atol=atol)


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
    at_most = 0.5 * model.flow.slope(t) * 2 * (1 + 0.75) ** 2
    assert (found <= at_most * 1.001).all()
    free = bfn.continuous(model.network, (2,), 0.1, decoder=bfn.binned(4), clip=False)
    assert (bound.bound(free, {"network": {}}, x, noise).diffusion > found).any()
