"""Checkpoints: to the bit, whole or not at all, the last and the best kept, the damaged named."""

import json
import math
import os
from pathlib import Path

import pytest
import tiny
import torch
from optree import tree_leaves, tree_map

from purevdm import random, training
from purevdm.training import checkpoint
from purevdm.training.checkpoint import CheckpointError


def trained(step=3):
    state, grad_fn = tiny.state(), training.gradients(tiny.model())
    for _ in range(step):
        state, _ = training.train_step(tiny.SETTINGS, grad_fn, state, tiny.data(), random.key(3))
    return state


def same(a, b):
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def test_round_trip_to_the_bit(tmp_path):
    state = trained()
    state.params["schedule"]["b"] = torch.tensor(-0.0)  # and signs of zero
    path = checkpoint.save(tmp_path, state, metric=2.5, extra={"seed": 1})
    assert path.name == "00000003"
    loaded = checkpoint.load(path, tiny.state())
    assert same(loaded, state)
    assert math.copysign(1, loaded.params["schedule"]["b"]) == -1
    assert same(checkpoint.load_params(path, state.params), state.ema_params)
    assert same(checkpoint.load_params(path, state.params, ema=False), state.params)
    notes = checkpoint.notes(path)
    assert (notes["step"], notes["metric"], notes["extra"]) == (3, 2.5, {"seed": 1})
    names = json.loads((path / "state.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert "params.network.dense1.kernel" in names


def test_the_last_and_the_best_stay(tmp_path):
    state = tiny.state()
    for step, metric in enumerate([5.0, None, 1.0, 3.0, None, 2.0]):
        checkpoint.save(tmp_path, state._replace(step=step), metric=metric, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000002", "00000004", "00000005"]
    assert checkpoint.latest(tmp_path).name == "00000005"
    assert checkpoint.best(tmp_path).name == "00000002"
    assert checkpoint.latest(tmp_path / "nothing") is None
    assert checkpoint.best(tmp_path / "nothing") is None


def test_what_a_killed_process_leaves_is_not_seen(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, tiny.state())

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, trained(1))
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path).name == "00000000"
    checkpoint.save(tmp_path, trained(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000000", "00000002"]


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoint.save(tmp_path, tiny.state())
    again = tree_map(lambda leaf: leaf + 1 if isinstance(leaf, torch.Tensor) else leaf, tiny.state())
    assert same(checkpoint.load(checkpoint.save(tmp_path, again), tiny.state()), again)


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "harm", "word"),
    [
        ("state.safetensors", cut, "state.safetensors: damaged"),
        ("state.safetensors", flip, "state.safetensors: damaged"),
        ("state.safetensors", os.unlink, "state.safetensors: expected a checkpoint's tensors, found no file"),
        ("state.json", cut, "state.json: damaged"),
        ("state.json", os.unlink, "state.json: expected"),
        ("state.json", lambda p: p.write_text('{"format": 99}'), "state.json: expected format 1, got 99"),
        ("state.json", lambda p: p.write_text("[]"), "state.json: damaged"),
    ],
)
def test_damage_is_named(tmp_path, file, harm, word):
    path = checkpoint.save(tmp_path, tiny.state())
    harm(path / file)
    with pytest.raises(CheckpointError, match=word):
        checkpoint.load(path, tiny.state())


def test_another_model_is_named(tmp_path):
    path = checkpoint.save(tmp_path, tiny.state())
    with pytest.raises(CheckpointError, match=r"of another model: it holds no ema_params.network.cond.label"):
        checkpoint.load(path, training.init(tiny.model(classes=3), random.key(0)))
    wide = training.init(tiny.model(cond_dim=1), random.key(0))
    with pytest.raises(CheckpointError, match=r"of another model: expected .*dense1.kernel to be a float32 tensor of shape"):
        checkpoint.load(path, wide)
