"""Training a model on after a change: what each change keeps, a run that is stopped and goes on, models that do not fit."""

from dataclasses import replace
from pathlib import Path

import changes
import further
import numpy as np
import optree
import presets
import pytest
import torch
from processes import printed, refused

from purevdm import random
from purevdm.training.data import batch


def run_of_digits(**form):
    config = presets.PRESETS["digits"][1]
    small = dict(embed=16, layers=1, groups=4) | form
    config = replace(config, model=replace(config.model, **small))
    train, test = presets.datasets(config.data, random.key(0))
    model = presets.build(config, train.event_shape, train.vocab_size, train.classes)
    return further.Run(config, train, test, model, model.init(random.key(1)))


def drawn(params):
    """Parameters with no zeros: a new network's last layers are zero, which would hide what comes before them."""
    keys = iter(random.split(random.key(4), len(optree.tree_leaves(params))))
    return optree.tree_map(lambda leaf: leaf + 0.2 * random.normal(next(keys), leaf.shape), params)


Z, GAMMA = random.normal(random.key(2), (3, 1, 8, 8)), torch.tensor([-6.0, 0.0, 3.0])


@pytest.mark.parametrize("network", ["vdm_unet", "unet"])
def test_binned_keeps_the_first_output_and_the_second_is_the_same_everywhere(network):
    old = run_of_digits(network=network)
    run = changes.binned(old)
    first, second = run.model.network.own.apply_to_batch(run.params["network"], Z, GAMMA).unbind(-1)
    torch.testing.assert_close(first, old.model.network.apply_to_batch(old.params["network"], Z, GAMMA))
    assert torch.equal(second, torch.full_like(second, changes.LOG_RATIO))


UNET = dict(network="unet", multipliers=(1, 2), attention=(1,), heads=2, layers=2)


@pytest.mark.parametrize(("slowest", "tolerance"), [(0, 1e-4), (3, 0.02)])
def test_wider_keeps_the_output(slowest, tolerance):
    """To rounding for a network that does not read gamma, nearly for one that reads the slowest sinusoids of its embedding:
    the fast ones have other frequencies in a wider network."""
    run = run_of_digits(**UNET)
    params = drawn(run.params)
    kernel = params["network"]["dense0"]["kernel"]
    kernel.unflatten(0, (2, -1))[:, : 8 - slowest] = 0.0
    run = run._replace(params=params)
    wide = changes.wider(run, random.key(5))
    ours = run.model.network.apply_to_batch(run.params["network"], Z, GAMMA)
    theirs = wide.model.network.apply_to_batch(wide.params["network"], Z, GAMMA)
    assert (theirs - ours).square().mean().sqrt() < tolerance * ours.std()
    assert wide.config.model.embed == 2 * run.config.model.embed


def test_the_two_halves_of_a_channel_learn_apart():
    old = run_of_digits(**UNET)
    wide = changes.wider(old._replace(params=drawn(old.params)), random.key(5))
    x = batch(wide.train, np.arange(4))[0].long()
    grads = torch.func.grad(lambda params: wide.model.loss_fn(params, x, random.key(6)))(wide.params)
    kernel = grads["network"]["down"]["0"]["0"]["resnet"]["conv1"]["kernel"]
    assert (kernel[0::2] - kernel[1::2]).norm() > 0.05 * kernel.norm()


def test_between_moves_the_endpoints_and_nothing_else():
    old = run_of_digits(schedule="constrained_monotone")
    run = changes.between(old, -9.0, 6.0)
    ends = run.model.schedule.gamma(run.params["schedule"], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([-9.0, 6.0]))
    assert run.model.network == old.model.network
    assert run.params["network"] is old.params["network"]


def test_a_run_goes_on_and_leaves_a_model(tmp_path, monkeypatch):
    given = run_of_digits(**UNET)
    monkeypatch.setattr(further, "load", lambda *args, **options: given)
    short = ("somewhere", "--change", "binned", "wider", "mirrored", "--gamma", -9, 6, "--batch", 4, "--save-every", 2)
    arguments = further.Arguments(tmp_path, change=("binned", "wider"), gamma=(-9.0, 6.0))

    def whole(out, steps):
        printed("further.py", *short, "--steps", steps, "--out", out)
        last = further.checkpoint.latest(out / "checkpoints")
        run = further.started(given, arguments)
        return further.checkpoint.load(last, further.training.init(run.model, random.key(0))._replace(params=run.params))

    whole(tmp_path / "a", 2)
    (tmp_path / "b").mkdir()
    ended, again = whole(tmp_path / "a", 4), whole(tmp_path / "b", 4)
    assert ended.step == again.step == 4
    monkeypatch.undo()
    run = further.load(tmp_path / "b" / "model", "cpu")
    form = run.config.model
    assert (form.predicts, form.embed, form.mirrored) == ("binned", 32, True)
    assert all(map(torch.equal, *map(optree.tree_leaves, (run.params, again.ema_params))))
    assert run.model.nll_bound(run.params, batch(run.test, np.arange(2))[0].long(), random.key(3)).total.isfinite().all()


def test_a_model_of_mirrored_means_trains_its_network_alone_again():
    given = changes.rebuilt(run_of_digits(**UNET, mirrored=True), dtype="bfloat16")
    given = given._replace(params=drawn(given.params))
    again = further.started(given, further.Arguments(Path("a run"), change=("mirrored",)))
    assert not again.config.model.mirrored
    args = again.params["network"], Z, GAMMA
    alone = again.model.network.apply_to_batch(*args)
    assert torch.equal(alone, given.model.network.own.apply_to_batch(*args))
    means = torch.func.vmap(given.model.network.apply, (None, 0, 0))(*args)
    assert (means - alone).abs().max() > 0.1 * alone.std()
    assert further.started(given, further.Arguments(Path("a run"))).config.model.mirrored


FITTING = "expected a U-Net's diffusion model of integers"


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ({"predicts": "v"}, ("--change", "binned"), FITTING),
        ({"kind": "bfn_discretised"}, ("--change", "binned"), FITTING),
        ({"network": "mlp"}, ("--change", "binned"), FITTING),
        ({"flag": True}, ("--change", "binned"), FITTING),
        ({"network": "vdm_unet"}, ("--change", "wider"), "expected a unet"),
        ({"schedule": "fixed_linear"}, ("--gamma", -9, 6), "expected a schedule with the parameters b and w"),
        ({}, ("--gamma", 6, -9), "gamma: expected"),
    ],
)
def test_models_that_do_not_fit_are_refused(form, options, message, monkeypatch, tmp_path):
    given = run_of_digits(**form)
    monkeypatch.setattr(further, "load", lambda *args, **rest: given)
    assert message in refused("further.py", "somewhere", *options, "--out", tmp_path)
