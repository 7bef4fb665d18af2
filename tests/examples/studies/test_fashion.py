"""The members on Fashion-MNIST: whole runs on images of its shape, and images of another."""

import struct

import fashion
import numpy as np
import pytest
from processes import printed, refused

from purevdm import networks


def leave(folder, side):
    generator = np.random.default_rng(1)
    for name, n in (("train", 40), ("t10k", 24)):
        images = generator.integers(0, 256, (n, side, side), np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">HBB3I", 0, 8, 3, n, side, side) + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, n) + bytes(n))


@pytest.fixture
def small(monkeypatch):
    def network(**options):
        return networks.mlp(8, **options)

    monkeypatch.setattr(fashion, "IMAGES", fashion.IMAGES._replace(network=network, mover=network))
    monkeypatch.setattr(fashion, "TEST", 16)


def test_all_members_in_equal_steps_and_in_equal_time(tmp_path, small, monkeypatch):
    monkeypatch.setattr(fashion, "EAGER", {"diffenc": 2.0})
    leave(tmp_path, 28)
    line = ("fashion.py", tmp_path, "--seeds", 1, "--eager", "--batch", 4, "--steps", 2, "--out", tmp_path / "out")
    titles = fashion.members.MEMBERS.values()
    for options in ((), ("--equal-time",)):
        rows = [row for row in printed(*line, *options).splitlines() if row.startswith("| fashion")]
        assert [row.split(" | ")[1] for row in rows] == [*titles, "pixel histograms"]
        bits = {row.split(" | ")[1]: float(row.split(" | ")[2]) for row in rows}
        assert all(np.isfinite(list(bits.values())))
        assert 8.0 < bits["pixel histograms"] < 8.2  # the images are noise
        assert printed(*line, *options).splitlines()[2:] == rows  # of the files that are there now
    assert len(list((tmp_path / "out").glob("*.json"))) == len(list((tmp_path / "out/equal_time").glob("*.json"))) == 7


def test_images_of_another_shape_are_refused(tmp_path, small):
    leave(tmp_path, 14)
    assert "path: expected images of (1, 28, 28)" in refused("fashion.py", tmp_path, "--out", tmp_path / "out")
