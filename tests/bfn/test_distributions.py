"""Normals over bins: against arbitrary precision, float32 against float64, sums, derivatives; the decoder made of them."""

import math

import hypothesis.strategies as st
import mpmath
import pytest
import torch
from hypothesis import given

import purevdm
from purevdm import _normal, bfn, networks, random, schedules
from purevdm.bfn import distributions

numbers = st.floats(-50.0, 50.0)
deviations = st.floats(1e-4, 50.0)


def exact(index, mean, std, bins):
    """The log mass in 60 digits."""
    with mpmath.workdps(60):
        mean, std, width = mpmath.mpf(mean), mpmath.mpf(std), mpmath.mpf(2) / bins
        lower = -mpmath.inf if index == 0 else index * width - 1
        upper = mpmath.inf if index == bins - 1 else (index + 1) * width - 1
        if lower + upper > 2 * mean:  # mirrored, as differences of numbers near 1 lose digits
            lower, upper = 2 * mean - upper, 2 * mean - lower
        return float(mpmath.log(mpmath.ncdf(upper, mean, std) - mpmath.ncdf(lower, mean, std)))


@pytest.mark.parametrize("bins", [2, 17, 256])
@pytest.mark.parametrize(("mean", "std"), [(0.3, 10.0), (0.3, 0.02), (-0.9, 0.001), (1.4, 0.05), (-30.0, 0.5), (0.0, 0.004)])
def test_masses_are_exact(bins, mean, std):
    for index in sorted({0, 1, bins // 2, bins - 2, bins - 1}):
        arguments = (torch.tensor(v, dtype=torch.float64) for v in (mean, std))
        got = distributions.bin_log_prob(torch.tensor(index), *arguments, bins).item()
        assert got == pytest.approx(exact(index, mean, std, bins), rel=1e-11, abs=1e-11), index


@given(st.lists(st.tuples(numbers, deviations), min_size=1, max_size=4), st.sampled_from([2, 3, 16, 100]))
def test_masses_lie_on_the_simplex_and_float32_is_float64(pairs, bins):
    mean, std = (torch.tensor(v, dtype=torch.float32) for v in zip(*pairs, strict=True))
    log_p = distributions.bin_log_probs(mean, std, bins)
    wide = distributions.bin_log_probs(mean.double(), std.double(), bins)
    assert (wide <= 0).all()
    torch.testing.assert_close(wide.exp().sum(-1), torch.ones(len(pairs), dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_p.double(), wide, rtol=1e-5, atol=1e-5)
    centres = bfn.binned(bins).encode({}, torch.arange(bins), dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        expectation = _normal.bin_expectation(mean.to(dtype), std.to(dtype), bins).double()
        torch.testing.assert_close(expectation, wide.exp() @ centres, rtol=0, atol=tolerance)


@given(numbers, deviations, st.integers(0, 15))
def test_derivatives_are_finite_and_right(mean, std, index):
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (mean, std))

    def log_prob(mean, std):
        return distributions.bin_log_prob(torch.tensor(index), mean, std, 16)

    by_mean, by_std = torch.func.grad(log_prob, argnums=(0, 1))(mean, std)
    assert by_mean.isfinite()
    assert by_std.isfinite()
    step = 1e-5 * std
    slope = (log_prob(mean + step, std) - log_prob(mean - step, std)) / (2 * step)
    # the quotient's rounding: 1e-16 of the value, and of what cancels in a bin of width 1/8, over the step; its curvature
    rounding = 1e-9 * (1 + log_prob(mean, std).abs() + 8 * std) / std
    assert abs(slope - by_mean) <= 1e-6 * by_mean.abs() + rounding


def test_decoder_probabilities_are_the_masses():
    decoder, gamma = bfn.binned(8), torch.tensor(-3.0, dtype=torch.float64)
    x, z = torch.arange(8), torch.linspace(-1.5, 1.5, 8, dtype=torch.float64)
    want = distributions.bin_log_probs(z, torch.exp(gamma / 2), 8)
    torch.testing.assert_close(decoder.log_probs({}, z, gamma), want)
    torch.testing.assert_close(decoder.log_prob({}, x, z, gamma), want.diagonal())
    eps = (z - decoder.encode({}, x, dtype=torch.float64)) * torch.exp(-gamma / 2)
    torch.testing.assert_close(decoder.reconstruction({}, x, eps, gamma), -want.diagonal())
    assert decoder == bfn.binned(8) != bfn.binned(9)
    with pytest.raises(ValueError, match="x: expected integers"):
        decoder.log_prob({}, x + 1, z, gamma)


def test_decoder_draws_follow_the_masses():
    decoder, gamma, z = bfn.binned(5), torch.tensor(-1.0), torch.full((20_000,), 0.7)
    drawn = decoder.sample({}, random.key(0), z, gamma)
    want = decoder.log_probs({}, z[0], gamma).exp()
    off = (drawn.bincount(minlength=5) / len(z) - want).abs()
    assert (off < 4.5 * (want * (1 - want) / len(z)).sqrt() + 1e-9).all()


def test_the_decoder_serves_a_diffusion_model():
    model = purevdm.vdm(networks.mlp(8), schedules.fixed_linear(-8.0, 4.0), (2,), decoder=bfn.binned(16))
    x = random.randint(random.key(0), (8, 2), 0, 16)
    terms = model.nll_bound(model.init(random.key(1)), x, random.key(2))
    latents = model.decoder.encode({}, x) + math.exp(-4.0) * model.draw(random.key(2), 8).eps_0
    want = -model.decoder.log_prob({}, x, latents, torch.tensor(-8.0)).sum(1)
    torch.testing.assert_close(terms.recon, want, rtol=1e-3, atol=1e-5)
