"""Forward on the probability flow: the exact flow of a Gaussian, round trips of each solver's order; the great circle."""

import itertools
import math

import perturb
import pytest
import torch
from compare import close
from hypothesis import given
from hypothesis import strategies as st

import purevdm
from purevdm import bfn, networks, process, random, sampling, schedules, solvers
from purevdm.testing import sources

NO_PARAMS = {"network": {}, "schedule": {}}
STD = 0.4
BENT = schedules.Schedule.of(lambda key: {}, lambda params, t: -6.0 + 10.0 * t + torch.sin(3.0 * t))
EACH = schedules.Schedule.of(
    lambda key: {}, lambda params, t: torch.tensor([-6.0, -5.0]).to(t) + torch.tensor([10.0, 8.0]).to(t) * t
)


def scale(model, t):
    """The standard deviation of z at a time, of x ~ N(0, STD**2)."""
    gamma = model.gamma(NO_PARAMS, torch.tensor(t, dtype=torch.float64))
    return torch.sqrt((process.alpha(gamma) * STD) ** 2 + process.sigma(gamma) ** 2)


@pytest.mark.parametrize("schedule", [BENT, EACH], ids=["bent", "each"])
@pytest.mark.parametrize("grid", ["time", "gamma"])
@pytest.mark.parametrize(("solver", "order"), [(solvers.ddim(), 1), (solvers.dpmpp_2m(), 2)], ids=["ddim", "dpmpp_2m"])
def test_round_trips_and_flows_have_the_order_of_the_solver(solver, order, grid, schedule):
    model = purevdm.vdm(sources.gaussian(STD), schedule, (2,), dtype=torch.float64)
    z_0 = STD * random.normal(random.key(0), (50, 2), torch.float64)
    there, back = [], []
    for steps in (80, 160, 320):
        options = dict(steps=steps, solver=solver, grid=grid)
        z_1 = sampling.invert(model, NO_PARAMS, z=z_0, **options)
        want = z_0 * scale(model, 1.0) / scale(model, 0.0)
        there.append((z_1 - want).norm() / want.norm())
        back.append((model.sample(NO_PARAMS, random.key(1), 50, z=z_1, until=0.0, **options) - z_0).norm() / z_0.norm())
    for errors in (there, back):
        rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
        assert abs(rates[-1] - order) < 0.2, rates
        assert errors[-1] < (0.02 if order == 1 else 2e-4)


def test_data_start_from_the_mean_and_return():
    model = purevdm.vdm(sources.gaussian(STD), BENT, (2,), 16, dtype=torch.float64)
    x = random.randint(random.key(0), (30, 2), 0, 16)
    z = sampling.invert(model, NO_PARAMS, x, trajectory=True)
    assert z.x is None
    assert z.z.shape == (251, 30, 2)
    gamma_0 = model.gamma(NO_PARAMS, torch.tensor(0.0, dtype=torch.float64))
    assert torch.equal(z.z[0], process.alpha(gamma_0) * model.decoder.encode({}, x, dtype=torch.float64))
    assert torch.equal(sampling.invert(model, NO_PARAMS, x), z.z[-1])
    assert torch.equal(model.sample(NO_PARAMS, random.key(0), 30, z=z.z[-1]), x)


def conditional():
    told = schedules.Schedule.of(lambda key: {}, lambda params, t, c: -6.0 + (9.0 + c) * t, contextual=True)
    network = networks.mlp(8, fourier=(), classes=3, cond_drop=0.5, self_condition=True)
    model = purevdm.vdm(network, told, (2,), 16, dtype=torch.float64)
    return model, perturb.perturbed(model.init(random.key(0)), 1, 0.2), torch.tensor([0, 1, 2])


def test_each_example_inverts_under_its_own_condition():
    model, params, label = conditional()
    x, weights = torch.tensor([[3, 8], [0, 15], [7, 7]]), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    z = sampling.invert(model, params, x, label, guidance=weights, steps=5)
    for i in range(3):
        one = sampling.invert(model, params, x[i : i + 1], label[i : i + 1], guidance=weights[i].item(), steps=5)
        torch.testing.assert_close(z[i : i + 1], one, rtol=1e-9, atol=1e-9)


def test_one_graph_inverts_in_any_number_of_steps():
    model, params, label = conditional()
    x = torch.tensor([[3, 8], [0, 15], [7, 7]])

    def invert(params, x, steps):
        return sampling.invert(model, params, x, label, steps=steps, guidance=2.0)

    compiled = torch.compile(invert, fullgraph=True, backend="eager")
    for steps in (2, 5):
        close(compiled(params, x, torch.tensor(steps)), invert(params, x, steps), 1e-9)


def test_derivatives_of_inverted_data():
    model, params, label = conditional()
    x = torch.tensor([[3, 8], [0, 15], [7, 7]])

    def energy(weight, differentiable=True):
        options = dict(steps=3, guidance=weight, differentiable=differentiable)
        return sampling.invert(model, params, x, label, **options).square().mean()

    weight, h = torch.tensor(1.5, dtype=torch.float64), 1e-4
    want = (energy(weight + h) - energy(weight - h)) / (2 * h)
    torch.testing.assert_close(torch.func.grad(energy)(weight), want, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="differentiable: expected True"):
        torch.func.grad(lambda weight: energy(weight, False))(weight)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(), "x, z: expected either data or latents, got neither"),
        (dict(x=torch.zeros(1, 2, dtype=torch.int64), z=torch.zeros(1, 2)), "x, z: .* got both"),
        (dict(x=torch.zeros(1, 2, dtype=torch.int64), start=0.5), "start: expected 0, the time of data"),
        (dict(z=torch.zeros(1, 3)), r"z: expected shape \(1, 2\)"),
        (dict(z=torch.full((1, 2), math.inf)), "z: expected finite numbers"),
        (dict(z=torch.zeros(1, 2), start=0.5, until=0.5), "start, until: expected 0 <= start < until <= 1"),
        (dict(z=torch.zeros(1, 2), solver=solvers.ancestral()), "solver: expected a deterministic one"),
        (dict(model=bfn.continuous(networks.mlp(8, predicts="v"), (2,), 0.02)), "model: expected a model"),
    ],
)
def test_bad_input_is_named(options, word):
    model = options.pop("model", purevdm.vdm(sources.gaussian(STD), schedules.fixed_linear(), (2,)))
    with pytest.raises((TypeError, ValueError), match=word):
        sampling.invert(model, NO_PARAMS, **options)


# The great circle


@given(st.integers(0, 10**6), st.floats(-1.0, 2.0), st.sampled_from([(2,), (3, 4), (1, 2, 2)]))
def test_the_circle_keeps_length_and_moves_evenly(seed, weight, shape):
    z_a, z_b = random.normal(random.key(seed), (2, *shape), torch.float64)
    z_b = z_b * z_a.norm() / z_b.norm()
    weights = torch.tensor([0.0, weight, 1.0], dtype=torch.float64)
    path = sampling.interpolate(z_a, z_b, weights)
    assert path.shape == (3, *shape)
    assert torch.equal(path[0], z_a)
    assert torch.equal(path[2], z_b)
    angle = torch.acos((z_a * z_b).sum() / z_a.norm() ** 2)
    assert abs(path[1].norm() / z_a.norm() - 1) < 1e-6
    # z_a's direction after a turn by weight times the angle
    assert abs((path[1] * z_a).sum() / z_a.norm() ** 2 - torch.cos(weight * angle)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_that_are_close_are_interpolated_in_length(dtype):
    z, weights = random.normal(random.key(0), (7,), dtype), torch.tensor([0.0, 0.25, 1.0], dtype=dtype)
    scales = torch.tensor([1.0, 1.5, 3.0], dtype=dtype)
    path = sampling.interpolate(z, 3.0 * z, weights)
    torch.testing.assert_close(path, scales[:, None] * z, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(sampling.interpolate(z, z, weights), z.expand(3, 7), rtol=1e-5, atol=0.0)
    near = z + 1e-6 * random.normal(random.key(1), (7,), dtype)
    torch.testing.assert_close(
        sampling.interpolate(z, near, weights), torch.lerp(z, near, weights[:, None]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("z_b", [torch.zeros(3), -2.0 * torch.ones(3)])
def test_latents_that_no_one_circle_joins_are_refused(z_b):
    with pytest.raises(ValueError, match="z_a, z_b: expected directions, neither zero nor opposite"):
        sampling.interpolate(torch.ones(3), z_b, torch.tensor([0.5]))
