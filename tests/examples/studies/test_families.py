"""The comparison of families: its table, its differences seed by seed, a whole run that goes on where it stopped."""

import json
import sys

import families
import pytest
import torch

SIMPLER = {"grey": {"pixel histograms": torch.tensor([2.0, 2.5, 3.0, 2.5])}, "binary": {}, "text": {}}


def leave(out, row, seed, bits):
    (out / f"{'-'.join(row)}-{seed}.json").write_text(json.dumps(dict(bits=bits, error=0.1, train=bits - 0.5)))


def test_the_table_and_the_differences(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(families.common, "run", lambda rows, args, keep: families.common.results(rows, args))
    monkeypatch.setattr(families, "baselines", SIMPLER.__getitem__)
    for seed in (0, 1, 2):
        leave(tmp_path, ("grey", "vdm"), seed, 2.0 + seed)
        leave(tmp_path, ("grey", "bfn"), seed, 1.75 + seed)
        leave(tmp_path, ("text", "bfn"), seed, 3.0)
    monkeypatch.setattr(sys, "argv", ["families.py", "--out", str(tmp_path)])
    families.main()
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| grey, bits/dim | diffusion | 3.000 ± 0.577 | ± 0.100 | 2.500 ± 0.577 |",
        "| grey, bits/dim | Bayesian flow | 2.750 ± 0.577 | ± 0.100 | 2.250 ± 0.577 |",
        "| grey, bits/dim | pixel histograms | 2.500 | ± 0.204 | |",
        "| text, bits/character | Bayesian flow | 3.000 ± 0.000 | ± 0.100 | 2.500 ± 0.000 |",
        "grey, bfn - grey, vdm: -0.250 ± 0.000",
    ]


def test_both_families_take_the_same_data():
    for data in families.UNITS:
        (x_a, test_a), (x_b, test_b) = (families.examples(data, kind) for kind in families.KINDS)
        a, b = (families.task(data, kind) for kind in families.KINDS)
        if data == "text":
            x_a, whole = families.characters.from_bits(x_a[:99]), families.characters.from_bits(test_a)
            assert torch.equal(x_a, x_b[:99])
            assert torch.equal(whole, test_b)
        else:
            assert torch.equal(x_a, x_b)
            assert torch.equal(test_a, test_b)
            assert test_a.max() == (1 if data == "binary" else 16)
        assert a.settings == b.settings
        assert (a.model.event_shape, b.model.event_shape) == (test_a.shape[1:], test_b.shape[1:])


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        families.networks, "vdm_unet", lambda *a, fourier, dropout, groups, **o: families.networks.mlp(8, **o)
    )
    for name, value in (("WIDTH", 8), ("BLOCKS", 1)):
        monkeypatch.setattr(families.characters, name, value)
    few = families.examples
    monkeypatch.setattr(families, "examples", lambda *row: tuple(x[:n] for x, n in zip(few(*row), (64, 16), strict=True)))
    monkeypatch.setattr(families, "baselines", SIMPLER.__getitem__)
    monkeypatch.setattr(families, "SAMPLE_STEPS", 20)
    options = ["--steps", "2", "--seeds", "1", "--batch", "4", "--passes", "1", "--eager", "--out", str(tmp_path)]
    for rows in ("text/bfn", ""):
        monkeypatch.setattr(sys, "argv", ["families.py", "--rows", rows, *options])
        families.main()
        shown = capsys.readouterr().out
        assert "| text, bits/character | Bayesian flow |" in shown
        assert ("grey, bfn - grey, vdm:" in shown) == (rows == "")
        assert (tmp_path / "bfn.png").stat().st_size > 10_000
    assert len(list(tmp_path.glob("*-0.json"))) == 6
    kept = {path.name: path.read_text() for path in tmp_path.glob("*.json")}
    assert (tmp_path / "table.md").read_text().count("\n") == 2 + 6 + 1
    families.main()
    assert {path.name: path.read_text() for path in tmp_path.glob("*.json")} == kept


def test_rows_that_are_none_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["families.py", "--rows", "gray", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="rows: expected the beginning of"):
        families.main()
