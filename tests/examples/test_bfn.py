"""The Bayesian flow example: its tasks, presets, whole runs."""

from dataclasses import replace

import bfn
import digits
import presets
import pytest
import torch
from processes import here

from purevdm import interop, random


def test_black_and_white_digits():
    task = bfn.images("binary", random.key(0), 16)
    grey = digits.data(random.key(0))[1]
    assert torch.equal(task.test, (grey > 8).long())
    assert 0.4 < task.baselines["pixel histograms"].mean < 0.6


@pytest.mark.parametrize(
    ("kind", "outputs", "real"),
    [
        ("bfn_continuous", None, True),
        ("bfn_continuous", None, False),
        ("bfn_discretised", 2, False),
        ("bfn_discrete", None, False),
    ],
)
def test_presets_build_bayesian_flows(kind, outputs, real):
    config = presets.PRESETS["digits_bfn"][1]
    config = replace(config, model=replace(config.model, kind=kind, network="mlp", timesteps=7))
    config = replace(config, data=replace(config.data, loc=(1.0,), scale=(2.0,)))
    model = presets.build(config, (3,), None if real else 17)
    assert model.network.outputs == outputs
    assert model.timesteps == 7
    assert not model.reconstruction
    assert model.decoder.unit == ("nats" if real else "bits/dim")
    if kind != "bfn_continuous":
        with pytest.raises(ValueError, match=r"model\.kind: real data"):
            presets.build(config, (3,), None)


def test_the_programs_train_evaluate_and_sample(tmp_path):
    """By the command line: a run of two steps of a small model, its bound, its samples, and what they refuse."""
    out = tmp_path / "run"
    small = ["--model.network", "mlp", "--model.embed", 8, "--model.fourier", "--no-compile", "--eval-passes", 1]
    small += ["--optimizer.steps", 2, "--eval-every", 2, "--save-every", 2, "--sample-steps", 2, "--samples", 4]
    done = here("train.py", "digits_bfn", "--out", out, *small)
    assert done.returncode == 0, done.stderr
    assert "test bound" in done.stderr + done.stdout
    found = here("evaluate.py", out, "--examples", 16)
    assert "prior      0.0000 +- 0.0000 bits/dim" in found.stdout, found.stderr
    drawn = here("sample.py", out, "--n", 4, "--steps", 3, "--solver", "ode_2", "--grid", "root", "--out", tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "samples.png").exists()
    assert "solver: expected one of bayesian" in here("sample.py", out, "--solver", "ddim").stderr
    assert "profile: expected a diffusion model" in here("evaluate.py", out, "--profile", tmp_path / "p.png").stderr


@pytest.mark.parametrize("task", ["digits", "binary", "text"])
def test_a_short_run(task, tmp_path):
    small = ["--eager", "--steps", "2", "--embed", "16", "--batch", "4", "--passes", "1", "--sample-steps", "3"]
    done = here("bfn.py", task, *small, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "test bound" in out
    assert ("3-grams" in out) == (task == "text")
    assert (tmp_path / "samples.png").stat().st_size > 5_000
    params = interop.load_params(tmp_path / "params.safetensors")
    assert "network" in params
