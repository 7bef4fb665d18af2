"""Binned estimates for a trained model: what it starts from, a run that is stopped and goes on, models that do not fit."""

from dataclasses import replace

import binning
import numpy as np
import optree
import presets
import pytest
import torch
from processes import printed, refused

from purevdm import networks, random
from purevdm.training.data import batch


def run_of_digits(**changes):
    config = presets.PRESETS["digits"][1]
    small = dict(embed=16, layers=1, groups=4) | changes
    config = replace(config, model=replace(config.model, **small))
    train, test = presets.datasets(config.data, random.key(0))
    model = presets.build(config, train.event_shape, train.vocab_size, train.classes)
    return binning.Run(config, train, test, model, model.init(random.key(1)))


@pytest.mark.parametrize("network", ["vdm_unet", "unet"])
def test_the_first_output_is_what_it_was_and_the_second_is_the_same_everywhere(network):
    old = run_of_digits(network=network)
    run, params = binning.started(old)
    z, gamma = random.normal(random.key(2), (3, 1, 8, 8)), torch.tensor([-6.0, 0.0, 3.0])
    own = networks.mixed(run.model.network.own, torch.bfloat16)._replace(dtype=None)
    first, second = own.apply_to_batch(params["network"], z, gamma).unbind(-1)
    torch.testing.assert_close(first, old.model.network.apply_to_batch(old.params["network"], z, gamma))
    assert torch.equal(second, torch.full_like(second, binning.LOG_RATIO))


def test_a_run_goes_on_and_leaves_a_model(tmp_path, monkeypatch):
    given = run_of_digits()
    monkeypatch.setattr(binning, "load", lambda *args, **options: given)
    short = ("somewhere", "--batch", 4, "--save-every", 2)

    def whole(out, steps):
        printed("binning.py", *short, "--steps", steps, "--out", out)
        last = binning.checkpoint.latest(out / "checkpoints")
        run, params = binning.started(given)
        return binning.checkpoint.load(last, binning.training.init(run.model, random.key(0))._replace(params=params))

    whole(tmp_path / "a", 2)
    (tmp_path / "b").mkdir()
    ended, again = whole(tmp_path / "a", 4), whole(tmp_path / "b", 4)
    assert ended.step == again.step == 4
    monkeypatch.undo()
    run = binning.load(tmp_path / "b" / "model", "cpu")
    assert run.config.model.predicts == "binned"
    assert all(map(torch.equal, *map(optree.tree_leaves, (run.params, again.ema_params))))
    assert run.model.nll_bound(run.params, batch(run.test, np.arange(2))[0].long(), random.key(3)).total.isfinite().all()


@pytest.mark.parametrize("changes", [{"predicts": "v"}, {"kind": "bfn_discretised"}, {"network": "mlp"}, {"flag": True}])
def test_models_that_do_not_fit_are_refused(changes, monkeypatch, tmp_path):
    given = run_of_digits(**changes)
    monkeypatch.setattr(binning, "load", lambda *args, **options: given)
    assert "expected a U-Net's diffusion model of integers" in refused("binning.py", "somewhere", "--out", tmp_path)
