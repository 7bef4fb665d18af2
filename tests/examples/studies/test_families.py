"""The comparison of families: its table, its differences seed by seed, a whole run that goes on where it stopped."""

import json
import sys
from functools import partial

import families
import pytest
import torch

SIMPLER = {"grey": [("pixel histograms", torch.tensor([2.0, 2.5, 3.0, 2.5]))], "binary": [], "text": []}


def leave(out, row, seed, bits):
    (out / f"{'-'.join(row)}-{seed}.json").write_text(json.dumps(dict(bits=bits, error=0.1, train=bits - 0.5)))


def test_the_table_and_the_differences(tmp_path):
    for seed in (0, 1, 2):
        leave(tmp_path, ("grey", "vdm"), seed, 2.0 + seed)
        leave(tmp_path, ("grey", "bfn"), seed, 1.75 + seed)
        leave(tmp_path, ("text", "bfn"), seed, 3.0)
    found = families.results(tmp_path)
    assert families.table(found, SIMPLER).splitlines()[2:] == [
        "| grey, bits/dim | diffusion | 3.000 ± 0.577 | ± 0.100 | 2.500 ± 0.577 |",
        "| grey, bits/dim | Bayesian flow | 2.750 ± 0.577 | ± 0.100 | 2.250 ± 0.577 |",
        "| grey, bits/dim | pixel histograms | 2.500 | ± 0.204 | |",
        "| text, bits/character | Bayesian flow | 3.000 ± 0.000 | ± 0.100 | 2.500 ± 0.000 |",
    ]
    assert families.differences(found) == "grey: Bayesian flow - diffusion -0.250 ± 0.000 bits/dim"


def test_both_families_see_the_same_data():
    for name, task in families.TASKS.items():
        a, b = task("vdm"), task("bfn")
        if name == "text":
            assert torch.equal(families.characters.from_bits(a.train[:99]), b.train[:99])
            assert torch.equal(families.characters.from_bits(a.test), b.test)
            assert a.test[0].numel() == b.test[0].numel() * a.dimensions
        else:
            assert torch.equal(a.train, b.train)
            assert torch.equal(a.test, b.test)
            assert a.test.max() == (1 if name == "binary" else 16)
        assert a.settings == b.settings
        assert (a.model.event_shape, b.model.event_shape) == (a.test.shape[1:], b.test.shape[1:])


def tiny(task, kind):
    """A task of few examples."""
    found = task(kind)
    return found._replace(train=found.train[:64], test=found.test[:16])


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        families.networks, "vdm_unet", lambda *a, fourier, dropout, groups, **o: families.networks.mlp(8, **o)
    )
    for name, value in (("WIDTH", 8), ("BLOCKS", 1)):
        monkeypatch.setattr(families.characters, name, value)
    monkeypatch.setattr(families, "TASKS", {name: partial(tiny, task) for name, task in families.TASKS.items()})
    monkeypatch.setattr(families, "baselines", lambda: SIMPLER)
    monkeypatch.setattr(families, "SAMPLE_STEPS", 20)
    options = ["--steps", "2", "--seeds", "1", "--batch", "4", "--passes", "1", "--eager", "--out", str(tmp_path)]
    for rows in ("text/bfn", ""):
        monkeypatch.setattr(sys, "argv", ["families.py", "--rows", rows, *options])
        families.main()
        shown = capsys.readouterr().out
        assert "| text, bits/character | Bayesian flow |" in shown
        assert ("grey: Bayesian flow - diffusion" in shown) == (rows == "")
        assert (tmp_path / "bfn.png").stat().st_size > 10_000
    assert len(list(tmp_path.glob("*-0.json"))) == 6
    kept = {path.name: path.read_text() for path in tmp_path.glob("*.json")}
    assert (tmp_path / "table.md").read_text().count("\n") == 2 + 6 + 1
    families.main()
    assert {path.name: path.read_text() for path in tmp_path.glob("*.json")} == kept


def test_rows_that_are_none_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["families.py", "--rows", "gray", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        families.main()
    assert "rows: expected the beginning of a row" in capsys.readouterr().err
