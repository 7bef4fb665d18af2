"""The digits on several processes: what one computes, and a checkpoint that one reads."""

import pytest
from processes import call

from purevdm.training import checkpoint


def test_two_processes_are_one(tmp_path):
    options = ("--steps", 3, "--batch", 16)
    printed = [call("sharded.py", *options, "--out", tmp_path / str(n), processes=n).split() for n in (1, 2)]
    alone, together = (float(words[words.index("bound") + 1]) for words in printed)
    assert together == pytest.approx(alone, rel=1e-3)
    folders = [checkpoint.latest(tmp_path / str(n)) for n in (1, 2)]
    assert [len(list(folder.glob("*.safetensors"))) for folder in folders] == [1, 2]
    assert [checkpoint.notes(folder)["step"] for folder in folders] == [3, 3]
