"""Schedules of pixels: gamma of each image, spreads, the whole program, and models that have none."""

from functools import partial

import numpy as np
import perturb
import pixels
import presets
import pytest
import readers
import torch
from PIL import Image
from processes import printed, refused

from purevdm import codes, networks, random, schedules, vdm

TIMES = torch.tensor([0.0, 0.4, 1.0])


def model_of_digits(coded=True):
    data = readers.digits()
    polynomial = partial(schedules.polynomial, gamma_min=-6.0, gamma_max=4.0)
    schedule = polynomial(data.event_shape, 3) if coded else schedules.fixed_linear(-6.0, 4.0)
    encoder = networks.unet_encoder(data.event_shape, 6, 8, 1, groups=2, fourier=())
    network = networks.mlp(8, fourier=(), cond_dim=3 if coded else 0)
    code = codes.gaussian(encoder, 3) if coded else None
    model = vdm(network, schedule, data.event_shape, data.vocab_size, code=code)
    return data, model, perturb.perturbed(model.init(random.key(0)), 1, 0.1)


def test_levels_are_the_schedules_and_ends_are_shared():
    _, model, params = model_of_digits()
    x = random.randint(random.key(0), (4, 1, 8, 8), 0, 17)
    gamma = pixels.levels(model, params, x, random.key(1), TIMES)
    assert gamma.shape == (4, 3, 1, 8, 8)
    torch.testing.assert_close(gamma[:, 0], torch.full_like(gamma[:, 0], -6.0))
    torch.testing.assert_close(gamma[:, 2], torch.full_like(gamma[:, 2], 4.0))
    over_pixels, over_images = pixels.shares(gamma[:, 1])
    assert over_pixels > 0.0
    assert over_images > 0.0
    assert pixels.shares(gamma[:1].expand(4, -1, -1, -1, -1)[:, 1])[1] == pytest.approx(0.0, abs=1e-6)


def test_the_program_draws_and_refuses_one_gamma_for_all(tmp_path, monkeypatch):
    run, config = pixels.load.__annotations__["return"], presets.PRESETS["digits"][1]

    def loads(coded):
        data, model, params = model_of_digits(coded)
        monkeypatch.setattr(pixels, "load", lambda *args, **options: run(config, data, data, model, params))

    loads(True)
    few = ("somewhere", "--out", tmp_path, "--images", 5)
    head, *lines, last = printed("pixels.py", *few).splitlines()
    assert "over images" in head
    assert [float(line[:5]) for line in lines] == list(pixels.TIMES)
    assert -1.0 <= float(last.split()[-1]) <= 1.0
    with Image.open(tmp_path / "pixels.png") as image:
        assert np.asarray(image).std() > 10
    loads(False)
    assert "with a gamma for each pixel" in refused("pixels.py", *few, "--overwrite")
