"""Molecules, as the official code of Hoogeboom et al. 2022 has them: every term of their likelihood, steps, the last step.

Two of its ways are not the library's, and are put here: its decoders of features read z_0 and not z_0 / alpha_0
(:func:`undivided`), and its network is given t / T and not gamma.
"""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compare import close
from parts import changed

import purevdm
from purevdm import bound, decoders, networks, process, random, schedules, solvers
from purevdm import parts as model_parts
from purevdm.noise import Noise

F64 = torch.float64
ARRAYS = np.load(Path(__file__).parent / "goldens" / "e3_molecules.npz")
CASES = sorted({key.split("/")[0] for key in ARRAYS})
KEY = random.key(0)


@cache
def golden(case):
    return {key.partition("/")[2]: torch.as_tensor(ARRAYS[key]) for key in ARRAYS if key.startswith(case + "/")}


def undivided(decoder):
    """The decoder, reading z_0 in place of z_0 / alpha_0."""

    def reconstruction(params, x, eps_0, gamma_0, cond=None, estimate=None):
        z_0 = process.diffuse(decoder.encode(params, x, cond, eps_0.dtype), gamma_0, eps_0)
        return -decoder.log_prob(params, x, z_0, F.logsigmoid(gamma_0))

    return changed(decoder, reconstruction=reconstruction)


def schedule_of(g):
    """The case's schedule and its parameters; the learned one by its formula, others by their table."""
    if "gamma/table" in g:
        table = g["gamma/table"]
        steps = len(table) - 1
        at = lambda params, t: table.to(t.dtype)[(t * steps).round().long()]  # noqa: E731
        return schedules.Schedule.of(lambda key: {}, at), {}
    params = {name.removeprefix("gamma/params/"): value for name, value in g.items() if name.startswith("gamma/params/")}

    def risen(p, t):
        p = {name: F.softplus(value) if name.endswith("weight") else value for name, value in p.items()}
        y = p["l1.weight"][0] * t + p["l1.bias"]
        h = torch.sigmoid((p["l2.weight"] * y[..., None, :])[..., 0] + p["l2.bias"])
        return (y + (h * p["l3.weight"][0]).sum(-1, keepdim=True) + p["l3.bias"])[..., 0]

    def gamma(p, t):
        p = {name: value.to(t.dtype) for name, value in p.items()}
        start, end = risen(p, torch.zeros_like(t)[..., None]), risen(p, torch.ones_like(t)[..., None])
        part = (risen(p, t[..., None]) - start) / (end - start)
        return p["gamma_0"][0] + (p["gamma_1"] - p["gamma_0"])[0] * part

    return schedules.Schedule.of(lambda key: params, gamma), params


def network_of(g, table):
    """The closed form in place of a network."""
    (a0, a1, a2), (b0, b1, b2, b3), u = (g[f"net/{name}"] for name in "abu")

    def apply(params, z, gamma, cond=None, key=None, mask=None):
        m = mask[..., :1].to(z.dtype)
        tau = (gamma.detach() - table).abs().argmin().to(z.dtype) / (len(table) - 1)
        x, h = z[..., :3], z[..., 3:]
        r = x.square().sum(-1, keepdim=True)
        w = a0 + a1 * tau + a2 * torch.tanh(r) + (u * h).sum(-1, keepdim=True)
        s = (m * h).sum(-2, keepdim=True) / m.sum()
        return torch.cat([m * w * x, m * (b0 * h + b1 * (1 - tau) * h.sin() + b2 * s + b3 * r / (1 + r))], -1)

    return networks.Network.of(lambda key, shape: {}, apply, masked=True)


@cache
def molecules(case):
    """The case's model, parameters, data, mask, and numbers."""
    g = golden(case)
    c, b = g["settings/norm_values"].tolist(), g["settings/norm_biases"].tolist()
    own = dict(floor=1e-10)
    kinds = {
        "positions": (decoders.denoised(scale=c[0]), 3),
        "types": undivided(decoders.one_hot(5, form="bins", loc=b[1], scale=c[1], **own)),
        "charges": undivided(decoders.integers(loc=b[2], scale=c[2], **own)),
    }
    tree = {"positions": g["x"], "types": g["categorical"].argmax(-1)}
    if "charges" in g:
        tree["charges"] = g["charges"][..., 0]
    decoder = decoders.product(**{name: kinds[name] for name in tree})
    steps, x = int(g["settings/T"]), decoder.join(**tree)
    schedule, params = schedule_of(g)
    table = (
        g["gamma/table"]
        if "gamma/table" in g
        else torch.func.vmap(lambda t: schedule.gamma(params, t))(torch.arange(steps + 1, dtype=F64) / steps)
    )
    model = purevdm.vdm(
        network_of(g, table), schedule, x.shape[1:], decoder=decoder, timesteps=steps, dtype=F64,
        subspace=model_parts.zero_centre(columns=3),
    )  # fmt: skip
    return model, {"network": {}, "schedule": params}, x, g["mask"].bool(), g


@pytest.mark.parametrize("case", CASES)
def test_every_term_is_the_official_one(case):
    model, params, x, mask, g = molecules(case)
    noise = Noise(g["eval/t_int"].double() / model.timesteps, g["eval/eps_0"], g["eval/eps"])
    found = bound.bound(model, params, x, noise, mask=mask)
    gamma_t, gamma_s = (model.gamma(params, (g["eval/t_int"].double() - i) / model.timesteps) for i in (0, 1))
    constants = g["eval/log_constants"] + g["eval/delta_log_px"]
    close(found.prior, g["eval/kl_prior"], 1e-11)
    close(found.diffusion, 0.5 * model.timesteps * torch.expm1(gamma_t - gamma_s) * g["eval/error"], 1e-11)
    close(found.recon, -constants - g["eval/log_p_0"], 1e-11)
    close(found.total, g["eval/nll"], 1e-11)


@pytest.mark.parametrize("case", CASES)
def test_features_are_decoded_as_the_official_ones(case):
    """By log_prob at z_0 and its deviation, each kind by itself."""
    model, params, x, mask, g = molecules(case)
    z_0, level = g["eval/z_0"], F.logsigmoid(model.gamma(params, torch.tensor(0.0, dtype=F64)))
    each = model.decoder.log_prob({}, x, z_0, level)
    each = torch.where(mask, each, 0.0).sum(1)
    close(each[:, 3:].sum(1), g["eval/log_p_0_h"], 1e-11)
    if "charges" in g:
        close(each[:, 4], g["eval/log_p_0_integer"], 1e-11)


@pytest.mark.parametrize("case", CASES)
def test_the_training_losses_are_the_official_ones(case):
    """From the terms: T + 1 times, one of them 0, where the noise of z_t serves for z_0."""
    model, params, x, mask, g = molecules(case)
    steps, d, size = model.timesteps, 3 * (g["mask"][..., 0].sum(1) - 1), g["eval/eps"].shape[-1] * x.shape[1]

    def losses(params, name):
        t, eps = g[f"{name}/t_int"].double(), g[f"{name}/eps"]
        found = bound.bound(model, params, x, Noise(t.clamp(min=1) / steps, eps, eps), mask=mask)
        gamma_0 = model.gamma(params, torch.tensor(0.0, dtype=F64))
        constants = -d * (0.5 * (gamma_0 + math.log(2 * math.pi)) + math.log(g["settings/norm_values"][0]))
        if name == "train_vlb":
            return (
                found.prior - constants + (steps + 1) * torch.where(t == 0, found.recon + constants, found.diffusion / steps)
            )
        gamma_t, gamma_s = (model.gamma(params, (t.clamp(min=1) - i) / steps) for i in (0, 1))
        error = found.diffusion / (steps * torch.expm1(gamma_t - gamma_s))
        features = -g["train_l2/log_p_0_h"] if "train_l2/log_p_0_h" in g else 0.0
        of_x = (found.recon + constants - features) / size
        return found.prior + torch.where(t == 0, of_x + features, error / size)

    for name in ("train_vlb", "train_l2"):
        if f"{name}/nll" not in g:
            continue
        close(losses(params, name), g[f"{name}/nll"], 1e-10)
    if "train_vlb/grad/gamma_0" in g:
        grads = torch.func.grad(lambda s: losses(params | {"schedule": s}, "train_vlb").mean())(params["schedule"])
        want = {name: g[f"train_vlb/grad/{name}"] for name in grads}
        close(grads, want, 1e-8)


@pytest.mark.parametrize("case", CASES)
def test_a_step_and_the_last_step_are_the_official_ones(case):
    model, params, _, mask, g = molecules(case)
    denoise = model.denoiser(params, n=len(mask), mask=mask)
    t = g["eval/t_int"].double() / model.timesteps
    gamma_t, gamma_s = (process.align(model.gamma(params, t - i / model.timesteps), g["step/z_s"]) for i in (0, 1))
    z_t = g["eval/z_t"]
    eps_hat = denoise(z_t, gamma_t.flatten()).eps
    close(eps_hat, g["eval/eps_hat"], 1e-11)
    z_s = denoise.within(solvers.ancestral_step(z_t, eps_hat, gamma_t, gamma_s, g["step/eps"]))
    close(z_s, g["step/z_s"], 1e-11)

    z_0, gamma_0 = g["eval/z_0"], model.gamma(params, torch.tensor(0.0, dtype=F64))
    estimate = denoise(z_0, gamma_0.expand(len(z_0)))
    close(estimate.eps, g["eval/eps_hat_0"], 1e-11)
    mode = model.decoder.split(model.decoder.mode({}, z_0, None, estimate.x))
    noise = model.decoder.parts[0].decoder.scale * torch.exp(0.5 * gamma_0) * g["decode/eps"][..., :3]
    positions = torch.where(mask, mode["positions"] + noise, 0.0)
    close(positions, g["decode/x"], 1e-11)
    if "charges" in g:
        there = mask[..., 0]
        assert torch.equal(mode["types"][there], g["decode/categorical"].argmax(-1)[there])
        assert torch.equal(mode["charges"][there], g["decode/charges"][..., 0].long()[there])
    else:  # where the official code never draws the last type
        assert torch.equal(mode["types"], z_0[..., 3:].argmax(-1))


@pytest.mark.parametrize("case", CASES)
def test_the_learned_schedule_s_curve(case):
    model, params, _, _, g = molecules(case)
    if "gamma/g" in g:
        close(model.gamma(params, g["gamma/t"]), g["gamma/g"], 1e-13)
        close(schedules.gamma_and_slope(model.schedule, params["schedule"], g["gamma/t"])[1], g["gamma/dg"], 1e-11)
