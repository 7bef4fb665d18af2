"""The Gaussian decoder: a density of the data as given, in the data's units and precision."""

import math
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import purevdm
from purevdm import decoders, likelihood, networks, ode, random, schedules, testing

gammas, seeds = st.floats(-30, 30), st.integers(0, 2**31)
locs, scales = st.floats(-100, 100), st.floats(1e-3, 1e3)


def float64(x):
    return torch.tensor(x, dtype=torch.float64)


@given(gammas, seeds, locs, scales)
def test_log_prob_is_the_normal_density_of_the_data(gamma, seed, loc, scale):
    """N(x; z scale + loc, (exp(gamma / 2) scale)**2), by torch's own normal distribution."""
    k_x, k_z = random.split(random.key(seed))
    g, d = float64(gamma), decoders.gaussian(loc=loc, scale=scale)
    z = random.normal(k_z, (2, 3), torch.float64)
    std = (0.5 * g).exp() * scale
    x = z * scale + loc + std * random.normal(k_x, (2, 3), torch.float64)
    want = torch.distributions.Normal(z * scale + loc, std).log_prob(x)
    # x holds its noise to a part 2e-16 of the largest term; over the noise's size, that is the error of eps_0
    rounding = 1e-15 * (abs(loc) + scale * z.abs().max()) / std
    torch.testing.assert_close(
        d.log_prob({}, x, z, g), want, rtol=1e-12, atol=1e-12 + 20 * rounding.item() + rounding.item() ** 2
    )


@given(st.floats(-20, 20), seeds, locs, scales)
def test_reconstruction_is_log_prob_at_the_implied_latent(gamma, seed, loc, scale):
    k_x, k_eps = random.split(random.key(seed))
    g, d = float64(gamma), decoders.gaussian(loc=loc, scale=scale)
    x, eps = loc + scale * random.normal(k_x, (5,), torch.float64), random.normal(k_eps, (5,), torch.float64)
    z = d.encode({}, x, dtype=torch.float64) + (0.5 * g).exp() * eps
    # eps_0 comes back from z to 1e-15 of f over the noise's size, exp(10) here
    torch.testing.assert_close(d.reconstruction({}, x, eps, g), -d.log_prob({}, x, z, g), rtol=1e-9, atol=1e-9)
    single = d.reconstruction({}, x, eps.float(), g.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), d.reconstruction({}, x, eps, g), rtol=1e-5, atol=1e-5)


@given(seeds, gammas, locs, scales, st.floats(-10, 10), st.floats(0.1, 10))
def test_moved_and_stretched_data_have_the_density_of_the_change_of_variables(seed, gamma, loc, scale, shift, stretch):
    """x -> stretch x + shift, with loc and scale moved along: the same f, and a density less log(stretch)."""
    k_x, k_eps = random.split(random.key(seed))
    x, eps = random.normal(k_x, (4,), torch.float64), random.normal(k_eps, (4,), torch.float64)
    d, moved = decoders.gaussian(), decoders.gaussian(loc=loc * stretch + shift, scale=scale * stretch)
    plain = decoders.gaussian(loc=loc, scale=scale)
    torch.testing.assert_close(
        moved.encode({}, stretch * x + shift, dtype=torch.float64),
        plain.encode({}, x, dtype=torch.float64),
        rtol=1e-9,
        atol=1e-9 * (1 + abs(loc) + abs(shift)) / min(scale, 1.0),
    )
    for a, b, factor in ((moved, plain, stretch), (plain, d, scale)):
        got, want = (decoder.reconstruction({}, x, eps, float64(gamma)) for decoder in (a, b))
        torch.testing.assert_close(got, want + math.log(factor), rtol=1e-12, atol=1e-12)


@given(st.floats(-20, 20), seeds, locs, scales, st.floats(1e-3, 10))
def test_a_noise_of_ones_own_is_the_deviation_in_units_of_the_scale(gamma, seed, loc, scale, noise):
    """N(x; z scale + loc, (noise scale)**2), whatever gamma_0; at exp(gamma_0 / 2) it is the one without."""
    k_z, k_x, k_eps = random.split(random.key(seed), 3)
    g, d = float64(gamma), decoders.gaussian(loc=loc, scale=scale, noise=noise)
    z, eps = random.normal(k_z, (4,), torch.float64), random.normal(k_eps, (4,), torch.float64)
    x = z * scale + loc + noise * scale * random.normal(k_x, (4,), torch.float64)
    want = torch.distributions.Normal(z * scale + loc, noise * scale).log_prob(x)
    rounding = 1e-15 * (abs(loc) + scale * z.abs().max()) / (noise * scale)
    torch.testing.assert_close(d.log_prob({}, x, z, g), want, rtol=1e-9, atol=1e-9 + 100 * rounding.item())
    at_z_0 = decoders.gaussian(loc=loc, scale=scale, noise=math.exp(gamma / 2))
    plain = decoders.gaussian(loc=loc, scale=scale).reconstruction({}, x, eps, g)
    torch.testing.assert_close(at_z_0.reconstruction({}, x, eps, g), plain, rtol=1e-12, atol=1e-12)


def test_the_reconstruction_under_a_fixed_noise_has_its_mean_and_is_least_at_that_of_z_0():
    """exp(gamma_0) / (2 noise**2) + log(noise) + log(2 pi) / 2 on average."""
    eps = random.normal(random.key(0), (200_000,), torch.float64)
    x, g, means = torch.zeros_like(eps), float64(-6.0), []
    for noise in (0.03, math.exp(-3.0), 0.08):
        cost = decoders.gaussian(noise=noise).reconstruction({}, x, eps, g)
        want = 0.5 * math.exp(-6.0) / noise**2 + math.log(noise) + 0.5 * math.log(2 * math.pi)
        assert abs(cost.mean() - want) < 4 * cost.std() / math.sqrt(len(eps))
        means.append(cost.mean())
    assert means[1] < min(means[0], means[2])


def test_each_channel_has_its_own_scale_and_noise():
    scale, noise = ((2.0,), (0.5,)), ((0.1,), (0.3,))
    d = decoders.gaussian(scale=scale, noise=noise)
    x, eps = random.normal(random.key(0), (3, 2, 5)), random.normal(random.key(1), (3, 2, 5))
    got = d.reconstruction({}, x, eps, torch.tensor(-4.0))
    of = [decoders.gaussian(scale=s, noise=n) for (s,), (n,) in zip(scale, noise, strict=True)]
    want = [one.reconstruction({}, x[:, i], eps[:, i], torch.tensor(-4.0)) for i, one in enumerate(of)]
    torch.testing.assert_close(got, torch.stack(want, 1))
    drawn = d.sample({}, random.key(2), torch.zeros(20_000, 2, 5), torch.tensor(-4.0))
    torch.testing.assert_close(drawn.std((0, 2)), torch.tensor([0.2, 0.15]), rtol=0.02, atol=0.0)
    network, schedule = networks.mlp(8), schedules.fixed_linear(-4.0, 4.0)
    model = purevdm.vdm(network, schedule, (2, 5), decoder=d)
    params = model.init(random.key(3))
    compiled = torch.compile(model.loss_fn, fullgraph=True, backend="aot_eager")(params, x, random.key(4))
    torch.testing.assert_close(compiled, model.loss_fn(params, x, random.key(4)))
    with pytest.raises(ValueError, match="decoder: expected a loc, scale and noise that broadcast against events"):
        purevdm.vdm(network, schedule, (3, 5), decoder=d)


def test_the_flow_has_its_density_whatever_the_noise():
    """Without dequantisation, p(x given z_0) is no part of it."""
    model = purevdm.vdm(networks.mlp(8), schedules.fixed_linear(-4.0, 4.0), (2,), decoder=decoders.gaussian(scale=3.0))
    noisy = model._replace(decoder=decoders.gaussian(scale=3.0, noise=0.2))
    params, x = model.init(random.key(0)), random.normal(random.key(1), (3, 2))
    options = dict(dequantisation="none", integrator=ode.heun(4))
    plain, other = (likelihood.log_prob(m, params, x, random.key(2), **options).log_prob for m in (model, noisy))
    assert torch.equal(plain, other)


def test_each_number_has_its_own_loc_and_scale():
    loc, scale = ((1.0, -2.0), (0.0, 5.0)), (2.0, 0.5)
    d, x, eps = decoders.gaussian(loc=loc, scale=scale), random.normal(random.key(0), (3, 2, 2)), torch.zeros(3, 2, 2)
    torch.testing.assert_close(d.encode({}, x), (x - torch.tensor(loc)) / torch.tensor(scale))
    torch.testing.assert_close(d.mode({}, d.encode({}, x)), x)
    got = d.reconstruction({}, x, eps, torch.tensor(0.0))
    torch.testing.assert_close(got, (0.5 * math.log(2 * math.pi) + torch.tensor(scale).log()).expand(3, 2, 2))


def test_float64_data_far_from_zero_keep_their_digits_in_a_float32_model():
    """Standardised before they are rounded: in float32, 1e9 has steps of 64."""
    x = 1e9 + torch.arange(5, dtype=torch.float64)
    f = decoders.gaussian(loc=1e9, scale=2.0).encode({}, x)
    assert f.dtype == torch.float32
    assert f.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    third = torch.tensor([1 / 3], dtype=torch.float64)
    assert decoders.gaussian().encode({}, third, dtype=torch.float64) == third
    assert decoders.gaussian().encode({}, third.float(), dtype=torch.float64) == third.float().double()


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), ((1.0, -3.0), (2.0, 0.1)), (-70.0, 1e-3)])
def test_the_laws_hold(loc, scale):
    testing.check_decoder(decoders.gaussian(loc=loc, scale=scale), (2,))
    testing.check_decoder(decoders.gaussian(loc=loc, scale=scale, noise=(0.1, 0.5)), (2,))


def test_it_is_a_value():
    d = decoders.gaussian(loc=[1.0, 2.0], scale=0.5)
    assert d == decoders.gaussian(loc=(1.0, 2.0), scale=0.5) == pickle.loads(pickle.dumps(d))
    assert d != decoders.gaussian(loc=[1.0, 2.5], scale=0.5)
    assert d != d._replace(noise=0.1)
    assert repr(d) == "Gaussian(loc=(1.0, 2.0), scale=0.5, noise=None)"
    assert (d.unit, d.vocab_size, d.log_probs, decoders.discrete(4).unit) == ("nats", None, None, "bits/dim")


def test_latents_that_are_not_finite_are_refused_in_eager_and_stay_so_compiled():
    d, z = decoders.gaussian(loc=1.0, scale=2.0), torch.tensor([0.5, math.nan, math.inf])
    for call in (lambda: d.mode({}, z), lambda: d.sample({}, random.key(0), z, torch.tensor(0.0))):
        with pytest.raises(ValueError, match="z: expected finite"):
            call()
    assert str(torch.compile(d.mode, fullgraph=True)({}, z).tolist()) == "[2.0, nan, inf]"


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: decoders.gaussian(scale=[1.0, -1.0]), "scale: expected numbers above 0"),
        (lambda: decoders.gaussian(loc=[0.0, math.nan]), r"loc\[1\]: expected a finite number"),
        (lambda: decoders.gaussian(loc=[[0.0], [1.0, 2.0]]), "loc: expected sequences of one length"),
        (lambda: decoders.gaussian(noise=0.0), "noise: expected numbers above 0, got 0.0"),
        (lambda: decoders.gaussian(noise=[0.1, -0.1]), "noise: expected numbers above 0"),
        (lambda: decoders.gaussian(noise=[0.1, math.nan]), r"noise\[1\]: expected a finite number"),
        (lambda: decoders.gaussian(noise=[[0.1], [1.0, 2.0]]), "noise: expected sequences of one length"),
        (lambda: decoders.gaussian().encode({}, torch.arange(3)), "x: expected .*go with decoders.discrete"),
        (
            lambda: decoders.gaussian().log_prob({}, torch.tensor([1.0, math.inf]), torch.zeros(2), torch.tensor(0.0)),
            "x: expected finite numbers whose latents torch.float32 holds, got values from 1.0 to inf",
        ),
        (
            lambda: decoders.gaussian().log_prob({}, torch.zeros(2, 2), torch.zeros(2), torch.tensor(0.0)),
            r"x: expected a tensor that broadcasts to \(2,\)",
        ),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises((TypeError, ValueError), match=word):
        call()
