"""Checkpoints: bit for bit, whole or not at all, the last and the best kept, the damaged named."""

import json
import math
import os
from pathlib import Path

import pytest
import tiny
import torch
from optree import tree_leaves, tree_map

from purevdm import _files, random, training
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


def names(folder):
    return sorted(path.name for path in folder.iterdir())


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
    header = json.loads((path / "state.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert "params.network.dense1.kernel" in header
    shared = state._replace(ema_params=state.params, step=4)  # leaves may share memory
    assert same(checkpoint.load(checkpoint.save(tmp_path, shared), tiny.state()), shared)


def test_the_last_and_the_best_stay(tmp_path):
    state = tiny.state()
    for step, metric in enumerate([5.0, None, 1.0, 3.0, math.nan, -math.inf, 2.0]):
        checkpoint.save(tmp_path, state._replace(step=step), metric=metric, keep=2)
    assert names(tmp_path) == ["00000002", "00000005", "00000006"]
    assert checkpoint.latest(tmp_path).name == "00000006"
    assert checkpoint.best(tmp_path).name == "00000002"
    assert checkpoint.latest(tmp_path / "nothing") is None
    assert checkpoint.best(tmp_path / "nothing") is None


def test_steps_sort_as_numbers(tmp_path):
    state = tiny.state()
    for step in (99_999_998, 99_999_999, 100_000_000):
        path = checkpoint.save(tmp_path, state._replace(step=step), metric=1.0, keep=1)
        assert path.is_dir()
        assert checkpoint.latest(tmp_path) == checkpoint.best(tmp_path) == path
    assert names(tmp_path) == ["100000000"]
    path = checkpoint.save(tmp_path, state._replace(step=5), keep=1)  # someone went back
    assert names(tmp_path) == ["00000005", "100000000"]
    assert same(checkpoint.load(path, state), state._replace(step=5))


def test_other_names_are_no_checkpoints(tmp_path):
    path = checkpoint.save(tmp_path, tiny.state(), metric=1.0)
    for name in ("\N{ARABIC-INDIC DIGIT THREE}" * 8, "3", "000000003", "99999999x", "9" * 19, ".99999999"):
        (tmp_path / name).mkdir()
    (tmp_path / "99999998").write_text("a file")
    assert checkpoint.latest(tmp_path) == checkpoint.best(tmp_path) == path
    before = set(tmp_path.iterdir())
    later = checkpoint.save(tmp_path, tiny.state()._replace(step=1))
    assert set(tmp_path.iterdir()) == {*before, later}


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        (dict(metric="2"), TypeError, "metric: expected a number, got '2'"),
        (dict(metric=True), TypeError, "metric"),
        (dict(extra={"rate": math.nan}), ValueError, "extra: expected what JSON holds"),
        (dict(extra={1, 2}), ValueError, "extra: expected what JSON holds"),
        (dict(keep=0), ValueError, "keep"),
        (dict(state=tiny.state()._replace(step=10**18)), ValueError, "state.step"),
        (
            dict(state=tiny.state()._replace(params={"a.b": torch.ones(1), "a": {"b": torch.ones(1)}})),
            ValueError,
            "params.a.b",
        ),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, options, error, word):
    with pytest.raises(error, match=word):
        checkpoint.save(tmp_path / "new", **(dict(state=tiny.state()) | options))
    assert not (tmp_path / "new").exists()


def test_where_notes_are_damaged_nothing_is_removed(tmp_path):
    damaged = checkpoint.save(tmp_path, tiny.state(), metric=0.0)
    (damaged / "state.json").write_text("{")
    for step in (1, 2):
        checkpoint.save(tmp_path, tiny.state()._replace(step=step), metric=float(step), keep=1)
    assert names(tmp_path) == ["00000000", "00000001", "00000002"]
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.best(tmp_path)


def test_links_are_followed_and_their_targets_left(tmp_path):
    there = checkpoint.save(tmp_path / "elsewhere", trained(1))
    here = tmp_path / "here"
    here.mkdir()
    for again in (False, True):  # replaced by one of its step; pruned
        (here / there.name).symlink_to(there)
        assert same(checkpoint.load(checkpoint.latest(here), tiny.state()), trained(1))
        checkpoint.save(here, tiny.state()._replace(step=1 + again), keep=1)
        assert names(here) == [f"0000000{1 + again}"]
        assert not (here / f"0000000{1 + again}").is_symlink()
        _files.remove(here / "00000001")
    assert same(checkpoint.load(there, tiny.state()), trained(1))


def test_drafts_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path):
    (tmp_path / f".00000007.{'0' * 32}").mkdir()
    with _files.drafted(tmp_path / "00000006") as living:
        checkpoint.save(tmp_path, tiny.state())
        assert sorted(tmp_path.iterdir()) == sorted([living, tmp_path / "00000000"])
    assert names(tmp_path) == ["00000000"]


def test_what_a_killed_process_leaves_is_not_seen(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, tiny.state())

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, trained(1))
    assert checkpoint.latest(tmp_path).name == "00000000"
    checkpoint.save(tmp_path, trained(2))
    assert names(tmp_path) == ["00000000", "00000002"]


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoint.save(tmp_path, tiny.state())
    again = tree_map(lambda leaf: leaf + 1 if isinstance(leaf, torch.Tensor) else leaf, tiny.state())
    assert same(checkpoint.load(checkpoint.save(tmp_path, again), tiny.state()), again)
    assert names(tmp_path) == ["00000000"]


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("file", "harm", "word"),
    [
        ("state.safetensors", cut, "damaged"),
        ("state.safetensors", flip, "damaged"),
        ("state.safetensors", os.unlink, "expected a safetensors file, found no file"),
        ("state.safetensors", pipe, "expected a regular file"),
        ("state.json", cut, "missing or damaged"),
        ("state.json", pipe, ".*regular file"),
        ("state.json", os.unlink, "missing or damaged"),
        ("state.json", lambda p: p.write_text('{"format": 99}'), ".*expected format 3, 2 or 1, got 99"),
        ("state.json", lambda p: p.write_text("[" * 100_000), ".*damaged"),
        ("state.json", lambda p: change(p, step="x", format=1, notes_sha256=None), ".*damaged .*step"),
        ("state.json", lambda p: change(p, step=1), ".*damaged .*its SHA-256 is not the one in it"),
        ("state.json", lambda p: change(p, extra={"gamma_min": -9.0}), ".*damaged .*SHA-256"),
        ("state.json", lambda p: change(p, format=1), ".*damaged .*SHA-256"),
    ],
)
def test_damage_is_named(tmp_path, file, harm, word):
    path = checkpoint.save(tmp_path, tiny.state())
    harm(path / file)
    with pytest.raises(CheckpointError, match=f"{file}: {word}"):
        checkpoint.load(path, tiny.state())


def test_a_renamed_checkpoint_is_named(tmp_path):
    path = checkpoint.save(tmp_path, trained(1), metric=1.0)
    kept = path.rename(tmp_path / "kept")
    assert same(checkpoint.load(kept, tiny.state()), trained(1))
    other = kept.rename(tmp_path / "00000007")
    for read in (lambda: checkpoint.load(other, tiny.state()), lambda: checkpoint.best(tmp_path)):
        with pytest.raises(
            CheckpointError, match=r"00000007.*: .*expected the checkpoint of step 7, got that of 1, renamed"
        ):
            read()


@pytest.mark.parametrize("metric", [1.0, math.nan])
def test_checkpoints_of_format_1_are_read(tmp_path, metric):
    """Notes as version 0.3 and earlier wrote them."""
    state = tiny.state()
    path = checkpoint.save(tmp_path, state)
    found = json.loads((path / "state.json").read_text()) | dict(format=1, metric=metric)
    del found["notes_sha256"]
    (path / "state.json").write_text(json.dumps(found))
    assert same(checkpoint.load(path, tiny.state()), state)
    assert checkpoint.best(tmp_path) == (path if metric == 1.0 else None)


def test_another_model_is_named(tmp_path):
    path = checkpoint.save(tmp_path, tiny.state())
    with pytest.raises(
        CheckpointError, match=r"of another model: .* a leaf state\.ema_params\.network\.cond\.label\S* of shape"
    ):
        checkpoint.load(path, training.init(tiny.model(classes=3), random.key(0)))
    wide = training.init(tiny.model(cond_dim=1), random.key(0))
    with pytest.raises(CheckpointError, match=r"of another model: state\..*dense1.kernel: expected shape"):
        checkpoint.load(path, wide)
    with pytest.raises(CheckpointError, match=r"of another model: state: expected no leaf"):
        checkpoint.load_params(path, {"network": {}})


def test_the_shapes_are_compared_before_a_number_is_read(tmp_path, monkeypatch):
    """With a model on the meta device, of which none need fit into memory."""
    state, load = trained(1), _files.load
    path = checkpoint.save(tmp_path, state)
    like = tree_map(lambda leaf: leaf.to("meta"), state.ema_params)
    assert same(checkpoint.load_params(path, like), state.ema_params)
    wide = tree_map(lambda leaf: torch.empty((2**20, *leaf.shape), dtype=leaf.dtype, device="meta"), state.params)
    monkeypatch.setattr(_files, "load", lambda path, device: load(path, device) if device == "meta" else pytest.fail("read"))
    with pytest.raises(CheckpointError, match=r"of another model: state\.ema_params"):
        checkpoint.load_params(path, wide)
