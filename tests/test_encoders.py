"""Means that move: the official numbers of DiffEnc in both forms, the model without an encoder, a source in closed form."""

import functools
import math

import numpy as np
import optree
import pytest
import torch
from backends import every_backend
from compare import close
from goldens import HERE
from perturb import perturbed

import purevdm
from purevdm import Noise, bound, encoders, evaluation, likelihood, networks, process, random, sampling, schedules, solvers
from purevdm.networks import Network
from purevdm.parts import Encoder
from purevdm.schedules import Schedule

F64 = torch.float64


def nothing(key, shape):
    return {}


def motion(e, params, x, gamma, cond=None, key=None):
    return e[0] * x + e[1] * torch.sin(gamma / 4) * x.roll(1, 0) + e[2] * torch.tanh(gamma * x)


def velocity(n, params, z, gamma, cond=None, key=None):
    return n[0] * z * torch.sigmoid(gamma) + n[1] * torch.sin(z + gamma / 5) + n[2] * z.roll(1, 1)


def poly10(low, high, params, t):
    return high / 2 * t**10 + (high / 2 - low) * t + low


CASES = ["diffenc", "diffenc_poly10", "shrink", "vdm_v"]


@functools.cache
def golden(name):
    """A case's numbers, its model, parameters and noise."""
    arrays = np.load(HERE / "diffenc.npz")
    a = {key.removeprefix(f"{name}/"): arrays[key] for key in arrays if key.startswith(f"{name}/")}
    ends = float(a["settings/gamma_min"]), float(a["settings/gamma_max"])
    kind = str(a["settings/gamma_type"])
    bent = Schedule.of(lambda key: {}, functools.partial(poly10, *ends), endpoints=ends)
    schedule = {"train_scalar": schedules.learned_linear(*ends), "fixed": schedules.fixed_linear(*ends), "poly10": bent}[
        kind
    ]
    y = Network.of(nothing, functools.partial(motion, torch.tensor(a["enc"])))
    kinds = {"diffenc": encoders.learned(y), "shrink": encoders.shrinking(), "vdm_v": encoders.identity()}
    network = Network.of(nothing, functools.partial(velocity, torch.tensor(a["net"])), predicts="v")
    options = dict(encoder=kinds[str(a["settings/kind"])], dtype=F64)
    model = purevdm.vdm(network, schedule, (3, 4, 2), int(a["settings/vocab_size"]), **options)
    own = {leaf: torch.tensor(a[f"params/gamma/{leaf}"][0]) for leaf in "bw"} if kind == "train_scalar" else {}
    t = (torch.tensor(a["draw/t_raw"]) + torch.arange(8, dtype=F64) / 8) % 1.0
    noise = Noise(t, torch.tensor(a["draw/eps_0"]), torch.tensor(a["draw/eps"]))
    return a, model, {"network": {}, "schedule": own}, torch.tensor(a["x"]), noise


@pytest.mark.parametrize("name", CASES)
def test_terms_gradients_and_steps_are_the_official_ones(name):
    a, model, params, x, noise = golden(name)
    terms = bound.bound(model, params, x, noise)
    for term, of in (("recon", "recon"), ("prior", "klz"), ("diffusion", "diff")):
        torch.testing.assert_close(getattr(terms, term), torch.tensor(a[f"out/loss_{of}"]), rtol=1e-9, atol=1e-9)

    def loss(schedule):
        return bound.bound(model, params | {"schedule": schedule}, x, noise).total.mean()

    for leaf, grad in torch.func.grad(loss)(params["schedule"]).items():
        torch.testing.assert_close(grad, torch.tensor(a[f"grad/gamma/{leaf}"][0]), rtol=1e-8, atol=1e-8)
    z = torch.tensor(a["step/z"])
    for i in (0, 5, 9):
        eps = torch.tensor(a[f"step/{i}/eps"])

        def step(denoise, z_t, gamma_t, gamma_s, key, carry, eps=eps):
            eps_hat, x_hat = denoise(z_t, gamma_t)
            return solvers.Step(solvers.ancestral_step(z_t, eps_hat, gamma_t, gamma_s, eps), x_hat)

        given = dict(z=z, start=1 - i / 10, until=(1 - (i + 1) / 10) if i < 9 else 0.0, steps=1)
        z_s = model.sample(params, random.key(0), 8, solver=solvers.Solver.of(step), **given)
        torch.testing.assert_close(z_s, torch.tensor(a[f"step/{i}/z_s"]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["diffenc", "diffenc_poly10"])
def test_the_loss_in_v_is_the_loss_in_eps(name):
    """As the official code has it: gamma' alpha**2 / 2 |v - v_hat + sigma (x_hat - x_t + y + dy / dgamma)|**2."""
    a, model, params, x, noise = golden(name)
    gamma, slope = schedules.gamma_and_slope(model.schedule, params["schedule"], noise.t)
    f, gamma, slope = model.decoder.encode({}, x, dtype=F64), gamma.reshape(-1, 1, 1, 1), slope.reshape(-1, 1, 1, 1)
    y = functools.partial(torch.func.vmap(functools.partial(motion, torch.tensor(a["enc"]), {})), f)
    value, dy = torch.func.jvp(lambda g: y(g.reshape(-1)), (gamma,), (torch.ones_like(gamma),))
    alpha, sigma = process.alpha(gamma), process.sigma(gamma)
    x_t = f + sigma**2 * (value - f)
    z_t = alpha * x_t + sigma * noise.eps
    v_hat = torch.func.vmap(functools.partial(velocity, torch.tensor(a["net"]), {}))(z_t, gamma.reshape(-1))
    x_hat, v = alpha * z_t - sigma * v_hat, alpha * noise.eps - sigma * x_t
    wanted = 0.5 * slope * alpha**2 * (v - v_hat + sigma * (x_hat - x_t + value + dy)).square()
    got = bound.bound(model, params, x, noise).diffusion
    torch.testing.assert_close(got, wanted.sum((1, 2, 3)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_the_loss_in_steps_is_the_divergence_of_the_two_normals(name):
    """q(z_s given z_t, x), of the moved means, and p(z_s given z_t), of which a step of the sampler is a draw."""
    _, model, params, x, noise = golden(name)
    steps = 7
    model, t = model._replace(timesteps=steps), torch.tensor([1, 2, 3, 4, 5, 6, 7, 7], dtype=F64) / steps
    got = bound.bound(model, params, x, noise._replace(t=t)).diffusion / steps
    s, t = (schedules.gamma(model.schedule, params["schedule"], at) for at in (t - 1 / steps, t))
    f = model.decoder.encode({}, x, dtype=F64)
    f_s, f_t = (f + model.encoder.shift({}, f, gamma) for gamma in (s, t))
    s, t = (process.align(gamma, f) for gamma in (s, t))
    z_t = process.diffuse(f_t, t, noise.eps)
    x_hat = model.denoiser(params, n=8)(z_t, t.reshape(-1)).x
    ratio, h = process.alpha(s) / process.alpha(t), s - t
    q = process.alpha(s) * f_s + torch.exp(h) * ratio * (z_t - process.alpha(t) * f_t)
    p = torch.exp(h) * ratio * z_t - process.alpha(s) * torch.expm1(h) * x_hat
    p = p + process.alpha(s) * h * model.encoder.guess(x_hat, t)
    wanted = (q - p).square() / (-2.0 * process.sigma(s) ** 2 * torch.expm1(h))
    torch.testing.assert_close(got, wanted.sum((1, 2, 3)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("timesteps", [0, 20])
def test_with_the_identity_it_is_the_model_without_an_encoder_bit_for_bit(timesteps):
    network = networks.mlp(8, fourier=(1,), predicts="v", cond_dim=1)
    plain = purevdm.vdm(network, schedules.learned_linear(), (3,), 16, timesteps=timesteps)
    moving = plain._replace(encoder=encoders.identity())
    params, x = perturbed(plain.init(random.key(0)), 1, 0.1), random.randint(random.key(1), (6, 3), 0, 16)
    assert optree.tree_structure(params) == optree.tree_structure(moving.init(random.key(0)))
    cond = torch.ones(6, 1)
    for got, wanted in zip(*(m.terms(params, x, random.key(2), cond) for m in (moving, plain)), strict=True):
        assert torch.equal(got, wanted)
    grads = [torch.func.grad(m.loss_fn)(params, x, random.key(2), cond) for m in (moving, plain)]
    assert all(torch.equal(a, b) for a, b in zip(*map(optree.tree_leaves, grads), strict=True))
    drawn = [m.sample(params, random.key(3), 6, steps=5, cond=cond, until=0.0) for m in (moving, plain)]
    assert torch.equal(*drawn)


STD = 0.6


class Halved(Encoder):
    """f_t = (1 - sigma_t**2 / 2) f, and a guess of its motion by the estimate of f_t."""

    def shift(self, params, f, gamma, cond=None):
        return -0.5 * torch.sigmoid(process.align(gamma, f)) * f

    def guess(self, x_hat, gamma):
        sigma2 = torch.sigmoid(gamma)
        return -0.5 * sigma2 * (1.0 - sigma2) / (1.0 - 0.5 * sigma2) * x_hat


def ideal(params, z, gamma, cond=None, key=None):
    """E[f_t given z_t] for f ~ N(0, STD**2), scaled as it moves."""
    s = STD * (1.0 - 0.5 * torch.sigmoid(gamma))
    return process.alpha(gamma) * s**2 * z / (process.alpha(gamma) ** 2 * s**2 + torch.sigmoid(gamma))


def moving_gaussian(timesteps):
    decoder = purevdm.decoders.gaussian()
    network = Network.of(nothing, ideal, predicts="x")
    schedule = schedules.fixed_linear(-9.0, 9.0)
    options = dict(decoder=decoder, timesteps=timesteps, dtype=F64)
    return purevdm.vdm(network, schedule, (40,), encoder=Halved(), **options)


@pytest.mark.parametrize("timesteps", [0, 1600])
def test_the_bound_of_a_moving_gaussian_is_its_entropy(timesteps):
    """In T steps up to a gap of order 1 / T."""
    model, params = moving_gaussian(timesteps), {"network": {}, "schedule": {}}
    x = STD * random.normal(random.key(0), (2000, 40), F64)
    # The network's density in closed form: what is left of the noise at time 0 widens the data.
    variance = STD**2 + math.exp(-9.0)
    log_p = (-0.5 * (x.square() / variance + math.log(2 * math.pi * variance))).sum(1)
    gap = torch.stack([(model.nll_bound(params, x, k).total + log_p).mean() / 40 for k in random.split(random.key(1), 16)])
    error = gap.std() / 4
    assert error < 0.01
    assert -4 * error < gap.mean() < 4 * error + (0.04 if timesteps else 2e-3)


@pytest.mark.parametrize("solver", [solvers.ancestral(), solvers.ddim(), solvers.dpmpp_2m()])
def test_samples_of_a_moving_gaussian_have_its_deviation(solver):
    """Up to an error of order 1 in the step."""
    model, params = moving_gaussian(0), {"network": {}, "schedule": {}}

    def off(steps):
        return model.sample(params, random.key(0), 2000, steps=steps, solver=solver).std().item() / STD - 1

    coarse, fine, noise = off(50), off(400), 4 / math.sqrt(2 * 80000)
    assert abs(coarse) > 2 * noise
    assert abs(fine) < 0.2 * abs(coarse) + noise


def test_the_encoder_learns_by_the_bound():
    network, encoder = networks.mlp(16, fourier=(), predicts="v"), encoders.learned(networks.mlp(8, fourier=()))
    model = purevdm.vdm(network, schedules.learned_linear(), (3,), 16, encoder=encoder, dtype=F64)
    params, x = perturbed(model.init(random.key(0)), 1, 0.1), random.randint(random.key(1), (6, 3), 0, 16)
    for timesteps in (0, 7):
        varied = model._replace(timesteps=timesteps)
        grads = torch.func.grad(varied.loss_fn)(params, x, random.key(2))["encoder"]

        def moved(h, leaf, varied=varied):
            first = params["encoder"]["dense1"]
            encoder = params["encoder"] | {"dense1": first | {"kernel": first["kernel"] + h * leaf}}
            return varied.loss_fn(params | {"encoder": encoder}, x, random.key(2))

        way = torch.cos(torch.arange(grads["dense1"]["kernel"].numel(), dtype=F64)).reshape(grads["dense1"]["kernel"].shape)
        wanted = (moved(1e-5, way) - moved(-1e-5, way)) / 2e-5
        torch.testing.assert_close((grads["dense1"]["kernel"] * way).sum(), wanted, rtol=1e-6, atol=1e-9)


def test_what_has_no_formula_for_moving_means_is_refused():
    _, model, params, x, _ = golden("shrink")
    with pytest.raises(ValueError, match="without an encoder"):
        likelihood.log_prob(model, params, x, random.key(0))
    with pytest.raises(ValueError, match="without an encoder"):
        sampling.invert(model, params, x)
    schedule = schedules.polynomial((3, 4, 2))
    each = model._replace(schedule=schedule)
    with pytest.raises(ValueError, match="one gamma for all dimensions"):
        each.nll_bound(each.init(random.key(0)), x, random.key(0))
    with pytest.raises(TypeError, match="encoder: expected a purevdm"):
        model._replace(encoder=networks.mlp(8)).init(random.key(0))
    assert evaluation.evaluate(model, params, [x], random.key(0)).nll.mean > 0


@every_backend
@pytest.mark.parametrize("timesteps", [0, pytest.param(7, marks=pytest.mark.slow)])
def test_a_compiled_bound_is_the_eager_one(backend, timesteps):
    network, encoder = networks.mlp(8, fourier=(), predicts="v"), encoders.learned(networks.mlp(4, fourier=()))
    model = purevdm.vdm(network, schedules.learned_linear(), (3,), 16, encoder=encoder, timesteps=timesteps)
    params, x = perturbed(model.init(random.key(0)), 1, 0.1), random.randint(random.key(1), (6, 3), 0, 16)
    noise = model.draw(random.key(2), 6, train=False)

    def loss(params, x, noise):
        return bound.bound(model, params, x, noise).total.mean()

    eager = torch.func.grad_and_value(loss)
    compiled = torch.compile(eager, fullgraph=True, backend=backend)
    close(compiled(params, x, noise), eager(params, x, noise), 1e-4)
