"""The text in two parts, and a short run whose file is as large as the model says."""

import text
import torch
from processes import figures

from purevdm import random


def test_the_parts_are_the_text():
    x, test = text.data(random.key(0))
    assert x.max() == 26
    assert test.shape[1] == text.LENGTH
    assert 0.08 < test.numel() / (len(x) + test.numel()) < 0.11
    assert len(text.write(test[:2])[0]) == text.LENGTH
    assert not torch.equal(text.data(random.key(1))[1][0], test[0])


def test_a_run_prints_what_it_promises(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "LENGTH", 16)
    lines = figures("text.py", "--steps", 2, "--windows", 32, "--passes", 16, "--out", tmp_path)
    bits = {name: float(line.split()[0]) for name, line in lines.items() if "bits/character" in line}
    size = (tmp_path / "text.pvdo").stat().st_size
    assert abs(8 * size / 512 - bits["text.pvdo, a file"]) < 1e-4
    rest = (8 * 66 + 16 * 6) / 512  # a head, and a dither for each step
    assert abs(bits["text.pvdo, a file"] - rest - bits["in any order"]) < 0.3
    assert bits["xz, after training"] < bits["xz"]
