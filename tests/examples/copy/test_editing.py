"""Editing images: what is known stays, ends come back, later times change more; the program draws its picture."""

import editing
import numpy as np
import perturb
import pytest
import torch
from PIL import Image
from processes import printed

from purevdm import networks, random, vdm
from purevdm.schedules import fixed_linear


@pytest.fixture(scope="module")
def run():
    """A small model of the digits, trained on nothing, and a few of them."""
    model = vdm(networks.mlp(8, fourier=()), fixed_linear(-8.0, 4.0), editing.SHAPE, editing.LEVELS)
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.01)
    return model, params, editing.data(random.key(0))[1][:4]


def test_completions_keep_what_is_known(run):
    model, params, x = run
    known = torch.arange(8)[:, None] < 4
    known = known.expand_as(x)
    drawn = editing.completions(model, params, random.key(0), x, known, 3, 2, 5)
    assert drawn.shape == (4, 3, *x.shape[1:])
    assert (drawn == x[:, None])[..., :4, :].all()
    assert (drawn[:, 0] != drawn[:, 1])[..., 4:, :].any()


def test_interpolations_begin_and_end_with_the_images(run):
    model, params, x = run
    between = editing.interpolations(model, params, random.key(0), x[:2], x[2:], 5, 60)
    assert between.shape == (2, 5, *x.shape[1:])
    assert torch.equal(between[:, 0], x[:2])
    assert torch.equal(between[:, -1], x[2:])


def test_later_times_change_more(run):
    model, params, x = run
    early, late = (
        (editing.variations(model, params, random.key(0), x, start, 40) - x).abs().double().mean() for start in (0.1, 0.9)
    )
    assert early < late / 2


def test_the_program_draws_its_picture(tmp_path):
    small = ("--steps", 1, "--rows", 2, "--sample-steps", 4, "--repeats", 1, "--no-compile")
    assert "editing.png" in printed("editing.py", "--out", tmp_path, *small)
    with Image.open(tmp_path / "editing.png") as image:
        assert np.asarray(image).std() > 10
