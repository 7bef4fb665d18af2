"""The flow within a subspace, and of mixed data: closed forms, integrals, padding, what is refused."""

import math

import pytest
import torch
from compare import close
from weights import log_weight

import purevdm
from purevdm import decoders, likelihood, networks, ode, parts, random, schedules
from purevdm.testing.networks import _moved

F64 = torch.float64
KEY = random.key(0)


def gaussian_on(points, std):
    """The ideal denoiser of points in the plane, independent of this deviation but for their centre."""

    def apply(params, z, gamma, cond=None, key=None):
        alpha, sigma = purevdm.process.alpha(gamma), purevdm.process.sigma(gamma)
        return sigma * z / (alpha**2 * std**2 + sigma**2)

    network, schedule = networks.Network.of(lambda key, shape: {}, apply), schedules.fixed_linear(-8.0, 14.0)
    options = dict(decoder=decoders.gaussian(scale=2.0), dtype=F64, subspace=parts.zero_centre())
    return purevdm.vdm(network, schedule, (points, 2), **options), {"network": {}, "schedule": {}}


@pytest.mark.parametrize("probes", ["exact", 300])
def test_log_prob_is_that_of_the_subspace_s_dimensions(probes):
    std, (model, params) = 0.9, gaussian_on(5, 0.9)
    mask = (torch.arange(5) < torch.tensor([2, 3, 5])[:, None])[..., None]
    x = model.subspace.project(2.0 * std * random.normal(KEY, (3, 5, 2), F64), mask)
    options = dict(integrator=ode.dopri5(1e-7, 1e-7), probes=probes)
    found = likelihood.log_prob(model, params, x, KEY, mask=mask, **options).log_prob
    variance, rank = 4.0 * (std**2 + math.exp(-8.0)), torch.tensor([2.0, 4.0, 8.0], dtype=F64)
    want = -0.5 * (x.square().sum((1, 2)) / variance + rank * math.log(2 * math.pi * variance))
    torch.testing.assert_close(found, want, rtol=1e-5, atol=0.1 if probes == 300 else 1e-4)
    # by a latent with the bound's noise: E log w is log p(x) less what the decoder's posterior is off
    some = likelihood.log_prob(
        model, params, x, KEY, mask=mask, dequantisation="variational", samples=256, **options | {"probes": "exact"}
    )
    assert ((some.log_prob - want).abs() < 5 * some.error + 1e-3).all()


def small(parts_of, columns, gamma_0=-3.0):
    network = networks.egnn(16, 1, coordinates=1)
    decoder = decoders.product(**parts_of)
    subspace = parts.zero_centre(columns=1)
    model = purevdm.vdm(
        network, schedules.fixed_linear(gamma_0, 8.0), (2, columns), decoder=decoder, subspace=subspace, dtype=F64
    )
    params = model.init(KEY)
    return model, params | {"network": _moved(params["network"], random.key(1))}


def test_the_density_on_a_subspace_integrates_to_one():
    model, params = small({"position": (decoders.gaussian(scale=1.5), 1)}, 1)
    u = torch.linspace(-12.0, 12.0, 401, dtype=F64)  # along the unit vector of the subspace
    x = torch.stack([u, -u], 1)[..., None] / math.sqrt(2.0)
    log_p = likelihood.log_prob(model, params, x, KEY, probes="exact", integrator=ode.dopri5(1e-6, 1e-6)).log_prob
    assert abs(log_p.exp().sum() * (u[1] - u[0]) - 1.0) < 1e-4


def test_the_probability_of_mixed_data_adds_up_to_one():
    """Over a position and the types of two points; weights are unbiased, so that their mean counts. With much noise, as a
    type says little of a latent, and with little of it few weights of a network without training would outweigh the rest."""
    model, params = small({"position": (decoders.gaussian(scale=1.5), 1), "type": decoders.one_hot(2)}, 2, gamma_0=2.0)
    u = torch.linspace(-30.0, 30.0, 31, dtype=F64)
    line = torch.stack([u, -u], 1) / math.sqrt(2.0)
    types = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    x = model.decoder.join(position=line.repeat(4, 1)[..., None], type=types.repeat_interleave(len(u), 0))
    found = likelihood.log_prob(model, params, x, KEY, samples=8, probes="exact", integrator=ode.rk4(6))
    cell = (u[1] - u[0]).item()
    total, error = found.log_prob.exp().sum() * cell, (found.log_prob.exp() * found.error).square().sum().sqrt() * cell
    assert abs(total - 1.0) < 5 * error + 1e-3
    assert error < 0.05
    with pytest.raises(ValueError, match=r"^dequantisation of mixed data: expected one of 'variational'"):
        likelihood.log_prob(model, params, x, KEY, dequantisation="none")


def test_a_padded_example_has_the_likelihood_of_the_unpadded_one():
    decoder = decoders.product(
        positions=(decoders.gaussian(), 3), types=decoders.one_hot(3, scale=2.0), charges=decoders.integers(0, scale=4.0)
    )
    wide, narrow = (
        purevdm.vdm(
            networks.egnn(16, 2), schedules.fixed_linear(-4.0, 5.0), (n, 5), decoder=decoder, dtype=F64,
            subspace=parts.zero_centre(columns=3),
        )
        for n in (5, 3)
    )  # fmt: skip
    params = wide.init(KEY)
    params = params | {"network": _moved(params["network"], random.key(1))}
    mask = (torch.arange(5) < 3)[None, :, None]
    x = random.normal(random.key(2), (2, 5, 5), F64)
    x[..., 3:] = torch.tensor([[0, 1], [2, 8], [1, 6], [0, 0], [0, 0]], dtype=F64)
    x = wide.subspace.project(x, mask.expand(2, 5, 1))
    eps, integrator = random.normal(random.key(3), (2, 5, 7), F64), ode.rk4(12)
    padded = log_weight(wide, params, x, eps, mask=mask, probe_noise="exact", integrator=integrator)
    alone = log_weight(narrow, params, x[:, :3], eps[:, :3], probe_noise="exact", integrator=integrator)
    close(padded.log_prob, alone.log_prob, 1e-11)
    within = wide.denoiser(params, n=2, mask=mask).within
    z = within(eps)
    back = likelihood.to_data(
        wide,
        params,
        likelihood.to_noise(wide, params, z, mask=mask, integrator=ode.rk4(60)),
        mask=mask,
        integrator=ode.rk4(60),
    )
    close(back, z, 1e-5)
    with pytest.raises(ValueError, match=r"^z_0: expected latents in the model's subspace"):
        likelihood.log_prob_latent(wide, params, eps, mask=mask, probe_noise="exact")
