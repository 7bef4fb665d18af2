"""Studies of solvers and integrators: orders that methods promise, tables of evaluations against error."""

import json

import integrators
import perturb
import pytest
import solvers
import torch
from processes import printed, refused

import purevdm
from purevdm import networks, random, schedules


@pytest.mark.parametrize("grid", solvers.GRIDS)
@pytest.mark.parametrize(("method", "order"), [("ancestral", 1), ("ddim", 1), ("dpmpp_2m", 2)])
def test_orders(method, order, grid):
    coarse, fine = (solvers.error(method, steps, grid) for steps in (400, 800))
    assert 2**order * 0.8 < coarse / fine < 2**order * 1.25


def test_the_best_noise_estimate_is_the_conditional_mean():
    """Against a quadrature of the joint distribution of data and noise."""
    gamma, z = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
    x = torch.linspace(-2, 3, 20001, dtype=torch.float64)
    eps = (z - alpha * x) / sigma
    weight = torch.exp(-0.5 * (((x - solvers.MEAN) / solvers.STD) ** 2 + eps**2))
    torch.testing.assert_close(solvers.denoise(z, gamma).eps, (weight * eps).sum() / weight.sum())


def test_solvers_print_their_table(tmp_path):
    output = printed("solvers.py", "--steps", 2, 5, "--repeats", 0, 1, "--out", tmp_path / "t.json")
    assert len(output.splitlines()) == 10
    table = json.loads((tmp_path / "t.json").read_text())
    assert table["errors"]["5"][table["columns"].index(["dpmpp_2m", "gamma"])] < 0.01


def test_integrators_print_their_table(tmp_path, monkeypatch):
    network, schedule = networks.mlp(8, 1, fourier=()), schedules.fixed_linear(-4.0, 3.0)
    model = purevdm.vdm(network, schedule, (1, 8, 8), 17, dtype=torch.float64)
    params, x = perturb.perturbed(model.init(random.key(0)), 1, 0.3), random.randint(random.key(1), (2, 1, 8, 8), 0, 17)
    monkeypatch.setattr(integrators.common, "trained", lambda *_: (model, params, x))
    settings = ("--images", 1, "--tolerances", "1e-2", "1e-4", "--steps", 2, 4, "--reference", "1e-6")
    output = printed("integrators.py", tmp_path, *settings, "--out", tmp_path / "t.json")
    assert len(output.splitlines()) == 2 + 12
    table = json.loads((tmp_path / "t.json").read_text())
    assert len(table["columns"]) == 7
    for coarse, fine in zip(table["rows"][::2], table["rows"][1::2], strict=True):
        assert coarse[0] == fine[0]
        assert coarse[2] <= fine[2]
        assert coarse[4] > fine[4]
    assert [row[2] for row in table["rows"][8:]] == [4, 8, 8, 16]
    monkeypatch.undo()
    assert "digits.py makes it" in refused("integrators.py", tmp_path)
