"""The Bayesian flow example: its tasks, the n-gram baseline, whole runs."""

import math
import runpy
import subprocess
import sys
from pathlib import Path

import digits
import pytest
import torch

from purevdm import interop, random

SCRIPT = Path(digits.__file__).with_name("bfn.py")


@pytest.fixture(scope="module")
def program():
    """The names of the program."""
    return runpy.run_path(str(SCRIPT))


def test_text_is_held_out(program):
    task = program["text"](random.key(0), 8)
    assert task.test.shape == (60, 1, 32)
    assert task.train.shape[1:] == (1, 32)
    alphabet = program["ALPHABET"]
    words = "".join(alphabet[c] for c in task.test.flatten().tolist())
    assert "license" in words
    # no training window holds characters of the test part: none is found in one piece there, phrases apart
    held = {tuple(row) for row in task.test.flatten(1).tolist()}
    assert len(held & {tuple(row) for row in task.train.flatten(1).tolist()}) < 6
    other = program["text"](random.key(1), 8)
    assert not torch.equal(task.test, other.test)


def test_ngrams_are_distributions_and_longer_ones_know_more(program):
    part = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    # every character that may follow "0 1": the probabilities add up to one
    bits = [program["ngram_bits"]([part], torch.tensor([[0, 1, c]]), 3) * 3 for c in range(27)]
    before = program["ngram_bits"]([part], torch.tensor([[0, 1]]), 3) * 2
    assert sum(2 ** (before - b).item() for b in bits) == pytest.approx(1.0, rel=1e-5)
    assert program["ngram_bits"]([], torch.tensor([[3, 4]]), 2).item() == pytest.approx(math.log2(27))
    test = torch.tensor([[0, 1, 2, 0, 1, 2]])
    found = [program["ngram_bits"]([part], test, n).item() for n in (1, 2, 3)]
    assert found == sorted(found, reverse=True)


def test_black_and_white_digits(program):
    task = program["images"]("binary", random.key(0), 16)
    grey = digits.data(random.key(0))[1]
    assert torch.equal(task.test, (grey > 8).long())
    assert 0.4 < task.baselines["pixel histograms"].mean < 0.6


@pytest.mark.parametrize("task", ["digits", "binary", "text"])
def test_a_short_run(task, tmp_path):
    small = [
        "--eager",
        "--steps",
        "2",
        "--embed",
        "16",
        "--batch",
        "4",
        "--passes",
        "1",
        "--sample-steps",
        "3",
        "--out",
        str(tmp_path),
    ]
    command = [sys.executable, str(SCRIPT), task, *small]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "test bound" in out
    assert (tmp_path / "samples.png").exists() == (task != "text")
    params = interop.load_params(tmp_path / "params.safetensors")
    assert "network" in params
