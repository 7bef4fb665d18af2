"""Fields: the source's power and posterior, calibration of right and of wrong samples, a whole run."""

import math

import fields
import torch
from processes import figures

from purevdm import random


def test_the_basis_is_orthonormal_and_its_own_inverse():
    x = random.normal(random.key(0), (2, *fields.SHAPE), torch.float64)
    torch.testing.assert_close(fields.modes(fields.modes(x)), x)
    torch.testing.assert_close(fields.modes(x).square().sum(), x.square().sum())


def test_draws_have_their_power_and_the_posterior_is_the_regression_on_the_map():
    x, maps = (fields.modes(part).double()[:, 0] for part in fields.draw_fields(random.key(1), 5_000))
    error = 5 * math.sqrt(2 / len(x))
    assert (x.square().mean(0) / fields.POWER - 1).abs().max() < error
    assert (x[:, 0, 1] * x[:, 0, 15]).mean().abs() / fields.POWER[0, 1] < error  # two of one wave number
    rest = x - fields.GAIN * maps
    assert (rest.square().mean(0) / fields.VARIANCE - 1).abs().max() < error
    assert ((rest * maps).mean(0) / (fields.VARIANCE.sqrt() * maps.std(0))).abs().max() < error
    assert abs(fields.POWER.mean() - 1) < 0.1  # the variance of a number


def test_calibration_tells_right_samples_from_wrong_ones():
    x = fields.modes(random.normal(random.key(2), (20, *fields.SHAPE)))
    drawn = fields.modes(random.normal(random.key(3), (20, 19, *fields.SHAPE)))
    chi = [float(fields.calibration(x, samples).split()[-1]) for samples in (drawn, 0.7 * drawn, 1.4 * drawn)]
    assert 4 < chi[0] < 50 < min(chi[1:])


def test_a_run_prints_what_it_promises(tmp_path):
    lines = figures("fields.py", "--no-compile", "--steps", 1, "--maps", 2, "--out", tmp_path)
    bound, entropy = (float(lines[name].split()[0]) for name in ("test bound", "entropy"))
    assert entropy < bound
    assert all("nominal 0.9), chi-square" in lines[name] for name in ("model", "exact"))
    assert (tmp_path / "fields.png").stat().st_size > 5_000
