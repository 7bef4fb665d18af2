"""Outliers: the kinds of odd images, AUROC and its error, the whole program."""

import math

import numpy as np
import outliers
import perturb
import presets
import pytest
import readers
import torch
from PIL import Image
from processes import printed, small_flow

from purevdm import networks, random, vdm
from purevdm.schedules import fixed_linear


def test_letters_are_ink_in_blocks():
    found = outliers.letters(8, 17)
    assert found.shape == (24, 1, 8, 8)
    assert found.min() == 0
    assert found.max() == 16
    assert len({tuple(letter.flatten().tolist()) for letter in found}) == 24
    # H is symmetric, with two full stems and a bar; T has a bar on top
    letter = dict(zip("ABCDEFGHJKLMNPQRSTUVWXYZ", found[:, 0].double(), strict=True))
    assert (letter["H"] - letter["H"].flip(1)).abs().max() <= 4  # a block's column
    assert letter["T"][0].mean() > 2 * letter["T"][-1].mean()
    assert ((found.double().mean((1, 2, 3)) > 2) & (found.double().mean((1, 2, 3)) < 12)).all()


def test_odd_images_are_made_of_the_digits():
    x = torch.from_numpy(readers.digits().take(np.arange(20))).long()
    kinds = outliers.odd(x, 17, random.key(0))
    assert all(images.min() >= 0 and images.max() <= 16 and images.dtype == torch.int64 for images in kinds.values())
    assert all(len(kinds[name]) == 20 for name in outliers.OF_EACH)
    assert torch.equal(kinds["inverted"], 16 - x)
    assert torch.equal(kinds["turned"][:, 0, 0], x[:, 0, :, -1])
    assert torch.equal(kinds["shifted"][..., 2:], x[..., :-2])
    assert not kinds["shifted"][..., :2].any()
    assert torch.equal(kinds["shuffled"].flatten(1).sort().values, x.flatten(1).sort().values)
    assert not torch.equal(kinds["shuffled"], x)
    assert abs(kinds["blurred"][3, 0, 4, 4] - x[3, 0, 3:6, 3:6].double().mean()) <= 0.5
    assert kinds["one grey"].flatten(1).unique().tolist() == list(range(17))
    assert kinds["one grey"].double().flatten(1).std(1).max() == 0


@pytest.mark.parametrize("paired", [False, True])
def test_auroc_of_gaussians_and_its_error(paired):
    """Above a standard normal by d it is Phi(d / sqrt 2) for independent values; also for pairs, which meet in one of n
    comparisons. Over sets its errors are as large as they say."""
    d, n, sets = 0.8, 60, 300
    z = random.normal(random.key(0), (sets, 2, n), torch.float64)
    usual, odd = z[:, 0], d + (0.9 * z[:, 0] + math.sqrt(0.19) * z[:, 1] if paired else z[:, 1])
    found = torch.tensor([outliers.auroc(a, b, paired) for a, b in zip(usual, odd, strict=True)])
    want = 0.5 * (1 + math.erf(d / 2))
    spread = found[:, 0].std().item()
    assert abs(found[:, 0].mean() - want) < 4 * spread / math.sqrt(sets) + 1 / n
    assert abs(found[:, 1].mean() / spread - 1) < 4 / math.sqrt(2 * sets) + 0.05
    # pairs tell more than they would if taken for independent
    alone = torch.tensor([outliers.auroc(a, b, False) for a, b in zip(usual, odd, strict=True)])[:, 1].mean()
    assert not paired or alone > 1.5 * spread


def test_ties_count_half():
    assert outliers.auroc(torch.zeros(3), torch.zeros(4), False) == (0.5, 0.0)
    assert outliers.auroc(torch.zeros(3), torch.ones(4), False) == (1.0, 0.0)


def test_frames_are_around_their_images():
    x = torch.full((3, 1, 2, 2), 16)
    sheet = outliers.framed(x, [(1.0, 0.0, 0.0)] * 3, 17, 2)
    assert sheet.shape == (12, 12, 3)
    assert (sheet[2:4, 2:4] == 0).all()
    assert (sheet[1, 1:5] == [1.0, 0.0, 0.0]).all()
    assert (sheet[7:, 7:] == 1).all()  # no fourth image


def test_the_program_ranks_and_draws(tmp_path, monkeypatch):
    small_flow(monkeypatch, outliers)
    data = readers.digits()
    model = vdm(networks.mlp(8, fourier=()), fixed_linear(-6.0, 4.0), data.event_shape, data.vocab_size)
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.01)
    monkeypatch.setattr(outliers, "load", lambda path, device: (presets.PRESETS["digits"][1], data, data, model, params))
    head, *lines = printed("outliers.py", "somewhere", "--out", tmp_path, "--images", 5).splitlines()
    assert head.split()[0] == "images"
    names = [line[:9].strip() for line in lines]
    assert names == ["digits", *outliers.OF_EACH, "letters", "one grey"]
    assert [int(line[9:].split()[0]) for line in lines] == [5] * 6 + [24, 17]
    assert all(0 <= float(line.split("+-")[1].split()[1]) <= 1 for line in lines[1:])
    with Image.open(tmp_path / "outliers.png") as image:
        assert np.asarray(image).std() > 10
