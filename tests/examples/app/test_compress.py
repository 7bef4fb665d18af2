"""The program that compresses: there and back, its table, damage, other formats."""

import os
import re
from dataclasses import replace

import compress
import numpy as np
import presets
import pytest
import readers
from processes import here, printed, refused
from runs import Run
from tiny_codec import quick

from purevdm import networks, random, vdm
from purevdm.schedules import fixed_linear

FEW = ("--no-peers", "--passes", 1)


@pytest.fixture
def run(monkeypatch):
    """A model of the digits that is trained on nothing, and a few of them."""
    data = readers.digits()
    few = data._replace(size=12, take=lambda rows: data.take(rows), labels=data.labels[:12])
    model = vdm(quick, fixed_linear(-8.0, 4.0), data.event_shape, data.vocab_size)
    made = Run(presets.PRESETS["digits"][1], data, few, model, model.init(random.key(0)))
    monkeypatch.setattr(compress, "load", lambda path, device, **changes: made)
    return made


def images(run):
    return run.test.take(np.arange(12))


def damaged(file, block, at):
    data = bytearray(file.read_bytes())
    data[compress.codec.info(file).blocks[block].offset + at] ^= 1
    file.write_bytes(data)


def test_images_come_back_and_the_table_adds_up(run, tmp_path):
    file, out = tmp_path / "x.pvdm", tmp_path / "x.npy"
    table = printed("compress.py", "encode", "run", file, "--sweep", 2, 4, "--block", 7, "--passes", 1)
    rows = [list(map(float, re.findall(r"-?\d+\.\d+", line))) for line in table.splitlines()[2:4]]
    for (bound, _, net, _, excess, _, whole, *_), steps in zip(rows, (2, 4), strict=True):
        assert abs(net - bound - excess) < 2e-3, steps
        assert whole > net
    assert rows[-1][6] == pytest.approx(8 * file.stat().st_size / images(run).size, abs=1e-4)
    for name in ("zlib of all", "LZMA of all", "PNG, one by one", "WebP lossless, tiled", "JPEG XL, tiled"):
        assert name in table
    assert "12 examples in" in printed("compress.py", "decode", "run", file, out)
    assert np.array_equal(np.load(out), images(run))
    info = printed("compress.py", "info", file)
    assert "12 examples of shape (1, 8, 8), 17 values" in info
    assert "4 steps, 2 blocks, complete" in info
    assert "12 examples intact" in printed("compress.py", "test", "run", file)


def test_damage_is_named_and_the_rest_saved(run, tmp_path):
    file, out = tmp_path / "x.pvdm", tmp_path / "x.npy"
    printed("compress.py", "encode", "run", file, "--timesteps", 2, "--block", 4, *FEW)
    damaged(file, 1, 30)
    assert "block 1: damaged" in refused("compress.py", "decode", "run", file, out)
    assert not out.exists()
    done = here("compress.py", "test", "run", file)
    assert done.returncode == 1
    assert "8 examples intact" in done.stdout
    printed("compress.py", "decode", "run", file, out, "--salvage")
    assert np.array_equal(np.load(out), np.delete(images(run), slice(4, 8), 0))


def test_intact_blocks_behind_a_lost_head_keep_their_classes(run, monkeypatch, tmp_path):
    config = replace(run.config, model=replace(run.config.model, labels=True))
    model = vdm(networks.mlp(8, fourier=(), classes=10), fixed_linear(-8.0, 4.0), (1, 8, 8), 17)
    labelled = run._replace(config=config, model=model, params=model.init(random.key(0)))
    monkeypatch.setattr(compress, "load", lambda path, device, **changes: labelled)
    file, out = tmp_path / "x.pvdm", tmp_path / "x.npy"
    printed("compress.py", "encode", "run", file, "--timesteps", 1, "--block", 5, *FEW)
    damaged(file, 0, 5)
    printed("compress.py", "decode", "run", file, out, "--salvage")
    assert np.array_equal(np.load(out), images(run)[5:])


def test_nothing_that_is_read_or_linked_to_is_written_over(run, tmp_path):
    file, mine, model = tmp_path / "x.pvdm", tmp_path / "mine.npy", tmp_path / "model" / "params.safetensors"
    np.save(mine, images(run))
    model.parent.mkdir()
    model.write_bytes(b"parameters")
    few = ("--timesteps", 1, *FEW)
    printed("compress.py", "encode", model.parent, file, *few)
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "pipe")
    before = {path: path.read_bytes() for path in (file, mine, model)}
    for arguments in (
        ("decode", model.parent, file, file),
        ("decode", model.parent, file, tmp_path / "link"),
        ("decode", model.parent, file, model),
        ("decode", model.parent, file, tmp_path / "pipe"),
        ("decode", model.parent, tmp_path / "pipe", tmp_path / "x.npy"),
        ("encode", model.parent, mine, "--data", mine, *few),
        ("encode", model.parent, model, *few),
        ("encode", model.parent, file, "--data", tmp_path / "pipe", *few),
    ):
        message = refused("compress.py", *arguments)
        assert re.search("expected another path than what is read|a pipe, a socket or a device", message)
    (tmp_path / "out.npy").symlink_to(mine)
    printed("compress.py", "decode", model.parent, file, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").is_symlink()
    assert {path: path.read_bytes() for path in before} == before


def test_arrays_of_ones_own(run, tmp_path):
    mine, path = np.random.default_rng(0).integers(0, 17, (3, 1, 8, 8), np.uint8), tmp_path / "mine.npy"
    np.save(path, mine)
    encode = ("compress.py", "encode", "run", tmp_path / "x", "--data", path, "--timesteps", 1, "--fast", *FEW)
    printed(*encode)
    printed("compress.py", "decode", "run", tmp_path / "x", tmp_path / "out.npy")
    assert np.array_equal(np.load(tmp_path / "out.npy"), mine)
    for x, words in ((mine + 10, r"integers in \[0, 16\]"), (mine[:, 0], r"integers of shape \(n, 1, 8, 8\)")):
        np.save(path, x)
        assert re.search(f"mine.npy: expected .*{words}", refused(*encode))
    path.write_text("no array")
    assert "mine.npy: damaged, not a .npy file" in refused(*encode)


def test_tiles_hold_every_image():
    x = np.random.default_rng(0).integers(0, 255, (5, 3, 4, 6), np.uint8)
    whole = compress.tiled(x)
    assert whole.shape == (3, 8, 18)
    assert np.array_equal(whole[:, 4:8, 6:12], x[4])
    assert not whole[:, 4:, 12:].any()


def test_standard_errors_of_rounds_are_those_of_examples():
    costs = np.random.default_rng(0).normal(5.0, 2.0, 4000)
    mean, error = compress.of_rounds(costs.reshape(-1, 4).sum(1), np.full(1000, 4))
    assert mean == pytest.approx(costs.mean())
    assert error == pytest.approx(costs.std() / 4000**0.5, rel=0.1)
