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
from processes import ENV, call, command, here, printed, refused

from purevdm import evaluation, networks, random, training
from purevdm.training import checkpoint

TINY = """digits --model.network mlp --model.embed 16 --model.layers 1 --model.labels --model.predicts v --model.importance
 --optimizer.steps 40 --optimizer.warmup 5 --batch 16 --save-every 4 --eval-every 20 --log-every 1 --eval-passes 1
 --samples 4 --sample-steps 3 --no-compile --data.augment --model.flag --optimizer.ema-rate 0.9""".split()  # noqa: SIM905


def trained(*arguments):
    """What a run in this process printed, on one thread as those in processes of their own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return printed("train.py", *TINY, *arguments)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    assert "parameters; step 0 of 40" in trained("--out", out)
    return out


def state(out, step=40):
    return (out / "checkpoints" / f"{step:08d}" / "state.safetensors").read_bytes()


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
    assert abs(test["test/nll"] - test["test/diffusion"] - test["test/prior"] - test["test/recon"]) < 1e-6
    assert list((whole / "tensorboard").iterdir())
    for name in ("samples_00000040.png", "gamma_00000020.png"):
        assert picture(whole / "pictures" / name).std() > 0


def waited(process, ready):
    """Waits until something is there, or the process has ended."""
    limit = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < limit and not ready():
        time.sleep(0.01)


def test_killed_at_any_moment_and_resumed_it_is_the_same_to_the_bit(whole, tmp_path):
    """Real kills: each process dies without warning, some time after it started to train."""
    first, saved, kills = command("train.py", *TINY, "--out", tmp_path), tmp_path / "checkpoints", 0

    def latest():
        return max((path.name for path in saved.glob("[0-9]*")), default="")

    for attempt, wait in enumerate((0.0, 0.15, 0.4)):
        before = latest()
        line = first + ["--resume"] * (attempt > 0)
        process = subprocess.Popen(line, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        waited(process, lambda before=before: latest() > before)
        time.sleep(wait)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 2
    trained("--out", tmp_path, "--resume")
    assert state(tmp_path) == state(whole)
    assert log(tmp_path) == log(whole)


def test_an_interrupt_saves_and_ends(tmp_path):
    long = ("--optimizer.steps", 100_000, "--save-every", 100_000, "--eval-every", 100_000, "--out", tmp_path)
    line = command("train.py", *TINY, *long)
    process = subprocess.Popen(line, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    waited(process, lambda: (tmp_path / "metrics.jsonl").exists() and log(tmp_path))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "go on with --resume" in output
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert int(saved.name) == log(tmp_path)[-1]["step"]


def test_what_does_not_fit_is_refused(whole, tmp_path):
    for arguments, words in (
        ((*TINY, "--out", whole), "holds a run already"),
        ((*TINY, "--out", whole, "--resume", "--optimizer.lr", "1"), "is of other settings: optimizer"),
        ((*TINY, "--out", tmp_path / "a", "--accumulate", "3"), "batch: expected a multiple of 1 processes x accumulate 3"),
        (("cifar10", "--data.path", tmp_path / "none", "--device", "cpu", "--out", tmp_path / "b"), "no such file"),
    ):
        assert words in refused("train.py", *arguments)


def test_settings_that_are_gone_or_differ_are_named(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    config = train.parse([*TINY, "--out", str(out), "--resume"])
    latest = checkpoint.latest(out / "checkpoints")
    assert train.prepare(config) == latest
    notes = checkpoint.notes(latest)
    notes["extra"]["batch"] += 1
    notes["notes_sha256"] = checkpoint._notes_digest(notes)
    (latest / "state.json").write_text(json.dumps(notes))
    with pytest.raises(SystemExit, match=f"resume: {latest} is of other settings: batch"):
        train.prepare(config)
    (out / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json: expected what an earlier call wrote"):
        train.prepare(config)


def extended(out, steps, *more):
    """A run of so many steps, or what it became of one before."""
    few = ("--optimizer.steps", steps, "--eval-every", 100, "--samples", 0, "--keep", 9)
    return here("train.py", *TINY, *few, *more, "--out", out)


def test_a_run_at_a_constant_rate_is_extended_to_the_bit(tmp_path):
    constant = ("--optimizer.decay", "constant")
    for name, steps, more in (("twice", 8, ()), ("twice", 12, ("--resume",)), ("once", 12, ())):
        assert extended(tmp_path / name, steps, *constant, *more).returncode == 0
    assert state(tmp_path / "once", 12) == state(tmp_path / "twice", 12)
    run = extended(tmp_path / "twice", 11, *constant, "--resume")
    assert "optimizer.steps: expected at least the 12 of" in run.stderr


def test_a_decaying_rate_is_extended_if_the_user_says_so(tmp_path):
    """Each further step has the rate of the new settings; what it was extended to is gone on with as any run."""
    assert extended(tmp_path, 8).returncode == 0
    message = extended(tmp_path, 16, "--resume").stderr
    assert "is of other settings: optimizer.steps: 8 then, 16 now; --extend goes on by the new learning rate" in message
    assert "batch: 16 then, 8 now" in extended(tmp_path, 16, "--resume", "--extend", "--batch", 8).stderr
    assert extended(tmp_path, 16, "--resume", "--extend").returncode == 0
    optimizer = train.parse([*TINY, "--optimizer.steps", "16"]).optimizer
    rates = [line["lr"] for line in log(tmp_path) if "lr" in line]
    assert rates == [training.learning_rate(optimizer._replace(steps=8 if i < 8 else 16), i) for i in range(16)]
    want = state(tmp_path, 16)
    shutil.rmtree(tmp_path / "checkpoints" / "00000016")
    assert extended(tmp_path, 16, "--resume").returncode == 0
    assert state(tmp_path, 16) == want


def test_two_runs_do_not_share_a_folder(tmp_path):
    with train.alone(tmp_path), pytest.raises(SystemExit, match="another run is at work"), train.alone(tmp_path):
        pass
    with train.alone(tmp_path):  # free again
        pass


@pytest.mark.parametrize(
    ("schedule", "words"), [("fixed_linear", "not finite (loss"), ("learned_linear", "-40 at least to 40 at most")]
)
def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(tmp_path, schedule, words):
    run = here("train.py", *TINY, "--out", tmp_path, "--optimizer.lr", "1e30", "--model.schedule", schedule)
    assert run.returncode == 1, run.stderr
    assert words in run.stderr
    assert "checkpoint is" in run.stderr or "no checkpoint yet" in run.stderr
    assert "Traceback" not in run.stderr


def test_evaluation_and_samples(whole, tmp_path):
    output = printed("evaluate.py", whole, "--passes", 2, "--timesteps", 20, "--examples", 50)
    assert "50 examples, 2 passes, 20 steps" in output
    values = {line.split()[0]: float(line.split()[1]) for line in output.splitlines()[1:]}
    assert abs(values["nll"] - values["recon"] - values["prior"] - values["diffusion"]) < 2e-4
    for name in "ab":
        printed("sample.py", whole, "--n", 5, "--steps", 3, "--label", 2, "--out", tmp_path / name)
    x, again = (np.load(tmp_path / name / "samples.npy") for name in "ab")
    assert (x == again).all()
    assert (x.shape, x.dtype) == ((5, 1, 8, 8), np.uint8)
    assert len(picture(tmp_path / "a" / "samples.png")) > 100
    assert "label: expected a class" in refused("sample.py", whole, "--label", 12, "--out", tmp_path)


def means(output):
    """The figures of the two models and of their difference."""
    return tuple(float(line.split(" +- ")[0].split()[-1]) for line in output.splitlines()[-3:])


def test_bounds_are_saved_compared_and_drawn(whole, tmp_path):
    """Two checkpoints of one run: each bound, the difference, where the loss comes from; two processes say the same."""
    early, late = (whole / "checkpoints" / name for name in ("00000032", "00000040"))
    options, file = ("--examples", 60, "--batch", 20), tmp_path / "new" / "bounds.npz"
    total = float(printed("evaluate.py", late, *options, "--save", file).splitlines()[-1].split()[1])
    saved = np.load(file)
    assert set(saved) == {"recon", "prior", "diffusion", "nll"}
    assert all(saved[name].shape == (60,) and saved[name].dtype == np.float64 for name in saved)
    assert (saved["recon"] + saved["prior"] + saved["diffusion"] == saved["nll"]).all()
    assert abs(saved["nll"].mean() / 64 / np.log(2) - total) < 1e-4
    a, b, difference = means(printed("evaluate.py", late, *options, "--compare", early))
    assert abs(a - total) < 2e-4
    assert abs(a - b - difference) < 2e-4
    picked = ("--compare", early, "--profile", tmp_path / "both.png")
    output = call("evaluate.py", late, *options, *picked, processes=2)
    assert means(output) == pytest.approx((a, b, difference), abs=2e-4)
    assert picture(tmp_path / "both.png").std() > 0


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
    saved = {"step": 5, "params": official, "ema_params": official, "opt_state": {}}
    (tmp_path / "checkpoint.flax").write_bytes(msgpack.packb(saved))
    x = random.randint(random.key(0), (6, *c.x.shape[1:]), 0, 256, torch.uint8).numpy()
    np.save(tmp_path / "x.npy", x)
    data = ("--data.source", "array", "--data.path", tmp_path / "x.npy", "--data.layout", "channels_first")
    output = printed("evaluate.py", tmp_path / "checkpoint.flax", *data, "--data.held-out", 3)
    order = random.permutation(presets.keys(1)["split"], 6)
    batches = [(torch.tensor(x)[order[:3]], networks.Condition(vector=torch.zeros(3, 1)))]
    want = evaluation.evaluate(c.model, c.params, batches, presets.stream("evaluate", 0, "cpu"))
    assert float(output.splitlines()[-1].split()[1]) == pytest.approx(want.nll.mean, rel=1e-4)


def test_real_numbers_are_trained_on_bounded_and_drawn(tmp_path):
    """A table whose columns differ in scale by ten thousand, and whose entropy is known."""
    z = random.normal(random.key(0), (400, 2), torch.float64)
    x = torch.stack([1000 + 5 * z[:, 0], 5e-4 * (z[:, 0] + 0.5 * z[:, 1])], 1)
    np.save(tmp_path / "x.npy", x.numpy())
    tiny = f"""real --data.path {tmp_path}/x.npy --data.held-out 100 --model.embed 16 --optimizer.steps 40 --batch 64
     --eval-every 40 --samples 4 --sample-steps 3 --no-compile""".split()
    printed("train.py", *tiny, "--out", tmp_path / "run")
    drawn = np.load(tmp_path / "run" / "pictures" / "samples_00000040.npy")
    assert drawn.shape == (4, 2)
    assert (abs(drawn[:, 0] - 1000) < 500).all()  # near its mean, if not yet as near as its data
    assert not list((tmp_path / "run" / "pictures").glob("samples*.png"))
    output = printed("evaluate.py", tmp_path / "run", "--passes", 4)
    total, unit = float(output.splitlines()[-1].split()[1]), output.split()[-1]
    entropy = math.log(2 * math.pi * math.e) + math.log(5 * 5e-4 * 0.5)
    assert unit == "nats"
    assert entropy - 1 < total < entropy + 15  # what forty steps have not learned, at most
    printed("sample.py", tmp_path / "run", "--n", 3, "--steps", 3, "--out", tmp_path / "drawn")
    assert np.load(tmp_path / "drawn" / "samples.npy").dtype == np.float32
    assert "real data have no bounds" in refused("sample.py", tmp_path / "run", "--clip", "--out", tmp_path)


def test_bayesian_flows_are_trained_bounded_and_drawn(tmp_path):
    out = tmp_path / "run"
    small = "--model.network mlp --model.embed 8 --model.fourier --no-compile --eval-passes 1 --samples 4 --sample-steps 2"
    steps = "--optimizer.steps 2 --eval-every 2 --save-every 2"
    printed("train.py", "digits_bfn", "--out", out, *small.split(), *steps.split())
    assert "prior      0.0000 +- 0.0000 bits/dim" in printed("evaluate.py", out, "--examples", 16)
    printed("sample.py", out, "--n", 4, "--steps", 3, "--solver", "ode_2", "--grid", "root", "--out", tmp_path)
    assert (tmp_path / "samples.png").exists()
    assert "solver: expected one of bayesian" in refused("sample.py", out, "--solver", "ddim")
    assert "profile: expected a diffusion model" in refused("evaluate.py", out, "--profile", tmp_path / "p.png")


@pytest.mark.slow
def test_several_processes_train_as_one(whole, tmp_path):
    call("train.py", *TINY, "--out", tmp_path, processes=2)
    for a, b in zip(log(tmp_path), log(whole), strict=True):
        for name in a.keys() & {"loss", "test/nll"}:
            assert abs(a[name] - b[name]) < 1e-3 * abs(b[name])
