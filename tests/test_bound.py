"""The bound: the official numbers, known answers with ideal denoisers, and invariances."""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import optree
import pytest
import torch
from compare import close
from goldens import CASES, case
from hypothesis import given, settings

import purevdm
from purevdm import Noise, networks, parts, random, schedules
from purevdm import bound as rooms
from purevdm.noise import discretise, draw_noise, draw_seeds, draw_times
from purevdm.testing import sources

seeds = st.integers(0, 2**31)


def golden_terms(c):
    return rooms.bound(c.model, c.params, c.x, c.noise, c.cond)


@pytest.mark.parametrize("name", CASES)
def test_terms_are_the_official_ones(name):
    c = case(name)
    terms, a = golden_terms(c), c.arrays
    np.testing.assert_allclose(terms.prior, a["out/loss_klz"], rtol=1e-5)
    # sums over 192 dimensions of squares of a network's output, which is good to 2e-5 of its norm
    close(terms.diffusion, torch.tensor(a["out/loss_diff"]), 2e-5)
    close(terms.total.mean() / (192 * math.log(2)), torch.tensor(a["out/bpd"]), 2e-5)
    # The official reconstruction cancels squares of several hundred in float32 and is itself up to 4.6e-5 off its value in
    # float64. Its own formula in float32 must meet it to 1e-5, and ours must be nearer to float64 than it is.
    gamma_0 = c.model.gamma(c.params, torch.tensor(0.0))
    values = c.model.decoder.encode({}, torch.arange(256))
    z = c.model.decoder.encode({}, c.x) + torch.exp(0.5 * gamma_0) * c.noise.eps_0
    official = torch.log_softmax(-0.5 * ((z[..., None] - values) * torch.exp(-0.5 * gamma_0)) ** 2, -1)
    official = -official.gather(-1, c.x.long()[..., None]).sum((1, 2, 3, 4))
    np.testing.assert_allclose(official, a["out/loss_recon"], rtol=1e-5)
    exact = golden_terms(case(name, torch.float64)).recon
    error = (terms.recon / exact - 1).abs().max()
    assert error < abs(a["out/loss_recon"] / exact.numpy() - 1).max()
    assert error < 3e-5


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_official_ones(name):
    c = case(name)

    def loss(params):
        return golden_terms(c._replace(params=params)).total.mean() / (192 * math.log(2))

    grads, official_grads = torch.func.grad(loss)(c.params), c.grads
    c = case(name, torch.float64)  # which the loss takes from now on
    exact = torch.func.grad(loss)(c.params)
    leaves = (optree.tree_leaves(tree) for tree in (grads, official_grads, exact))
    for label, got, official, true in zip(optree.tree_paths(grads), *leaves, strict=True):
        official = official.double()
        if true.norm() < 1e-9:  # a bias before a norm, or of a softmax: no gradient but rounding
            assert got.norm() < 2e-6, label
            continue
        # 1e-4 of the official gradient; where large terms cancel, and the official float32 is itself about as far off
        # float64 as that, a few times its error
        tolerance = max(1e-4 * official.norm().item(), 3 * (official - true).norm().item())
        assert (got.double() - official).norm() <= tolerance, label
        assert (got.double() - true).norm() <= tolerance, label


def ideal(network, vocab, gamma_min=-14.0, gamma_max=12.0, timesteps=0, schedule=None, dims=4):
    schedule = schedules.fixed_linear(gamma_min, gamma_max) if schedule is None else schedule
    return purevdm.vdm(network, schedule, (dims,), vocab, timesteps=timesteps, dtype=torch.float64)


def bound(model, p, key, n, params=None):
    """The bound of independent pixels with probabilities p, nats per pixel, and its Monte Carlo error: from the means of
    16 batches of n, whose times are spread evenly within and independent between. With each, the pixels' own log p."""
    params = {"network": {}, "schedule": {}} if params is None else params
    means, log_p = [], []
    for k in random.split(key, 16):
        k_x, k_loss = random.split(k)
        x = random.categorical(k_x, p.log(), shape=(n, *model.event_shape))
        means.append(model.nll_bound(params, x, k_loss).total.mean() / math.prod(model.event_shape))
        log_p.append(p.log()[x].mean())
    return torch.stack(means), torch.stack(log_p)


@pytest.mark.parametrize("p", [[0.5, 0.5], [0.7, 0.1, 0.2], [0.05, 0.4, 0.05, 0.3, 0.01, 0.19]], ids=len)
def test_bound_of_independent_pixels_is_their_entropy(p):
    p = torch.tensor(p, dtype=torch.float64)
    total, log_p = bound(ideal(sources.categorical(p), len(p)), p, random.key(0), 4000)
    mean, error = sources.mean_and_error(total)
    assert abs(mean - sources.entropy(p)) < 4 * error
    # the pixels' own log-probability as a control variate: the bound is tight pixel by pixel
    gap, gap_error = sources.mean_and_error(total + log_p)
    assert abs(gap) < 4 * gap_error
    assert gap_error < 0.02


def test_bound_of_a_finely_quantised_gaussian_is_its_entropy():
    std, vocab, gamma_0 = 0.25, 512, -7.0
    p = sources.gaussian_pmf(std, vocab)
    total, log_p = bound(ideal(sources.gaussian(std), vocab, gamma_0), p, random.key(1), 1000)
    # the entropy is the differential one less the logarithm of a step
    step = 2 / vocab
    assert abs(sources.entropy(p) - (0.5 * math.log(2 * math.pi * math.e * std**2) - math.log(step))) < 1e-3
    gap, error = sources.mean_and_error(total + log_p)
    # the noise that is left at time 0 widens the source, by this much
    assert abs(gap - 0.5 * math.log1p(math.exp(gamma_0) / std**2)) < 4 * error
    assert error < 0.04


def test_discrete_time_falls_to_continuous_time():
    """L_T decreases as T doubles, towards L_infinity (sec. 4.2)."""
    p = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64)
    means = [
        bound(ideal(sources.categorical(p), 3, timesteps=t), p, random.key(2), 1000)[0].mean().item()
        for t in (1, 2, 4, 8, 16, 32, 64, 128, 0)
    ]
    assert all(a > b for a, b in itertools.pairwise(means)), means
    assert means[-2] - means[-1] < 0.05 * (means[0] - means[-1])


def test_continuous_loss_depends_on_the_ends_alone():
    """Sec. 5.1: schedules with the same ends give the same expected loss."""
    p = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64)
    linear, _ = bound(ideal(sources.categorical(p), 3), p, random.key(3), 4000)
    bent = schedules.monotone_mlp(-14.0, 12.0, hidden=8, pin_endpoints=True)
    params = optree.tree_map(lambda leaf: leaf.double(), bent.init(random.key(0)))
    params["l2"]["kernel"] = torch.linspace(5, 40, 8, dtype=torch.float64)[None]
    params["l3"]["kernel"] = torch.full((8, 1), 60.0, dtype=torch.float64)
    t = torch.tensor(0.25, dtype=torch.float64)
    assert abs(bent.gamma(params, t) - (-14 + 26 * 0.25)) > 1  # truly bent
    model = ideal(sources.categorical(p), 3, schedule=bent)
    curved, _ = bound(model, p, random.key(3), 4000, {"network": {}, "schedule": params})
    (m1, e1), (m2, e2) = sources.mean_and_error(linear), sources.mean_and_error(curved)
    assert abs(m1 - m2) < 4 * math.hypot(e1, e2)
    assert math.hypot(e1, e2) < 0.04


@given(st.floats(-30, 30), seeds)
def test_prior_is_the_kl_divergence(gamma, seed):
    f = random.uniform(random.key(seed), (5,), torch.float64, -1.0, 1.0)
    g = torch.tensor(gamma, dtype=torch.float64)
    q = torch.distributions.Normal(purevdm.process.alpha(g) * f, purevdm.process.sigma(g))
    want = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(rooms.prior_loss(f, g).sum(), want, rtol=1e-8, atol=1e-13)
    torch.testing.assert_close(rooms.prior_loss(f.float(), g.float()).sum().double(), want, rtol=1e-5, atol=1e-12)
    narrow, wide = rooms.prior_loss(torch.zeros(3), g.float()), rooms.prior_loss(torch.zeros(3).double(), g.float().double())
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=0)  # where its parts cancel


@given(seeds, st.integers(1, 40), st.integers(0, 20), st.booleans())
def test_times(seed, n, timesteps, antithetic):
    t = draw_times(random.key(seed), n, antithetic=antithetic, timesteps=timesteps)
    assert t.shape == (n,)
    if timesteps:
        steps = t * timesteps
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
        assert (steps.round() >= 1).all()
        assert (steps.round() <= timesteps).all()
    else:
        assert ((t >= 0) & (t < 1)).all()
        if antithetic:
            gaps = t.sort().values.diff()
            torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / n), rtol=0, atol=1e-6)


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 1000))
def test_discretised_times_end_their_step(t, timesteps):
    t = torch.tensor(t, dtype=torch.float64)
    got = discretise(t, timesteps)
    assert got * timesteps >= 1 - 1e-9
    assert -1e-9 <= got - t <= 1 / timesteps + 1e-9


@settings(max_examples=10)
@given(seeds, st.permutations(range(5)))
def test_permuting_examples_with_their_keys_permutes_the_terms(seed, order):
    model = purevdm.vdm(purevdm.networks.mlp(16), schedules.learned_linear(), (2,))
    params = model.init(random.key(0))
    params["network"]["dense3"]["kernel"] += 0.1
    x = random.randint(random.key(seed), (5, 2), 0, 256)
    noise, order = model.draw(random.key(seed), 5), torch.tensor(order)
    terms = torch.func.vmap(model.nll_bound_of_one, (None, 0, 0))
    straight = terms(params, x, noise)
    permuted = terms(params, x[order], Noise(*(field[order] for field in noise)))
    close(optree.tree_map(lambda term: term[order], straight), permuted, 1e-5)


@given(seeds, st.integers(1, 3), st.integers(1, 4), st.sampled_from([0, 5]))
def test_rows_of_a_batchs_seeds_have_the_noise_of_the_whole(seed, n, parts, timesteps):
    seeds = draw_seeds(random.key(seed), n * parts, timesteps=timesteps, dtype=torch.float64)
    whole = draw_noise(seeds, (2,))
    pieces = [draw_noise(seeds.rows(slice(i * n, (i + 1) * n)), (2,)) for i in range(parts)]
    short = draw_noise(draw_seeds(random.key(seed), n, dtype=torch.float64), (2,))
    for i, (field, *split) in enumerate(zip(whole, *pieces, strict=True)):
        assert torch.equal(torch.cat(split), field)
        assert i == 0 or torch.equal(short[i], field[:n])  # times alone depend on the batch's size
    chosen = draw_noise(seeds.rows(torch.tensor([n * parts - 1])), (2,))
    assert all(torch.equal(a[0], b[-1]) for a, b in zip(chosen, whole, strict=True))


def bent_levels(params, t):
    """A schedule for each of three dimensions, from its own endpoints and with a bend of its own."""
    low, high = torch.tensor([-14.0, -13.0, -15.0]).to(t), torch.tensor([12.0, 13.0, 11.0]).to(t)
    return low + (high - low) * (t + torch.tensor([0.0, 0.3, -0.3]).to(t) * t * (1.0 - t))


PER_PIXEL = schedules.Schedule.of(lambda key: {}, bent_levels)


@pytest.mark.parametrize("timesteps", [0, 200])
def test_bound_under_a_schedule_for_each_pixel_is_the_entropy(timesteps):
    p = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64)
    model = ideal(sources.categorical(p), 3, schedule=PER_PIXEL, dims=3, timesteps=timesteps)
    total, log_p = bound(model, p, random.key(0), 2000)
    gap, error = sources.mean_and_error(total + log_p)
    # in discrete time the bound lies above the entropy, by less with more steps
    excess = 0.05 if timesteps else 0.0
    assert -4 * error < gap < excess + 4 * error
    assert error < 0.02


def test_another_variance_costs_what_its_series_says_in_many_steps():
    """Where z_t is nearly data the two variances' log ratio r is gamma's rise, and the cost T (exp(-r) - 1 + r) / 2."""
    timesteps, gamma_t, r = 100_000, torch.tensor([-20.0]), 18.3 / 100_000
    schedule, reverse = schedules.fixed_linear(), parts.upper()
    model = purevdm.vdm(networks.mlp(4), schedule, (1,), timesteps=timesteps, reverse=reverse)
    eps, weight = torch.ones(1), torch.tensor([timesteps * math.expm1(r)])
    got = rooms.latent_loss(model, eps, eps, gamma_t, weight)
    want = torch.tensor([0.5 * timesteps * (r**2 / 2 - r**3 / 6)])
    torch.testing.assert_close(got, want, rtol=8 * torch.finfo(torch.float32).eps, atol=0)


def test_a_pixels_schedule_for_all_pixels_is_the_shared_one():
    """A multivariate schedule whose components are one schedule gives each example's bound as that schedule does."""
    p = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64)
    shared = schedules.fixed_linear(-14.0, 12.0)
    spread = schedules.Schedule.of(lambda key: {}, lambda params, t: shared.gamma(params, t).expand(4))
    params, x = {"network": {}, "schedule": {}}, random.randint(random.key(0), (8, 4), 0, 3)
    for timesteps in (0, 10):
        one, each = (ideal(sources.categorical(p), 3, schedule=s, timesteps=timesteps) for s in (shared, spread))
        for a, b in zip(one.nll_bound(params, x, random.key(1)), each.nll_bound(params, x, random.key(1)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_contextual_schedule_sees_each_examples_condition():
    """gamma runs to an endpoint that the condition moves: as many models, one for each condition."""
    p = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64)
    contextual = schedules.Schedule.of(lambda key: {}, lambda params, t, c: -14.0 + (24.0 + c) * t, contextual=True)
    network = sources.categorical(p)
    model = ideal(network, 3, schedule=contextual)
    params, x = {"network": {}, "schedule": {}}, random.randint(random.key(0), (5, 4), 0, 3)
    cond = torch.arange(5.0).double()
    got = model.nll_bound(params, x, random.key(1), cond)
    seeds = model.seeds(random.key(1), 5)
    for i in range(5):
        alone = ideal(network, 3, -14.0, 10.0 + i)
        want = alone.nll_bound(params, x[i : i + 1], seeds.rows(slice(i, i + 1)))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a[i], b[0], rtol=1e-12, atol=1e-12)
    assert model.loss_fn(params, x, random.key(1), cond).isfinite()
    with pytest.raises(ValueError, match="cond: expected the condition that the schedule takes"):
        model.nll_bound(params, x, random.key(1))


def test_the_network_has_a_key_of_its_own():
    """Not that of the noise, nor another example's."""
    noise = draw_noise(draw_seeds(random.key(0), 3), (4,))
    for key in noise.key:
        drawn = random.normal(key, (2, 4))
        for eps_0, eps in zip(noise.eps_0, noise.eps, strict=True):
            assert not torch.equal(drawn, torch.stack([eps_0, eps]))
    assert len({tuple(key.tolist()) for key in noise.key}) == 3
