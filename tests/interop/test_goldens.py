"""What other people's programs compute, with closed forms in place of networks (see tests/goldens/README.md)."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from foreign import Closed
from goldens import HERE

from purevdm import bound, decoders, interop, process, schedules, solvers
from purevdm.likelihood import flow
from purevdm.noise import Noise

F64 = torch.float64


@cache
def arrays(name):
    return {k: torch.tensor(v.astype(np.int64) if v.dtype.kind in "iu" else v.astype(np.float64))
            for k, v in np.load(HERE / f"{name}.npz").items()}  # fmt: skip


def close(got, want, rel=1e-6, least=0.0):
    torch.testing.assert_close(got, want.to(got.dtype).expand(got.shape), rtol=rel, atol=least)


# The bound of DDPM and iDDPM

IDDPM = arrays("improved_diffusion")


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("name", sorted({name.split("/")[0] for name in IDDPM if "/free/" in name}))
def test_each_term_of_a_ddpm_s_bound(name, clip):
    parts = name.removesuffix("_rescaled").split("_")
    (table, *spacing, kind, variance), T = parts, int(parts[0][3:])  # noqa: N806
    betas = {
        "lin": lambda: interop.betas("linear", T, 0.1 / T, 20 / T),
        "raw": lambda: interop.betas("linear", T),
        "cos": lambda: interop.betas("cosine", T),
    }[table[:3]]()
    a, *_, g, h = (IDDPM[f"net/{letter}"] for letter in "abcdegh")
    b, c, d, e = (IDDPM[f"net/{letter}"] for letter in "bcde")

    def form(z, tau):
        s = tau / IDDPM[f"{name}/S"]
        wave = b * torch.sin(c * s) * z.roll(1, -1)
        out = a * torch.tanh(z) + wave + d if kind == "eps" else z * (1 - e * s) + wave + IDDPM[f"{name}/f"]
        return torch.cat([out, g * torch.sin(z + h * s)], 1) if variance == "range" else out

    kinds = {"small": "fixed_small", "large": "fixed_large", "range": "learned_range"}
    times = [1000.0 * t / T for t in range(T)] if name.endswith("_rescaled") else None
    chain = interop.ddpm(betas, predicts=kind, variance=kinds[variance], times=times)
    x = IDDPM["ints"]
    model, params = interop.adapt(Closed(form), chain, x.shape[1:], clip=clip, dtype=F64)
    if spacing:
        model = interop.respaced(model, interop.spaced(T, spacing[0].replace("-", ",")))
    n, per_dim = model.timesteps + 1, math.log(2.0) * x[0].numel()
    noise, key = IDDPM[f"noise/{n}"], f"{name}/{'clip' if clip else 'free'}"
    for t in range(n):
        at = torch.full((len(x),), max(t, 1) / (n - 1), dtype=F64)
        terms = bound.bound(model, params, x, Noise(at, noise[t], noise[t], None))
        if t == 0:  # their true last term; the published one is approximate
            close(terms.recon / per_dim, IDDPM[f"{key}/decoder_bpd_exact"])
        else:
            close(terms.diffusion / (n - 1) / per_dim, IDDPM[f"{key}/vb"][:, n - 1 - t])
    close(terms.prior / per_dim, IDDPM[f"{key}/prior_bpd"], least=1e-7)


def test_the_discretised_gaussian():
    ints, mean, log_scale = (IDDPM[f"decoder/{name}"] for name in ("ints", "mean", "log_scale"))
    log_p = decoders.discretised_gaussian().log_prob({}, ints, mean, 2.0 * log_scale, estimate=mean)
    close(log_p, IDDPM["decoder/log_prob_exact"], 1e-6)


# EDM

EDM = arrays("edm")


@pytest.mark.parametrize("name", ["EDM", "EDM_sd1", "VP", "VE", "iDDPM"])
def test_the_preconditionings_of_edm(name):
    a, b, c, d = (EDM[f"net/{letter}"] for letter in "abcd")

    def form(y, told):
        out = a * torch.tanh(y) + b * torch.sin(c * told / EDM[f"{name}/S"]) * y.roll(1, -1) + d
        return torch.cat([out, out], 1) if name == "iDDPM" else out

    options = dict(sigma_data=1.0) if name == "EDM_sd1" else {}
    chain = interop.edm(name.split("_")[0].lower(), **options)
    sigma = EDM["sigma"].reshape(-1, 1, 1, 1)
    x, gamma = 2.0 * EDM["ints"].double() / 255.0 - 1.0 + sigma * EDM["noise"], 2.0 * sigma.log()
    model, params = interop.adapt(Closed(form), chain, x.shape[1:], dtype=F64)
    z = x / torch.sqrt(1.0 + sigma**2)
    seen, told = chain.inputs(z, gamma)
    close(seen, EDM[f"{name}/c_in_x"], 1e-12)
    close(told.flatten(), EDM[f"{name}/c_noise"], 1e-9, 1e-12)
    eps, x_hat = model.denoiser(params, n=len(x))(z, gamma.flatten())
    # their eps is the difference of x and D, over sigma
    close(eps, EDM[f"{name}/eps_hat"], 1e-9, 1e-11)
    close(x_hat, EDM[f"{name}/D"], 1e-9, 1e-11)
    low, high = EDM[f"{name}/sigma_range"]
    ends = torch.exp(0.5 * torch.tensor(model.schedule.endpoints, dtype=F64))
    assert low <= ends[0] * (1 + 1e-9)
    assert ends[1] <= high * (1 + 1e-9)


# Score-based models

SDE = arrays("score_sde")


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
@pytest.mark.parametrize("net", ["closed", "gauss"])
@pytest.mark.parametrize("kind", ["vp", "subvp", "ve"])
def test_the_probability_flow_of_score_based_models(kind, net, probe):
    if net == "gauss" and probe == "gaussian":
        pytest.skip("theirs is with signs only")
    low, high = SDE[f"{kind}/settings"].tolist()
    a, b, c, d, v = (SDE[f"net/{letter}"] for letter in "abcdv")
    names = ("sigma_min", "sigma_max") if kind == "ve" else ("beta_min", "beta_max")
    chain = interop.score_sde(kind, **dict(zip(names, (low, high), strict=True)))

    def form(x, told):
        if kind == "ve":
            var = told.square()
            if net == "closed":
                return (a * torch.sin(x) + b * x.roll(1, -1) + d - x) / (var + v)
            return -(x - SDE["ve/gauss/m"]) / (SDE["ve/gauss/s"].square() + var)
        if net == "closed":
            return a * torch.tanh(x) + b * torch.sin(c * told / 999.0) * x.roll(1, -1) + d
        t = told / 999.0
        total = low * t + (high - low) * t.square() / 2
        alpha, sigma = torch.exp(-total / 2), torch.sqrt(-torch.expm1(-total)) if kind == "vp" else -torch.expm1(-total)
        return sigma * (x - alpha * SDE[f"{kind}/gauss/m"]) / (alpha**2 * SDE[f"{kind}/gauss/s"] ** 2 + sigma**2)

    x, e = SDE[f"{kind}/x"], SDE[f"probe_{probe}"]
    model, params = interop.adapt(Closed(form), chain, x.shape[1:], decoder=decoders.gaussian(), dtype=F64)
    ends = torch.tensor(model.schedule.endpoints, dtype=F64)
    c_0, c_1 = (chain.inputs(torch.ones(1, dtype=F64), end.reshape(1))[0] for end in ends)
    integrator = flow.ode.dopri5(1e-10, 1e-10)
    z_1, change, _ = flow.integrate(model, params, x / c_0, integrator=integrator, probe_noise=e[None])
    key = f"{kind}/{net}/{probe}"
    close(c_1 * z_1, SDE[f"{key}/z"], 2e-7, 1e-7)
    # of x = c z, whose scale the probe sees, too
    delta = change + e.square().flatten(1).sum(1) * torch.log(c_1 / c_0)
    close(delta, SDE[f"{key}/delta_logp"], 1e-6)


# Flow matching

FM = arrays("flow_matching")


@pytest.mark.parametrize("net", ["closed", "gauss", "mix"])
def test_densities_of_flow_matching(net):
    a, b, c, d, e = (FM[f"net/{letter}"] for letter in "abcde")
    m, s = FM["gauss/m"], FM["gauss/S"]

    def form(x, t):
        if net == "closed":
            x1, x2 = x.unbind(-1)
            first = a * torch.sin(x2) + b * t[:, 0] * x1 + d
            return torch.stack([first, c * torch.tanh(x1) * torch.cos(t[:, 0]) - e * x2], -1)
        one = torch.eye(2, dtype=F64)
        if net == "gauss":
            t = t[..., None]
            both = (t * s - (1 - t) * one) @ torch.linalg.inv(t**2 * s + (1 - t) ** 2 * one)
            return m + (both @ (x - t[..., 0] * m)[..., None])[..., 0]
        t, var = t[:, :, None], FM["mix/std"] ** 2
        v = t[..., 0] ** 2 * var + (1 - t[..., 0]) ** 2
        off = x[:, None] - t * FM["mix/mean"]
        weight = torch.softmax(FM["mix/weight"].log() - 0.5 * off.square().sum(-1) / v - v.log(), -1)
        each = FM["mix/mean"] + ((t[..., 0] * var - (1 - t[..., 0])) / v)[..., None] * off
        return (weight[..., None] * each).sum(1)

    chain = interop.flow_matching(gamma_min=-50.0, gamma_max=50.0)
    model, params = interop.adapt(Closed(form), chain, (2,), decoder=decoders.gaussian(), dtype=F64)
    x, gamma_0 = FM["x"], torch.tensor(-50.0, dtype=F64)
    scale = chain.scale(gamma_0)
    how = dict(integrator=flow.ode.dopri5(1e-10, 1e-10), probe_noise="exact")
    z_1, change, _ = flow.integrate(model, params, x / scale, **how)
    close(z_1, FM[f"{net}/x_0"], 1e-6, 1e-7)
    log_p = change - 0.5 * (z_1.square() + math.log(2 * math.pi)).sum(1) - 2 * torch.log(scale)
    close(log_p, FM[f"{net}/log_p"], 1e-6, 1e-6)


@pytest.mark.parametrize("path", ["condot", "cosine", "linear_vp", "poly", "vp"])
def test_velocities_on_other_paths(path):
    alpha, sigma, x_t = (FM[f"path/{path}/{name}"] for name in ("alpha", "sigma", "x_t"))
    chain, gamma = interop.flow_matching(path, gamma_min=-50.0, gamma_max=50.0), 2.0 * torch.log(sigma / alpha)[:, None]
    close(chain.scale(gamma)[:, 0], torch.sqrt(alpha**2 + sigma**2), 1e-12)
    close(chain.time(gamma)[:, 0], FM["path/t"], 1e-9)
    z, u = x_t / chain.scale(gamma), FM["path/output"]
    v = chain.prediction(z, gamma, u)
    close(process.x_from_v(z, v, gamma), FM[f"path/{path}/velocity_to_target"], 1e-9, 1e-11)
    close(process.eps_from_v(z, v, gamma), FM[f"path/{path}/velocity_to_epsilon"], 1e-9, 1e-11)


# diffusers

HF = arrays("diffusers")
PREDICTS = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}


@pytest.mark.parametrize("steps", [20, 1000])
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_tables_of_betas(name, steps):
    kind = "cosine" if name == "squaredcos_cap_v2" else name
    for zero, suffix in ((False, ""), (True, "_zerosnr")):
        betas = interop.betas(kind, steps, *HF["beta_range"].tolist(), zero_terminal_snr=zero)
        close(torch.cumprod(1 - betas, 0), HF[f"schedule/{name}{suffix}/{steps}"], 0.0, 2e-6)


def constant(chain, clip=False, learned=False):
    """A model whose network gives the golden output, whatever it sees."""
    out = torch.cat([HF["model_output"], HF["model_variance"]], 1) if learned else HF["model_output"]
    return interop.adapt(Closed(lambda x, t: out), chain, (1, 2, 3), clip=clip, dtype=F64)


@pytest.mark.parametrize("clip", ["free", "clip"])
@pytest.mark.parametrize(
    ("name", "prediction"),
    [("linear", p) for p in PREDICTS] + [("squaredcos_cap_v2", "v_prediction"), ("zerosnr", "v_prediction"),
     ("zerosnr", "sample"), ("spaced_leading", "epsilon"), ("spaced_linspace", "epsilon"), ("spaced_trailing", "epsilon")],
)  # fmt: skip
def test_steps_of_ddpm(name, prediction, clip):
    table = {"zerosnr": "scaled_linear_zerosnr", "squaredcos_cap_v2": name}.get(name, "linear")
    bar = HF[f"schedule/{table}/1000"]
    betas = torch.cat([1 - bar[:1], 1 - bar[1:] / bar[:-1]])
    z, key = HF["sample"], f"ddpm/{name}/{prediction}/{clip}"
    times = HF.get(f"ddpm/{name}/timesteps", HF["ddpm/timesteps"][-2 if name == "zerosnr" else 0 :])
    for variance in ("fixed_small", "fixed_large", "learned_range"):
        if f"{key}/{variance}/variance" not in HF:
            continue
        learned = variance == "learned_range"
        chain = interop.ddpm(betas, predicts=PREDICTS[prediction], variance=variance)
        model, params = constant(chain, clip == "clip", learned)
        for i, t in enumerate(times.tolist()):
            gamma_t = torch.tensor(chain.levels[t], dtype=F64)
            prediction_, v = model.denoiser(params, n=2).with_range(z, gamma_t.expand(2))
            # A level of zero SNR has exp(-20) times the SNR before it here: exp(-10) of z is in the mean.
            least = 1e-9 if t < 999 or name != "zerosnr" else 1e-4
            close(prediction_.x, HF[f"{key}/pred_x0"][i], 1e-6, least)
            before = int(times[i + 1]) if name.startswith("spaced") and i + 1 < len(times) else t - 1
            if before < 0 or (name.startswith("spaced") and i + 1 == len(times)):
                close(prediction_.x, HF[f"{key}/mean"][i], 1e-6, least)
                continue
            gamma_s = torch.tensor(chain.levels[before], dtype=F64)
            q = process.posterior(z, prediction_.x, gamma_t, gamma_s)
            close(q.mean, HF[f"{key}/mean"][i], 1e-6, least)
            ratio = model.reverse.log_ratio(gamma_t, gamma_s, v)
            log_var = 2 * q.std.log() + (0.0 if ratio is None else ratio)
            close(log_var.exp().expand(HF[f"{key}/{variance}/variance"][i].shape), HF[f"{key}/{variance}/variance"][i], 2e-6)


@pytest.mark.parametrize("prediction", PREDICTS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_steps_of_ddim(spacing, prediction):
    bar, key = HF["schedule/linear/1000"], f"ddim/{spacing}"
    chain = interop.ddpm(torch.cat([1 - bar[:1], 1 - bar[1:] / bar[:-1]]), predicts=PREDICTS[prediction])
    model, params = constant(chain)
    times, before = HF[f"{key}/timesteps"], HF[f"{key}/previous"]
    every = slice(None) if prediction == "epsilon" else slice(None, None, 3)
    pairs = list(zip(times.tolist(), before.tolist(), strict=True))[every]
    for i, (t, s) in enumerate(pairs):
        gamma_t = torch.tensor(chain.levels[t], dtype=F64)
        eps, x = model.denoiser(params, n=2)(HF["sample"], gamma_t.expand(2))
        want = HF[f"{key}/{prediction}/eta0.0/prev"][i]
        close(x if s < 0 else solvers.ddim_step(x, eps, torch.tensor(chain.levels[s], dtype=F64)), want, 1e-6, 1e-9)


@pytest.mark.parametrize("prediction", PREDICTS)
def test_euler_steps_and_the_grid_of_karras(prediction):
    bar = HF["schedule/scaled_linear/1000"]
    chain = interop.ddpm(torch.cat([1 - bar[:1], 1 - bar[1:] / bar[:-1]]), predicts=PREDICTS[prediction])
    model, params = constant(chain)
    sigmas, key = HF["euler/karras/sigmas"], f"euler/karras/{prediction}"
    grid = schedules.karras(float(sigmas[-2]), float(sigmas[0]))
    levels = schedules.gamma(grid, {}, torch.linspace(0, 1, 8, dtype=F64)).flip(0)
    close(torch.exp(0.5 * levels), sigmas[:-1], 3e-6)
    gamma_t, gamma_s = 2 * sigmas[2].log(), 2 * sigmas[3].log()
    z = HF["sample"] * sigmas[2] * process.alpha(gamma_t)
    close(z, HF[f"{key}/scaled"], 3e-6)
    eps, x = model.denoiser(params, n=2)(z, gamma_t.expand(2))
    close(x, HF[f"{key}/pred_x0"], 3e-6, 1e-5)
    close(solvers.ddim_step(x, eps, gamma_s) / process.alpha(gamma_s), HF[f"{key}/prev"], 3e-6, 1e-5)


def test_euler_steps_of_edm_and_of_flow_matching():
    low, high, data, rho = HF["edm/settings"].tolist()
    sigmas = HF["edm/karras/sigmas"]
    model, params = constant(interop.edm(sigma_min=low, sigma_max=high, sigma_data=data))
    levels = schedules.gamma(schedules.karras(low, high, rho), {}, torch.linspace(0, 1, 8, dtype=F64)).flip(0)
    close(torch.exp(0.5 * levels), sigmas[:-1], 3e-6)
    gamma_t, gamma_s = 2 * sigmas[3].log(), 2 * sigmas[4].log()
    eps, x = model.denoiser(params, n=2)(HF["sample"] * sigmas[3] * process.alpha(gamma_t), gamma_t.expand(2))
    close(x, HF["edm/karras/epsilon/pred_x0"], 3e-6, 1e-5)
    close(solvers.ddim_step(x, eps, gamma_s) / process.alpha(gamma_s), HF["edm/karras/epsilon/prev"], 3e-6, 1e-5)

    chain = interop.flow_matching(reversed=True, time_scale=1000.0)
    model, params = constant(chain)
    for shift in (1, 3):
        s = HF[f"flow/shift{shift}/sigmas"]
        gamma_t, gamma_s = (2 * torch.log(at / (1 - at)) for at in (s[2], s[3]))
        close(chain.inputs(HF["sample"], gamma_t)[1], HF[f"flow/shift{shift}/timesteps"][2], 3e-6)
        eps, x = model.denoiser(params, n=2)(HF["sample"] / chain.scale(gamma_t), gamma_t.expand(2))
        prev = solvers.ddim_step(x, eps, gamma_s) * chain.scale(gamma_s)
        close(prev, HF[f"flow/shift{shift}/prev"], 3e-6, 1e-5)
