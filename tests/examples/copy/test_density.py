"""The density of the swirl: the truth that the map is held against, the bound of a point, a whole run."""

import math

import density
import torch
from processes import figures, small_flow

import purevdm
from purevdm import decoders, networks, random, schedules
from purevdm.testing import sources


def test_the_true_density_has_mass_one_and_falls_off_the_curve():
    # cells of two standard deviations of the noise
    centres = (torch.arange(96) + 0.5) / 96 * 48 - 24
    mass = density.true_log_density(torch.cartesian_prod(centres, centres), 1024).exp().sum() * 0.5**2
    assert abs(mass - 1) < 0.02
    # Points moved by as much noise again are twice as far from the curve in squares, in the one direction that is across it:
    # a density lower by 1/2.
    x = density.spiral(random.key(0), 2000)
    moved = x + 0.25 * random.normal(random.key(1), x.shape)
    own, off = (density.true_log_density(points, 1024).mean() for points in (x, moved))
    assert abs((own - off) - 0.5) < 0.1


def test_the_log_density_of_a_point_is_its_bound():
    model = purevdm.vdm(networks.mlp(8), schedules.fixed_linear(-8.0, 5.0), (2,), decoder=decoders.gaussian())
    params, x = model.init(random.key(0)), random.normal(random.key(1), (5, 2))
    got = density.minus_bound(model, params, x, random.key(2), 4096, size=3)
    want = -model.nll_bound(params, x.repeat(4096, 1), random.key(3)).total.unflatten(0, (4096, 5))
    assert ((got - want.mean(0)).abs() < 4 * want.std(0) / math.sqrt(4096) + 0.1).all()


def test_a_run_prints_what_it_promises(tmp_path, monkeypatch):
    small_flow(monkeypatch, density)
    arguments = ("--steps", 3, "--test", 64, "--grid", 12, "--noises", 256, "--no-compile", "--out", tmp_path)
    lines = figures("density.py", *arguments)
    bound, flow, truth = (float(lines[name].split()[0]) for name in ("test bound", "by the flow", "true density"))
    assert truth < bound < math.inf
    assert truth < flow
    assert "nats (16 evaluations a point)" in lines["by the flow"]
    assert "nats (3 steps, 64 points)" in lines["test bound"]
    of_bound, of_flow, of_truth = (float(part.split()[0]) for part in lines["mass on the map"].split(", "))
    assert 0 <= of_bound <= 1
    assert of_flow >= 0
    assert 0.9 < of_truth < 1.1  # cells of 16 standard deviations
    assert (tmp_path / "density.png").stat().st_size > 5_000


def test_by_the_flow_a_gaussian_has_its_density():
    """Of points of a known Gaussian: its own density, wider by the noise left at time 0; its sum over cells is 1."""
    std, gamma_0 = 0.8, -5.0
    model = purevdm.vdm(sources.gaussian(std), schedules.fixed_linear(gamma_0, 12.0), (2,), decoder=decoders.gaussian())
    centres = (torch.arange(24) + 0.5) / 24 * 8 - 4
    cells = torch.cartesian_prod(centres, centres)
    found = density.by_flow(model, {"network": {}, "schedule": {}}, cells, random.key(0), 1e-4)
    variance = std**2 + math.exp(gamma_0)
    want = -0.5 * cells.double().square().sum(1) / variance - math.log(2 * math.pi * variance)
    torch.testing.assert_close(-found.nll, want, rtol=2e-3, atol=5e-3)
    assert abs((-found.nll).exp().sum() / 9 - 1) < 5e-3
