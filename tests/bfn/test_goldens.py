"""The official code's numbers (nnaisense/bayesian-flow-networks), float64, to 1e-10."""

import math

import pytest
import torch
from goldens import bfn_case
from torch.func import vmap

from purevdm import bfn, networks
from purevdm.bfn import bound, distributions, flows, outputs
from purevdm.process import align

F64 = torch.float64
NUMBERS = ["continuous16", "continuous256", "discretised16", "discretised256"]
CLASSES = ["discrete5", "binary"]
every = pytest.mark.parametrize("name", [*NUMBERS, *CLASSES])


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def model_of(name, **options):
    """The model of a case, and its numbers. The deviations of the reconstruction are the official ones."""
    a = bfn_case(name)
    options |= dict(event_shape=(12,), dtype=F64)
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
    h = model.output.encode(a["x"], F64)
    w = flows.latent(h, align(model.flow.snr(t), h), eps)
    raw = a["output"] if model.network.outputs == 2 or ("classes" in a and a["classes"] > 2) else a["output"][..., 0]
    return bound.read(model, raw, w, t), h, w


@every
def test_flows(name):
    """At a random time and at the end; the accuracies of steps."""
    model, a = model_of(name)
    parameters, kind, last = vmap(model.flow.parameters), "mean", 1.0
    if name in CLASSES:
        kind, last = "theta", 1 - 1e-6
    else:
        same(model.decoder.encode({}, a["x"], dtype=F64), a["data"])
    for suffix, t in (("", a["t"].clamp(max=last)), ("_1", torch.full((6,), last, dtype=F64))):
        found = parameters(read(model, a, t, a["eps" + suffix])[2], t)
        same(found[..., 0] if name == "binary" else found, a[kind + suffix])
        if name in CLASSES:
            same(model.flow.shown(found), 2 * a[kind + suffix] - 1)
    i, n = a["i"].double(), a["n"]
    same(model.flow.gain((i - 1) / n, i / n), a["alpha"] * a.get("classes", 1))


@every
def test_continuous_time_losses(name):
    model, a = model_of(name)
    out, h, _ = read(model, a, a["t"], a["eps"])
    loss = vmap(outputs.squared_loss)(h, model.output.mean(out), model.flow.slope(a["t"]))
    same(loss.reshape(*a["loss_inf"].shape, -1).sum(-1), a["loss_inf"])


@pytest.mark.parametrize("name", NUMBERS)
def test_losses_in_steps(name):
    model, a = model_of(name, timesteps=10)
    s, t = bound.step_of(a["i"] / 10, 10)
    out, h, _ = read(model, a, s, a["eps_n"])
    sender = a.get("sender_noise", torch.empty(4, 6, 12)).movedim(0, 1)
    each = vmap(model.output.step_loss)(out, a["x"], h, model.flow.gain(s, t), sender)
    same(10 * each.sum(1), 12 * a["loss_n"][:, 0] if "sender_noise" in a else a["loss_n"].sum(1))


@every
def test_reconstructions(name):
    model, a = model_of(name)
    t = torch.ones(6, dtype=F64) - (1e-6 if name in CLASSES else 0.0)
    out, _, _ = read(model, a, t, a["eps_1"])
    if name in NUMBERS:
        mean, std = out if len(out) == 2 else (out[0], torch.tensor(model.output.recon_std, dtype=F64))
        bins = a["bins"].item()
        same(-floored(distributions.bin_log_prob(a["x"], mean, std, bins), a["data"], mean, std, bins), a["recon"])
    if name in CLASSES or name == "discretised16":
        same(vmap(model.output.reconstruction)(out, a["x"]), a["recon"])


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
