"""The programs' doors: what a user can mend is one line on stderr and an exit status, before any step is lost."""

import errno
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import presets
import programs
import pytest
import torch
import train
from processes import ENV, ROOT, here, printed, refused
from readers import DataError

from purevdm import codec, interop, random, training
from purevdm.training import checkpoint

CONFIG = presets.Config(
    model=presets.Model(network="mlp", embed=4, layers=1, fourier=(), flag=False),
    optimizer=training.AdamW(steps=3),
    batch=8,
    compile=False,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder as train.py leaves it, of a model that has learned nothing."""
    out = tmp_path_factory.mktemp("run")
    config = replace(CONFIG, out=out)
    model = presets.build(config, (1, 8, 8), 17, 10)
    state = training.init(model, random.key(0))._replace(step=2)
    checkpoint.save(out / "checkpoints", state, metric=5.0, extra=presets.as_json(config))
    interop.save_params(out / "params.safetensors", state.params)
    codec.write(out / "x.pvdm", model, state.params, [torch.zeros(2, 1, 8, 8, dtype=torch.uint8)], timesteps=1)
    return out


def gone(path):
    shutil.rmtree(path)


def cut(path):
    (path / "state.safetensors").write_bytes((path / "state.safetensors").read_bytes()[:100])


def of_a_library_s_own(path):
    state = training.init(presets.build(CONFIG, (1, 8, 8), 17), random.key(0))
    checkpoint.save(path.parent, state, metric=0.0, extra={})


def a_folder(path):
    (path / "state.safetensors").unlink()
    (path / "state.safetensors").mkdir()


@pytest.mark.parametrize("harm", [gone, cut, of_a_library_s_own, a_folder], ids=lambda f: f.__name__)
def test_a_damaged_run_is_named(run, tmp_path, harm):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    harm(out / "checkpoints" / "00000002")
    assert str(out) in refused("evaluate.py", out)


@pytest.mark.parametrize("program", ["evaluate.py", "sample.py", "outliers.py"])
def test_what_is_no_run_is_named(tmp_path, program):
    (tmp_path / "file").write_text("no run")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.safetensors").write_bytes(b"no run")
    for path in ("file", "folder", "bad.safetensors", "nowhere"):
        assert str(tmp_path / path) in refused(program, tmp_path / path)


TRAIN = "train digits --model.network mlp --model.embed 4 --no-compile"
REFUSED = {
    f"{TRAIN} --save-every 0": "save-every",
    f"{TRAIN} --samples -1": "samples",
    f"{TRAIN} --optimizer.lr nan": "lr",
    f"{TRAIN} --data.held-out 1797": "held_out",
    f"{TRAIN} --data.path x.npy": "data.path",
    f"{TRAIN} --data.channels 1": "data.channels",
    f"{TRAIN} --data.source array": "data.path",
    f"{TRAIN} --data.source array --data.path OUT --data.size 8": "data.size",
    f"{TRAIN} --model.embed 0": "hidden",
    f"{TRAIN} --device nonsense": "device",
    f"{TRAIN} --extend": "extend",
    f"{TRAIN} --out FILE/below": "out",
    "sample RUN --steps -3": "steps",
    "sample RUN --device meta": "device",
    "sample RUN --n 1 --steps 1 --guidance nan --out OUT": "guidance",
    "sample RUN --out FILE": "out",
    "sample RUN --out FULL": "out",
    "evaluate RUN --passes 0": "passes",
    "evaluate RUN --timesteps -1": "timesteps",
    "evaluate RUN --save FILE/x.npz": "save",
    "evaluate RUN --profile OUT": "profile",
    "outliers RUN --tolerance nan": "samples, batch",
    "outliers RUN --out FULL": "out",
    "runs RUN FULL": "out",
    "compress encode RUN OUT/x --sweep 3 0": "sweep",
    "compress encode RUN OUT": "file",
    "compress encode RUN OUT/x --labels LABELS --examples 2": "LABELS",
    "compress decode RUN RUN/x.pvdm OUT/x.npy --lanes 0": "lanes",
    "compress decode RUN RUN/x.pvdm FILE/x.npy": "out",
    "compress decode RUN FILE OUT/x.npy": "FILE",
    "compress info FILE": "FILE",
    "objectives --lr nan": "lr",
    "integrators RUN --out OUT": "out",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_done_is_refused_at_the_start(run, tmp_path, monkeypatch, line):
    """Sizes, settings, paths; what is there is not written over."""
    places = {name: tmp_path / name.lower() for name in ("FILE", "OUT", "FULL")}
    places |= {"RUN": run, "LABELS": tmp_path / "labels.npy"}
    monkeypatch.chdir(tmp_path)
    for name in ("OUT", "FULL"):
        places[name].mkdir()
    np.save(places["LABELS"], np.array([0.5, 1.0]))
    kept = [places["FILE"], *(places["FULL"] / name for name in ("samples.npy", "outliers.png", "model.json"))]
    for path in kept:
        path.write_bytes(b"of before")
    name, *arguments = line.split()
    for short, path in places.items():
        arguments = [argument.replace(short, str(path)) for argument in arguments]
    message = refused(f"{name}.py", *arguments)
    assert message.startswith(f"{places.get(REFUSED[line], REFUSED[line])}:") or REFUSED[line] == "samples, batch"
    if "FULL" in line:
        assert message.endswith(f"got {places['FULL']}; give another, or --overwrite")
    assert all(path.read_bytes() == b"of before" for path in kept)
    assert not list(tmp_path.rglob("config.json*"))


def test_samples_go_into_their_run_s_folder(run, tmp_path):
    """However it is named; and over those of before where the user says so."""
    out = tmp_path / "run"
    shutil.copytree(run, out)
    for path, more in ((out, []), (out / "checkpoints" / "00000002", ["--overwrite"])):
        printed("sample.py", path, "--n", 2, "--steps", 1, *more)
        assert np.load(out / "samples" / "samples.npy").shape == (2, 1, 8, 8)
    assert programs.beside(out / "params.safetensors", "samples") == out / "samples"
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["samples.npy", "samples.png"]


def test_samples_of_many_values_are_not_cut(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(60, dtype=np.uint16).reshape(20, 3) * 1000)
    data = presets.Data(source="array", path=str(tmp_path / "x.npy"), vocab_size=60_000, held_out=4)
    config = replace(CONFIG, out=tmp_path, data=data)
    state = training.init(presets.build(config, (3,), 60_000), random.key(0))
    checkpoint.save(tmp_path / "checkpoints", state, metric=5.0, extra=presets.as_json(config))
    printed("sample.py", tmp_path, "--n", 9, "--steps", 2)
    x = np.load(tmp_path / "samples" / "samples.npy")
    assert x.dtype == np.uint16
    assert x.max() > 256


def test_the_last_line_of_a_log_may_be_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert train.logged(path, 2) == []
    good = b'{"step": 1, "loss": 5.0}\n{"step": 2, "loss": 4.0}\n'
    for content, kept in ((good, 2), (good + b'{"step": 3, "lo', 2), (b"", 0), (good[:30], 1), (good + b'{"step": 9}\n', 2)):
        path.write_bytes(content)
        assert len(train.logged(path, 2)) == kept
    path.write_bytes(good.replace(b"}", b""))
    with pytest.raises(SystemExit, match=r"resume: expected the run's log in .*metrics\.jsonl, got"):
        train.logged(path, 2)


def test_pipes_are_no_files_of_a_run(tmp_path):
    for name, call in (
        ("model.json", programs.saved),
        ("metrics.jsonl", lambda path: train.logged(path, 2)),
        ("out.json", programs.file),
    ):
        os.mkfifo(tmp_path / name)
        with pytest.raises((DataError, SystemExit, ValueError), match=rf"{name}.*a pipe, a socket or a device"):
            call(tmp_path / name)


def test_a_link_is_replaced_and_its_target_left(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to("target")
    programs.write(tmp_path / "link", "new")
    assert [(tmp_path / name).read_text() for name in ("target", "link")] == ["mine", "new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


@pytest.mark.parametrize("part", ["train.Log.write", "purevdm._files.save"])
def test_a_full_disk_ends_training_with_a_line(monkeypatch, tmp_path, part):
    """At a write to the log, and at a checkpoint."""

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(part, full)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = "--optimizer.steps 2 --batch 8 --save-every 1 --log-every 1 --out".split()  # noqa: SIM905
        done = here("train.py", *TRAIN.split()[1:], *options, tmp_path)
    assert done.returncode == 1
    assert "No space left on device; there is no checkpoint yet" in done.stderr
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_faults_of_the_program_keep_their_traceback():
    @programs.program
    def broken(error):
        raise error

    for error in (
        KeyError("x"),
        ZeroDivisionError("by zero"),
        ValueError("no name"),
        RuntimeError("x: y"),
        AssertionError(),
    ):
        with pytest.raises(type(error)):
            broken(error)
    from_below = programs.program(lambda: int("text"))
    with pytest.raises(ValueError, match="invalid literal"):
        from_below()
    for error in (DataError("x: damaged"), MemoryError(), FileNotFoundError(2, "No such file", "x"), ImportError("needs y")):
        with pytest.raises(SystemExit) as ended:
            broken(error)
        assert "\n" not in ended.value.code
    assert programs.message(MemoryError()) == "MemoryError: "


PAGES = """
import resource
import programs
import torch

def pages():  # that the last of some equal tensors takes from the system
    for _ in range(4):
        torch.ones(2**24)  # 64 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(pages(), int(programs.keep_memory()), pages())
"""


def test_freed_memory_is_kept_for_the_next_tensor():
    """In a process of its own: these settings of malloc stay."""
    path = os.pathsep.join([ENV["PYTHONPATH"], str(ROOT / "examples" / "app")])
    env = {name: value for name, value in ENV.items() if not name.startswith(("MALLOC_", "GLIBC_"))} | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", PAGES], env=env, capture_output=True, text=True, check=True)
    given_back, works, kept = map(int, done.stdout.split())
    if not works:
        pytest.skip("this system's malloc has no such settings")
    assert kept < 0.1 * given_back
