"""The program that measures checkpoints prints its table, alone and of two processes."""

import re

import pytest
from processes import call, printed


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_it_prints_its_table(processes):
    options = ("saving.py", "--embed", 8, "--every", 1, "--turns", 1)
    output = printed(*options) if processes == 1 else call(*options, processes=2)
    assert f"{processes} processes" in output
    assert float(re.search("holds ([0-9.]+)", output)[1]) == pytest.approx(1 / processes, rel=0.05)
    assert "checkpoint none:                1.00" in output
    assert len(output.splitlines()) == 5
