"""Several processes compute what one computes with the whole batch, or data set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from compare import moved_alike
from optree import tree_leaves

from purevdm import parallel, random, training

HERE = Path(__file__).parent


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_processes_are_one(tmp_path, processes):
    script, out = [str(HERE / "worker.py"), str(tmp_path / "out.pt")], tmp_path / "out.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    paths = os.pathsep.join([str(HERE / "training"), str(HERE.parent)])
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*launcher, *script], env=env, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    leaves, loss, group = torch.load(out, weights_only=False)
    assert group[:2] == (0, processes)
    state, grad_fn = tiny.state(), training.gradients(tiny.model())
    for step in range(3):
        state, metrics = training.train_step(tiny.SETTINGS, grad_fn, state, tiny.data(seed=step), random.key(3))
    torch.testing.assert_close(loss, metrics["loss"], rtol=1e-5, atol=0)
    moved_alike(leaves, tree_leaves(state.params), tree_leaves(tiny.state().params))


def test_alone_nothing_is_sent():
    tensors = [torch.ones(2), torch.zeros(3)]
    assert all(a is b for a, b in zip(parallel.average(tensors), tensors, strict=True))
    assert parallel.join("cpu") == parallel.Group(0, 1, torch.device("cpu"))
    assert parallel.gather(tensors[0])[0] is tensors[0]
    parallel.barrier()
    parallel.leave()
    with pytest.raises(ValueError, match="bucket"):
        parallel.average(tensors, 0)


def test_means_keep_their_strides(monkeypatch):
    """As if two processes had the same tensors."""
    monkeypatch.setattr(parallel.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(parallel.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(parallel.dist, "all_reduce", lambda flat: flat.mul_(2))
    tensors = [torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last), torch.randn(3, 2).T, torch.ones(())]
    for mean, tensor in zip(parallel.average(tensors), tensors, strict=True):
        assert torch.equal(mean, tensor)
        assert mean.stride() == tensor.stride()
