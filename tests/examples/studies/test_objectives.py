"""The comparison of objectives: runs that are not done twice, its table, its differences seed by seed."""

import json
import sys

import objectives
import pytest


def leave(out, row, seed, bits):
    (out / f"{'-'.join(row)}-{seed}.json").write_text(json.dumps(dict(bits=bits, error=0.1, single=3.0, batch=0.5)))


def test_the_table_and_the_differences(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(objectives.common, "run", lambda rows, args: objectives.common.results(rows, args))
    for seed in (0, 1, 2):
        for i, row in enumerate(list(objectives.ROWS)[:3]):
            leave(tmp_path, row, seed, 2.0 + seed - 0.25 * i)
    monkeypatch.setattr(sys, "argv", ["objectives.py", "--out", str(tmp_path)])
    objectives.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| eps | uniform | 3.000 ± 0.577 | 3.000 ± 0.000 | 0.500 ± 0.000 |"
    assert lines[5:] == [
        "eps, importance - eps, uniform: -0.250 ± 0.000",
        "eps, variance - eps, uniform: -0.500 ± 0.000",
    ]
    assert (tmp_path / "table.md").read_text().splitlines() == lines[:5]


def test_rows_are_run_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(objectives, "network", lambda predicts: objectives.networks.mlp(8, fourier=(), predicts=predicts))
    options = ["--steps", "3", "--seeds", "1", "--passes", "2", "--batch", "8", "--eager", "--out"]
    for rows in ("v/importance", "v"):
        monkeypatch.setattr(sys, "argv", ["objectives.py", *options, str(tmp_path), "--rows", rows])
        objectives.main()
        assert "| v | importance |" in capsys.readouterr().out
    kept = (tmp_path / "v-importance-0.json").read_text()
    assert sorted(p.name for p in tmp_path.glob("*.json")) == [
        f"v-{t}-0.json" for t in ("importance", "uniform", "variance")
    ]
    objectives.main()
    assert (tmp_path / "v-importance-0.json").read_text() == kept
    for found in json.loads(kept), json.loads((tmp_path / "v-uniform-0.json").read_text()):
        assert found["batch"] < found["single"]  # even times leave less


def test_a_row_that_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["objectives.py", "--rows", "w", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="rows: expected the beginning of"):
        objectives.main()
