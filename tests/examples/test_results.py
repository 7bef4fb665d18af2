"""The comparison: its table and its picture from given figures; slowly, a run that goes on where it stopped."""

import json
import sys

import pytest
import results


def figures(bits):
    t = [0.0, 0.5, 1.0]
    row = dict(error=0.1, variance=bits / 2, t=t, gamma=[-8.0, -2.0, 4.0], slope=[12.0] * 3, loss_at_t=[1.0, 2.0, 1.0])
    return row | dict(bits=bits, parameters=10)


def test_the_table_and_the_picture(tmp_path):
    found = {f"{n}/{s}/{seed}": figures(2.0 + seed) for n in results.NETWORKS for s in results.SCHEDULES for seed in (0, 1)}
    lines = results.table(found).splitlines()
    assert len(lines) == 2 + 2 * len(results.SCHEDULES)
    assert "| 2.500 ± 0.500 |" in lines[2]
    assert "| 1.250 ± 0.250 |" in lines[-1]
    results.plot(found, tmp_path)
    assert (tmp_path / "variance.png").stat().st_size > 20_000


def test_schedules_with_a_comma_in_their_name_are_told_apart():
    found = {"mlp/monotone_mlp/0": figures(1.0), "mlp/monotone_mlp, pinned/0": figures(3.0)}
    lines = {line.split("`")[1]: line for line in results.table(found).splitlines() if line.startswith("| bits")}
    assert "1.000" in lines["monotone_mlp"]
    assert "3.000" in lines["monotone_mlp, pinned"]


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "NETWORKS", {"mlp": lambda: results.networks.mlp(8, fourier=())})
    one = {name: results.SCHEDULES[name] for name in ("fixed_linear", "constrained_monotone")}
    monkeypatch.setattr(results, "SCHEDULES", one)
    monkeypatch.setattr(sys, "argv", ["results.py", "--steps", "5", "--seeds", "1", "--passes", "2", "--out", str(tmp_path)])
    results.main()
    first = (tmp_path / "results.json").read_text()
    assert set(json.loads(first)) == {"mlp/fixed_linear/0", "mlp/constrained_monotone/0"}
    assert (tmp_path / "best.png").exists()
    results.main()
    assert (tmp_path / "results.json").read_text() == first
