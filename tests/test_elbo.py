"""The bound: the official numbers, known answers with ideal denoisers, and what must not matter."""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import perturb
import pytest
import sources
import torch
from goldens import CASES, case
from hypothesis import given, settings

import purevdm
from purevdm import Noise, elbo, networks, process, random, schedules

seeds = st.integers(0, 2**31)


def golden_terms(c):
    return torch.func.vmap(c.model.elbo_core, in_dims=(None, 0, elbo.axes(False), 0))(c.params, c.x, c.noise, c.cond)


@pytest.mark.parametrize("name", CASES)
def test_terms_are_the_official_ones(name):
    c = case(name)
    terms, a = golden_terms(c), c.arrays
    np.testing.assert_allclose(terms.prior, a["out/loss_klz"], rtol=1e-5)
    np.testing.assert_allclose(terms.diffusion, a["out/loss_diff"], rtol=1e-5)
    np.testing.assert_allclose(terms.total.mean() / (192 * math.log(2)), a["out/bpd"], rtol=1e-5)
    # The official reconstruction cancels squares of several hundred in float32 and is itself up to 4.6e-5 off its value in
    # float64. Its own formula in float32 must meet it to 1e-5, and ours must be nearer to float64 than it is.
    gamma_0 = c.model.gamma(c.params, torch.tensor(0.0))
    values = c.model.decoder.encode(torch.arange(256))
    z = c.model.decoder.encode(c.x) + torch.exp(0.5 * gamma_0) * c.noise.eps_0
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

    grads = torch.func.grad(loss)(c.params)
    exact_case = case(name, torch.float64)
    exact = torch.func.grad(
        lambda params: golden_terms(exact_case._replace(params=params)).total.mean() / (192 * math.log(2))
    )(exact_case.params)
    flat = torch.utils._pytree.tree_flatten_with_path
    for (path, got), want, true in zip(flat(grads)[0], flat(c.grads)[0], flat(exact)[0], strict=True):
        official, true = want[1].double(), true[1]
        label = torch.utils._pytree.keystr(path)
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
        means.append(model.elbo(params, x, k_loss).total.mean() / math.prod(model.event_shape))
        log_p.append(p.log()[x].mean())
    return torch.stack(means), torch.stack(log_p)


@pytest.mark.parametrize(
    "p", [[0.5, 0.5], [0.7, 0.1, 0.2], [0.05, 0.4, 0.05, 0.3, 0.01, 0.19]], ids=["coin", "three", "six"]
)
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
    bent = schedules.monotone_mlp(-14.0, 12.0, hidden=8, pin_ends=True)
    params = torch.utils._pytree.tree_map(lambda leaf: leaf.double(), bent.init(random.key(0)))
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
    torch.testing.assert_close(elbo.prior_loss(f, g), want, rtol=1e-8, atol=1e-13)
    torch.testing.assert_close(elbo.prior_loss(f.float(), g.float()).double(), want, rtol=1e-5, atol=1e-12)


@given(seeds, st.integers(1, 40), st.integers(0, 20), st.booleans())
def test_times(seed, n, timesteps, antithetic):
    t = elbo.draw_times(random.key(seed), n, antithetic=antithetic, timesteps=timesteps)
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
    got = elbo.discretise(t, timesteps)
    assert got * timesteps >= 1 - 1e-9
    assert -1e-9 <= got - t <= 1 / timesteps + 1e-9


@given(seeds, st.integers(1, 5), st.integers(1, 5))
def test_an_examples_noise_does_not_depend_on_the_batch(seed, a, b):
    short, long = (elbo.draw(random.key(seed), n, (2, 3)) for n in (a, a + b))
    for field in ("eps_0", "eps", "key"):
        assert torch.equal(getattr(short, field), getattr(long, field)[:a])


@settings(max_examples=10)
@given(seeds, st.permutations(range(5)))
def test_permuting_examples_with_their_keys_permutes_the_terms(seed, order):
    model = purevdm.vdm(purevdm.networks.mlp(16), schedules.learned_linear(), (2,))
    params = model.init(random.key(0))
    params["network"]["dense3"]["kernel"] += 0.1
    x = random.randint(random.key(seed), (5, 2), 0, 256)
    noise, order = model.draw(random.key(seed), 5), torch.tensor(order)
    terms = torch.func.vmap(model.elbo_core, (None, 0, elbo.axes(True)))
    straight = terms(params, x, noise)
    permuted = terms(params, x[order], Noise(*(field[order] for field in noise)))
    for a, b in zip(straight, permuted, strict=True):
        torch.testing.assert_close(a[order], b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: elbo.draw_times(random.key(0), 0), ValueError, "n: expected"),
        (lambda: elbo.draw_times(random.key(0), 4, timesteps=-1), ValueError, "timesteps"),
        (lambda: elbo.draw(0, 4, (2,)), TypeError, "key"),
    ],
)
def test_bad_input_is_named(call, error, word):
    with pytest.raises(error, match=word):
        call()


def self_conditioned():
    network = networks.mlp(8, fourier=(), self_condition=True)
    model = purevdm.vdm(network, schedules.learned_linear(), (2,), 16)
    return model, perturb.perturbed(model.init(random.key(0)), 1, 0.5)


def test_self_conditioning_predicts_twice_and_half_of_the_time_in_training():
    model, params = self_conditioned()
    z, gamma = random.normal(random.key(1), (2,)), torch.tensor(-1.0)
    apply, network = model.network.apply, params["network"]
    first = apply(network, z, gamma)
    x_hat = process.x_from_eps(z, first, gamma).clamp(-15 / 16, 15 / 16)
    second = apply(network, z, gamma, x_hat=x_hat)
    assert not torch.allclose(first, second, atol=1e-3)

    def predict(key=None, params=network):
        return elbo.predict(model.network, model.decoder, params, z, gamma, None, key)

    assert torch.equal(predict(), second)
    assert torch.equal(model.eps_hat(params, z[None], gamma[None])[0], second)
    outs = [predict(random.key(i)) for i in range(64)]
    estimated = sum(torch.allclose(out, second) for out in outs)
    assert estimated + sum(torch.allclose(out, first) for out in outs) == 64
    assert 16 <= estimated <= 48
    # no gradient through the estimate
    through = torch.func.grad(lambda p: predict(params=p).sum())(network)
    held = torch.func.grad(lambda p: apply(p, z, gamma, x_hat=x_hat).sum())(network)
    for a, b in zip(torch.utils._pytree.tree_leaves(through), torch.utils._pytree.tree_leaves(held), strict=True):
        torch.testing.assert_close(a, b)


def test_self_conditioning_runs_through_loss_and_bound():
    model, params = self_conditioned()
    x = random.randint(random.key(1), (4, 2), 0, 16)
    assert not torch.equal(model.loss_fn(params, x, random.key(2)), model.loss_fn(params, x, random.key(2), train=False))
    assert model.elbo(params, x, random.key(2)).total.isfinite().all()


@given(seeds, st.integers(1, 3), st.integers(1, 4), st.sampled_from([0, 5]))
def test_parts_of_a_batch_have_the_noise_of_the_whole(seed, n, parts, timesteps):
    options = dict(timesteps=timesteps, dtype=torch.float64)
    whole = elbo.draw(random.key(seed), n * parts, (2,), **options)
    pieces = [elbo.draw(random.key(seed), n, (2,), part=(i, parts), **options) for i in range(parts)]
    by_tensor = elbo.draw(random.key(seed), n, (2,), part=(torch.tensor(parts - 1), parts), **options)
    for field, *split in zip(whole, *pieces, strict=True):
        assert torch.equal(torch.cat(split), field)
    assert all(torch.equal(a, b) for a, b in zip(by_tensor, pieces[-1], strict=True))
    with pytest.raises(ValueError, match=r"part\[0\]"):
        elbo.draw(random.key(seed), n, (2,), part=(parts, parts))
