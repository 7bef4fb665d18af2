"""Networks of other programs as models: exact sources through each process, respacing, and what is refused."""

import math
import types
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from foreign import Closed

from purevdm import codec, decoders, evaluation, interop, likelihood, ode, process, random, sampling, testing
from purevdm.likelihood._dequantise import dequantised

F64, KEY = torch.float64, random.key(0)
M, S = torch.tensor([0.3, -0.5], dtype=F64), torch.tensor([0.4, 0.8], dtype=F64)
BETAS = interop.betas("linear", 50, 1e-4, 0.3)


def eps_of(x, alpha, sigma):
    """The mean of the noise in x, of data N(M, S**2)."""
    return sigma * (x - alpha * M) / (alpha**2 * S**2 + sigma**2)


def said(kind, x, alpha, sigma):
    eps = eps_of(x, alpha, sigma)
    data = (x - sigma * eps) / alpha
    return {"eps": eps, "x": data, "v": alpha * eps - sigma * data}[kind]


def ddpm(kind, variance="fixed_small"):
    levels = torch.log(torch.expm1(-torch.log1p(-BETAS).cumsum(0)))

    def form(x, t):
        i = t.long().clamp(0, len(levels) - 2)
        gamma = torch.lerp(levels[i], levels[i + 1], t - i)
        out = said(kind, x, torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt())
        return torch.cat([out, 0.3 * torch.ones_like(out)], 1) if variance == "learned_range" else out

    return interop.ddpm(BETAS, predicts=kind, variance=variance), form


def edm(kind):
    def form(x, told):
        if kind == "edm":
            sigma = torch.exp(4.0 * told)
            total = sigma**2 + 0.25
            x = x * total.sqrt()
            return (x - sigma * eps_of(x, 1.0, sigma) - 0.25 / total * x) / (0.5 * sigma / total.sqrt())
        if kind == "ve":
            return -eps_of(x, 1.0, 2.0 * torch.exp(told))
        t = told / 999.0
        sigma = torch.sqrt(torch.expm1(0.1 * t + 19.9 * t**2 / 2))
        return eps_of(x * torch.sqrt(1 + sigma**2), 1.0, sigma)

    return interop.edm(kind, sigma_min=0.02), form


def sde(kind):
    def form(x, told):
        if kind == "ve":
            return -eps_of(x, 1.0, told) / told
        t = told / 999.0
        total = 0.1 * t + 19.9 * t**2 / 2
        sigma = -torch.expm1(-total)
        return eps_of(x, torch.exp(-total / 2), sigma.sqrt() if kind == "vp" else sigma)

    return interop.score_sde(kind), form


def straight(reversed):
    def form(x, t):
        t = 1.0 - t / 1000.0 if reversed else t
        eps = eps_of(x, t, 1.0 - t)
        velocity = (x - (1.0 - t) * eps) / t - eps
        return -velocity if reversed else velocity

    return interop.flow_matching(reversed=reversed, time_scale=1000.0 if reversed else 1.0, gamma_min=-12.0), form


SOURCES = {
    **{f"ddpm {kind}": partial(ddpm, kind) for kind in ("eps", "x", "v")},
    "iddpm": partial(ddpm, "eps", "learned_range"),
    **{f"edm {kind}": partial(edm, kind) for kind in ("edm", "vp", "ve")},
    **{f"score {kind}": partial(sde, kind) for kind in ("vp", "subvp", "ve")},
    **{f"flow {reversed}": partial(straight, reversed) for reversed in (False, True)},
}


@pytest.mark.parametrize("name", SOURCES)
def test_an_exact_source_has_its_density_through_each_process(name):
    chain, form = SOURCES[name]()
    model, params = interop.adapt(Closed(form), chain, (2,), decoder=decoders.gaussian(), dtype=F64)
    x = M + S * random.normal(KEY, (16, 2), F64)
    low, high = model.schedule.endpoints
    found = likelihood.log_prob(model, params, x, KEY, probes="exact", integrator=ode.dopri5(1e-8, 1e-8))
    want = torch.distributions.Normal(M, torch.sqrt(S**2 + math.exp(low))).log_prob(x).sum(1)
    # What is left of the data at the end is a shift of the prior by alpha M, and a change of its variance by alpha**2.
    torch.testing.assert_close(found.log_prob, want, rtol=0, atol=6.0 * math.exp(-0.5 * high) + 1e-6)
    # Noise from data and back
    z = sampling.invert(model, params, x, steps=400, grid="gamma")
    back = model.sample(params, KEY, 16, z=z, steps=400)
    torch.testing.assert_close(back, x, rtol=0, atol=2e-2)
    # The bound in continuous time is the entropy of the data with the first noise, and its own parts
    continuous = model._replace(timesteps=0)
    draws = M + S * random.normal(random.key(1), (4096, 2), F64)
    nll = evaluation.evaluate(continuous, params, draws.split(1024), KEY).nll
    entropy = (0.5 * torch.log(2 * math.pi * math.e * S**2)).sum().item()
    assert -5 * nll.error < nll.mean - entropy < 5 * nll.error + 8.0 * math.exp(-0.5 * high) + 2.0 * math.exp(low) / 0.16


def pixels(variance="fixed_small", **options):
    """A model of 1 x 2 x 2 pixels and a network that shrinks."""

    def form(x, t):
        out = 0.4 * x * torch.sin(1.0 + t / 50.0)
        return torch.cat([out, torch.tanh(x)], 1) if variance == "learned_range" else out

    return interop.adapt(Closed(form), interop.ddpm(BETAS, variance=variance), (1, 2, 2), dtype=F64, **options)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_whole_trajectories_cost_what_the_bound_says(variance):
    model, params = pixels(variance)
    model = interop.respaced(model, interop.spaced(50, 5))
    assert model.timesteps == 4
    x = random.randint(KEY, (400, 1, 2, 2), 0, 256)
    bound = evaluation.per_example(model, params, [(x,)], KEY, passes=64)
    weights = likelihood.importance_bound(model, params, x, random.key(1), samples=64).log_weights
    gap = -weights.mean(0) - bound.nll
    assert abs(gap.mean()) < 5 * gap.std() / math.sqrt(len(gap))


@pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
def test_a_file_is_as_small_as_the_bound_says(variance):
    """Initial bits, which one example pays for a block, apart."""
    model, params = pixels(variance, clip=True)
    model = interop.respaced(model, interop.spaced(50, 13))
    x = random.randint(KEY, (1500, 1, 2, 2), 0, 256)
    data = codec.encode(model, params, x, lanes=500)
    assert torch.equal(codec.decode(model, params, data, lanes=500), x)
    bound = evaluation.evaluate(model, params, [(x,)], KEY, passes=32).nll
    spent = []
    codec.encode(model, params, x, lanes=500, callback=lambda n, bits: spent.append(bits))
    rate = sum(spent) / x.numel()
    # the rate is one draw of what the bound is the mean of
    draws = evaluation.per_example(model, params, [(x,)], random.key(3)).nll / (4 * math.log(2))
    assert abs(rate - bound.mean) < 5 * draws.std().item() / math.sqrt(1500) + 0.005 * bound.mean


def test_a_model_of_some_times_has_their_levels_and_times():
    model, params = pixels("fixed_large")
    kept = interop.spaced(50, "ddim10")
    fewer = interop.respaced(model, kept)
    levels = torch.tensor(model.network.call.process.levels, dtype=F64)
    t = torch.linspace(0, 1, 10, dtype=F64)
    torch.testing.assert_close(fewer.gamma(params, t), levels[kept], rtol=1e-12, atol=1e-12)
    gamma = levels[kept].reshape(-1, 1, 1, 1)
    told = fewer.network.call.process.inputs(torch.zeros(10, 1, 1, 1, dtype=F64), gamma)[1]
    torch.testing.assert_close(told.flatten(), torch.tensor(kept, dtype=F64), rtol=1e-9, atol=1e-9)
    # the last step's variance is that of the step before, in the fewer steps
    abar = torch.sigmoid(-levels[kept[:2]])
    want = (1 - abar[1] / abar[0]) * (1 - abar[0]) / (1 - abar[1])
    torch.testing.assert_close(fewer.reverse.last(gamma[:1]).exp().flatten()[0], want)
    for bad in ([3], [3, 2], [0, 50]):
        with pytest.raises(ValueError, match=r"^kept: expected"):
            interop.respaced(model, bad)
    for spacing in ("ddim7x", "ddim49.5", 51, "1,60", "a"):
        with pytest.raises(ValueError, match=r"^spacing: expected"):
            interop.spaced(50, spacing)


def test_a_network_of_integer_times_refuses_others():
    table = torch.nn.Embedding(50, 1, dtype=F64)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = table

        def forward(self, x, t):
            return x * self.table(t.long()).reshape(-1, 1, 1, 1)

    model, params = interop.adapt(Net(), interop.ddpm(BETAS, integer_times=True), (1, 2, 2), dtype=F64)
    x = random.randint(KEY, (8, 1, 2, 2), 0, 256)
    assert model.nll_bound(params, x, KEY).total.isfinite().all()
    assert model.sample(params, KEY, 2, steps=7, grid="time").shape == (2, 1, 2, 2)
    for call in (
        lambda: model._replace(timesteps=0).nll_bound(params, x, KEY),
        lambda: likelihood.log_prob(model, params, x, KEY),
        lambda: model.sample(params, KEY, 2, steps=10),
    ):
        with pytest.raises(ValueError, match=r"network: expected integer times, which it was trained on, got time \d"):
            call()


@pytest.mark.parametrize("predicts", ["eps", "x", "v"])
def test_a_clamped_estimate_is_the_data_s(predicts):
    chain = interop.ddpm(BETAS, predicts=predicts)
    model, params = interop.adapt(Closed(lambda x, t: 3.0 * x + 1.0), chain, (1, 2, 2), clip=True, dtype=F64)
    z, gamma = random.normal(KEY, (4, 1, 2, 2), F64), torch.tensor([-5.0, -1.0, 0.0, 2.0], dtype=F64)
    eps, x = model.denoiser(params, n=4)(z, gamma)
    assert x.abs().max() == 1.0
    level = gamma.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(torch.sigmoid(-level).sqrt() * x + torch.sigmoid(level).sqrt() * eps, z)
    unit = decoders.discretised_gaussian(loc=-255 / 256, scale=2 * 255 / 256)
    model, params = interop.adapt(Closed(lambda x, t: 3.0 * x), chain, (1, 2, 2), decoder=unit, clip=True, dtype=F64)
    assert model.denoiser(params, n=4)(z, gamma).x.aminmax() == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"^clip: expected False for data without one range"):
        interop.adapt(Closed(lambda x, t: x), chain, (2,), decoder=decoders.gaussian(), clip=True)


def test_data_in_the_wrong_range_are_seen_by_their_bound():
    x = random.randint(KEY, (64, 1, 2, 2), 96, 160)  # grey: near 0 in [-1, 1], near 1/2 in [0, 1]

    def form(x, t):
        i = t.long().clamp(0, 49)
        abar = torch.cumprod(1 - BETAS, 0)[i]
        return (x - abar.sqrt() * 0.5) / (1 - abar + abar * 0.07**2) * (1 - abar).sqrt()

    chain = interop.ddpm(BETAS)
    inside, params = interop.adapt(Closed(form), chain, (1, 2, 2), dtype=F64)
    with pytest.warns(UserWarning, match=r"^decoder: the bound is [\d.e+]+ bits/dim with data in \[-1, 1\]"):
        interop.warn_of_range(inside, params, x, KEY)
    unit = inside._replace(decoder=decoders.discretised_gaussian(loc=-255 / 256, scale=2 * 255 / 256))
    assert unit.decoder.encode({}, torch.tensor([0, 255])).tolist() == [0.0, 1.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interop.warn_of_range(unit, params, x, KEY)


def test_the_laws_hold_for_an_adapted_model_also_compiled():
    model, params = pixels("learned_range")
    x = random.randint(KEY, (6, 1, 2, 2), 0, 256)
    testing.check_model(model, params, x)
    testing.check_network(model.network, (1, 2, 2), params=params["network"], gamma=model.schedule.endpoints)
    narrow, own = pixels("learned_range", clip=True)
    narrow = narrow._replace(dtype=torch.float32)
    terms = torch.compile(narrow.nll_bound, fullgraph=True, backend="aot_eager")(own, x, KEY)
    torch.testing.assert_close(terms.total, narrow.nll_bound(own, x, KEY).total, rtol=1e-4, atol=1e-3)


def test_latents_drawn_around_the_data_have_the_density_that_the_estimate_says():
    """The weight of variational dequantisation, put together by hand."""
    model, params = pixels()
    x, eps = random.randint(KEY, (5, 1, 2, 2), 0, 256), random.normal(KEY, (5, 1, 2, 2), F64)
    gamma_0 = torch.tensor(model.schedule.endpoints[0], dtype=F64)
    f = model.decoder.encode({}, x, dtype=F64)
    z_0 = process.diffuse(f, gamma_0, eps)
    estimate = model.denoiser(params, n=5)(z_0, gamma_0.expand(5)).x
    log_p = model.decoder.log_prob({}, x, z_0, model.reverse.last(gamma_0), estimate=estimate)
    log_q = torch.distributions.Normal(process.alpha(gamma_0) * f, process.sigma(gamma_0)).log_prob(z_0)
    q = dequantised("variational", model, params, x, None)
    latents, extra = q.latents(eps)
    torch.testing.assert_close(latents, z_0)
    torch.testing.assert_close(extra, (log_p - log_q).flatten(1).sum(1), rtol=1e-9, atol=1e-9)


REFUSED = {
    "betas": (lambda: interop.ddpm([0.1]), "betas: expected at least two"),
    "betas out of range": (lambda: interop.ddpm([0.1, 1.0, 0.2]), "betas: expected numbers above 0 and below 1"),
    "zero SNR": (lambda: interop.ddpm([0.1, 1.0]), "predicts: expected 'x' or 'v' with a last beta of 1"),
    "times": (lambda: interop.ddpm([0.1, 0.2], times=[1, 0]), "times: expected 2 rising numbers"),
    "kind": (lambda: interop.betas("laplace"), "kind: expected one of"),
    "variance": (lambda: interop.ddpm([0.1, 0.2], variance="learned"), "variance: expected one of"),
    "edm": (lambda: interop.edm("ddim"), "kind: expected one of"),
    "sigmas": (lambda: interop.edm(sigma_min=2.0, sigma_max=1.0), "sigma_min, sigma_max: expected"),
    "path": (lambda: interop.flow_matching("spiral"), "path: expected one of"),
    "epsilon": (lambda: interop.score_sde(epsilon=1.0), "epsilon: expected a number below 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_without_a_formula_are_refused(name):
    call, wanted = REFUSED[name]
    with pytest.raises(ValueError, match=f"^{wanted}"):
        call()


def test_a_network_of_other_channels_than_its_process_says():
    x = torch.zeros(2, 3, 2, 2, dtype=torch.int64)
    six = Closed(lambda x, t: torch.cat([x, x], 1))
    model, params = interop.adapt(six, interop.ddpm(BETAS), (3, 2, 2), dtype=F64)
    with pytest.raises(ValueError, match=r"network: expected an output of shape \(2, 3, 2, 2\), got .*'learned_range'"):
        model.nll_bound(params, x, KEY)
    three = Closed(lambda x, t: x)
    model, params = interop.adapt(three, interop.ddpm(BETAS, variance="learned_range"), (3, 2, 2), dtype=F64)
    with pytest.raises(ValueError, match=r"network: expected an output of shape \(2, 6, 2, 2\)"):
        model.nll_bound(params, x, KEY)


# Objects of other programs, by their attributes


class UNet(torch.nn.Module):
    def __init__(self, out=3, **config):
        super().__init__()
        self.config = dict(in_channels=3, out_channels=out, sample_size=2) | config
        self.times = out // 3

    def forward(self, sample, timestep, class_labels=None):
        shift = 0.0 if class_labels is None else class_labels.reshape(-1, 1, 1, 1)
        out = sample * torch.cos(timestep / 100.0).reshape(-1, 1, 1, 1) + shift
        return types.SimpleNamespace(sample=torch.cat([out] * self.times, 1))


def scheduler(name="DDPMScheduler", **config):
    own = dict(num_train_timesteps=40, beta_start=1e-3, beta_end=0.2, beta_schedule="linear", prediction_type="epsilon")
    made = type(name, (), {})()
    made.config = own | config
    made.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-3, 0.2, 40), 0)
    return made


def test_a_network_and_a_scheduler_of_diffusers():
    x, label = random.randint(KEY, (4, 3, 2, 2), 0, 256), torch.arange(4.0)
    model, params = interop.from_diffusers(UNet(), scheduler(variance_type="fixed_large_log"))
    assert (model.timesteps, model.event_shape, type(model.reverse).__name__) == (39, (3, 2, 2), "Upper")
    assert model.nll_bound(params, x, KEY, label).total.shape == (4,)
    model, params = interop.from_diffusers(UNet(6), scheduler())
    assert model.reverse.takes_range
    assert model.nll_bound(params, x, KEY).total.isfinite().all()
    for bad, wanted in (
        (dict(prediction_type="flow"), "scheduler.config.prediction_type: expected one of epsilon, sample, v_prediction"),
        (dict(beta_schedule="laplace"), "scheduler.config.beta_schedule: expected one of linear"),
        (dict(variance_type="learned"), "scheduler.config.variance_type: expected one of fixed_small"),
        (dict(beta_end=0.5), "scheduler: expected the alphas_cumprod of its settings"),
        (dict(use_flow_sigmas=True), "scheduler: expected one of betas, of flow matching or of EDM, got DDPMScheduler"),
    ):
        with pytest.raises(ValueError, match=f"^{wanted}"):
            interop.from_diffusers(UNet(), scheduler(**bad))
    with pytest.raises(ValueError, match=r"^decoder: expected one for 4 channels"):
        interop.from_diffusers(UNet(4, in_channels=4), scheduler())
    with pytest.raises(FileNotFoundError, match=r"^source: expected the folder of a saved pipeline"):
        interop.from_diffusers("/nowhere")
    edm = dict(sigma_min=0.01, sigma_max=50.0, sigma_data=0.5, prediction_type="v_prediction")
    for name, settings in (("EDMEulerScheduler", edm), ("FlowMatchEulerDiscreteScheduler", {})):
        model, params = interop.from_diffusers(UNet(), scheduler(name, **settings))
        assert model.timesteps == 0
        assert model.nll_bound(params, x, KEY).total.isfinite().all()


def test_a_network_and_a_diffusion_of_improved_diffusion():
    names = dict(
        model_mean_type=types.SimpleNamespace(name="START_X"), model_var_type=types.SimpleNamespace(name="LEARNED_RANGE")
    )
    betas = interop.betas("cosine", 40).numpy()
    whole = types.SimpleNamespace(betas=betas, rescale_timesteps=True, **names)
    net = Closed(lambda x, t: torch.cat([x * torch.cos(t / 100.0), x], 1))
    model, params = interop.from_improved_diffusion(net, whole, (3, 2, 2), dtype=F64)
    bar, kept = np.cumprod(1 - betas), interop.spaced(40, 10)
    spaced = types.SimpleNamespace(betas=1 - bar[kept] / np.concatenate([[1.0], bar[kept[:-1]]]), rescale_timesteps=True,
                                   timestep_map=kept, original_num_steps=40, **names)  # fmt: skip
    respaced, _ = interop.from_improved_diffusion(net, spaced, (3, 2, 2), dtype=F64)
    x = random.randint(KEY, (4, 3, 2, 2), 0, 256)
    ours = interop.respaced(model, kept).nll_bound(params, x, KEY).total
    torch.testing.assert_close(respaced.nll_bound(params, x, KEY).total, ours, rtol=1e-9, atol=0)
    whole.model_var_type.name = "LEARNED"
    with pytest.raises(ValueError, match=r"^diffusion.model_var_type: expected one of FIXED_SMALL"):
        interop.from_improved_diffusion(net, whole, (3, 2, 2))


@pytest.mark.parametrize("self_condition", [False, True])
def test_a_diffusion_of_denoising_diffusion_pytorch(self_condition):
    class Unet(torch.nn.Module):
        channels, out_dim = 3, 3

        def __init__(self):
            super().__init__()
            self.self_condition = self_condition

        def forward(self, x, time, x_self_cond=None):
            assert (x_self_cond is not None) == self_condition
            return 0.5 * x if x_self_cond is None else 0.5 * x + 0.1 * x_self_cond

    def identity(x):
        return x

    class GaussianDiffusion(torch.nn.Module):
        objective, image_size, normalize = "pred_v", (2, 2), staticmethod(identity)

        def __init__(self):
            super().__init__()
            self.model = Unet()
            self.register_buffer("betas", BETAS.float())

    model, params = interop.from_denoising_diffusion(GaussianDiffusion())
    assert (model.network.predicts, model.network.self_condition) == ("v", self_condition)
    assert model.decoder.encode({}, torch.tensor([0, 255])).tolist() == [0.0, 1.0]
    x = random.randint(KEY, (4, 3, 2, 2), 0, 256)
    assert model.nll_bound(params, x, KEY).total.isfinite().all()
    with pytest.raises(TypeError, match=r"^diffusion: expected a GaussianDiffusion in discrete time"):
        interop.from_denoising_diffusion(Unet())
