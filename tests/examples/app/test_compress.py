"""The program that compresses: there and back, its table, damage, other formats."""

import os
import re
from dataclasses import replace

import compress
import numpy as np
import presets
import pytest
import readers
from runs import Run
from tiny_codec import quick

from purevdm import networks, random, vdm
from purevdm.schedules import fixed_linear


@pytest.fixture
def run(monkeypatch):
    """A model of the digits that is trained on nothing, and a few of them."""
    config = presets.PRESETS["digits"][1]
    data = readers.digits()
    few = data._replace(size=12, take=lambda rows: data.take(rows), labels=data.labels[:12])
    model = vdm(quick, fixed_linear(-8.0, 4.0), data.event_shape, data.vocab_size)
    params = model.init(random.key(0))
    monkeypatch.setattr(compress, "load", lambda path, device, **changes: Run(config, data, few, model, params))
    return data.take(np.arange(12))


def program(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["compress.py", *map(str, arguments)])
    compress.main()
    return capsys.readouterr().out


def test_images_come_back_and_the_table_adds_up(run, monkeypatch, capsys, tmp_path):
    file, out = tmp_path / "x.pvdm", tmp_path / "x.npy"
    table = program(monkeypatch, capsys, "encode", "run", file, "--sweep", 2, 4, "--block", 7, "--passes", 1)
    rows = [list(map(float, re.findall(r"-?\d+\.\d+", line))) for line in table.splitlines()[2:4]]
    for (bound, _, net, _, excess, _, whole, *_), steps in zip(rows, (2, 4), strict=True):
        assert abs(net - bound - excess) < 2e-3, steps
        assert whole > net
    assert rows[-1][6] == pytest.approx(8 * file.stat().st_size / run.size, abs=1e-4)
    for name in ("zlib of all", "LZMA of all", "PNG, one by one", "WebP lossless, tiled", "JPEG XL, tiled"):
        assert name in table
    assert "12 examples in" in program(monkeypatch, capsys, "decode", "run", file, out)
    assert np.array_equal(np.load(out), run)
    told = program(monkeypatch, capsys, "info", file)
    assert "12 examples of shape (1, 8, 8), 17 values" in told
    assert "4 steps, 2 blocks, complete" in told
    assert "12 examples intact" in program(monkeypatch, capsys, "test", "run", file)


def test_damage_is_named_and_the_rest_saved(run, monkeypatch, capsys, tmp_path):
    file, out = tmp_path / "x.pvdm", tmp_path / "x.npy"
    program(monkeypatch, capsys, "encode", "run", file, "--timesteps", 2, "--block", 4, "--no-peers", "--passes", 1)
    data = bytearray(file.read_bytes())
    data[compress.codec.info(file).blocks[1].offset + 30] ^= 1
    file.write_bytes(data)
    with pytest.raises(SystemExit, match="block 1: damaged"):
        program(monkeypatch, capsys, "decode", "run", file, out)
    assert not out.exists()
    with pytest.raises(SystemExit, match="1"):
        program(monkeypatch, capsys, "test", "run", file)
    assert "8 examples intact" in capsys.readouterr().out
    program(monkeypatch, capsys, "decode", "run", file, out, "--salvage")
    assert np.array_equal(np.load(out), np.delete(run, slice(4, 8), 0))


def test_intact_blocks_behind_a_lost_head_keep_their_classes(run, monkeypatch, capsys, tmp_path):
    found = compress.load("run", "cpu")
    config = replace(found.config, model=replace(found.config.model, labels=True))
    model = vdm(networks.mlp(8, fourier=(), classes=10), fixed_linear(-8.0, 4.0), (1, 8, 8), 17)
    labelled = found._replace(config=config, model=model, params=model.init(random.key(0)))
    monkeypatch.setattr(compress, "load", lambda path, device, **changes: labelled)
    file, out = tmp_path / "x.pvdm", tmp_path / "x.npy"
    program(monkeypatch, capsys, "encode", "run", file, "--timesteps", 1, "--block", 5, "--no-peers", "--passes", 1)
    data = bytearray(file.read_bytes())
    data[compress.codec.info(file).blocks[0].offset + 5] ^= 1
    file.write_bytes(data)
    program(monkeypatch, capsys, "decode", "run", file, out, "--salvage")
    assert np.array_equal(np.load(out), run[5:])


def test_nothing_that_is_read_or_linked_to_is_written_over(run, monkeypatch, capsys, tmp_path):
    file, mine, model = tmp_path / "x.pvdm", tmp_path / "mine.npy", tmp_path / "model" / "params.safetensors"
    np.save(mine, run)
    model.parent.mkdir()
    model.write_bytes(b"parameters")
    few = ("--timesteps", 1, "--no-peers", "--passes", 1)
    program(monkeypatch, capsys, "encode", model.parent, file, *few)
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "pipe")
    before = {path: path.read_bytes() for path in (file, mine, model)}
    for command in (
        ("decode", model.parent, file, file),
        ("decode", model.parent, file, tmp_path / "link"),
        ("decode", model.parent, file, model),
        ("decode", model.parent, file, tmp_path / "x.npy", "--labels", tmp_path / "pipe"),
        ("decode", model.parent, file, tmp_path / "pipe"),
        ("decode", model.parent, tmp_path / "pipe", tmp_path / "x.npy"),
        ("encode", model.parent, mine, "--data", mine, *few),
        ("encode", model.parent, model, *few),
        ("encode", model.parent, file, "--data", tmp_path / "pipe", *few),
    ):
        with pytest.raises(SystemExit, match=r"expected another path than what is read|a pipe, a socket or a device"):
            program(monkeypatch, capsys, *command)
    (tmp_path / "out.npy").symlink_to(mine)
    program(monkeypatch, capsys, "decode", model.parent, file, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").is_symlink()
    assert {path: path.read_bytes() for path in before} == before


def test_arrays_of_ones_own(run, monkeypatch, capsys, tmp_path):
    mine = np.random.default_rng(0).integers(0, 17, (3, 1, 8, 8), np.uint8)
    np.save(tmp_path / "mine.npy", mine)
    options = ("--data", tmp_path / "mine.npy", "--timesteps", 1, "--no-peers", "--passes", 1, "--fast")
    program(monkeypatch, capsys, "encode", "run", tmp_path / "x", *options)
    program(monkeypatch, capsys, "decode", "run", tmp_path / "x", tmp_path / "out.npy")
    assert np.array_equal(np.load(tmp_path / "out.npy"), mine)
    np.save(tmp_path / "mine.npy", mine + 10)
    with pytest.raises(SystemExit, match=r"mine.npy: expected .* integers in \[0, 16\]"):
        program(monkeypatch, capsys, "encode", "run", tmp_path / "x", *options)
    np.save(tmp_path / "mine.npy", mine[:, 0])
    with pytest.raises(SystemExit, match=r"mine.npy: expected integers of shape \(n, 1, 8, 8\)"):
        program(monkeypatch, capsys, "encode", "run", tmp_path / "x", *options)
    (tmp_path / "mine.npy").write_text("no array")
    with pytest.raises(SystemExit, match=r"mine.npy: expected a .npy file"):
        program(monkeypatch, capsys, "encode", "run", tmp_path / "x", *options)


def test_tiles_hold_every_image():
    x = np.random.default_rng(0).integers(0, 255, (5, 3, 4, 6), np.uint8)
    whole = compress.tiled(x)
    assert whole.shape == (3, 8, 18)
    assert np.array_equal(whole[:, 4:8, 6:12], x[4])
    assert not whole[:, 4:, 12:].any()


def test_other_formats_are_lossless():
    import imagecodecs

    image = np.random.default_rng(0).integers(0, 255, (9, 7), np.uint8)
    assert np.array_equal(imagecodecs.png_decode(imagecodecs.png_encode(image, level=9)), image)
    assert np.array_equal(imagecodecs.jpegxl_decode(imagecodecs.jpegxl_encode(image, lossless=True, effort=9)), image)
    colour = compress.colour(image)
    found = imagecodecs.webp_decode(imagecodecs.webp_encode(colour, lossless=True, level=100))
    assert np.array_equal(found[..., :3], colour)


def test_standard_errors_of_rounds_are_those_of_examples():
    rng = np.random.default_rng(0)
    costs = rng.normal(5.0, 2.0, 4000)
    mean, error = compress.of_rounds(costs.reshape(-1, 4).sum(1), np.full(1000, 4))
    assert mean == pytest.approx(costs.mean())
    assert error == pytest.approx(costs.std() / 4000**0.5, rel=0.1)


def test_a_missing_run_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["compress.py", "test", str(tmp_path / "none"), str(tmp_path / "x")])
    with pytest.raises(SystemExit, match="none"):
        compress.main()
