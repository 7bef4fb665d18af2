"""The training program as a user starts it: killed and resumed bit for bit, stopped, refused, evaluated, sampled from."""

import json
import math
import shutil
import signal
import subprocess
import time

import msgpack
import numpy as np
import presets
import pytest
import torch
import train
from goldens import case, tree
from PIL import Image
from processes import ENV, call, command, here

from purevdm import evaluation, networks, random, training
from purevdm.training import checkpoint

TINY = """digits --model.network mlp --model.embed 16 --model.layers 1 --model.labels --model.predicts v --model.importance
 --optimizer.steps 40 --optimizer.warmup 5 --batch 16 --save-every 4 --eval-every 20 --log-every 1 --eval-passes 1
 --samples 4 --sample-steps 3 --no-compile --data.augment --model.flag --optimizer.ema-rate 0.9""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    run = call("train.py", *TINY, "--out", out)
    assert run.returncode == 0, run.stderr
    assert "parameters; step 0 of 40" in run.stdout
    return out


def final(out):
    return (out / "checkpoints" / "00000040" / "state.safetensors").read_bytes()


def log(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_run_leaves_what_it_promises(whole):
    assert json.loads((whole / "config.json").read_text())["model"]["network"] == "mlp"
    assert [path.name for path in sorted((whole / "checkpoints").iterdir())][-3:] == ["00000032", "00000036", "00000040"]
    lines = log(whole)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 41))
    (test,) = (line for line in lines if line["step"] == 40 and "test/nll" in line)
    parts = test["test/diffusion"] + test["test/prior"] + test["test/recon"]
    assert abs(test["test/nll"] - parts) < 1e-6
    assert list((whole / "tensorboard").iterdir())
    for name in ("samples_00000040.png", "gamma_00000020.png"):
        assert picture(whole / "pictures" / name).std() > 0


def test_killed_at_any_moment_and_resumed_it_is_the_same_to_the_bit(whole, tmp_path):
    """Real kills: each process dies without warning, some time after it started to train."""
    first = command("train.py", *TINY, "--out", tmp_path)
    kills = 0
    for attempt, wait in enumerate((0.0, 0.15, 0.4, 0.9)):
        saved = tmp_path / "checkpoints"
        before = max((path.name for path in saved.glob("[0-9]*")), default="") if saved.exists() else ""
        process = subprocess.Popen(
            first + ["--resume"] * (attempt > 0), env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        limit = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < limit:
            if saved.exists() and max((path.name for path in saved.glob("[0-9]*")), default="") > before:
                break
            time.sleep(0.01)
        time.sleep(wait)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 2
    run = call("train.py", *TINY, "--out", tmp_path, "--resume")
    assert run.returncode == 0, run.stderr
    assert final(tmp_path) == final(whole)
    assert log(tmp_path) == log(whole)


def test_an_interrupt_saves_and_ends(whole, tmp_path):
    long = [*TINY, "--optimizer.steps", "100000", "--save-every", "100000", "--eval-every", "100000", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command("train.py", *long), env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    limit = time.monotonic() + 120
    while time.monotonic() < limit and not ((tmp_path / "metrics.jsonl").exists() and log_started(tmp_path)):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "go on with --resume" in output
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert int(saved.name) == log(tmp_path)[-1]["step"]


def log_started(out):
    return bool((out / "metrics.jsonl").read_text())


def test_what_does_not_fit_is_refused(whole, tmp_path):
    for arguments, words in (
        ((*TINY, "--out", whole), "holds a run already"),
        ((*TINY, "--out", whole, "--resume", "--optimizer.lr", "1"), "is of other settings: optimizer"),
        ((*TINY, "--out", tmp_path / "a", "--accumulate", "3"), "batch: expected a multiple of 1 processes x accumulate 3"),
        (("cifar10", "--data.path", tmp_path / "none", "--device", "cpu", "--out", tmp_path / "b"), "no such file"),
    ):
        run = here("train.py", *arguments)
        assert run.returncode != 0
        assert words in run.stderr
    assert here("evaluate.py", tmp_path / "none").returncode != 0


def test_settings_that_cannot_be_read_or_differ_are_named(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    config = train.parse([*map(str, TINY), "--out", str(out), "--resume"])
    latest = checkpoint.latest(out / "checkpoints")
    assert train.prepare(config) == latest
    saved = out / "config.json"
    good = saved.read_bytes()
    for content in (b"", good[:50], b"\xff\xfe", b"[]", b"{}", b"[" * 100_000, None):
        saved.unlink() if content is None else saved.write_bytes(content)
        with pytest.raises(SystemExit, match=r"resume: .*config\.json"):
            train.prepare(config)
    saved.write_bytes(good)
    notes = checkpoint.notes(latest)
    notes["extra"]["batch"] += 1
    notes["notes_sha256"] = checkpoint._notes_digest(notes)
    (latest / "state.json").write_text(json.dumps(notes))
    with pytest.raises(SystemExit, match=f"resume: {latest} is of other settings: batch"):
        train.prepare(config)


def extended(out, steps, *more):
    """A run of so many steps, or what it became of one before."""
    few = ("--optimizer.steps", steps, "--eval-every", 100, "--samples", 0, "--keep", 9)
    return here("train.py", *TINY, *few, *more, "--out", out)


def test_a_run_at_a_constant_rate_is_extended_to_the_bit(tmp_path):
    constant = ("--optimizer.decay", "constant")
    for steps, more in ((8, ()), (12, ("--resume",))):
        run = extended(tmp_path / "twice", steps, *constant, *more)
        assert run.returncode == 0, run.stderr
    assert extended(tmp_path / "once", 12, *constant).returncode == 0
    a, b = ((tmp_path / name / "checkpoints" / "00000012" / "state.safetensors").read_bytes() for name in ("once", "twice"))
    assert a == b
    run = extended(tmp_path / "twice", 11, *constant, "--resume")
    assert "optimizer.steps: expected at least the 12 of" in run.stderr


def test_a_decaying_rate_is_extended_if_the_user_says_so(tmp_path):
    """Each further step has the rate of the new settings; what it was extended to is gone on with as any run."""
    assert extended(tmp_path, 8).returncode == 0
    run = extended(tmp_path, 16, "--resume")
    told = "config.json is of other settings: optimizer.steps: 8 then, 16 now; --extend goes on by the new learning rate"
    assert told in run.stderr
    assert "weight_decay" not in run.stderr
    assert "batch: 16 then, 8 now" in extended(tmp_path, 16, "--resume", "--extend", "--batch", 8).stderr
    assert extended(tmp_path, 16, "--resume", "--extend").returncode == 0
    optimizer = train.parse([*TINY, "--optimizer.steps", "16"]).optimizer
    rates = [line["lr"] for line in log(tmp_path) if "lr" in line]
    assert rates == [training.learning_rate(optimizer._replace(steps=8 if i < 8 else 16), i) for i in range(16)]
    last = tmp_path / "checkpoints" / "00000016"
    want = (last / "state.safetensors").read_bytes()
    shutil.rmtree(last)
    assert extended(tmp_path, 16, "--resume").returncode == 0
    assert (last / "state.safetensors").read_bytes() == want


def test_two_runs_do_not_share_a_folder(tmp_path):
    with train.alone(tmp_path), pytest.raises(SystemExit, match="another run is at work"), train.alone(tmp_path):
        pass
    with train.alone(tmp_path):  # free again
        pass


def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(tmp_path):
    run = here("train.py", *TINY, "--out", tmp_path, "--optimizer.lr", "1e30", "--optimizer.warmup", "9")
    assert run.returncode == 1, run.stderr
    assert "schedule: expected gamma" in run.stderr
    assert "checkpoint" in run.stderr
    assert "Traceback" not in run.stderr


def test_evaluation_and_samples(whole, tmp_path):
    run = here("evaluate.py", whole, "--passes", 2, "--timesteps", 20, "--examples", 50)
    assert run.returncode == 0, run.stderr
    assert "50 examples, 2 passes, 20 steps" in run.stdout
    values = {line.split()[0]: float(line.split()[1]) for line in run.stdout.splitlines()[1:]}
    assert abs(values["nll"] - values["recon"] - values["prior"] - values["diffusion"]) < 2e-4
    runs = [here("sample.py", whole, "--n", 5, "--steps", 3, "--label", 2, "--out", tmp_path / name) for name in "ab"]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    x, again = (np.load(tmp_path / name / "samples.npy") for name in "ab")
    assert (x == again).all()
    assert x.shape == (5, 1, 8, 8)
    assert x.dtype == np.uint8
    assert len(picture(tmp_path / "a" / "samples.png")) > 100
    assert "label: expected a class" in call("sample.py", whole, "--label", 12, "--out", tmp_path).stderr


def means(output):
    """The figures of the two models and of their difference."""
    return tuple(float(line.split(" +- ")[0].split()[-1]) for line in output.splitlines()[-3:])


def test_bounds_are_saved_compared_and_drawn(whole, tmp_path):
    """Two checkpoints of one run: each bound, the difference, where the loss comes from; two processes say the same."""
    early, late = (whole / "checkpoints" / name for name in ("00000032", "00000040"))
    options = ("--examples", 60, "--batch", 20)

    new = ("--save", tmp_path / "new" / "bounds.npz", "--profile", tmp_path / "late.png")
    alone = here("evaluate.py", late, *options, *new).stdout
    total = float(alone.splitlines()[-1].split()[1])
    saved = np.load(tmp_path / "new" / "bounds.npz")
    assert set(saved) == {"recon", "prior", "diffusion", "nll"}
    assert all(saved[name].shape == (60,) and saved[name].dtype == np.float64 for name in saved)
    assert (saved["recon"] + saved["prior"] + saved["diffusion"] == saved["nll"]).all()
    assert abs(saved["nll"].mean() / 64 / np.log(2) - total) < 1e-4
    assert picture(tmp_path / "late.png").std() > 0
    paired = here("evaluate.py", late, *options, "--compare", early).stdout
    a, b, difference = means(paired)
    assert abs(a - total) < 2e-4
    assert abs(a - b - difference) < 2e-4
    picked = ("--compare", early, "--profile", tmp_path / "both.png")
    run = call("evaluate.py", late, *options, *picked, processes=2)
    assert run.returncode == 0, run.stderr
    assert means(run.stdout) == pytest.approx((a, b, difference), abs=2e-4)
    assert picture(tmp_path / "both.png").std() > 0
    for arguments, words in (
        (("--compare", early, "--save", tmp_path / "x.npz"), "save: expected no compare"),
        (("--compare", tmp_path / "none"), "none"),
    ):
        run = here("evaluate.py", late, *arguments)
        assert run.returncode != 0
        assert words in run.stderr


def pack(branch):
    """Arrays as flax.serialization packs them: extension 1, of (shape, dtype, bytes)."""
    if isinstance(branch, dict):
        return {name: pack(value) for name, value in branch.items()}
    x = np.asarray(branch)
    return msgpack.ExtType(1, msgpack.packb((x.shape, x.dtype.name, x.tobytes()), use_bin_type=True))


def test_an_official_checkpoint_is_evaluated(tmp_path):
    """A .flax file of the official parameters, on images in an array: what the library says of both."""
    c = case("scalar_t0")
    official = pack(tree(c.arrays, "params"))
    state = {"step": 5, "params": official, "ema_params": official, "opt_state": {}}
    (tmp_path / "checkpoint.flax").write_bytes(msgpack.packb(state))
    x = random.randint(random.key(0), (6, *c.x.shape[1:]), 0, 256, torch.uint8).numpy()
    np.save(tmp_path / "x.npy", x)
    data = ("--data.source", "array", "--data.path", tmp_path / "x.npy", "--data.layout", "channels_first")
    run = here("evaluate.py", tmp_path / "checkpoint.flax", *data, "--data.held-out", 3)
    assert run.returncode == 0, run.stderr
    order = random.permutation(presets.keys(1)["split"], 6)
    batches = [(torch.tensor(x)[order[:3]], networks.Condition(vector=torch.zeros(3, 1)))]
    want = evaluation.evaluate(c.model, c.params, batches, presets.stream("evaluate", 0, "cpu"))
    assert float(run.stdout.splitlines()[-1].split()[1]) == pytest.approx(want.nll.mean, rel=1e-4)


def test_real_numbers_are_trained_on_bounded_and_drawn(tmp_path):
    """A table whose columns differ in scale by ten thousand, and whose entropy is known."""
    z = random.normal(random.key(0), (400, 2), torch.float64)
    x = torch.stack([1000 + 5 * z[:, 0], 5e-4 * (z[:, 0] + 0.5 * z[:, 1])], 1)
    np.save(tmp_path / "x.npy", x.numpy())
    tiny = f"""real --data.path {tmp_path}/x.npy --data.held-out 100 --model.embed 16 --optimizer.steps 40 --batch 64
     --eval-every 40 --samples 4 --sample-steps 3 --no-compile""".split()
    run = here("train.py", *tiny, "--out", tmp_path / "run")
    assert run.returncode == 0, run.stderr
    assert "nats (diffusion" in run.stderr + run.stdout
    drawn = np.load(tmp_path / "run" / "pictures" / "samples_00000040.npy")
    assert drawn.shape == (4, 2)
    assert (abs(drawn[:, 0] - 1000) < 500).all()  # near its mean, if not yet as near as its data
    assert not list((tmp_path / "run" / "pictures").glob("samples*.png"))
    run = here("evaluate.py", tmp_path / "run", "--passes", 4)
    assert run.returncode == 0, run.stderr
    total, unit = float(run.stdout.splitlines()[-1].split()[1]), run.stdout.split()[-1]
    entropy = math.log(2 * math.pi * math.e) + math.log(5 * 5e-4 * 0.5)
    assert unit == "nats"
    assert entropy - 1 < total < entropy + 15  # what forty steps have not learned, at most
    run = here("sample.py", tmp_path / "run", "--n", 3, "--steps", 3, "--out", tmp_path / "drawn")
    assert run.returncode == 0, run.stderr
    assert np.load(tmp_path / "drawn" / "samples.npy").dtype == np.float32
    assert "real data have no bounds" in here("sample.py", tmp_path / "run", "--clip", "--out", tmp_path).stderr
    x[7, 1] = math.nan
    np.save(tmp_path / "x.npy", x.numpy())
    assert "x.npy: expected finite numbers, found NaN" in here("train.py", *tiny, "--out", tmp_path / "nan").stderr


@pytest.mark.slow
def test_several_processes_train_as_one(whole, tmp_path):
    run = call("train.py", *TINY, "--out", tmp_path, processes=2)
    assert run.returncode == 0, run.stderr
    for a, b in zip(log(tmp_path), log(whole), strict=True):
        for name in a.keys() & {"loss", "test/nll"}:
            assert abs(a[name] - b[name]) < 1e-3 * abs(b[name])
