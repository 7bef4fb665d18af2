"""Loops of other libraries: each, on two gloo processes, computes what the whole batch gives by hand."""

import importlib.util
from argparse import Namespace

import loops
import pytest
import torch
from compare import moved_alike
from optree import tree_leaves
from processes import call, here

from purevdm import random

STEPS, BATCH = 4, 500  # an epoch is three steps
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def by_hand():
    """Parameters before and after, without a module, a loader or a process."""
    start, params = loops.MODEL.init(loops.K_INIT), loops.MODEL.init(loops.K_INIT)
    leaves = tree_leaves(params)
    optimizer = torch.optim.AdamW(leaves, 2e-3, betas=(0.9, 0.99), weight_decay=0.01)
    order = torch.cat([torch.randperm(1500, generator=torch.Generator().manual_seed(epoch)) for epoch in (0, 1)])
    for step, chosen in enumerate(order.split(BATCH)[:STEPS]):
        grads = torch.func.grad(loops.MODEL.loss_fn)(params, loops.TRAIN[chosen], random.fold_in(loops.K_TRAIN, step))
        for leaf, grad in zip(leaves, tree_leaves(grads), strict=True):
            leaf.grad = grad
        optimizer.step()
    return start, params


@pytest.mark.parametrize(
    ("processes", "pieces"), [(2, 5), *(pytest.param(n, 1, marks=SLOW) for n in (1, 2, 4)), pytest.param(1, 5, marks=SLOW)]
)
@pytest.mark.parametrize("loop", loops.LOOPS)
def test_any_processes_and_pieces_are_the_whole_batch(loop, processes, pieces, tmp_path, by_hand):
    if loop != "ddp" and importlib.util.find_spec(loop) is None:
        pytest.skip(f"{loop} is not installed (extra loops)")
    start, params = by_hand
    options = ("--steps", STEPS, "--batch", BATCH, "--accumulate", pieces, "--out", tmp_path / "params.pt")
    output = call("loops.py", loop, *options, processes=processes)
    assert output.splitlines()[-1].startswith(f"{loop}: test bound ")
    assert output.count("test bound") == 1
    moved_alike(torch.load(tmp_path / "params.pt"), params, start)


@pytest.mark.parametrize("pieces", [1, 5])
def test_one_process_is_the_whole_batch(pieces, by_hand):
    start, params = by_hand
    moved_alike(loops.ddp(Namespace(steps=STEPS, batch=BATCH, accumulate=pieces, device="cpu")), params, start)


@pytest.mark.parametrize("batch", [1501, 7, 0])
def test_bad_arguments_are_named(batch, monkeypatch):
    monkeypatch.setattr(loops, "PROCESSES", 2)
    message = here("loops.py", "ddp", "--batch", batch).stderr
    assert "--batch: expected a multiple of 2 processes x 1 pieces, at most 1500" in message
