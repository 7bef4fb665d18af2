"""Mutual information and Kullback-Leibler divergence as differences of bounds on common noise, against closed forms."""

import math

import torch

import purevdm
from purevdm import decoders, process, random, schedules
from purevdm.evaluation import compare, per_example
from purevdm.networks import Network
from purevdm.testing import sources

PARAMS = {"network": {}, "schedule": {}}
GAMMA_0, GAMMA_1 = -7.0, 9.0


def ideal(network, dims):
    schedule = schedules.fixed_linear(GAMMA_0, GAMMA_1)
    return purevdm.vdm(network, schedule, (dims,), decoder=decoders.gaussian(), dtype=torch.float64)


def gaussian(mean, covariance):
    weights, mean, covariance = (torch.tensor(x, dtype=torch.float64)[None] for x in (1.0, mean, covariance))
    return sources.Mixture(weights, mean, covariance)


P = gaussian([0.3, -0.2], [[0.5, 0.2], [0.2, 0.3]])
Q = gaussian([0.0, 0.1], [[0.4, -0.1], [-0.1, 0.6]])


def kl(gamma):
    """KL(p, q) with the noise at gamma added to both."""
    normals = []
    for source in (P, Q):
        wide = source.widened(torch.full((2,), gamma, dtype=torch.float64).exp())
        normals.append(torch.distributions.MultivariateNormal(wide.means[0], wide.covariances[0]))
    return torch.distributions.kl_divergence(*normals).item()


def test_the_divergence_of_two_models_is_the_difference_of_their_bounds():
    """Of examples of p. Reconstruction and prior are the same under one schedule."""
    p, q, x = ideal(P.network, 2), ideal(Q.network, 2), P.sample(random.key(0), 4000)
    want = kl(GAMMA_0) - kl(GAMMA_1)
    of_p, of_q, again = (per_example(model, PARAMS, [x], random.key(k)) for model, k in ((p, 1), (q, 1), (q, 2)))
    paired, unpaired = compare(of_q, of_p).difference, compare(again, of_p).difference
    assert abs(paired.mean - want) < 4 * paired.error
    assert abs(unpaired.mean - want) < 4 * unpaired.error
    assert paired.error < 0.5 * unpaired.error  # a quarter of the variance, and less
    assert paired.error < 0.1 * want


def test_the_divergence_is_the_distance_of_the_predictions_over_noise_levels():
    """KL(p, q) is half the integral over gamma of E |eps_p - eps_q|**2 in latents of p: with less noise than bounds have."""
    p, q, x = ideal(P.network, 2), ideal(Q.network, 2), P.sample(random.key(0), 4000)
    noise = p.draw(random.key(1), len(x), train=False)
    gamma = p.gamma(PARAMS, noise.t)
    z = process.diffuse(x, gamma[:, None], noise.eps)
    apart = (p.eps_hat(PARAMS, z, gamma) - q.eps_hat(PARAMS, z, gamma)).square().sum(1)
    mean, error = sources.mean_and_error(0.5 * (GAMMA_1 - GAMMA_0) * apart)
    assert abs(mean - kl(GAMMA_0) + kl(GAMMA_1)) < 4 * error
    by_bounds = compare(*(per_example(model, PARAMS, [x], random.key(1)) for model in (q, p))).difference
    assert error < by_bounds.error


STD = 0.5


def channel():
    """An ideal model of x = c + noise, with c ~ N(0, 1) where it is not given."""

    def apply(params, z, gamma, cond=None, key=None):
        mean, variance = (0.0, 1.0 + STD**2) if cond is None else (cond, STD**2)
        alpha, noise = process.alpha(gamma), process.sigma(gamma) ** 2
        return process.eps_from_x(z, mean + variance * alpha * (z - alpha * mean) / (alpha**2 * variance + noise), gamma)

    return ideal(Network.of(lambda key, shape: {}, apply), 1)


def inputs(n):
    c, noise = random.normal(random.key(0), (2, n, 1), torch.float64)
    return c, c + STD * noise


def test_the_information_of_a_channel_is_the_difference_of_bounds_without_and_with_its_input():
    c, x = inputs(4000)
    free, given = (per_example(channel(), PARAMS, [(x, cond)], random.key(1)) for cond in (None, c))

    def information(gamma):
        return 0.5 * math.log(1 + 1 / (STD**2 + math.exp(gamma)))

    found = compare(free, given).difference
    assert abs(found.mean - information(GAMMA_0) + information(GAMMA_1)) < 4 * found.error
    assert found.error < 0.1 * found.mean


def test_pointwise_it_is_the_logarithm_of_the_densities_ratio():
    (c, x), draws = inputs(20), 4000
    many = [part.repeat(draws, 1) for part in (x, c)]
    free, given = (per_example(channel(), PARAMS, [(many[0], cond)], random.key(1)) for cond in (None, many[1]))
    normal = torch.distributions.Normal
    want = (normal(c, STD).log_prob(x) - normal(0.0, math.sqrt(1 + STD**2)).log_prob(x))[:, 0]
    each = (free.nll - given.nll).reshape(draws, len(x))
    error = each.std(0) / math.sqrt(draws)
    assert ((each.mean(0) - want).abs() < 4 * error + 0.02).all()  # and a little for the noise left at time 0
    assert error.max() < 0.2
