"""Programs under torchrun make the files that one process makes."""

import numpy as np
import pytest
from processes import call, printed, refused

TINY = """digits --model.network mlp --model.embed 16 --model.layers 1 --optimizer.steps 8 --optimizer.warmup 1 --batch 16
 --optimizer.decay constant --save-every 4 --eval-every 8 --log-every 1 --eval-passes 1 --samples 0 --no-compile""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four steps by two processes, a half of the state in each, and four more by one."""
    out = tmp_path_factory.mktemp("together")
    call("train.py", *TINY, "--out", out, "--shards", 2, "--optimizer.steps", 4, processes=2)
    assert len(list((out / "checkpoints" / "00000004").glob("*.safetensors"))) == 2
    printed("train.py", *TINY, "--out", out, "--resume")
    return out


def losses(out):
    return [line for line in (out / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


def test_a_run_goes_on_with_another_number_of_processes(run, tmp_path):
    printed("train.py", *TINY, "--out", tmp_path / "alone")
    together, alone = (
        [float(line.split('"loss": ')[1].split(",")[0]) for line in losses(out)] for out in (run, tmp_path / "alone")
    )
    assert together == pytest.approx(alone, rel=1e-4)
    assert len(together) == 8
    message = refused("train.py", *TINY, "--out", tmp_path / "new", "--shards", 2)
    assert message == "shards: expected a divisor of the group's 1 processes, got 2"


def test_samples_are_those_of_one_process(run, tmp_path):
    drawn = ("sample.py", run, "--n", 10, "--batch", 3, "--steps", 2)
    printed(*drawn, "--out", tmp_path / "alone")
    assert "10 samples in" in call(*drawn, "--out", tmp_path / "together", processes=2)
    alone, together = (np.load(tmp_path / name / "samples.npy") for name in ("alone", "together"))
    assert np.array_equal(alone, together)


def test_files_are_those_of_one_process(run, tmp_path):
    few = ("--examples", 20, "--block", 4, "--timesteps", 3, "--passes", 1, "--no-peers")
    alone = printed("compress.py", "encode", run, tmp_path / "alone.pvdm", *few)
    together = call("compress.py", "encode", run, tmp_path / "together.pvdm", *few, processes=2)
    assert (tmp_path / "alone.pvdm").read_bytes() == (tmp_path / "together.pvdm").read_bytes()
    assert together.splitlines()[2].split()[:8] == alone.splitlines()[2].split()[:8]  # T, bound, net, their difference
    decoded = call("compress.py", "decode", run, tmp_path / "alone.pvdm", tmp_path / "together.npy", processes=2)
    assert decoded.startswith("20 examples")
    printed("compress.py", "decode", run, tmp_path / "alone.pvdm", tmp_path / "alone.npy")
    assert np.array_equal(np.load(tmp_path / "alone.npy"), np.load(tmp_path / "together.npy"))
