"""Editing images: what is known stays, ends come back, later times change more; the program draws its picture."""

from pathlib import Path

import edit
import numpy as np
import perturb
import presets
import pytest
import readers
import torch
from PIL import Image

from purevdm import networks, random, solvers, vdm
from purevdm.schedules import fixed_linear


@pytest.fixture(scope="module")
def run():
    """A small model of the digits, trained on nothing, and a few of them."""
    config = presets.PRESETS["digits"][1]
    data = readers.digits()
    model = vdm(networks.mlp(8, fourier=()), fixed_linear(-8.0, 4.0), data.event_shape, data.vocab_size)
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.01)
    x = torch.from_numpy(data.take(np.arange(4))).long()
    return config, data, model, params, x


def test_completions_keep_what_is_known(run):
    *_, model, params, x = run
    known = torch.arange(8)[:, None] < 4
    known = known.expand_as(x)
    drawn = edit.completions(model, params, random.key(0), x, known, 3, None, steps=5)
    assert drawn.shape == (4, 3, *x.shape[1:])
    assert (drawn == x[:, None])[..., :4, :].all()
    assert (drawn[:, 0] != drawn[:, 1])[..., 4:, :].any()


def test_interpolations_begin_and_end_with_the_images(run):
    *_, model, params, x = run
    options = dict(steps=60, solver=solvers.dpmpp_2m())
    between = edit.interpolations(model, params, random.key(0), x[:2], x[2:], 5, None, **options)
    assert between.shape == (2, 5, *x.shape[1:])
    assert torch.equal(between[:, 0], x[:2])
    assert torch.equal(between[:, -1], x[2:])


def test_later_times_change_more(run):
    *_, model, params, x = run
    early, late = (
        (edit.variations(model, params, random.key(0), x, start, None, 40) - x).abs().double().mean() for start in (0.1, 0.9)
    )
    assert early < late / 2


def test_the_program_draws_its_picture(run, tmp_path, monkeypatch, capsys):
    config, data, model, params, _ = run
    monkeypatch.setattr(edit, "load", lambda path, device: (config, data, data, model, params))
    small = ["--rows", "2", "--columns", "4", "--steps", "4", "--flow-steps", "4"]
    monkeypatch.setattr("sys.argv", ["edit.py", "somewhere", "--out", str(tmp_path), *small])
    edit.main()
    assert "edit.png" in capsys.readouterr().out
    with Image.open(tmp_path / "edit.png") as image:
        assert np.asarray(image).std() > 10
    monkeypatch.setattr("sys.argv", ["edit.py", "somewhere", "--out", str(tmp_path), "--first", "1796"])
    with pytest.raises(SystemExit, match="rows: expected 16 test images from 1796 on, found 1797"):
        edit.main()


def test_a_missing_run_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["edit.py", str(Path(tmp_path, "none"))])
    with pytest.raises(SystemExit, match="none"):
        edit.main()
