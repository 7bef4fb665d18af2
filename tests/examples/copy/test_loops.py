"""Loops of other libraries: each, on two gloo processes, computes what the whole batch gives by hand."""

import importlib.util
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import loops
import pytest
import torch
from compare import moved_alike
from optree import tree_leaves

from purevdm import random

SCRIPT = Path(loops.__file__)
STEPS, BATCH = 4, 500  # an epoch is three steps


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


def needs(loop):
    missing = loop in ("accelerate", "lightning") and importlib.util.find_spec(loop) is None
    return pytest.mark.skipif(missing, reason=f"{loop} is not installed (extra loops)")


def launched(loop, processes, out, *more):
    arguments = [str(SCRIPT), loop, "--steps", str(STEPS), "--batch", str(BATCH), "--out", str(out), *more]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    env = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, *launcher, *arguments], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1].startswith(f"{loop}: test bound ")
    assert run.stdout.count("test bound") == 1
    return torch.load(out)


@pytest.mark.parametrize("loop", [pytest.param(loop, marks=needs(loop)) for loop in loops.LOOPS])
def test_two_processes_are_the_whole_batch(loop, tmp_path, by_hand):
    start, params = by_hand
    moved_alike(launched(loop, 2, tmp_path / "params.pt"), params, start)


@pytest.mark.slow
@pytest.mark.parametrize("loop", [pytest.param(loop, marks=needs(loop)) for loop in ("accelerate", "lightning")])
def test_two_processes_in_pieces_are_the_whole_batch(loop, tmp_path, by_hand):
    start, params = by_hand
    moved_alike(launched(loop, 2, tmp_path / "params.pt", "--accumulate", "5"), params, start)


@pytest.mark.parametrize("loop", [pytest.param(loop, marks=needs(loop)) for loop in loops.LOOPS if loop != "accelerate"])
def test_pieces_are_the_whole_batch(loop, tmp_path, by_hand):
    start, params = by_hand
    moved_alike(launched(loop, 1, tmp_path / "params.pt", "--accumulate", "5"), params, start)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("loop", [pytest.param(loop, marks=needs(loop)) for loop in loops.LOOPS])
def test_any_number_of_processes_is_the_whole_batch(loop, processes, tmp_path, by_hand):
    start, params = by_hand
    moved_alike(launched(loop, processes, tmp_path / "params.pt"), params, start)


def test_alone_is_the_whole_batch(by_hand):
    start, params = by_hand
    moved_alike(loops.ddp(Namespace(steps=STEPS, batch=BATCH, accumulate=1, device="cpu")), params, start)


@pytest.mark.parametrize("arguments", [("--batch", "1501"), ("--batch", "7"), ("--batch", "0")])
def test_bad_arguments_are_named(arguments, monkeypatch, capsys):
    monkeypatch.setattr(loops, "PROCESSES", 2)
    monkeypatch.setattr(sys, "argv", ["loops.py", "ddp", *arguments])
    with pytest.raises(SystemExit):
        loops.main()
    assert "--batch: expected a multiple of 2 processes x 1 pieces, at most 1500" in capsys.readouterr().err
