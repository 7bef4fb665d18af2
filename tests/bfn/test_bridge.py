"""A BFN of real numbers is a diffusion model: the same integrand, the same loss, the same steps."""

import perturb
import pytest
import torch
from compare import close
from parts import changed

from purevdm import Noise, bfn, networks, process, random, schedules
from purevdm import bound as diffusion_bound
from purevdm import solvers as diffusion_solvers
from purevdm.bfn import bound, bridge, solvers

F64 = torch.float64
SIGMA_1 = 0.03


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 3))

    def forward(self, z, t):
        return self.layers(torch.cat([z, t[:, None]], 1))


KINDS = dict(
    eps=networks.mlp(8, fourier=(0,)),
    x=networks.mlp(8, fourier=(0,), predicts="x"),
    v=networks.mlp(8, fourier=(0,), predicts="v", classes=3),
    residual=changed(networks.mlp(8, fourier=()), residual=True),
    batched=networks.from_module(Net),
)


def both(kind, **options):
    model = bfn.continuous(KINDS[kind], (3,), SIGMA_1, clip=False, dtype=F64, **options)
    diffusion = bridge.as_vdm(model)
    assert diffusion.decoder == model.decoder
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.3)
    x = random.normal(random.key(2), (64, 3), F64)
    cond = torch.arange(64) % 3 if kind == "v" else None
    return model, diffusion, params, params | {"schedule": {}}, x, cond


def test_the_schedule_is_the_formula():
    t = torch.linspace(0.0, 0.999, 50, dtype=F64)
    left = 1 - t
    want = torch.log(SIGMA_1 ** (2 * left) / (1 - SIGMA_1 ** (2 * left)))
    schedule = bridge.schedule(SIGMA_1)
    got = schedules.gamma(schedule, {}, t)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bridge.time(got, SIGMA_1), left, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.exp(-got), bfn.flows.Normal(SIGMA_1).snr(left))
    ends = schedules.gamma(schedule, {}, torch.tensor([0.0, 1.0], dtype=F64))
    assert tuple(ends.tolist()) == schedule.endpoints
    # in float32, from float32 times
    t = torch.linspace(0.0, 1.0, 50)
    exact = schedules.gamma(schedule, {}, t.double())
    torch.testing.assert_close(schedules.gamma(schedule, {}, t).double(), exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_integrand_is_the_diffusion_s(kind):
    model, diffusion, params, paired, x, cond = both(kind)
    noise = model.draw(random.key(3), 64, train=False)
    ours = bound.bound(model, params, x, noise, cond).diffusion
    theirs = diffusion_bound.bound(diffusion, paired, x, Noise(1 - noise.t, noise.eps_1, noise.eps), cond).diffusion
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert ours.min() > 0


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_the_steps_are_the_diffusion_s(kind):
    """But for the first, at t = 0, where the diffusion's gamma is cut off."""
    model, diffusion, params, paired, x, cond = both(kind, timesteps=7)
    noise = model.draw(random.key(3), 64, train=False)
    later = noise.t > 1.5 / 7
    mirrored = (8 / 7 - noise.t).clamp(max=1.0)  # the step of BFN's i = 2, ..., n is the diffusion's n + 1 - i
    ours = bound.bound(model, params, x, noise, cond).diffusion
    theirs = diffusion_bound.bound(diffusion, paired, x, Noise(mirrored, noise.eps_1, noise.eps), cond).diffusion
    assert later.sum() > 40
    torch.testing.assert_close(ours[later], theirs[later], rtol=1e-10, atol=1e-10)


def test_the_steps_of_the_samplers_are_the_diffusion_s():
    w, x_hat, x_last = random.normal(random.key(0), (3, 50), F64)
    r, s, t = (torch.tensor(v, dtype=F64) for v in (0.2, 0.3, 0.45))
    flow, key = bfn.flows.Normal(SIGMA_1), random.key(1)
    gamma_r, gamma_s, gamma_t = (-torch.log(flow.snr(time)) for time in (r, s, t))
    z, eps = w * process.sigma(gamma_s), random.normal(key, w.shape, F64)
    eps_hat = process.eps_from_x(z, x_hat, gamma_s)
    path = solvers.Path(flow, lambda w, t: (x_hat, lambda key: x_hat))
    for solver, carry, theirs in (
        (solvers.sde_1(), (), diffusion_solvers.ancestral_step(z, eps_hat, gamma_s, gamma_t, eps)),
        (solvers.ode_1(), (), diffusion_solvers.ddim_step(x_hat, eps_hat, gamma_t)),
        (solvers.ode_2(), (x_last, r), diffusion_solvers.dpmpp_2m_step(z, x_hat, gamma_s, gamma_t, x_last, gamma_r)),
    ):
        ours = solver.step(path, w, s, t, key, carry).w
        torch.testing.assert_close(ours * process.sigma(gamma_t), theirs, rtol=1e-11, atol=1e-11)


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, z, t):
        return self.norm(z + t[:, None])


def test_a_batch_norm_s_statistics_move_alike():
    network = networks.from_module(Normed)
    model = bfn.continuous(network, (3,), SIGMA_1, clip=False, dtype=F64)
    diffusion, params = bridge.as_vdm(model), model.init(random.key(0))
    x = random.normal(random.key(2), (8, 3), F64)
    seeds = model.seeds(random.key(3), 8)
    ours = model.update(params, x, seeds)["network"]
    theirs = diffusion.update(params | {"schedule": {}}, x, seeds._replace(t=1 - seeds.t))["network"]
    close(ours, theirs, 1e-10)
    with pytest.raises(AssertionError):  # they have moved
        close(ours, params["network"], 1e-3)


def test_only_a_bfn_of_real_numbers_without_clipping_is_a_diffusion():
    with pytest.raises(ValueError, match="clip=False"):
        bridge.as_vdm(bfn.continuous(networks.mlp(4), (2,), 0.1, decoder=bfn.binned(4)))
    with pytest.raises(TypeError, match="model: expected one of"):
        bridge.as_vdm(bfn.discrete(networks.mlp(4), (2,), 3, 1.0))
