"""The discrete decoder: a distribution, peaked at what was encoded, exact in float32."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from goldens import CASES, case
from hypothesis import given, settings

import purevdm
from purevdm import bfn, decoders, networks, process, random, schedules, testing

vocab = st.integers(2, 300)
gammas = st.floats(-30, 30)


def official_log_probs(z, gamma_0, values):
    """The official form: a log-softmax of squared distances."""
    return torch.log_softmax(-0.5 * ((z[..., None] - values) * torch.exp(-0.5 * gamma_0)) ** 2, -1)


@settings(max_examples=15)
@given(vocab, st.floats(-12, 12), st.integers(0, 2**31))
def test_the_laws_hold(v, gamma, seed):
    testing.check_decoder(decoders.discrete(v), gamma_0=(gamma,), key=random.key(seed))


@given(vocab, st.integers(0, 10**6))
def test_encoding_returns_in_float32(v, i):
    d, x = decoders.discrete(v), torch.tensor(i % v)
    f = d.encode({}, x)
    assert -1 < f < 1
    assert d.mode({}, f) == x
    torch.testing.assert_close(f.double(), 2 * ((x.double() + 0.5) / v) - 1, rtol=1e-6, atol=1e-7)


@given(vocab, gammas, st.floats(-1.5, 1.5))
def test_probabilities_sum_to_one(v, gamma, z):
    log_p = decoders.discrete(v).log_probs({}, torch.tensor([z]), torch.tensor(gamma))
    assert log_p.shape == (1, v)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(1), rtol=0, atol=2e-5)


@given(vocab, gammas, st.integers(0, 10**6))
def test_probability_peaks_at_the_encoded_value(v, gamma, i):
    d, x = decoders.discrete(v), torch.tensor([i % v])
    log_p = d.log_probs({}, d.encode({}, x), torch.tensor(gamma))[0]
    assert log_p[x] == log_p.max()
    # the next value's logit is lower by half the squared spacing, if float32 can tell that from the rounding of log_p
    if 2.0 / v**2 * math.exp(-gamma) > 1e-5:
        assert log_p.argmax() == x


@given(vocab, gammas, st.integers(0, 2**31), st.floats(0.0, 6.0))
def test_float32_is_accurate(v, gamma, seed, reach):
    """Reconstruction from the noise, against the official form in float64."""
    k1, k2 = random.split(random.key(seed))
    d = decoders.discrete(v)
    x, eps = random.randint(k1, (6,), 0, v), random.normal(k2, (6,)) * reach / 2
    gamma = torch.tensor(gamma)
    f, g = d.encode({}, x, dtype=torch.float64), gamma.double()
    values = d.encode({}, torch.arange(v), dtype=torch.float64)
    z = f + torch.exp(0.5 * g) * eps.double()
    want = -official_log_probs(z, g, values).gather(-1, x.long()[:, None])[:, 0]
    got = d.reconstruction({}, x, eps, gamma)
    # conditioned like the exponent of the largest term, of order eps**2 + log v
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-6 * (1 + reach**2))


@pytest.mark.parametrize("name", CASES)
def test_generation_is_the_official_one(name):
    c = case(name)
    z = torch.tensor(c.arrays["score/z"]) / process.alpha(c.model.gamma(c.params, torch.tensor(0.0)))
    np.testing.assert_array_equal(c.model.decoder.mode({}, z), c.arrays["generate/x"])


def test_gradients_are_those_of_the_official_form():
    d = decoders.discrete(17)
    x, eps = torch.arange(17), random.normal(random.key(0), (17,), torch.float64)
    values = d.encode({}, torch.arange(17), dtype=torch.float64)

    def official(g, e):
        z = d.encode({}, x, dtype=torch.float64) + torch.exp(0.5 * g) * e
        return -official_log_probs(z, g, values).gather(-1, x[:, None]).sum()

    def ours(g, e):
        return d.reconstruction({}, x, e, g).sum()

    for gamma in (-8.0, -4.0, 0.0, 3.0):
        g = torch.tensor(gamma, dtype=torch.float64)
        for a, b in zip(torch.func.grad(ours, (0, 1))(g, eps), torch.func.grad(official, (0, 1))(g, eps), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_far_noise_keeps_its_probability():
    """40 standard deviations off, where exponentials relative to the true value would overflow or vanish."""
    d = decoders.discrete(256)
    x, eps = torch.tensor([3, 128]), torch.tensor([-40.0, 40.0])
    values = d.encode({}, torch.arange(256), dtype=torch.float64)
    for gamma in (-20.0, -9.0, -5.0):
        g = torch.tensor(gamma)
        z = d.encode({}, x, dtype=torch.float64) + torch.exp(0.5 * g.double()) * eps
        want = -official_log_probs(z, g.double(), values).gather(-1, x[:, None])[:, 0]
        torch.testing.assert_close(d.reconstruction({}, x, eps, g).double(), want, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**31))
def test_standardised_values(seed):
    """loc and scale per dimension, as the 2D example standardises."""
    d = decoders.discrete(256, loc=[0.1, -0.2], scale=[0.5, 0.25])
    x = random.randint(random.key(seed), (7, 2), 0, 256)
    u = 2 * ((x + 0.5) / 256) - 1
    f = d.encode({}, x)
    torch.testing.assert_close(f, (u - torch.tensor([0.1, -0.2])) / torch.tensor([0.5, 0.25]))
    assert torch.equal(d.mode({}, f), x.long())
    g = torch.tensor(-5.0)
    values = torch.stack([d.encode({}, torch.full((2,), v), dtype=torch.float64) for v in range(256)], -1)
    want = -official_log_probs(f.double() + 0.05, g.double(), values).gather(-1, x.long()[..., None])[..., 0]
    torch.testing.assert_close(-d.log_prob({}, x, f.double() + 0.05, g.double()), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda d: decoders.discrete(8, scale=[1.0, -1.0]), "scale: expected numbers above 0"),
        (lambda d: d.encode({}, torch.zeros(3)), "x: expected a tensor of integers"),
        (lambda d: d.encode({}, torch.tensor([True])), "x: expected a tensor of integers"),
        (
            lambda d: d.log_prob({}, torch.tensor([8]), torch.zeros(1), torch.tensor(0.0)),
            r"x: expected integers in \[0, 7\]",
        ),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises((TypeError, ValueError), match=word):
        call(decoders.discrete(8))


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda: decoders.discrete(256, loc=1e6), torch.float32),
        (lambda: decoders.discrete(256, loc=[0.0, 1e5]), torch.float32),
        (lambda: decoders.discrete(256, loc=1e15), torch.float64),
        (lambda: decoders.discrete(256, scale=1e-50), torch.float32),
        (lambda: decoders.discrete(256, scale=1e50), torch.float32),
        (lambda: decoders.discrete(2**22, loc=2.0, scale=0.3), torch.float32),
        (lambda: decoders.gaussian(loc=1e6), torch.float32),
        (lambda: decoders.gaussian(loc=[0.0, 1e12], scale=[1.0, 1e3]), torch.float32),
        (lambda: decoders.gaussian(loc=1e16), torch.float64),
        (lambda: decoders.gaussian(scale=1e-50), torch.float32),
        (lambda: decoders.gaussian(scale=1e40), torch.float32),
    ],
)
def test_a_model_refuses_a_decoder_from_which_data_do_not_come_back(make, dtype):
    network = networks.mlp(8, fourier=())
    with pytest.raises(ValueError, match=f"decoder: expected a loc and scale from which data come back in {dtype}"):
        purevdm.vdm(network, schedules.learned_linear(), (2,), decoder=make(), dtype=dtype)
    with pytest.raises(ValueError, match="decoder: expected a loc and scale from which data come back"):
        bfn.continuous(network, event_shape=(2,), sigma_1=0.1, decoder=make(), dtype=dtype)


@pytest.mark.parametrize("decoder", [decoders.discrete(2**22), decoders.discrete(256, loc=100.0, scale=7e-3)])
def test_decoders_from_which_every_value_comes_back_serve(decoder):
    decoders.fits(decoder, (), torch.float32)
    values = torch.arange(decoder.vocab_size)
    assert torch.equal(decoder.mode({}, decoder.encode({}, values)), values)
