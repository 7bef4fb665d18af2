"""A function of parameters as a module: the same function, with names, copies and an optimiser of PyTorch's own."""

import copy
import math
import pickle

import optree
import pytest
import torch
from compare import close
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import purevdm
from purevdm import networks, random, schedules
from purevdm.module import Module
from purevdm.training import checkpoint

MODEL = purevdm.vdm(networks.mlp(8, fourier=(0,)), schedules.learned_linear(-8.0, 4.0), (2,), 16)
PARAMS, X, KEY = MODEL.init(random.key(0)), random.randint(random.key(1), (4, 2), 0, 16), random.key(2)


def test_it_is_the_function():
    module = Module(MODEL.loss_fn, PARAMS)
    assert torch.equal(module(X, KEY), MODEL.loss_fn(PARAMS, X, KEY))
    assert torch.equal(module(X, KEY, train=False), MODEL.loss_fn(PARAMS, X, KEY, train=False))
    samples = Module(MODEL.sample, PARAMS)(KEY, 3, steps=2)
    assert torch.equal(samples, MODEL.sample(PARAMS, KEY, 3, steps=2))
    module(X, KEY).backward()
    grads = optree.tree_map(lambda leaf: leaf.grad, module.tree())
    close(grads, torch.func.grad(MODEL.loss_fn)(PARAMS, X, KEY), 1e-6)


def test_names_are_those_of_checkpoints(tmp_path):
    state = purevdm.training.init(MODEL, random.key(0))
    checkpoint.save(tmp_path, state)
    header = (tmp_path / "00000000" / "state.safetensors").read_bytes()
    names = Module(MODEL.loss_fn, PARAMS).state_dict()
    assert "params.network.dense1.kernel" in names
    assert all(f'"{name}"'.encode() in header for name in names)
    other = Module(MODEL.loss_fn, MODEL.init(random.key(5)))
    other.load_state_dict(Module(MODEL.loss_fn, PARAMS).state_dict())
    assert torch.equal(other(X, KEY), MODEL.loss_fn(PARAMS, X, KEY))


def test_it_copies_what_it_is_given_and_lends_what_it_has():
    module, before = Module(MODEL.loss_fn, PARAMS), optree.tree_map(torch.clone, PARAMS)
    with torch.no_grad():
        for leaf in module.parameters():
            leaf += 1.0
    close(PARAMS, before, 0.0)
    close(module.tree(), optree.tree_map(lambda leaf: leaf + 1.0, PARAMS), 0.0)
    assert {id(leaf) for leaf in optree.tree_leaves(module.tree())} == {id(leaf) for leaf in module.parameters()}


def test_pickles_copies_and_averages():
    module = Module(MODEL.loss_fn, PARAMS)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(module)
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), average):
        assert torch.equal(other(X, KEY), module(X, KEY))


def test_trees_of_any_depth_and_dtype():
    tree = {"a": {}, "b": {"0": {"keys": torch.ones(2)}}, "n": torch.tensor(3)}
    module = Module(lambda params: params["b"]["0"]["keys"].sum() * params["n"], tree)
    assert module() == 6
    assert optree.tree_structure(module.tree()) == optree.tree_structure(tree)
    assert [name for name, leaf in module.named_parameters() if leaf.requires_grad] == ["params.b.0.keys"]


@pytest.mark.parametrize(
    ("tree", "error", "word"),
    [
        (torch.ones(2), TypeError, "params: expected a dict of tensors, got a float32 tensor"),
        ({"a": {"b": [torch.ones(2)]}}, TypeError, r"params\.a\.b: expected a torch.Tensor, got a list of"),
        ({"a": {"b": math.pi}}, TypeError, r"params\.a\.b: expected a torch.Tensor"),
        ({"a": {"": torch.ones(2)}}, ValueError, r"params\.a\.: expected a key .* got ''"),
        ({"a.b": torch.ones(2)}, ValueError, r"params\.a\.b: expected a key .* got 'a.b'"),
        ({3: torch.ones(2)}, ValueError, "got 3"),
    ],
)
def test_bad_trees_are_named(tree, error, word):
    with pytest.raises(error, match=word):
        Module(MODEL.loss_fn, tree)
    with pytest.raises(TypeError, match=r"function: expected a function of parameters, such as model\.loss_fn, got VDM"):
        Module(MODEL, PARAMS)


def test_keys_that_modules_use_themselves_come_back():
    tree = {"train": torch.ones(2), "train_": torch.zeros(2), "buffers": {"names": torch.ones(1)}}
    module = pickle.loads(pickle.dumps(Module(len, tree)))
    back = module.tree()
    assert optree.tree_structure(back) == optree.tree_structure(tree)
    close(back, tree, 0.0)
    assert all(name.startswith("params.") for name in module.state_dict())


def test_a_module_with_a_batch_norm_keeps_its_buffers_from_the_optimiser():
    network = networks.from_module(lambda: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)), call=alone)
    model = purevdm.vdm(network, schedules.learned_linear(-5.0, 3.0), (2,))
    module = Module(model.loss_fn, model.init(KEY))
    assert optree.tree_structure(module.tree()) == optree.tree_structure(model.init(KEY))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    before = optree.tree_map(torch.clone, module.tree()["network"]["buffers"])
    module(X, KEY).backward()
    optimizer.step()
    close(module.tree()["network"]["buffers"], before, 0.0)
    updated = model.update(module.tree(), X, KEY)
    module.load(updated)
    close(module.tree(), updated, 0.0)
    assert module.tree()["network"]["buffers"]["1"]["num_batches_tracked"] == 1
    with pytest.raises(ValueError, match=r"params: expected a leaf params\.network"):
        module.load({"network": {}, "schedule": {}})


def alone(module, z, gamma, cond):
    return module(z)
