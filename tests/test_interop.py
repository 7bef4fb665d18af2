"""Official parameters to ours and back, and checkpoints as Flax writes them."""

import math

import msgpack
import numpy as np
import optree
import pytest
import torch
from goldens import CASES, case, tree

import purevdm
from purevdm import interop, networks, random, schedules


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        if isinstance(a[name], dict):
            same(a[name], b[name])
        else:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
            assert np.shape(a[name]) == np.shape(b[name])


@pytest.mark.parametrize("name", CASES)
def test_round_trip_is_exact(name):
    c = case(name)
    official = tree(c.arrays, "params")
    same(interop.to_flax(interop.from_flax(official)), official)
    same(interop.from_flax({"params": official}), interop.from_flax(official))


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_those_of_init(name):
    c = case(name)
    ours, theirs = c.model.init(random.key(0)), c.params
    shapes = optree.tree_map(lambda leaf: tuple(leaf.shape), ours)
    if name == "fixed_t0":
        theirs = {**theirs, "schedule": {}}
    assert shapes == optree.tree_map(lambda leaf: tuple(leaf.shape), theirs)


def test_points_round_trip():
    model = purevdm.vdm(networks.mlp(8), schedules.learned_linear(), (2,))
    params = model.init(random.key(0))
    official = interop.to_flax(params)
    assert set(official) == {"score_net", "noise_schedule"}
    assert official["noise_schedule"]["w"].shape == (1,)
    same(interop.from_flax(official), params)


def packed(x):
    """An array as flax.serialization packs it: extension 1, of (shape, dtype, bytes)."""
    return msgpack.ExtType(1, msgpack.packb((x.shape, x.dtype.name, x.tobytes()), use_bin_type=True))


def pack(branch):
    return {k: pack(v) for k, v in branch.items()} if isinstance(branch, dict) else packed(np.asarray(branch))


@pytest.fixture
def checkpoint(tmp_path):
    official = tree(case("scalar_t0").arrays, "params")
    state = {"step": 123, "params": pack(official), "ema_params": pack(official), "opt_state": {"0": {"count": 7}}}
    # one leaf in pieces, as Flax stores those above a gibibyte
    kernel = np.asarray(official["score_model"]["conv_in"]["kernel"])
    flat = kernel.reshape(-1)
    state["params"]["score_model"]["conv_in"]["kernel"] = {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): d for i, d in enumerate(kernel.shape)},
        "chunks": {"0": packed(flat[:100]), "1": packed(flat[100:])},
    }
    path = tmp_path / "checkpoint.flax"
    path.write_bytes(msgpack.packb(state))
    return path


def test_checkpoints_load(checkpoint):
    step, params, ema_params = interop.load_flax(checkpoint)
    assert step == 123
    same(params, case("scalar_t0").params)
    same(ema_params, case("scalar_t0").params)


def test_damaged_checkpoints_say_so(checkpoint, tmp_path):
    data = checkpoint.read_bytes()
    for cut in (0, 1, 100, len(data) // 2, len(data) - 1):
        bad = tmp_path / "cut.flax"
        bad.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"cut\.flax"):
            interop.load_flax(bad)
    foreign = tmp_path / "foreign.flax"
    for content in (b"PK\x03\x04 a zip file", msgpack.packb([1, 2]), msgpack.packb({"step": 1, "params": {}})):
        foreign.write_bytes(content)
        with pytest.raises(ValueError, match=r"foreign\.flax"):
            interop.load_flax(foreign)
    short = msgpack.ExtType(1, msgpack.packb(((3,), "float32", b"\0" * 8)))
    foreign.write_bytes(msgpack.packb({"step": 1, "params": {"gamma": {"w": short}}, "ema_params": {}}))
    with pytest.raises(ValueError, match="8 bytes"):
        interop.load_flax(foreign)
    with pytest.raises(FileNotFoundError):
        interop.load_flax(tmp_path / "none.flax")


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: interop.from_flax(3), TypeError, "tree"),
        (lambda: interop.from_flax({"resnet": {"kernel": np.zeros(3)}}), ValueError, "resnet/kernel"),
        (lambda: interop.from_flax({"score_model": {"down.block_0": {"conv9": np.zeros(3)}}}), ValueError, "conv9"),
        (lambda: interop.from_flax({"score_model": {"dense0": {"kernel": "x"}}}), TypeError, "dense0/kernel"),
        (lambda: interop.from_flax({"gamma": {"w": np.zeros(1)}}), ValueError, "score_model"),
        (lambda: interop.to_flax({"network": {"conv_in": {}, "extra": torch.zeros(2)}}), ValueError, "extra"),
        (
            lambda: interop.to_flax({"network": {"w": torch.tensor(math.nan)}}),
            ValueError,
            "network.w: expected",
        ),
    ],
)
def test_bad_input_is_named(call, error, word):
    with pytest.raises(error, match=word):
        call()
