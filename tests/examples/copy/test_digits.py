"""The digits examples: data and baselines, and whole runs that repeat to the last digit."""

import math

import digits
import optree
import pytest
import torch
from processes import call, figures, here

from purevdm import interop, networks, random


def test_the_split_is_by_key_and_whole():
    train, test = digits.data(random.key(0))
    assert train.shape == (1500, 1, 8, 8)
    assert test.shape == (297, 1, 8, 8)
    other = digits.data(random.key(1))
    assert torch.equal(train, digits.data(random.key(0))[0])
    assert not torch.equal(train, other[0])
    assert torch.cat([train, test]).sum() == torch.cat(other).sum()
    assert train.aminmax() == (0, 16)


def test_histograms_are_near_the_known_figure():
    train, test = digits.data(random.key(0))
    assert abs(digits.histogram_bits(train, test).mean() - 2.44) < 0.05
    uniform = digits.histogram_bits(train[:0], test)
    torch.testing.assert_close(uniform, torch.full_like(uniform, math.log2(17)))


def test_parameters_that_are_there_are_not_written_over(tmp_path):
    (tmp_path / "params.safetensors").write_bytes(b"of before")
    for program in ("digits.py", "flows.py"):
        done = here(program, "--out", tmp_path)
        assert done.returncode == 2
        assert "--out: expected a folder without params.safetensors" in done.stderr
    assert (tmp_path / "params.safetensors").read_bytes() == b"of before"


@pytest.mark.slow
def test_two_runs_print_the_same(tmp_path):
    first, second = (call("digits.py", "--out", tmp_path / name, "--steps", 3, "--passes", 2) for name in "ab")
    assert first == second
    assert "test bound" in first
    assert (tmp_path / "a" / "samples.png").stat().st_size > 10_000
    a, b = (interop.load_params(tmp_path / name / "params.safetensors") for name in "ab")
    assert optree.tree_all(optree.tree_map(torch.equal, a, b))


@pytest.mark.slow
def test_the_main_job_reaches_its_figure(tmp_path):
    assert float(call("digits.py", "--out", tmp_path / "run").split()[2]) <= 2.15


def test_a_short_run_of_a_bayesian_flow(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "vdm_unet", lambda **options: networks.mlp(8, 1, fourier=(), outputs=2))
    lines = figures("flows.py", "--no-compile", "--steps", 2, "--batch", 4, "--passes", 1, "--out", tmp_path)
    assert "2 steps, 297 images" in lines["test bound"]
    assert float(lines["test bound"].split()[0]) > 0
    assert (tmp_path / "samples.png").stat().st_size > 5_000
    assert "network" in interop.load_params(tmp_path / "params.safetensors")
