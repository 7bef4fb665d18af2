"""A model on its own, exported from a run: what is loaded is what was written, with its data and without them."""

import json
import struct
from dataclasses import replace
from functools import reduce
from operator import getitem

import numpy as np
import optree
import pytest
import runs
import torch
from presets import Config, Data, Model, build
from processes import refused
from readers import DataError

from purevdm import random
from purevdm.training.checkpoint import CheckpointError
from purevdm.training.data import Dataset


def written(folder, **model):
    """A run of images that are not there, and its export."""
    network = Model(network="mlp", embed=8, layers=1, fourier=(), flag=False, **model)
    config = Config(data=Data(source="idx", path=str(folder / "nowhere")), model=network, dtype="bfloat16")
    data = Dataset("fashion train", 9, (1, 4, 3), 256, lambda index: np.zeros((len(index), 1, 4, 3), np.uint8), classes=2)
    built = build(replace(config, dtype="float32"), data.event_shape, data.vocab_size, data.classes)
    run = runs.Run(config, data, data, built, built.init(random.key(3)))
    runs.export(run, folder / "out", "float32")
    return run


def test_an_exported_model_is_the_runs(tmp_path):
    run = written(tmp_path, labels=True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.json", "params.safetensors"]
    with pytest.raises(DataError, match="nowhere"):
        runs.load(tmp_path / "out", "cpu")
    found = runs.load(tmp_path / "out", "cpu", dataless=True)
    assert found.model == run.model
    assert found.config == replace(run.config, dtype="float32")
    pairs = zip(optree.tree_leaves(found.params), optree.tree_leaves(run.params), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert (found.test.size, found.test.event_shape, found.test.vocab_size, found.test.classes) == (0, (1, 4, 3), 256, 2)
    with pytest.raises(DataError, match="nowhere"):
        found.test.take(np.arange(1))


def test_an_exported_model_finds_its_data_elsewhere(tmp_path):
    written(tmp_path)
    for name in ("train", "t10k"):
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">HBB3I", 0, 8, 3, 2, 4, 3) + bytes(24))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 2) + bytes([0, 1]))
    found = runs.load(tmp_path / "out", "cpu", **{"data.path": str(tmp_path)})
    assert (found.train.size, found.test.size) == (2, 2)


@pytest.mark.parametrize(
    ("part", "value", "error"),
    [
        ("config", [], CheckpointError),
        ("config.model.embed", 16, CheckpointError),
        ("config.model.embed", "16", CheckpointError),
        ("config.model.embed", 2**40, CheckpointError),
        ("config.model.network", "_apply", CheckpointError),
        ("config.model.fourier", [0.5], CheckpointError),
        ("config.data.source", "nowhere", CheckpointError),
        ("config.seed", None, CheckpointError),
        ("data.event_shape", [2**40, 2**40], CheckpointError),
        ("data.event_shape", [1, 0, 3], DataError),
        ("data.event_shape", [1, 4, 2], CheckpointError),
        ("data.vocab_size", "256", DataError),
        ("data.classes", -1, DataError),
        ("data.name", 3, DataError),
    ],
)
def test_a_damaged_description_is_named(tmp_path, part, value, error):
    written(tmp_path)
    file = tmp_path / "out" / "model.json"
    entries = json.loads(file.read_text())
    *nodes, last = part.split(".")
    reduce(getitem, nodes, entries)[last] = value
    file.write_text(json.dumps(entries))
    with pytest.raises(error, match=r"model\.json|params\.safetensors|out"):
        runs.load(tmp_path / "out", "cpu", dataless=True)
    file.write_text("{")
    with pytest.raises(DataError, match=r"model\.json"):
        runs.load(tmp_path / "out", "cpu", dataless=True)


def test_a_model_is_not_exported_over_itself(tmp_path):
    written(tmp_path)
    before = [file.read_bytes() for file in sorted((tmp_path / "out").iterdir())]
    (tmp_path / "again").symlink_to("out")
    for out in ("out", "again"):
        assert "out: expected another path than what is read" in refused("runs.py", tmp_path / "out", tmp_path / out)
    assert [file.read_bytes() for file in sorted((tmp_path / "out").iterdir())] == before
