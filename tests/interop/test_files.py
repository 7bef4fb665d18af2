"""Official parameters to ours and back, and checkpoints as Flax writes them."""

import importlib.util
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
    data, bad = checkpoint.read_bytes(), tmp_path / "bad.flax"
    cuts = [data[:cut] for cut in (0, 1, 100, len(data) // 2, len(data) - 1)]
    for content in (*cuts, b"PK\x03\x04 a zip file", msgpack.packb([1, 2]), msgpack.packb({"step": 1, "params": {}})):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.flax: no whole VDM checkpoint"):
            interop.load_flax(bad)
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
        (lambda: interop.to_flax({"network": {"w": torch.tensor(math.nan)}}), ValueError, "network.w: expected"),
    ],
)
def test_bad_input_is_named(call, error, word):
    with pytest.raises(error, match=word):
        call()


def packed_as(shape, dtype, raw):
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, raw), use_bin_type=True))


def pieces(shape, *chunks):
    lists = {"shape": shape, "chunks": chunks}
    return {"__msgpack_chunked_array__": True} | {
        field: {str(i): entry for i, entry in enumerate(entries)} for field, entries in lists.items()
    }


FOUR = packed(np.ones(4, np.float32))


@pytest.mark.parametrize(
    ("leaf", "word"),
    [
        (packed_as((3,), "qint8", bytes(3)), "'qint8'"),
        (packed_as((1,), "x" * 1000, bytes(8)), r"'x{119}$"),
        (packed_as((2, -2), "float32", bytes(16)), r"a shape \[2, -2\]"),
        (packed_as((True,), "float32", bytes(4)), "a shape"),
        (packed_as((1,) * 100, "float32", bytes(4)), "a shape"),
        (packed_as(4, "float32", bytes(16)), "TypeError"),
        (packed_as((2**40, 2**40), "float32", b""), "Error"),
        (packed_as((2,), "float32", bytes(12)), "invalid for input of size 3"),
        (packed_as((2,), "bool", b"\1\2"), "neither 0 nor 1"),
        (packed_as((2,), "float32", [1, 2]), "TypeError"),
        (msgpack.ExtType(1, b"\xc1"), "Error"),
        ("x" * 10**6, "AttributeError"),
        (None, "AttributeError"),
        (pieces((3,), FOUR), "invalid for input of size 4"),
        (pieces((8,), FOUR, packed(np.ones(4, np.int32))), "several dtypes"),
        (pieces((4,)), "several dtypes"),
        ({"__msgpack_chunked_array__": True, "shape": {"1": 4}, "chunks": {"0": FOUR}}, "KeyError"),
    ],
)
def test_bad_leaves_are_named(tmp_path, leaf, word):
    path = tmp_path / "bad.flax"
    state = {"step": 1, "params": {"gamma": {"w": leaf}}, "ema_params": {}}
    path.write_bytes(msgpack.packb(state))
    with pytest.raises(ValueError, match=rf"bad\.flax: .*params/gamma/w: expected an array of one of .*{word}"):
        interop.load_flax(path)


@pytest.mark.parametrize("name", interop.flax.DTYPES)
def test_plain_dtypes_load(tmp_path, name):
    path, dtype = tmp_path / "plain.flax", getattr(torch, name)
    values = torch.tensor([0, 1, 1, 0]).to(dtype)
    tree = {"score_model": {"dense0": {"bias": packed_as((2, 2), name, values.view(torch.uint8).numpy().tobytes())}}}
    tree["score_model"]["dense0"]["kernel"] = packed_as((0, 3), name, b"")
    path.write_bytes(msgpack.packb({"step": packed(np.int32(7)), "params": tree, "ema_params": tree}))
    step, params, _ = interop.load_flax(path)
    layer = params["network"]["dense0"]
    assert step == 7
    assert layer["bias"].dtype == dtype
    assert torch.equal(layer["bias"], values.reshape(2, 2))
    assert layer["kernel"].shape == (0, 3)


@pytest.mark.parametrize("step", [-1, 1.5, True, None, packed(np.ones(2, np.int32)), packed(np.float32(math.nan))])
def test_bad_steps_are_named(checkpoint, step):
    checkpoint.write_bytes(
        msgpack.packb(msgpack.unpackb(checkpoint.read_bytes(), ext_hook=msgpack.ExtType) | {"step": step})
    )
    with pytest.raises(ValueError, match=r"checkpoint\.flax: no whole VDM checkpoint: "):
        interop.load_flax(checkpoint)


@pytest.mark.parametrize(
    "name",
    [
        "score_model/down.block_00/conv1/kernel",
        "score_model/down.block_\N{ARABIC-INDIC DIGIT ONE}/conv1/kernel",
        "score_model/conv_in/kermel",
        "score_model/conv_in/kernel/0",
        "score_model/conv_in",
        "score_model/down.block_0/conv1/scale",
        "score_model/mid.attn_1/conv1/kernel",
        "score_net/conv_in/kernel",
        "gamma/v",
        "gamma",
    ],
)
def test_unknown_names_find_no_home(name):
    tree = {"score_model": {"dense0": {"bias": np.zeros(1)}}}
    *nodes, last = name.split("/")
    part = tree
    for node in nodes:
        part = part.setdefault(node, {})
    part[last] = np.zeros((1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"tree: expected parameters of the official VDM, got a leaf at"):
        interop.from_flax(tree)


def test_parameters_that_the_official_model_has_not_are_named():
    for path, word in (
        ("conv_in/kermel", "conv_in/kermel"),
        ("down/0/00/resnet/conv1/kernel", "down/0/00"),
        ("mid/1/resnet/conv1/kernel", "mid/1"),
        ("down/1/0/resnet/conv1/kernel", "down/1"),
        ("mid/block1/attn/1/q/kernel", "attn/1"),
    ):
        tree = part = {"network": {"conv_in": {"kernel": torch.zeros(1)}}}
        *nodes, last = f"network/{path}".split("/")
        for node in nodes:
            part = part.setdefault(node, {})
        part[last] = torch.zeros(1)
        with pytest.raises(ValueError, match=f"params: the official VDM has no parameter for .*{word}"):
            interop.to_flax(tree)
    both = {"score_model": {"dense0": {"bias": np.zeros(1)}}, "score_net": {"dense1": {"bias": np.zeros(1)}}}
    with pytest.raises(ValueError, match="tree: expected the score_model of images or the score_net of points, got both"):
        interop.from_flax(both)
    with pytest.raises(ValueError, match="tree: gamma/w: expected one number"):
        interop.from_flax({"gamma": {"w": np.zeros(2)}})
    with pytest.raises(ValueError, match=r"params\.schedule\.w: expected shape"):
        interop.to_flax({"network": {}, "schedule": {"w": torch.zeros(1)}})


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(
        ValueError, match=r"tree: noise_schedule/w: expected one leaf that becomes 'schedule/w', got a second"
    ):
        interop.from_flax({"gamma": {"w": np.zeros(1)}, "noise_schedule": {"w": np.zeros(1)}})


def test_bfloat16_from_and_to_flax():
    model = purevdm.vdm(networks.mlp(4, fourier=()), schedules.learned_linear(), (2,))
    params = optree.tree_map(lambda leaf: leaf.bfloat16(), model.init(random.key(0)))
    if importlib.util.find_spec("ml_dtypes") is None:
        with pytest.raises(ImportError, match="ml_dtypes"):
            interop.to_flax(params)
        return
    theirs = interop.to_flax(params)
    assert theirs["score_net"]["dense1"]["kernel"].dtype.name == "bfloat16"
    back = interop.from_flax(theirs)
    assert all(map(torch.equal, optree.tree_leaves(back), optree.tree_leaves(params)))


def test_arrays_of_no_dtype_of_torchs_are_named():
    for array in (np.array(["a"]), np.zeros(2, ">f4")):
        with pytest.raises(TypeError, match="score_net/dense1/bias: expected numbers of a dtype that torch has"):
            interop.from_flax({"score_net": {"dense1": {"bias": array}}})
