"""The digits example: its data and baselines, and whole runs that repeat to the last digit."""

import math
import subprocess
import sys
from pathlib import Path

import digits
import optree
import pytest
import torch
from processes import here

from purevdm import interop, random

SCRIPT = Path(digits.__file__)


def run(script, out, *arguments):
    command = [sys.executable, str(script), "--out", str(out), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=out.parent).stdout


def test_the_split_is_by_key_and_whole():
    train, test = digits.data(random.key(0))
    assert train.shape == (1500, 1, 8, 8)
    assert test.shape == (297, 1, 8, 8)
    other, _ = digits.data(random.key(1))
    assert torch.equal(train, digits.data(random.key(0))[0])
    assert not torch.equal(train, other)
    total = torch.cat([train, test]).sum()
    assert total == torch.cat(digits.data(random.key(1))).sum()
    assert train.min() == 0
    assert train.max() == 16


def test_histograms_are_near_the_known_figure():
    train, test = digits.data(random.key(0))
    assert abs(digits.histogram_bits(train, test).mean() - 2.44) < 0.05
    uniform = digits.histogram_bits(train[:0], test)
    torch.testing.assert_close(uniform, torch.full_like(uniform, math.log2(17)))


def test_tiles_keep_every_pixel():
    images = torch.arange(4 * 4).reshape(4, 1, 2, 2)
    tiles = digits.tiles(images, 2)
    assert tiles.shape == (8, 8)
    assert torch.equal(tiles[1:3, 1:3], images[0, 0])
    assert torch.equal(tiles[5:7, 1:3], images[2, 0])
    assert not tiles[0].any()


def test_parameters_that_are_there_are_not_written_over(tmp_path):
    (tmp_path / "params.safetensors").write_bytes(b"of before")
    for program in ("digits.py", "flows.py"):
        done = here(program, "--out", tmp_path)
        assert done.returncode == 2
        assert "--out: expected a folder without params.safetensors" in done.stderr
    assert (tmp_path / "params.safetensors").read_bytes() == b"of before"


@pytest.mark.slow
def test_two_runs_print_the_same(tmp_path):
    first, second = (run(SCRIPT, tmp_path / name, "--steps", "3", "--passes", "2") for name in "ab")
    assert first == second
    assert "test bound" in first
    assert (tmp_path / "a" / "samples.png").stat().st_size > 10_000
    a, b = (interop.load_params(tmp_path / name / "params.safetensors") for name in "ab")
    assert optree.tree_all(optree.tree_map(torch.equal, a, b))


@pytest.mark.slow
def test_the_main_job_reaches_its_figure(tmp_path):
    out = run(SCRIPT, tmp_path / "run")
    assert float(out.split()[2]) <= 2.15
