"""Several processes compute what one computes with the whole batch, or data set, whole or sharded. Two that fail end the
rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import worker
from optree import tree_leaves

from purevdm import parallel, random, training
from purevdm.training import checkpoint

HERE = Path(__file__).parent
SLOW = pytest.mark.slow


def launched(processes, script, *arguments):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    paths = os.pathsep.join(map(str, (HERE / "training", HERE, HERE.parent)))
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, str(script), *map(str, arguments)], env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("processes", "shards"),
    [(2, 1), (4, 4), *(pytest.param(*n, marks=SLOW) for n in ((1, 1), (2, 2), (3, 3), (4, 1), (4, 2)))],
)
def test_processes_are_one(tmp_path, processes, shards):
    run = launched(processes, HERE / "worker.py", tmp_path, shards)
    assert run.returncode == 0, run.stderr
    leaves, share, group = torch.load(tmp_path / "out.pt", weights_only=False)
    assert group[:2] == (0, processes)
    assert share <= 1.05 / shards  # parameters, averages and moments; what does not divide is held by all
    folder = checkpoint.latest(tmp_path / "checkpoints")
    assert checkpoint.notes(folder)["extra"] == {"by": "a group"}
    assert len(list(folder.glob("*.safetensors"))) == processes
    loaded = checkpoint.load(folder, training.init(worker.unet(), random.key(7)))  # one process, without a launcher
    assert all(a == b if isinstance(a, int) else torch.equal(a, b) for a, b in zip(tree_leaves(loaded), leaves, strict=True))


def test_alone_nothing_is_sent():
    group, tree = parallel.join("cpu"), {"w": torch.ones(2)}
    assert group == parallel.Group(0, 1, torch.device("cpu"))
    assert parallel.mesh(group) is None
    assert parallel.shard(tree, None) is tree
    assert parallel.whole(tree) is tree
    assert parallel.gather(tree)[0] is tree
    assert parallel.anywhere(True)
    assert not parallel.anywhere(False)
    assert parallel.counted(print) is print
    with parallel.answering(group):
        parallel.barrier()
    parallel.leave()
    with pytest.raises(ValueError, match="shards: expected a divisor of the group's 1 processes, got 2"):
        parallel.mesh(group, 2)
    with pytest.raises(ValueError, match="timeout: expected a number above 0"):
        parallel.join("cpu", timeout=0.0)
