"""Several processes compute what one computes with the whole batch, or data set, whole or sharded. Two that fail end the
rest."""

import os
import random as chance
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
import worker
from optree import tree_leaves

from purevdm import parallel, random, training
from purevdm.training import checkpoint

HERE = Path(__file__).parent
SLOW = pytest.mark.slow


PATHS = os.pathsep.join(map(str, (HERE / "training", HERE, HERE.parent)))
ENV = os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}


def line(processes, script, *arguments, where=("--standalone",)):
    launcher = [sys.executable, "-m", "torch.distributed.run", *where, "--nproc-per-node", str(processes)]
    return [*launcher, str(HERE / script), *map(str, arguments)]


def launched(*arguments):
    return subprocess.run(line(*arguments), env=ENV, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("processes", "shards"),
    [(2, 1), (4, 4), *(pytest.param(*n, marks=SLOW) for n in ((1, 1), (2, 2), (3, 3), (4, 1), (4, 2)))],
)
def test_processes_are_one(tmp_path, processes, shards):
    run = launched(processes, "worker.py", tmp_path, shards)
    assert run.returncode == 0, run.stderr
    leaves, share, group = torch.load(tmp_path / "out.pt", weights_only=False)
    assert group[:2] == (0, processes)
    assert share <= 1.05 / shards  # parameters, averages and moments; what does not divide is held by all
    folder = checkpoint.latest(tmp_path / "checkpoints")
    assert checkpoint.notes(folder)["extra"] == {"by": "a group"}
    assert len(list(folder.glob("*.safetensors"))) == processes
    start = training.init(worker.unet(), random.key(7))
    loaded = checkpoint.load(folder, start)  # one process, without a launcher
    assert all(a == b if isinstance(a, int) else torch.equal(a, b) for a, b in zip(tree_leaves(loaded), leaves, strict=True))
    if processes > 1:
        last = sorted(folder.glob("*.safetensors"))[-1]
        content = last.read_bytes()
        last.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(checkpoint.CheckpointError, match=f"{last.name}: damaged"):
            checkpoint.load(folder, start)
        last.unlink()
        with pytest.raises(checkpoint.CheckpointError, match=r"missing|of another model"):
            checkpoint.load(folder, start)
        with pytest.raises(checkpoint.CheckpointError, match="of another model"):
            checkpoint.load_params(folder, tiny.state().params)


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


def numbers(folder):
    return tree_leaves(checkpoint.load(checkpoint.latest(folder), tiny.state()))


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=SLOW)])
def test_a_process_killed_at_any_moment_loses_nothing_that_was_saved(kills, tmp_path):
    """Real kills, of either process. Resumed, the run ends as one that was never killed, to the bit."""
    steps, rng = 40 * (kills + 1), chance.Random(kills)
    undisturbed = launched(2, "killed.py", tmp_path / "whole", steps)
    assert undisturbed.returncode == 0, undisturbed.stderr
    done = 0
    while done < kills:
        command = line(2, "killed.py", tmp_path / "killed", steps)
        pids, saved, wanted = {}, -1, rng.randrange(1, 40)
        with subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
            for text in run.stdout:
                word, *found = text.split()
                if word == "process":
                    pids[int(found[0])] = int(found[1])
                saved, wanted = (int(found[0]), wanted - 1) if word == "saved" else (saved, wanted)
                if wanted == 0 and len(pids) == 2:
                    time.sleep(rng.uniform(0.0, 0.05))
                    os.kill(pids[rng.randrange(2)], signal.SIGKILL)
                    done, wanted = done + 1, -1
        assert run.returncode != 0, "it ended before it was killed"
        left = checkpoint.latest(tmp_path / "killed")
        assert int(left.name) >= saved
        assert checkpoint.load(left, tiny.state()).step == int(left.name)
    assert launched(2, "killed.py", tmp_path / "killed", steps).returncode == 0
    pairs = zip(numbers(tmp_path / "killed"), numbers(tmp_path / "whole"), strict=True)
    assert all(a == b if isinstance(a, int) else torch.equal(a, b) for a, b in pairs)
    assert not list((tmp_path / "killed").glob(".*"))


@pytest.mark.parametrize(
    ("fate", "named"), [("die", "exitcode +: 7|rank +: 1 "), ("hang", "did not answer: .*Ranks 1 failed")]
)
def test_a_process_that_fails_ends_the_others_and_is_named(fate, named, tmp_path):
    """The one that hangs would do so for a day: 15 s for the message and 8 s for the name end it."""
    run = launched(3, "killed.py", tmp_path, 5, fate)
    assert run.returncode != 0
    assert re.search(named, run.stderr), run.stderr


@pytest.fixture
def two_machines():
    """Two network namespaces, joined by a cable."""
    names = [f"purevdm{os.getpid()}{end}" for end in "ab"]
    if shutil.which("ip") is None or subprocess.run(["ip", "netns", "add", names[0]], capture_output=True).returncode:
        pytest.skip("network namespaces need root, and ip")
    subprocess.run(["ip", "netns", "add", names[1]], check=True)
    try:
        cable = ["ip", "link", "add", "wire", "netns", names[0], "type", "veth", "peer", "name", "wire", "netns", names[1]]
        subprocess.run(cable, check=True)
        for i, name in enumerate(names):
            for words in (f"addr add 10.9.8.{i + 1}/24 dev wire", "link set wire up", "link set lo up"):
                subprocess.run(["ip", "-n", name, *words.split()], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.slow
def test_two_machines(two_machines, tmp_path):
    runs = []
    for rank, name in enumerate(two_machines):
        where = ("--nnodes", "2", "--node-rank", str(rank), "--master-addr", "10.9.8.1", "--master-port", "29411")
        command = ["ip", "netns", "exec", name, *line(2, "worker.py", tmp_path, 2, where=where)]
        runs.append(subprocess.Popen(command, env=ENV | {"GLOO_SOCKET_IFNAME": "wire"}, stderr=subprocess.PIPE, text=True))
    errors = [run.communicate(timeout=300)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    assert torch.load(tmp_path / "out.pt", weights_only=False)[2][:2] == (0, 4)
