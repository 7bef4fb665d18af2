"""Volumes: fields of variance 1, and a small table of both ways."""

import volumes
from processes import ENV, printed

from purevdm import random


def test_fields_have_variance_one():
    assert abs(volumes.fields(random.key(0), 64, 8).var() - 1) < 0.1


def test_both_ways_are_in_the_table(monkeypatch):
    """By a process for each."""
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, ENV[name])
    rows = printed("volumes.py", "--size", 4, "--batch", 1, "--embed", 8, "--steps", 1).splitlines()[-2:]
    ways, losses = zip(*((row.split(" | ")[0], row.split(" | ")[-1]) for row in rows), strict=True)
    assert ways == ("| eager, remat=False", "| eager, remat=True")
    assert losses[0] == losses[1]
