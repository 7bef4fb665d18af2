"""Decoders around the network's estimate."""

import math

import pytest
import torch

from purevdm import decoders, random, testing

F64 = torch.float64


def test_it_is_the_gaussian_decoder_without_an_estimate():
    testing.check_decoder(decoders.denoised(loc=2.0, scale=0.5))


def test_its_density_is_centred_at_the_estimate():
    decoder, gamma_0 = decoders.denoised(loc=1.0, scale=2.0), torch.tensor(-3.0, dtype=F64)
    x, eps, estimate = random.normal(random.key(0), (3, 4, 5), F64)
    want = torch.distributions.Normal(2.0 * estimate + 1.0, 2.0 * torch.exp(0.5 * gamma_0)).log_prob(x)
    z = decoder.encode({}, x, dtype=F64) + torch.exp(0.5 * gamma_0) * eps
    torch.testing.assert_close(decoder.log_prob({}, x, z, gamma_0, estimate=estimate), want)
    torch.testing.assert_close(-decoder.reconstruction({}, x, eps, gamma_0, estimate=estimate), want)
    torch.testing.assert_close(decoder.mode({}, z, estimate=estimate), 2.0 * estimate + 1.0)
    centre = estimate[0, 0].expand(20_000)
    drawn = decoder.sample({}, random.key(1), torch.zeros_like(centre), gamma_0, estimate=centre)
    std = 2.0 * torch.exp(0.5 * gamma_0)
    assert (drawn.mean() - 2.0 * centre[0] - 1.0).abs() < 5 * std / 20_000**0.5
    assert (drawn.std() / std - 1.0).abs() < 0.05


@pytest.mark.parametrize("v", [2, 17, 256])
def test_the_discretised_gaussian_is_a_distribution_around_the_estimate(v):
    """Levels at which a bin holds more than the open ends beyond it."""
    decoder, step = decoders.discretised_gaussian(v), 2.0 / (v - 1)
    narrow = tuple(2.0 * math.log(step * share) for share in (0.05, 0.4))
    testing.check_decoder(decoder, gamma_0=narrow)
    x, log_var = torch.arange(v), torch.tensor(2.0 * math.log(0.3), dtype=F64)
    estimate = torch.linspace(-1.4, 1.4, v, dtype=F64)
    normal = torch.distributions.Normal(estimate, 0.3)
    edges = torch.linspace(-1.0, 1.0, v, dtype=F64) + 0.5 * step
    edges[-1] = torch.inf
    low = torch.cat([edges.new_tensor([-torch.inf]), edges[:-1]])
    want = (normal.cdf(edges) - normal.cdf(low)).log()
    z = torch.zeros(v, dtype=F64)
    # the difference of two values near 1 loses what the decoder keeps
    for got in (
        decoder.log_prob({}, x, z, log_var, estimate=estimate),
        -decoder.reconstruction({}, x, z, log_var, estimate=estimate),
        decoder.log_probs({}, z, log_var, estimate=estimate).gather(-1, x[:, None])[:, 0],
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert torch.equal(decoder.mode({}, z, estimate=torch.linspace(-1.0, 1.0, v, dtype=F64)), x)
    drawn = decoder.sample({}, random.key(1), z[:1].expand(8192), log_var, estimate=estimate[:1].expand(8192))
    assert abs((drawn == 0).double().mean() - want[0].exp()) < 5 * 0.5 / 8192**0.5


def test_far_estimates_cost_what_they_cost_in_float32():
    decoder, at = decoders.discretised_gaussian(), torch.tensor(-9.0)
    for dtype in (torch.float32, F64):
        far = decoder.log_prob(
            {}, torch.tensor([128]), torch.zeros(1, dtype=dtype), at, estimate=torch.tensor([-0.5], dtype=dtype)
        )
        # the tail of a normal, 45 deviations off: -d**2 / 2 - log(d sqrt(2 pi)) at the bin's near edge
        d = (0.5 + 0.5 / 127.5 - 1 / 255) * math.exp(4.5)
        assert abs(far + d * d / 2 + math.log(d * math.sqrt(2 * math.pi))) < 0.01 * d
