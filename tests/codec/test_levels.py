"""The lattices lead from latent to latent as the process does."""

import numpy as np
import pytest
import torch
from parts import changed

import purevdm
from purevdm import networks, process, random, schedules
from purevdm.codec import _lattice, _levels


def model_of(schedule, dims=3):
    model = purevdm.vdm(networks.mlp(8, fourier=()), schedule, (dims,), 16, dtype=torch.float64)
    return model, model.init(random.key(0))


def line(params, t):
    return -8.0 + torch.tensor([10.0, 12.0, 14.0], dtype=torch.float64) * t**1.5


def empty(key):
    return {}


def told(params, t, context):
    return -6.0 + context + 10.0 * t


@pytest.mark.parametrize(
    "schedule", [schedules.learned_linear(), schedules.constrained_monotone(-9.0, 4.0), schedules.Schedule.of(empty, line)]
)
def test_coefficients_are_the_process(schedule):
    model, params = model_of(schedule)
    steps = 7
    levels = _levels.levels(model, params, steps, 1)
    gamma = schedules.gamma(model.schedule, params["schedule"], torch.arange(steps + 1, dtype=torch.float64) / steps)
    gamma = gamma.reshape(steps + 1, 1, -1)
    assert np.abs(levels.gamma - gamma.numpy()).max() < 2.0**-20
    gamma, forward_by, back_k, back_eps = (
        torch.from_numpy(part) for part in (levels.gamma, levels.forward, levels.back_k, levels.back_eps)
    )
    k = torch.tensor([[3.0, -20.0, 500.0]], dtype=torch.float64)
    eps = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    for i in range(1, steps + 1):
        below, above = (torch.from_numpy(levels.delta[j]) for j in (i - 1, i))
        forward = process.transition(k * below, gamma[i - 1], gamma[i])
        torch.testing.assert_close(k * forward_by[i] * above, forward.mean, rtol=1e-12, atol=0)
        width = torch.from_numpy(_lattice._width(levels.width_q[i])) * above
        torch.testing.assert_close(width, forward.std, rtol=6e-4, atol=0)
        back = process.posterior_from_eps(k * above, eps, gamma[i], gamma[i - 1])
        mean = (back_k[i] * k - back_eps[i] * eps) * below
        torch.testing.assert_close(mean, back.mean, rtol=1e-10, atol=1e-12)
        width = torch.from_numpy(_lattice._width(levels.width_p[i - 1])) * below
        torch.testing.assert_close(width, back.std, rtol=6e-4, atol=0)
        # as coarse as the narrower of the two that touch it
        assert (np.minimum(levels.width_q[i - 1], levels.width_p[i - 1]) == 0).all()
    torch.testing.assert_close(
        torch.from_numpy(levels.forward[0] * levels.delta[0]), process.alpha(gamma[0]), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        torch.from_numpy(levels.clean), torch.from_numpy(levels.delta[0]) / process.alpha(gamma[0]), rtol=1e-12, atol=0
    )


def test_gamma_rounds_alike_under_noise():
    model, params = model_of(schedules.constrained_monotone())
    found = _levels.levels(model, params, 50, 1)
    noisy = model._replace(schedule=changed(model.schedule, gamma=_noisy))
    again = _levels.levels(noisy, {"schedule": {"of": params["schedule"]}}, 50, 1, dither=found.dither)
    assert all(np.array_equal(a, b) for a, b in zip(found[:-1], again[:-1], strict=True))


def _noisy(params, t):
    return schedules.constrained_monotone().gamma(params["of"], t) + 1e-11 * torch.sin(1e5 * t)


def test_each_example_has_its_own_levels_under_a_contextual_schedule():
    model, params = model_of(schedules.Schedule.of(empty, told, endpoints=(-6.0, 4.0), contextual=True))
    context = torch.tensor([0.0, 0.25], dtype=torch.float64)
    levels = _levels.levels(model, params, 4, 2, context)
    assert levels.gamma.shape == (5, 2, 1)
    assert np.allclose(levels.gamma[:, 1] - levels.gamma[:, 0], 0.25)


def test_too_many_steps_are_refused():
    model, params = model_of(schedules.fixed_linear(0.0, 0.001))
    with pytest.raises(ValueError, match="timesteps: expected gamma\\(t\\) to rise by at least 1e-6 in each of 5000 steps"):
        _levels.levels(model, params, 5000, 1)
    model, params = model_of(schedules.fixed_linear(-100.0, 0.0))
    with pytest.raises(ValueError, match="schedule: expected gamma"):
        _levels.levels(model, params, 10, 1)
