"""The table of steps against error shows the orders that its methods promise."""

import json

import pytest
import solvers
import torch


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


def test_the_program_prints_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["solvers.py", "--steps", "2", "5", "--repeats", "0", "1", "--out", str(tmp_path / "t.json")]
    )
    solvers.main()
    assert len(capsys.readouterr().out.splitlines()) == 10
    table = json.loads((tmp_path / "t.json").read_text())
    assert table["errors"]["5"][table["columns"].index(["dpmpp_2m", "gamma"])] < 0.01
