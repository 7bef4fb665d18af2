"""Presets of Bayesian flows, and the programs on them."""

from dataclasses import replace

import presets
import pytest
from processes import here


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
