"""Gaussians on a lattice, with the moments of continuous ones, and lattices that lead from one to another as latents do."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from parts import changed

import purevdm
from purevdm import networks, process, random, schedules
from purevdm.codec import _lattice as lattice


@settings(max_examples=60)
@given(st.floats(1.0, 4000.0), st.booleans())
def test_tables_add_up_and_have_the_gaussians_moments(width, escape):
    index = int(lattice.width_index(np.array(width)))
    table = lattice.table(index, escape)
    near = math.exp(index / 1024)
    assert abs(near / width - 1) < 6e-4
    rows = table.rows.astype(np.float64)
    assert (rows == np.floor(rows)).all()
    assert (rows >= 0).all()
    assert (rows.sum(1) == 2**24 - rows.shape[1]).all()
    p = (rows + 1) / 2**24
    off = (np.arange(1 - table.half, table.half + 1) + 0.5) * 2**table.shift - 0.5
    p = p[:, : len(off)]
    mean = p @ off
    # each symbol has 2**-24 more than it should; the escape takes 1e-6
    assert np.abs(mean - np.arange(table.phases) / table.phases).max() < 2e-4 * near
    variance = (p @ off**2) - mean**2
    assert np.abs(variance / near**2 - 1).max() < 0.01
    assert table.phases * near >= 31


def test_a_lattice_as_coarse_as_the_gaussian_has_its_entropy():
    """By Poisson's summation formula, up to exp(-2 pi**2): what each phase costs is the differential entropy."""
    p = (lattice.table(0, True).rows[:, :-1].astype(np.float64) + 1) / 2**24
    entropy = -(p * np.log(p)).sum(1)
    assert np.abs(entropy - 0.5 * math.log(2 * math.pi * math.e)).max() < 1e-4


def test_the_widest_width_is_named():
    with pytest.raises(ValueError, match="schedule: expected neighbouring steps of comparable size"):
        lattice.width_index(np.array(1e9))


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 17, 256]))
def test_frequencies_follow_weights(seed, symbols):
    weights = np.random.default_rng(seed).integers(0, 2**40, (8, symbols))
    rows = lattice.frequencies(weights)
    assert (rows.sum(1) == 2**24 - symbols).all()
    share = weights / weights.sum(1, keepdims=True)
    assert np.abs(rows / rows.sum(1, keepdims=True) - share).max() < symbols / 2**23


def model_of(schedule):
    model = purevdm.vdm(networks.mlp(8, fourier=()), schedule, (3,), 16, dtype=torch.float64)
    return model, model.init(random.key(0))


def line(params, t):
    return -8.0 + torch.tensor([10.0, 12.0, 14.0], dtype=torch.float64) * t**1.5


def empty(key):
    return {}


def close(a, b, rtol, atol=0.0):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    "schedule", [schedules.learned_linear(), schedules.constrained_monotone(-9.0, 4.0), schedules.Schedule.of(empty, line)]
)
def test_coefficients_are_the_process(schedule):
    model, params = model_of(schedule)
    levels = lattice.levels(model, params, 7, 1)
    gamma = schedules.gamma(model.schedule, params["schedule"], torch.arange(8, dtype=torch.float64) / 7)
    assert np.abs(levels.gamma - gamma.reshape(8, 1, -1).numpy()).max() < 2.0**-20
    gamma, delta, k, eps = (
        torch.from_numpy(levels.gamma),
        levels.delta,
        np.array([[3, -20, 500]]),
        np.array([[0.3, -1.0, 2.0]]),
    )
    for i in range(1, 8):
        forward = process.transition(torch.from_numpy(k * delta[i - 1]), gamma[i - 1], gamma[i])
        close(k * levels.forward[i] * delta[i], forward.mean, 1e-12)
        close(lattice.WIDTHS[levels.width_q[i]] * delta[i], forward.std.expand_as(gamma[i]), 6e-4)
        back = process.posterior_from_eps(torch.from_numpy(k * delta[i]), torch.from_numpy(eps), gamma[i], gamma[i - 1])
        close((levels.back_k[i] * k - levels.back_eps[i] * eps) * delta[i - 1], back.mean, 1e-10, 1e-12)
        close(lattice.WIDTHS[levels.width_p[i - 1]] * delta[i - 1], back.std.expand_as(gamma[i]), 6e-4)
        # as coarse as the narrower of the two that touch it
        assert (np.minimum(levels.width_q[i - 1], levels.width_p[i - 1]) == 0).all()
    close(levels.forward[0] * delta[0], process.alpha(gamma[0]), 1e-12)
    close(levels.clean, delta[0] / process.alpha(gamma[0]).numpy(), 1e-12)


def test_gamma_rounds_alike_under_noise():
    model, params = model_of(schedules.constrained_monotone())
    exact = lattice.levels(model, params, 50, 1)
    noisy = model._replace(schedule=changed(model.schedule, gamma=_noisy))
    again = lattice.levels(noisy, {"schedule": {"of": params["schedule"]}}, 50, 1, dither=exact.dither)
    assert all(np.array_equal(a, b) for a, b in zip(exact[:-1], again[:-1], strict=True))


def _noisy(params, t):
    return schedules.constrained_monotone().gamma(params["of"], t) + 1e-11 * torch.sin(1e5 * t)


def test_too_many_steps_are_refused():
    model, params = model_of(schedules.fixed_linear(0.0, 0.001))
    with pytest.raises(ValueError, match="timesteps: expected gamma\\(t\\) to rise by at least 1e-6 in each of 5000 steps"):
        lattice.levels(model, params, 5000, 1)
    model, params = model_of(schedules.fixed_linear(-100.0, 0.0))
    with pytest.raises(ValueError, match="schedule: expected gamma"):
        lattice.levels(model, params, 10, 1)
