"""One step of each kind: the official numbers, the order on a known flow, one graph, values that compare."""

import math

import pytest
import torch
from goldens import CASES, case, nchw
from parts import changed

import purevdm
from purevdm import bfn, networks, process, random, schedules, solvers, testing

NO_PARAMS = {"network": {}, "schedule": {}}


@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_official_ones(name):
    c = case(name)
    z = nchw(c.arrays["score/z"])
    for i in (0, 5, 9):
        gamma_s, gamma_t = (c.model.gamma(c.params, torch.tensor(t)) for t in ((9 - i) / 10, (10 - i) / 10))
        eps_hat = c.model.eps_hat(c.params, z, gamma_t.expand(4), c.cond)
        got = solvers.ancestral_step(z, eps_hat, gamma_t, gamma_s, nchw(c.arrays[f"sample/{i}/eps"]))
        want = nchw(c.arrays[f"sample/{i}/z_s"])
        assert (got - want).norm() <= 2e-5 * want.norm()


@pytest.mark.parametrize("grid", ["time", "gamma"])
@pytest.mark.parametrize(
    ("solver", "order"), [(solvers.ddim(), 1), (solvers.dpmpp_2m(), 2), (solvers.ancestral(), None)], ids=str
)
def test_solvers_draw_from_a_gaussian_and_have_their_order_on_it(solver, order, grid):
    testing.check_solver(solver, order, grid=grid)


def test_one_step_is_the_estimate_itself():
    z, eps = random.normal(random.key(0), (2, 5), torch.float64)
    gamma_s, gamma_t = torch.tensor(-40.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    x_hat = process.x_from_eps(z, eps, gamma_t)
    done = solvers.ddim_step(x_hat, eps, gamma_s)
    torch.testing.assert_close(done, x_hat, rtol=1e-6, atol=1e-6)
    two = solvers.dpmpp_2m_step(z, x_hat, gamma_t, gamma_s, torch.zeros_like(z), torch.tensor(math.inf))
    torch.testing.assert_close(two, done)


def test_a_solver_of_ones_own():
    """Heun's method: two evaluations a step, of order 2 on the exact flow of a Gaussian."""

    def velocity(z, gamma, prediction):
        return process.sigma(gamma) * (prediction.eps - process.sigma(gamma) * z) / 2

    def step(denoise, z_t, gamma_t, gamma_s, key, carry):
        first, h = denoise(z_t, gamma_t), gamma_s - gamma_t
        slope = velocity(z_t, gamma_t, first)
        euler = z_t + h * slope
        return solvers.Step(z_t + h * (slope + velocity(euler, gamma_s, denoise(euler, gamma_s))) / 2, first.x)

    testing.check_solver(solvers.Solver.of(step), order=2)


@pytest.mark.parametrize("solver", [solvers.ancestral(), solvers.ddim(), solvers.dpmpp_2m()], ids=str)
@pytest.mark.parametrize("gamma_1", [5.0, 20.0, 30.0])
@pytest.mark.parametrize("predicts", ["x", "v"])
def test_an_estimate_of_the_data_is_kept_at_any_gamma(predicts, gamma_1, solver):
    """A network that always says 0.5, and under the condition 0.75: one step leads to alpha_0 x + sigma_0 noise."""

    def apply(params, z, gamma, cond=None, key=None, x_hat=None):
        x = torch.full_like(z, 0.5) if cond is None else torch.full_like(z, 0.75)
        return x if predicts == "x" else (process.alpha(gamma) * z - x) / process.sigma(gamma)

    network = networks.Network.of(lambda key, shape: {}, apply, predicts=predicts, self_condition=True)
    model = purevdm.vdm(network, schedules.fixed_linear(-30.0, gamma_1), (4,), 2)
    z = random.normal(random.key(0), (3, 4))
    for options, want in (
        ({}, 0.5),
        ({"clip": True}, 0.5),
        ({"cond": torch.zeros(3), "guidance": 0.5}, 0.625),
        ({"cond": torch.zeros(3), "guidance": 3.0, "clip": True}, 0.5),
    ):
        found = model.sample(NO_PARAMS, random.key(1), 3, z=z, start=1.0, until=0.0, steps=1, solver=solver, **options)
        assert (found - want).abs().max() < 1e-5, options  # sigma_0 is 3e-7


@pytest.mark.parametrize("part", [0, 1])
def test_a_step_of_another_shape_or_kind_is_refused(part):
    def broken(done):
        return lambda denoise, z_t, gamma_t, gamma_s, key, carry: done(denoise(z_t, gamma_t))

    model = purevdm.vdm(networks.mlp(8, fourier=()), schedules.learned_linear(), (2,))
    params = model.init(random.key(0))
    for change, error in ((lambda x: x[:1], ValueError), (lambda x: x.double(), TypeError), (lambda x: None, TypeError)):

        def done(found, change=change):
            return solvers.Step(*(change(x) if i == part else x for i, x in enumerate((found.x, found.x))))

        mine = solvers.Solver.of(broken(done))
        with pytest.raises(error, match=f"solver: the {('latents', 'estimate')[part]} of its step: expected"):
            model.sample(params, random.key(1), 3, steps=2, solver=mine)
        if error is ValueError:
            with pytest.raises(testing.LawError, match="solver: the"):
                testing.check_solver(mine)
    mine = solvers.Solver.of(broken(lambda found: found.x))
    with pytest.raises(TypeError, match="solver: expected a Step from its step, got a float32"):
        model.sample(params, random.key(1), 2, steps=2, solver=mine)

    flow = bfn.continuous(networks.mlp(8, fourier=()), event_shape=(2,), sigma_1=0.1)
    mine = changed(bfn.solvers.ode_1(), step=lambda path, w, s, t, key, carry: bfn.solvers.Step(w[:1], w))
    with pytest.raises(ValueError, match="solver: the latents of its step"):
        flow.sample(flow.init(random.key(0)), random.key(1), 3, steps=2, solver=mine)
