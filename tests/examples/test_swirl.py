"""The 2D example, run twice."""

from pathlib import Path

from test_digits import run

from examples import swirl
from purevdm import random


def test_the_swirl_fits_its_grid():
    x = swirl.swirl(random.key(0))
    assert x.shape == (1024, 2)
    assert x.min() >= 0
    assert x.max() < 256


def test_two_runs_print_the_same(tmp_path):
    arguments = ("--steps", "3", "--sampling-steps", "10")
    first, second = (run(Path(swirl.__file__), tmp_path / name, *arguments) for name in "ab")
    assert first == second
    assert "bound on the data" in first
    for picture in ("samples.png", "trajectory.png", "loss.png"):
        assert (tmp_path / "a" / picture).stat().st_size > 5_000
