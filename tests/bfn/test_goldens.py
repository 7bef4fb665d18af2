"""The official code's numbers (nnaisense/bayesian-flow-networks), float64, to 1e-10."""

import math

import pytest
import textbook
import torch
from goldens import bfn_case

from purevdm import bfn, networks
from purevdm.bfn import bound, categorical, distributions, normal
from purevdm.process import align

NUMBERS = ["continuous16", "continuous256", "discretised16", "discretised256"]
CLASSES = ["discrete5", "binary"]


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def model_of(name, **options):
    """The model of a case, and its numbers. The deviations of the reconstruction are the official ones."""
    a = bfn_case(name)
    options |= dict(event_shape=(12,), dtype=torch.float64)
    if name in CLASSES:
        sizes = dict(classes=a["classes"].item(), beta_1=a["beta_1"].item(), classes_last=True)
        return bfn.discrete(networks.mlp(2), **sizes, **options), a
    bins, sigma_1 = a["bins"].item(), a["sigma_1"].item()
    if name.startswith("discretised"):
        return bfn.discretised(networks.mlp(2, outputs=2), bins=bins, sigma_1=sigma_1, **options), a
    scale = 0.7 if bins == 16 else 1.0
    decoder = bfn.binned(bins)
    return bfn.continuous(networks.mlp(2), sigma_1=sigma_1, decoder=decoder, recon_std=scale * sigma_1, **options), a


def read(model, a, t, eps):
    """The output distributions of the golden outputs, for latents with the golden noise, and the latents."""
    h = model.output.encode(a["x"], torch.float64)
    w = bfn.process.latent(h, align(model.flow.snr(t), h), eps)
    raw = a["output"] if model.network.outputs == 2 or ("classes" in a and a["classes"] > 2) else a["output"][..., 0]
    return bound.read(model, raw, w, t), h, w


@pytest.mark.parametrize("name", NUMBERS)
def test_flows_of_numbers(name):
    model, a = model_of(name)
    sigma_1 = a["sigma_1"].item()
    same(model.decoder.encode({}, a["x"], dtype=torch.float64), a["data"])
    for suffix, t in (("", a["t"]), ("_1", torch.ones(6, dtype=torch.float64)), ("_n", (a["i"] - 1) / a["n"])):
        same(textbook.normal_flow(a["data"], t[:, None], a["eps" + suffix], sigma_1), a["mean" + suffix])
        w = read(model, a, t, a["eps" + suffix])[2]
        same(torch.func.vmap(model.flow.parameters)(w, t), a["mean" + suffix])
    i, n = a["i"], a["n"]
    same(normal.accuracy((i - 1) / n, i / n, sigma_1), a["alpha"])
    mean, precision = textbook.normal_update(a["mean"], torch.tensor(2.5, dtype=torch.float64), a["y"], torch.tensor(0.7))
    torch.testing.assert_close(precision, a["updated_precision"])
    torch.testing.assert_close(mean, a["updated_mean"], rtol=1e-7, atol=1e-7)  # 0.7 in float32
    same(
        textbook.normal_update(a["mean"], torch.tensor(2.5), a["y"], torch.tensor(0.7, dtype=torch.float64))[0],
        a["updated_mean"],
    )


@pytest.mark.parametrize("name", CLASSES)
def test_flows_of_classes(name):
    model, a = model_of(name)
    beta_1, classes = a["beta_1"].item(), a["classes"].item()

    def kept(theta):
        return theta[..., 0] if classes == 2 else theta

    for suffix, t in (("", a["t"].clamp(max=1 - 1e-6)), ("_1", torch.full((6,), 1 - 1e-6, dtype=torch.float64))):
        same(kept(textbook.classes_flow(a["x"], t[:, None, None], a["eps" + suffix], beta_1)), a["theta" + suffix])
        w = bfn.process.latent(
            model.output.encode(a["x"], torch.float64), align(model.flow.snr(t), w_shape(a)), a["eps" + suffix]
        )
        theta = torch.func.vmap(model.flow.parameters)(w, t)
        same(kept(theta), a["theta" + suffix])
        same(model.flow.shown(theta), 2 * a["theta" + suffix] - 1)
    i, n = a["i"].double(), a["n"]
    same(categorical.accuracy((i - 1) / n, i / n, beta_1), a["alpha"])
    same(model.flow.gain((i - 1) / n, i / n), classes * a["alpha"])
    same(textbook.classes_update(a["prior"], a["y"]), a["updated"])


def w_shape(a):
    return torch.empty(*a["x"].shape, a["classes"])


@pytest.mark.parametrize("name", [*NUMBERS, *CLASSES])
def test_continuous_time_losses(name):
    model, a = model_of(name)
    out, h, _ = read(model, a, a["t"], a["eps"])
    off = (h - model.output.mean(out)).square()
    each = 0.5 * model.flow.slope(a["t"])[:, None] * (off if off.ndim == 2 else off.sum(-1))
    same(each, a["loss_inf"])
    whole = torch.func.vmap(bfn.process.continuous_loss)(h, model.output.mean(out), model.flow.slope(a["t"]))
    same(whole if whole.ndim == 2 else whole.sum(-1), a["loss_inf"])


@pytest.mark.parametrize("name", NUMBERS)
def test_losses_in_steps(name):
    model, a = model_of(name, timesteps=10)
    s, t = bound.step_of(a["i"] / 10, 10)
    out, h, _ = read(model, a, s, a["eps_n"])
    sender = a.get("sender_noise", torch.empty(4, 6, 12)).movedim(0, 1)
    each = torch.func.vmap(model.output.step_loss)(out, a["x"], h, model.flow.gain(s, t), sender)
    wanted = a["loss_n"].sum(1) if model.output.mixture is False else 12 * a["loss_n"][:, 0]
    same(10 * each.sum(1), wanted)


@pytest.mark.parametrize("name", [*NUMBERS, *CLASSES])
def test_reconstructions(name):
    model, a = model_of(name)
    t = torch.ones(6, dtype=torch.float64) - (1e-6 if name in CLASSES else 0.0)
    out, _, _ = read(model, a, t, a["eps_1"])
    if name in CLASSES:
        each = -torch.take_along_dim(out[0], a["x"][..., None], -1)[..., 0]
    else:
        mean, std = out if len(out) == 2 else (out[0], torch.tensor(model.output.recon_std, dtype=torch.float64))
        bins = a["bins"].item()
        each = -floored(distributions.bin_log_prob(a["x"], mean, std, bins), a["data"], mean, std, bins)
    same(each, a["recon"])
    if name in CLASSES or name == "discretised16":
        same(torch.func.vmap(model.output.reconstruction)(out, a["x"]), a["recon"])


def floored(log_p, data, mean, std, bins):
    """The official rule for masses below 1e-5: the density at the centre times the width."""
    density = torch.distributions.Normal(mean, std).log_prob(data) + math.log(2 / bins)
    return torch.where(log_p < math.log(1e-5), density, log_p)


@pytest.mark.parametrize("name", ["discretised16", "discretised256"])
def test_probabilities_of_bins(name):
    model, a = model_of(name)
    out, _, _ = read(model, a, a["t"], a["eps"])
    same(model.output.log_probs(out).exp(), a["probs"])
    same(model.output.mean(out), a["expectation"])
