"""Maps of surprise: what is changed, how maps are scored, the whole program on data and on samples."""

import maps
import numpy as np
import perturb
import presets
import pytest
import readers
import torch
from PIL import Image
from processes import printed, refused

from purevdm import networks, random, vdm
from purevdm.schedules import fixed_linear


def model_of_digits():
    data = readers.digits()
    model = vdm(networks.mlp(8, fourier=()), fixed_linear(-6.0, 4.0), data.event_shape, data.vocab_size)
    return data, model, perturb.perturbed(model.init(random.key(0)), 1, 0.01)


def test_a_square_of_the_image_before_is_put_in():
    x = random.randint(random.key(0), (20, 1, 12, 12), 0, 256)
    new, where = maps.changed(x, 4, random.key(1))
    assert torch.equal(where, new != x)
    for i in range(20):
        rows, columns = where[i, 0].nonzero(as_tuple=True)
        assert rows.max() - rows.min() < 4 > columns.max() - columns.min()
        assert min(rows.min(), columns.min()) >= 2
        assert max(rows.max(), columns.max()) < 10
        assert torch.equal(new[i][where[i]], x[i - 1][where[i]])


def test_maps_are_the_bounds_terms_on_common_noise():
    _, model, params = model_of_digits()
    x = random.randint(random.key(0), (3, 1, 8, 8), 0, 17)
    bits, noisy = maps.surprise(model, params, x[[0, 1, 0]], random.key(1), 6, 0.0)
    assert torch.equal(bits[0], bits[2])
    assert torch.equal(noisy[0], noisy[2])
    want = model.nll_bound(params, x[1:2].expand(6, 1, 8, 8), random.key(1)).total.mean() / np.log(2)
    torch.testing.assert_close(bits[1].sum(), want.to(bits.dtype), rtol=1e-5, atol=0)
    everything = maps.surprise(model, params, x[:1], random.key(1), 6, -7.0)
    assert (noisy[0] <= everything[1][0]).all()
    assert (everything[1][0] <= everything[0][0] + 1e-6).all()


def test_scores_of_a_map_that_knows_and_of_one_that_does_not():
    where = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    where[:, :, 1:3, 1:3] = True
    assert maps.scores(where.double(), where).tolist() == [[1.0, 1.0]] * 2
    assert maps.scores(-where.double(), where).tolist() == [[0.0, 0.0]] * 2


@pytest.mark.parametrize("held", [True, False])
def test_the_program_scores_and_draws(tmp_path, monkeypatch, held):
    data, model, params = model_of_digits()
    data = data if held else data._replace(size=0)
    run = maps.load.__annotations__["return"]
    config = presets.PRESETS["digits"][1]
    monkeypatch.setattr(maps, "load", lambda *args, **options: run(config, data, data, model, params))
    few = ("somewhere", "--out", tmp_path, "--images", 4, "--draws", 4, "--side", 4)
    head, *lines = printed("maps.py", *few).splitlines()
    assert "AUROC" in head
    assert [line[:16].strip() for line in lines] == ["bits", "at gamma > -2", "contrast"]
    assert all(0 <= float(line.split("+-")[0].split()[-1]) <= 1 for line in lines)
    with Image.open(tmp_path / "maps.png") as image:
        assert np.asarray(image).std() > 10
    assert "larger than the square" in refused("maps.py", *few[:-1], 6, "--overwrite")
