"""The programs' doors: what a user can mend is one line on stderr and an exit status, before any step is lost."""

import errno
import importlib
import json
import os
import shutil
import warnings
from dataclasses import replace

import numpy as np
import presets
import programs
import pytest
import torch
import train
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
    (out / "config.json").write_text(json.dumps(presets.as_json(config)))
    (out / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "loss": 4.0}\n')
    state = training.init(model, random.key(0))._replace(step=2)
    checkpoint.save(out / "checkpoints", state, metric=5.0, extra=presets.as_json(config))
    interop.save_params(out / "params.safetensors", state.params)
    codec.write(out / "x.pvdm", model, state.params, [torch.zeros(2, 1, 8, 8, dtype=torch.uint8)], timesteps=1)
    return out


@pytest.fixture
def refused(monkeypatch, capsys):
    """The one line that a program ends with."""

    def refused(name, *arguments):
        monkeypatch.setattr("sys.argv", [f"{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(name).main()
        out, err = capsys.readouterr()
        assert ended.value.code not in (0, None)
        assert "Traceback" not in out + err
        if isinstance(ended.value.code, str):
            assert "\n" not in ended.value.code
            return ended.value.code
        return err.strip().splitlines()[-1]

    return refused


CHECKPOINTED = ("evaluate", "sample", "outliers")


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_what_is_no_run_is_named(refused, run, tmp_path, name):
    def harmed(harm):
        out = tmp_path / harm.__name__
        shutil.copytree(run, out)
        harm(out / "checkpoints" / "00000002")
        return out

    def gone(path):
        shutil.rmtree(path)

    def cut(path):
        (path / "state.safetensors").write_bytes((path / "state.safetensors").read_bytes()[:100])

    def no_utf8(path):
        (path / "state.json").write_bytes(b"\xff\xfe")

    def empty(path):
        (path / "state.json").write_bytes(b"")

    def without(path):
        (path / "state.json").unlink()

    def of_a_library_s_own(path):
        checkpoint.save(
            path.parent, training.init(presets.build(CONFIG, (1, 8, 8), 17), random.key(0)), metric=0.0, extra={}
        )

    def a_folder(path):
        (path / "state.safetensors").unlink()
        (path / "state.safetensors").mkdir()

    for harm in (gone, cut, no_utf8, empty, without, of_a_library_s_own, a_folder):
        out = harmed(harm)
        assert str(out) in refused(name, out)
    (tmp_path / "file").write_text("no run")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.safetensors").write_bytes(b"no run")
    (tmp_path / "bad.flax").write_bytes(b"no run")
    for path in ("file", "folder", "bad.safetensors", "nowhere", *(["bad.flax"] if name == "evaluate" else [])):
        assert str(tmp_path / path) in refused(name, tmp_path / path)


TRAIN = ("digits", "--model.network", "mlp", "--model.embed", "4", "--no-compile")
SIZES = [
    *(
        ("train", (*TRAIN, f"--{size}", "0"), size)
        for size in "batch accumulate keep log-every eval-every save-every eval-batch eval-passes eval-examples".split()  # noqa: SIM905
    ),
    ("train", (*TRAIN, "--sample-steps", "0"), "sample-steps"),
    ("train", (*TRAIN, "--samples", "-1"), "samples"),
    ("train", (*TRAIN, "--optimizer.steps", "0"), "steps"),
    ("train", (*TRAIN, "--optimizer.lr", "nan"), "lr"),
    ("train", (*TRAIN, "--data.held-out", "0"), "held_out"),
    ("train", (*TRAIN, "--data.held-out", "1797"), "held_out"),
    ("train", (*TRAIN, "--data.path", "x.npy"), "data.path"),
    ("train", (*TRAIN, "--data.channels", "1"), "data.channels"),
    ("train", (*TRAIN, "--data.source", "array"), "data.path"),
    ("train", (*TRAIN, "--data.source", "array", "--data.path", "OUT", "--data.size", "8"), "data.size"),
    ("train", (*TRAIN, "--model.embed", "0"), "hidden"),
    ("train", (*TRAIN, "--device", "nonsense"), "device"),
    ("train", (*TRAIN, "--device", "meta"), "device"),
    ("train", (*TRAIN, "--extend"), "extend"),
    ("sample", ("RUN", "--n", "0"), "n"),
    ("sample", ("RUN", "--steps", "-3"), "steps"),
    ("sample", ("RUN", "--device", "meta"), "device"),
    ("sample", ("RUN", "--n", "1", "--steps", "1", "--guidance", "nan"), "guidance"),
    ("evaluate", ("RUN", "--passes", "0"), "passes"),
    ("evaluate", ("RUN", "--batch", "0"), "batch"),
    ("evaluate", ("RUN", "--examples", "0"), "examples"),
    ("evaluate", ("RUN", "--timesteps", "-1"), "timesteps"),
    ("outliers", ("RUN", "--images", "1"), "samples, batch"),
    ("outliers", ("RUN", "--tolerance", "nan"), "samples, batch"),
    ("compress", ("encode", "RUN", "OUT/x", "--timesteps", "0"), "timesteps"),
    ("compress", ("encode", "RUN", "OUT/x", "--sweep", "3", "0"), "sweep"),
    ("compress", ("encode", "RUN", "OUT/x", "--examples", "0"), "examples"),
    ("compress", ("decode", "RUN", "RUN/x.pvdm", "OUT/x.npy", "--lanes", "0"), "lanes"),
    ("objectives", ("--lr", "nan"), "lr"),
]


@pytest.mark.parametrize(("name", "arguments", "word"), SIZES, ids=lambda part: part if isinstance(part, str) else " ")
def test_sizes_and_settings_are_refused_at_the_start(refused, run, tmp_path, monkeypatch, name, arguments, word):
    monkeypatch.chdir(tmp_path)
    arguments = [a.replace("RUN", str(run)).replace("OUT", str(tmp_path)) for a in arguments]
    assert refused(name, *arguments).startswith(f"{word}:" if "," not in word else word)
    assert not list(tmp_path.rglob("*.json*"))


PLACES = [
    ("train", (*TRAIN, "--out", "FILE"), "out"),
    ("train", (*TRAIN, "--out", "FILE/below"), "out"),
    ("sample", ("RUN", "--out", "FILE"), "out"),
    ("outliers", ("RUN", "--out", "FILE/below"), "out"),
    ("evaluate", ("RUN", "--save", "FILE/x.npz"), "save"),
    ("evaluate", ("RUN", "--profile", "FOLDER"), "profile"),
    ("compress", ("encode", "RUN", "FOLDER"), "file"),
    ("compress", ("decode", "RUN", "RUN/x.pvdm", "FOLDER"), "out"),
    ("compress", ("decode", "RUN", "RUN/x.pvdm", "FILE/x.npy"), "out"),
    ("solvers", ("--out", "FOLDER"), "out"),
    ("integrators", ("RUN", "--out", "FOLDER"), "out"),
    ("benchmark", ("--out", "FILE/x"), "out"),
    ("objectives", ("--out", "FILE"), "out"),
]


@pytest.mark.parametrize(("name", "arguments", "word"), PLACES, ids=lambda part: part if isinstance(part, str) else " ")
def test_what_cannot_be_written_is_refused_at_the_start(refused, run, tmp_path, name, arguments, word):
    (tmp_path / "a file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    replaced = {"RUN": run, "FILE": tmp_path / "a file", "FOLDER": tmp_path / "folder"}
    for short, path in replaced.items():
        arguments = [a.replace(short, str(path)) for a in arguments]
    told = refused(name, *arguments)
    assert told.startswith(f"{word}: expected a f")
    assert str(tmp_path) in told
    assert (tmp_path / "a file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("name", "arguments", "file"),
    [
        ("sample", ("RUN",), "samples.npy"),
        ("sample", ("RUN",), "samples.png"),
        ("outliers", ("RUN",), "outliers.png"),
        ("runs", ("RUN",), "params.safetensors"),
        ("runs", ("RUN",), "model.json"),
    ],
)
def test_what_is_there_is_not_written_over(refused, run, tmp_path, name, arguments, file):
    (tmp_path / file).write_bytes(b"of before")
    out = (tmp_path,) if name == "runs" else ("--out", tmp_path)
    told = refused(name, *(run if a == "RUN" else a for a in arguments), *out)
    assert told == f"out: expected a folder without {file}, got {tmp_path}; give another, or --overwrite"
    assert (tmp_path / file).read_bytes() == b"of before"


def test_samples_go_into_their_run_s_folder(run, tmp_path, capsys, monkeypatch):
    """However it is named; and over those of before where the user says so."""
    out = tmp_path / "run"
    shutil.copytree(run, out)
    for path, more in ((out, []), (out / "checkpoints" / "00000002", ["--overwrite"])):
        monkeypatch.setattr("sys.argv", ["sample.py", str(path), "--n", "2", "--steps", "1", *more])
        importlib.import_module("sample").main()
        assert np.load(out / "samples" / "samples.npy").shape == (2, 1, 8, 8)
    assert programs.beside(out / "params.safetensors", "samples") == out / "samples"
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["samples.npy", "samples.png"]


def test_samples_of_many_values_are_not_cut(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "x.npy", np.arange(60, dtype=np.uint16).reshape(20, 3) * 1000)
    out = tmp_path / "run"
    data = presets.Data(source="array", path=str(tmp_path / "x.npy"), vocab_size=60_000, held_out=4)
    config = replace(CONFIG, out=out, data=data)
    state = training.init(presets.build(config, (3,), 60_000), random.key(0))
    checkpoint.save(out / "checkpoints", state, metric=5.0, extra=presets.as_json(config))
    monkeypatch.setattr("sys.argv", ["sample.py", str(out), "--n", "9", "--steps", "2"])
    importlib.import_module("sample").main()
    x = np.load(out / "samples" / "samples.npy")
    assert x.dtype == np.uint16
    assert x.max() > 256


def test_a_damaged_log_is_named_before_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "loss": 5.0}\n{"step": 2, "loss": 4.0}\n'
    for content, kept in ((good, 2), (good + b'{"step": 3, "lo', 2), (b"", 0), (good[:30], 1), (good + b'{"step": 9}\n', 2)):
        path.write_bytes(content)
        assert len(train.logged(path, 2)) == kept
    path.unlink()
    assert train.logged(path, 2) == []
    for content in (
        b"\xff\xfe\n",
        good.replace(b"}", b""),
        b"[]\n",
        b"7\n",
        b"[" * 100_000 + b"\n",
        b'{"step": "1"}\n',
        b"{}\n",
    ):
        path.write_bytes(content)
        with pytest.raises(SystemExit, match=r"resume: expected the run's log in .*metrics\.jsonl, got"):
            train.logged(path, 2)


def test_a_damaged_archive_or_label_file_is_named(refused, run, tmp_path):
    for content in (b"no file of ours", b"", (run / "x.pvdm").read_bytes()[:50]):
        (tmp_path / "x").write_bytes(content)
        for arguments in (("info", tmp_path / "x"), ("decode", run, tmp_path / "x", tmp_path / "out.npy")):
            assert str(tmp_path / "x") in refused("compress", *arguments)
    np.save(tmp_path / "labels.npy", np.array([0.5, 1.0]))
    told = refused("compress", "encode", run, tmp_path / "y", "--labels", tmp_path / "labels.npy", "--examples", 2)
    assert "labels.npy: expected the classes of examples, integers, found float64" in told


def test_pipes_are_no_files_of_a_run(tmp_path):
    for name, call in (
        ("model.json", programs.saved),
        ("config.json", train.as_saved),
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


def full(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_ends_training_with_a_line(monkeypatch, capsys, tmp_path):
    """At a write to the log, and at a checkpoint."""
    for i, part in enumerate(("json.dumps", "purevdm._files.save")):
        out = tmp_path / str(i)
        arguments = [
            *TRAIN,
            "--optimizer.steps",
            "2",
            "--batch",
            "8",
            "--save-every",
            "1",
            "--log-every",
            "1",
            "--out",
            str(out),
        ]
        monkeypatch.setattr("sys.argv", ["train.py", *arguments])
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if part == "json.dumps":
                patch.setattr(train.Log, "write", full)
            else:
                patch.setattr(part, full)
            assert train.main() == 1
        error = capsys.readouterr().err
        assert "No space left on device; there is no checkpoint yet" in error
        assert not list((out / "checkpoints").glob("*"))


def test_faults_of_the_program_keep_their_traceback():
    @programs.program
    def broken(error):
        raise error

    for error in (
        KeyError("x"),
        ZeroDivisionError("division by zero"),
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
        assert ended.value.code.count("\n") == 0
    assert programs.told(MemoryError()) == "MemoryError: "
