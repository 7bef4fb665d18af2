"""Presets: the official models' parameter counts, configurations there and back, the data and models they stand for."""

import json
from dataclasses import replace

import numpy as np
import optree
import presets
import pytest
import torch
from PIL import Image
from presets import PRESETS, Config, Data, build
from readers import DataError

from purevdm import decoders, random
from purevdm.training.data import Dataset

# Counted in the official code's own parameters at each of its configurations.
OFFICIAL = {
    "cifar10": ((3, 32, 32), 30_578_181),
    "cifar10_aug": ((3, 32, 32), 122_140_677),
    "cifar10_aug_paper": ((3, 32, 32), 139_279_877),
    "imagenet32": ((3, 32, 32), 122_137_605),
    "imagenet64": ((3, 64, 64), 237_603_845),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_presets_have_the_official_sizes(name):
    shape, count = OFFICIAL[name]
    params = build(PRESETS[name][1], shape, 256).init(random.key(0, device="meta"))
    assert sum(leaf.numel() for leaf in optree.tree_leaves(params)) == count


def test_presets_have_the_official_settings():
    def settings(name):
        c = PRESETS[name][1]
        o = c.optimizer
        return c.batch, o.lr, o.b1, o.b2, o.weight_decay, o.warmup, o.decay, o.clip_norm, o.ema_rate, c.model.dropout

    shared = (0.9, 0.99, 0.01, 100, "constant", None, 0.9999)
    assert settings("cifar10") == settings("imagenet32") == settings("imagenet64") == (128, 2e-4, *shared, 0.1)
    assert settings("cifar10_aug") == (768, 1e-4, *shared, 0.05)
    assert settings("cifar10_aug_paper") == (1024, 2e-4, *shared, 0.05)


@pytest.mark.parametrize("name", PRESETS)
def test_configurations_go_through_json(name):
    config = PRESETS[name][1]
    assert presets.from_json(json.loads(json.dumps(presets.as_json(config)))) == config


@pytest.mark.parametrize("network", ["vdm_unet", "unet", "mlp"])
@pytest.mark.parametrize("schedule", ["fixed_linear", "monotone_mlp_pinned", "constrained_monotone"])
def test_models_of_every_kind(network, schedule):
    m = presets.Model(
        network=network, embed=16, layers=1, groups=4, schedule=schedule, labels=True, cond_drop=0.1, fourier=()
    )
    config = Config(model=replace(m, variance=True, self_condition=True), dtype="bfloat16")
    model = build(config, (1, 8, 8), 17, classes=10)
    cond = presets.condition(config, torch.zeros(2), torch.tensor([3, 9]))
    params = model.init(random.key(0))
    x = torch.zeros(2, 1, 8, 8, dtype=torch.int64)
    grads, loss = model.vlb_and_variance_grads(params, x, random.key(1), cond)
    assert loss.isfinite()
    assert all(leaf.isfinite().all() for leaf in optree.tree_leaves(grads))


@pytest.mark.parametrize("network", ["vdm_unet", "unet", "mlp"])
@pytest.mark.parametrize("predicts", ["x", "v"])
def test_what_networks_predict_and_times_by_importance(network, predicts):
    m = presets.Model(
        network=network, embed=8, layers=1, groups=4, fourier=(), flag=False, predicts=predicts, importance=True
    )
    model = build(Config(model=m), (1, 4, 4), 17)
    assert model.network.predicts == predicts
    assert not model.network.residual
    params = model.init(random.key(0))
    loss, stats = model.loss_and_stats(params, torch.zeros(2, 1, 4, 4, dtype=torch.int64), random.key(1))
    assert loss.isfinite()
    assert stats["schedule"]["warp"]["visits"].sum() > 0


def test_settings_of_images_reach_their_readers(tmp_path):
    hugging_face = pytest.importorskip("datasets")
    picture = Image.new("RGBA", (2, 2), (9, 9, 9, 0))
    (tmp_path / "folder").mkdir()
    for i in range(2):
        picture.save(tmp_path / "folder" / f"{i}.png")
    features = hugging_face.Features({"img": hugging_face.Image(), "label": hugging_face.Value("int64")})
    rows = {"img": [picture] * 2, "label": [0, 1]}
    table = hugging_face.DatasetDict({"train": hugging_face.Dataset.from_dict(rows, features=features)})
    table.save_to_disk(str(tmp_path / "huggingface"))
    for source in ("folder", "huggingface"):
        data = Data(source=source, path=str(tmp_path / source), held_out=1, channels=1, background=7, label="")
        train, _ = presets.datasets(data, random.key(0))
        assert (train.take(np.array([0])) == np.full((1, 1, 2, 2), 7)).all()
        assert train.labels is None


def test_configurations_of_before_have_the_usual_channels():
    for source, channels, want in (("huggingface", 1, None), ("folder", 3, None), ("folder", 1, 1), ("digits", 3, None)):
        told = presets.as_json(Config(data=Data(source=source, channels=channels)))
        assert presets.from_json(told).data.channels == channels
        del told["data"]["label"], told["data"]["background"]
        assert presets.from_json(told).data.channels == want


def test_configurations_of_before_predict_the_noise_at_uniform_times():
    """What a run of version 0.3 left in its checkpoints."""
    config = PRESETS["digits"][1]
    found = json.loads(json.dumps(presets.as_json(config)))
    del found["model"]["predicts"], found["model"]["importance"]
    assert presets.from_json(found) == config
    model = build(presets.from_json(found), (1, 8, 8), 17)
    assert model.network.predicts == "eps"
    assert model.schedule.observe is None
    assert model.init(random.key(0))["schedule"].keys() == {"w", "b"}


def test_labels_need_classes():
    with pytest.raises(ValueError, match="the data have no classes"):
        build(Config(model=presets.Model(labels=True)), (1, 8, 8), 17)


def reals(x):
    return Dataset("reals", len(x), x.shape[1:], None, lambda i: x[i])


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 2)])
def test_real_data_are_standardised_by_channel(shape):
    x = (
        np.random.default_rng(0).normal(size=(50, *shape)) * np.reshape([1.0, 0.01, 30.0], (3, *[1] * (len(shape) - 1)))
        + 1e6
    )
    data = presets.standardised(Data(source="array"), reals(x), size=7)
    flat = np.moveaxis(x, 1, 0).reshape(3, -1)
    np.testing.assert_allclose(data.loc, flat.mean(1), rtol=1e-12)
    np.testing.assert_allclose(data.scale, flat.std(1), rtol=1e-6)
    config = presets.from_json(json.loads(json.dumps(presets.as_json(Config(data=data)))))
    assert config.data == data
    f = presets.decoder(config.data, shape, None).encode({}, torch.from_numpy(x), dtype=torch.float64)
    assert f.mean().abs() < 1e-6
    assert abs(f.square().mean() - 1) < 1e-6
    assert presets.standardised(data, reals(x[:3])) == data  # given once, they stay


def test_integers_are_not_standardised():
    data = Data(source="array", vocab_size=17)
    assert presets.standardised(data, reals(np.zeros((2, 3)))._replace(vocab_size=17)) == data
    assert presets.decoder(data, (3,), 17) == decoders.discrete(17)


def test_real_data_without_a_density_are_named():
    x = np.random.default_rng(0).normal(size=(9, 3))
    with pytest.raises(DataError, match="expected 3 numbers in each, one a channel"):
        presets.standardised(Data(loc=(0.0,), scale=(1.0,)), reals(x))
    x[:, 1] = 2.5
    with pytest.raises(DataError, match="channel 1 is constant"):
        presets.standardised(Data(), reals(x))
