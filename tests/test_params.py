"""Parameters alone in a file: bit for bit, whole or not at all, what does not fit or is damaged named."""

import errno
import json
import math
import os
import sys
import time
from pathlib import Path

import optree
import pytest
import safetensors.torch
import torch

import purevdm
from purevdm import _files, interop, networks, random, schedules
from purevdm.interop.flax import DTYPES


def model(schedule=None, **options):
    return purevdm.vdm(networks.mlp(8, fourier=(0,), **options), schedule or schedules.learned_linear(), (2,), 16)


def same(a, b):
    assert optree.tree_structure(a) == optree.tree_structure(b)
    for x, y in zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert torch.equal(x.flatten().view(torch.uint8), y.flatten().contiguous().view(torch.uint8))


@pytest.mark.parametrize(
    "schedule", [schedules.learned_linear(), schedules.fixed_linear(), schedules.monotone_mlp(hidden=3)]
)
def test_a_models_parameters_come_back(tmp_path, schedule):
    """Those of a schedule without parameters too, whose dict is empty."""
    made = model(schedule)
    params = made.init(random.key(0))
    path = tmp_path / "new" / "params.safetensors"
    interop.save_params(path, params)
    same(interop.load_params(path), params)
    same(interop.load_params(str(path), made.init(random.key(1)), device="cpu"), params)
    made.nll_bound(interop.load_params(path), torch.zeros(1, 2, dtype=torch.int64), random.key(2))


def test_every_leaf_as_it_is(tmp_path):
    values = torch.tensor([0.0, -0.0, math.nan, 1.5])
    tree = {name: values.nan_to_num().to(dtype) for name, dtype in DTYPES.items()}
    wide = torch.arange(12.0).reshape(3, 4)
    tree |= {"values": values, "scalar": torch.tensor(-0.0), "none": torch.zeros(0, 3), "a": {"b": {}, "c": {"d": wide.T}}}
    tree |= {"shared": wide, "part": wide[1], "learned": torch.nn.Parameter(wide), "two words": wide}
    interop.save_params(tmp_path / "x", tree)
    same(interop.load_params(tmp_path / "x"), tree)
    interop.save_params(tmp_path / "x", {})
    assert interop.load_params(tmp_path / "x") == {}


def test_other_programs_read_the_file(tmp_path):
    params = model().init(random.key(0))
    interop.save_params(tmp_path / "x", params)
    found = safetensors.torch.load_file(tmp_path / "x")
    assert torch.equal(found["network.dense1.kernel"], params["network"]["dense1"]["kernel"])
    assert len(found) == len(optree.tree_leaves(params))
    (tmp_path / "plain").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with safetensors.safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize(
    ("params", "error", "word"),
    [
        (torch.ones(1), TypeError, "params: expected nested dicts"),
        ({"a": {"b.c": torch.ones(1)}}, ValueError, r"params\.a: expected keys without dots.*got 'b\.c'"),
        ({"__metadata__": torch.ones(1)}, ValueError, "params: expected keys"),
        ({"a": {0: torch.ones(1)}}, TypeError, r"params\.a: expected keys that are text, got 0"),
        ({"a": [torch.ones(1)]}, TypeError, r"params\.a: expected a dict or a tensor, got a list of"),
        ({"a": torch.ones(1, dtype=torch.complex128)}, TypeError, r"params\.a: expected a dense tensor .*got a complex128"),
        ({"a": torch.eye(2).to_sparse()}, TypeError, r"params\.a: expected a dense tensor"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, params, error, word):
    interop.save_params(tmp_path / "x", {"kept": torch.ones(1)})
    with pytest.raises(error, match=word):
        interop.save_params(tmp_path / "x", params)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert set(interop.load_params(tmp_path / "x")) == {"kept"}


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    interop.save_params(tmp_path / "x", {"kept": torch.ones(1)})

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        interop.save_params(tmp_path / "x", {"new": torch.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert set(interop.load_params(tmp_path / "x")) == {"kept"}


def test_a_link_is_replaced_and_its_target_left(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "x").symlink_to("target")
    interop.save_params(tmp_path / "x", {"new": torch.ones(1)})
    assert (tmp_path / "target").read_text() == "mine"
    assert not (tmp_path / "x").is_symlink()
    assert set(interop.load_params(tmp_path / "x")) == {"new"}


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(ValueError, match="x: expected a regular file, got a pipe"):
        interop.save_params(tmp_path / "x", {"new": torch.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    with pytest.raises(FileNotFoundError, match="x: expected a safetensors file, found no regular file"):
        interop.load_params(tmp_path / "x")


def test_the_drafts_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path, monkeypatch):
    path, dead = tmp_path / "x", tmp_path / f".x.{'0' * 32}"
    other = tmp_path / f".y.{'0' * 32}"
    for draft in (dead, other):
        draft.mkdir()
        (draft / ".tmpAbC").write_bytes(b"half")
    with _files.drafted(path) as living:
        interop.save_params(path, {"new": torch.ones(1)})
        assert set(tmp_path.iterdir()) == {path, living, other}
        with monkeypatch.context() as patch:  # a file system without locks
            patch.setitem(sys.modules, "fcntl", None)
            dead.mkdir()
            interop.save_params(path, {"new": torch.ones(1)})
            assert set(tmp_path.iterdir()) == {path, living, other, dead}
            later = time.time() + 25 * 3600
            patch.setattr(time, "time", lambda: later)
            interop.save_params(path, {"new": torch.ones(1)})
    assert set(tmp_path.iterdir()) == {path, other}


def test_files_of_others_are_named(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(FileNotFoundError, match="x: expected a safetensors file, found no file"):
        interop.load_params(path)
    with pytest.raises(FileNotFoundError, match="found a folder"):
        interop.load_params(tmp_path)
    for metadata in (None, {"purevdm": "parameters 2"}):
        safetensors.torch.save_file({"a": torch.ones(1)}, path, metadata)
        with pytest.raises(ValueError, match="x: expected 'purevdm': 'parameters 1' in its metadata"):
            interop.load_params(path)
    safetensors.torch.save_file({"a": torch.ones(1)}, path, {"purevdm": "parameters 1", "empty": json.dumps([])})
    with pytest.raises(ValueError, match="x: damaged"):
        interop.load_params(path)


def test_another_model_is_named(tmp_path):
    path = tmp_path / "x"
    interop.save_params(path, model().init(random.key(0)))
    for other, error, word in (
        (model(classes=3), ValueError, r"expected a leaf params\.network\.cond\.label"),
        (model(schedules.fixed_linear()), ValueError, r"expected no leaf params\.schedule\.b"),
        (model(cond_dim=1), ValueError, r"params\.network\.dense1\.kernel: expected shape"),
        (model()._replace(dtype=torch.float64), TypeError, r"params\.network\.dense1\.bias: expected torch.float64"),
    ):
        with pytest.raises(error, match=rf"x: of another model: .*{word}"):
            interop.load_params(path, other.init(random.key(0)))


def test_the_shapes_are_compared_before_a_number_is_read(tmp_path, monkeypatch):
    """With a model on the meta device, which need not fit into memory."""
    path, load = tmp_path / "x", _files.load
    params = model().init(random.key(0))
    interop.save_params(path, params)
    same(interop.load_params(path, model().init(random.key(0, device="meta"))), params)
    monkeypatch.setattr(
        _files, "load", lambda path, device="cpu": load(path, device) if device == "meta" else pytest.fail("read")
    )
    with pytest.raises(ValueError, match=r"x: of another model: params\.network\.dense1\.bias: expected shape"):
        interop.load_params(
            path,
            purevdm.vdm(networks.mlp(2**26, fourier=(0,)), model().schedule, (2,), 16).init(random.key(0, device="meta")),
        )


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "safetensors"] + ["safetensors"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'purevdm\[train\]'"):
        interop.save_params(tmp_path / "x", {"a": torch.ones(1)})
    with pytest.raises(ImportError, match=r"pip install 'purevdm\[train\]'"):
        interop.load_params(tmp_path / "x")


def test_parameters_do_not_follow_their_file(tmp_path):
    """They are no memory map, which would change with the file, and end the process where that gets shorter."""
    path = tmp_path / "x"
    interop.save_params(path, {"a": torch.ones(10_000)})
    found = interop.load_params(path)["a"]
    with path.open("r+b") as file:
        file.write(bytes(20_000))
        file.truncate(30_000)
    assert (found == 1).all()
    path.write_bytes(b"")
    assert (found == 1).all()


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, monkeypatch):
    interop.save_params(tmp_path / "x", {"kept": torch.ones(1)})

    def full(tensors, path, metadata):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"No space left on device: .*x") as caught:
        interop.save_params(tmp_path / "x", {"new": torch.ones(1)})
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert set(interop.load_params(tmp_path / "x")) == {"kept"}
