"""Presets: the official models' parameter counts, configurations there and back, the data, models and pictures."""

import json
from dataclasses import replace

import numpy as np
import optree
import pictures
import presets
import pytest
import torch
from PIL import Image
from presets import PRESETS, Config, Data, build
from readers import DataError

from purevdm import random, training
from purevdm.training.data import Dataset

# Counted in the official code's own parameters at each of its configurations.
OFFICIAL = {
    "cifar10": ((3, 32, 32), 30_578_181),
    "cifar10_aug": ((3, 32, 32), 122_140_677),
    "cifar10_aug_paper": ((3, 32, 32), 139_279_877),
    "imagenet32": ((3, 32, 32), 122_137_605),
    "imagenet64": ((3, 64, 64), 237_603_845),
    # Of the shapes of the official modules, at 128 and 256 wide.
    "mulan_cifar10": ((3, 32, 32), 30_603_267 + 2_632_883 + 37_917_696),
    "mulan_imagenet32": ((3, 32, 32), 122_187_779 + 10_326_323 + 37_917_696),
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
    assert settings("mulan_cifar10") == (128, 2e-4, *shared, 0.1)
    assert settings("mulan_imagenet32") == (512, 2e-4, *shared, 0.1)
    assert [PRESETS[f"mulan_{name}"][1].model.predicts for name in ("cifar10", "imagenet32")] == ["v", "eps"]
    assert settings("cifar10_aug_paper") == (1024, 2e-4, *shared, 0.05)


@pytest.mark.parametrize("name", PRESETS)
def test_configurations_go_through_json(name):
    config = PRESETS[name][1]
    assert presets.from_json(json.loads(json.dumps(presets.as_json(config)))) == config


@pytest.mark.parametrize(
    ("network", "schedule", "predicts"),
    [
        ("vdm_unet", "monotone_mlp_pinned", "x"),
        ("unet", "constrained_monotone", "v"),
        ("mlp", "learned_linear", "eps"),
        ("vdm_unet", "learned_linear", "binned"),
    ],
)
def test_models_of_every_kind(network, schedule, predicts):
    m = presets.Model(network=network, embed=16, layers=1, groups=4, schedule=schedule, fourier=(), predicts=predicts)
    options = dict(labels=True, cond_drop=0.1, self_condition=True, importance=network == "mlp")
    config = Config(model=replace(m, **options), dtype="bfloat16")
    model = build(config, (1, 8, 8), 17, classes=10)
    assert model.network.predicts == ("x" if predicts == "binned" else predicts)
    params, x = model.init(random.key(0)), torch.zeros(2, 1, 8, 8, dtype=torch.int64)
    cond = presets.condition(config, torch.zeros(2), torch.tensor([3, 9]))
    grads, (loss, stats) = training.gradients(model, variance=network == "unet")(params, x, random.key(1), cond)
    assert loss.isfinite()
    assert all(leaf.isfinite().all() for leaf in optree.tree_leaves(grads))
    assert ("schedule" in stats) == (network == "mlp")  # what times by importance learn from


@pytest.mark.parametrize(
    ("kind", "outputs", "vocab_size"),
    [("bfn_continuous", None, None), ("bfn_continuous", None, 17), ("bfn_discretised", 2, 17), ("bfn_discrete", None, 17)],
)
def test_presets_build_bayesian_flows(kind, outputs, vocab_size):
    config = PRESETS["digits_bfn"][1]
    config = replace(config, model=replace(config.model, kind=kind, network="mlp", timesteps=7))
    config = replace(config, data=replace(config.data, loc=(1.0,), scale=(2.0,)))
    model = build(config, (3,), vocab_size)
    assert (model.network.outputs, model.timesteps, model.reconstruction) == (outputs, 7, False)
    assert model.decoder.unit == ("bits/dim" if vocab_size else "nats")
    if kind != "bfn_continuous":
        with pytest.raises(ValueError, match=r"model\.kind: real data"):
            build(config, (3,), None)


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


def test_configurations_of_version_0_3_predict_the_noise_at_uniform_times_of_the_usual_channels():
    for source, channels, want in (("huggingface", 1, None), ("folder", 3, None), ("folder", 1, 1), ("digits", 3, None)):
        entries = json.loads(json.dumps(presets.as_json(Config(data=Data(source=source, channels=channels)))))
        assert presets.from_json(entries).data.channels == channels
        for part, name in (("data", "label"), ("data", "background"), ("model", "predicts"), ("model", "importance")):
            del entries[part][name]
        assert presets.from_json(entries) == Config(data=Data(source=source, channels=want))


@pytest.mark.parametrize(("kind", "vocab_size", "got"), [("vdm", None, "real data"), ("bfn_discretised", 17, "bfn_disc")])
def test_bins_are_of_integers_and_diffusion(kind, vocab_size, got):
    with pytest.raises(ValueError, match=rf"model\.predicts: expected 'binned' only for integers .* got it for {got}"):
        build(Config(model=presets.Model(kind=kind, predicts="binned")), (1, 8, 8), vocab_size)


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
    assert presets.standardised(Data(), reals(x)._replace(vocab_size=17)) == Data()


def test_real_data_without_a_density_are_named():
    x = np.random.default_rng(0).normal(size=(9, 3))
    with pytest.raises(DataError, match="expected 3 numbers in each, one a channel"):
        presets.standardised(Data(loc=(0.0,), scale=(1.0,)), reals(x))
    x[:, 1] = 2.5
    with pytest.raises(DataError, match="channel 1 is constant"):
        presets.standardised(Data(), reals(x))


def test_tiles_keep_every_pixel():
    images = torch.arange(4 * 4).reshape(4, 1, 2, 2)
    tiles = pictures.tiles(images, 16, side=2)
    assert tiles.shape == (8, 8, 3)
    assert (tiles[1:3, 1:3, 0] == 17 * images[0, 0].numpy()).all()
    assert (tiles[5:7, 1:3, 0] == 17 * images[2, 0].numpy()).all()
    assert (tiles[0] == 255).all()
    real = pictures.tiles(torch.tensor([-3.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2), None, side=2)
    assert (real[1:3, 1:3] == 0).all()  # from black to white
    assert (real[1:3, 5:7] == 255).all()
    assert [pictures.drawable(*form) for form in (((3, 4, 4), None), ((2,), None), ((2,), 17))] == [True, False, True]
