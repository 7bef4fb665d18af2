"""The Gaussian decoder around the network's estimate."""

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
