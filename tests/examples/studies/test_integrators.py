"""The table of evaluations against error, on the digits' model as it is before training."""

import json

import digits
import integrators
import pytest

from purevdm import interop, random


def test_the_program_prints_its_table(tmp_path, monkeypatch, capsys):
    interop.save_params(tmp_path / "params.safetensors", digits.build().init(random.key(0)))
    settings = ["--images", "1", "--tolerances", "1e-2", "1e-4", "--steps", "2", "4", "--reference", "1e-6"]
    monkeypatch.setattr("sys.argv", ["integrators.py", str(tmp_path), *settings, "--out", str(tmp_path / "t.json")])
    integrators.main()
    assert len(capsys.readouterr().out.splitlines()) == 2 + 12
    table = json.loads((tmp_path / "t.json").read_text())
    assert len(table["columns"]) == 7
    for coarse, fine in zip(table["rows"][::2], table["rows"][1::2], strict=True):
        assert coarse[0] == fine[0]
        assert coarse[2] <= fine[2]
        assert coarse[4] > fine[4]
    assert [row[2] for row in table["rows"][8:]] == [4, 8, 8, 16]


def test_a_folder_without_parameters_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["integrators.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"digits\.py makes it"):
        integrators.main()
