"""Comparisons over seeds: tables, differences seed by seed, whole runs that go on where they stopped."""

import json
from functools import partial
from types import SimpleNamespace

import characters
import families
import objectives
import pytest
import torch
from processes import printed, refused

from purevdm import networks

SIMPLER = {"grey": {"pixel histograms": torch.tensor([2.0, 2.5, 3.0, 2.5])}, "binary": {}, "text": {}}
SHORT = ("--seeds", 1, "--eager", "--out")


def leave(out, row, seed, **figures):
    (out / f"{'-'.join(row)}-{seed}.json").write_text(json.dumps(figures))


def kept(out):
    return {path.name: path.read_text() for path in out.glob("*.json")}


def test_the_table_of_families(tmp_path, monkeypatch):
    monkeypatch.setattr(families.common, "run", lambda rows, args, keep: families.common.results(rows, args))
    monkeypatch.setattr(families, "baselines", SIMPLER.__getitem__)
    for seed in (0, 1, 2):
        for row, bits in ((("grey", "vdm"), 2.0 + seed), (("grey", "bfn"), 1.75 + seed), (("text", "bfn"), 3.0)):
            leave(tmp_path, row, seed, bits=bits, error=0.1, train=bits - 0.5)
    assert printed("families.py", "--out", tmp_path).splitlines()[2:] == [
        "| grey, bits/dim | diffusion | 3.000 ± 0.577 | ± 0.100 | 2.500 ± 0.577 |",
        "| grey, bits/dim | Bayesian flow | 2.750 ± 0.577 | ± 0.100 | 2.250 ± 0.577 |",
        "| grey, bits/dim | pixel histograms | 2.500 | ± 0.204 | |",
        "| text, bits/character | Bayesian flow | 3.000 ± 0.000 | ± 0.100 | 2.500 ± 0.000 |",
        "grey, bfn - grey, vdm: -0.250 ± 0.000",
    ]


def test_the_table_of_objectives(tmp_path, monkeypatch):
    monkeypatch.setattr(objectives.common, "run", lambda rows, args: objectives.common.results(rows, args))
    for seed in (0, 1, 2):
        for i, row in enumerate(list(objectives.ROWS)[:3]):
            leave(tmp_path, row, seed, bits=2.0 + seed - 0.25 * i, error=0.1, single=3.0, batch=0.5)
    lines = printed("objectives.py", "--out", tmp_path).splitlines()
    assert lines[2] == "| eps | uniform | 3.000 ± 0.577 | 3.000 ± 0.000 | 0.500 ± 0.000 |"
    assert lines[5:] == ["eps, importance - eps, uniform: -0.250 ± 0.000", "eps, variance - eps, uniform: -0.500 ± 0.000"]
    assert (tmp_path / "table.md").read_text().splitlines() == lines[:5]


def test_both_families_take_the_same_data(monkeypatch):
    parts = characters.split(families.SPLIT)
    monkeypatch.setattr(characters, "split", lambda key: parts)
    for data in families.UNITS:
        (x_a, test_a), (x_b, test_b) = (families.examples(data, kind) for kind in families.FAMILIES)
        a, b = (families.task(data, kind) for kind in families.FAMILIES)
        assert a.settings == b.settings
        assert (a.model.event_shape, b.model.event_shape) == (test_a.shape[1:], test_b.shape[1:])
        if data == "text":
            x_a, test_a, x_b = characters.from_bits(x_a[:99]), characters.from_bits(test_a), x_b[:99]
        assert torch.equal(x_a, x_b)
        assert torch.equal(test_a, test_b)
        assert test_a.max() == {"grey": 16, "binary": 1, "text": 26}[data]


def test_families_go_on_where_they_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "vdm_unet", lambda *a, fourier, dropout, groups, **o: networks.mlp(8, **o))
    for module, name, value in ((characters, "WIDTH", 8), (characters, "BLOCKS", 1), (families, "SAMPLE_STEPS", 20)):
        monkeypatch.setattr(module, name, value)
    few = families.examples
    monkeypatch.setattr(families, "examples", lambda *row: tuple(x[:n] for x, n in zip(few(*row), (64, 16), strict=True)))
    monkeypatch.setattr(families, "baselines", SIMPLER.__getitem__)
    parts = characters.split(families.SPLIT)
    monkeypatch.setattr(characters, "split", lambda key: parts)
    for rows in ("text/bfn", "", ""):
        before = kept(tmp_path)
        output = printed("families.py", "--rows", rows, "--steps", 2, "--batch", 4, "--passes", 1, *SHORT, tmp_path)
        assert "| text, bits/character | Bayesian flow |" in output
        assert ("grey, bfn - grey, vdm:" in output) == (rows == "")
        assert kept(tmp_path).items() >= before.items()
    assert len(before) == 14
    assert (tmp_path / "bfn.png").stat().st_size > 10_000
    assert (tmp_path / "table.md").read_text().count("\n") == 2 + 14 + 1


def test_steps_are_timed_beside_the_first_row_s(monkeypatch):
    small = families.Task(families.model("binary", "bfn")._replace(network=networks.mlp(4, outputs=2)), None, None)
    monkeypatch.setattr(families.common.training, "init", lambda model, key: model)
    monkeypatch.setattr(families.common.training, "gradients", lambda model, **options: model)
    clock = []
    monkeypatch.setattr(families.common.training, "train_step", lambda *given: clock.append(given[2].timesteps))
    monkeypatch.setattr(families.common, "time", SimpleNamespace(perf_counter=lambda: sum(clock)))
    tasks = [small._replace(model=small.model._replace(timesteps=n), x=torch.zeros(2)) for n in (2, 40)]
    rows = {("grey", name): partial(tasks.__getitem__, i) for i, name in enumerate(("vdm", "bfn"))}
    args = SimpleNamespace(rows="grey", eager=True)
    assert families.common.step_times(rows, args, turns=3) == {("grey", "vdm"): 1.0, ("grey", "bfn"): 20.0}


def test_equal_time_is_fewer_steps_of_a_slower_model(tmp_path):
    args = SimpleNamespace(out=tmp_path)
    rows = families.common.in_equal_time(families.ROWS, families.STEP_TIMES, args)
    for row, steps in ((("grey", "vdm"), 400), (("grey", "diffenc"), 125), (("text", "bfn"), 800)):
        assert rows[row]().settings["steps"] == steps
    assert args.out == tmp_path / "equal_time"


def test_equal_time_is_not_taken_for_equal_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(families.common, "run", lambda rows, args, keep: families.common.results(rows, args))
    monkeypatch.setattr(families, "baselines", SIMPLER.__getitem__)
    leave(tmp_path, ("grey", "vdm"), 0, bits=2.0, error=0.1, train=2.0)
    assert "rows: expected" in refused("families.py", "--equal-time", "--out", tmp_path)


def test_objectives_are_run_once(tmp_path, monkeypatch):
    monkeypatch.setattr(objectives, "network", lambda predicts: networks.mlp(8, fourier=(), predicts=predicts))
    for rows in ("v/importance", "v"):
        before = kept(tmp_path)
        output = printed("objectives.py", "--steps", 3, "--passes", 2, "--batch", 8, *SHORT, tmp_path, "--rows", rows)
        assert "| v | importance |" in output
        assert kept(tmp_path).items() >= before.items()
    assert sorted(kept(tmp_path)) == [f"v-{times}-0.json" for times in ("importance", "uniform", "variance")]
    for name in ("importance", "uniform"):
        figures = json.loads(kept(tmp_path)[f"v-{name}-0.json"])
        assert figures["batch"] < figures["single"]  # even times leave less


@pytest.mark.parametrize("words", [("families.py",), ("families.py", "--step-times"), ("objectives.py",)])
def test_rows_that_are_none_are_refused(words, tmp_path):
    assert "rows: expected the beginning of" in refused(*words, "--rows", "none", "--out", tmp_path)
