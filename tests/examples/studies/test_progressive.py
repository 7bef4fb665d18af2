"""Rate and distortion, drawn."""

import numpy as np
import perturb
import presets
import progressive
import readers
import torch
from PIL import Image
from processes import printed, refused

from purevdm import codec, networks, random, vdm
from purevdm.schedules import fixed_linear


def model_of_digits():
    data = readers.digits()
    model = vdm(networks.mlp(8, fourier=()), fixed_linear(-6.0, 4.0), data.event_shape, data.vocab_size)
    return data, model, perturb.perturbed(model.init(random.key(0)), 1, 0.01)


def test_the_latent_at_which_a_rate_is_spent():
    rate = torch.tensor([0.1, 0.2, 0.4, 0.9], dtype=torch.float64)
    curve = codec.Curve(rate, rate, rate, rate, 1, "bits/dim")
    assert progressive.reached(curve, (0.01, 0.1, 0.3, 2.0)) == [0, 0, 1, 3]


def test_estimates_come_nearer():
    _, model, params = model_of_digits()
    x = random.randint(random.key(0), (5, 1, 8, 8), 0, 17)
    errors = [
        (x - one).double().square().mean() for one in progressive.estimates(model, params, x, random.key(1), 10, [2, 6, 10])
    ]
    assert errors[0] > errors[1] > errors[2]


def test_the_program_prints_and_draws(tmp_path, monkeypatch):
    data, model, params = model_of_digits()
    run = progressive.load.__annotations__["return"]
    config = presets.PRESETS["digits"][1]
    monkeypatch.setattr(progressive, "load", lambda *args, **options: run(config, data, data, model, params))
    lines = printed("progressive.py", "somewhere", "--out", tmp_path, "--images", 4, "--steps", 5).splitlines()
    assert len(lines) == len(progressive.RATES) + 2
    assert "after the image" in lines[-1]
    rates = [float(line.split("+-")[0].split()[-1]) for line in lines]
    assert rates == sorted(rates)
    with Image.open(tmp_path / "progressive.png") as image:
        assert np.asarray(image).std() > 10
    assert "images" in refused("progressive.py", "somewhere", "--images", 1)
