"""What the programs make of a trained model's files: a run's checkpoint, or a model on its own, exported from one.

    python examples/app/runs.py runs/fashion_mnist examples/app/fashion_mnist    # export: two small files in a folder

The folder holds params.safetensors, the averaged parameters, and model.json, the run's configuration and the form of its
data. sample.py, evaluate.py, compress.py and the others take it as they take a run.
"""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import numpy as np
import optree
import programs
import tyro
from presets import PRESETS, Config, as_json, build, datasets, from_json, keys
from readers import DataError

from purevdm import VDM, bfn, interop, random
from purevdm.training import checkpoint
from purevdm.training.data import Dataset

PARAMS, MODEL = "params.safetensors", "model.json"


class Run(NamedTuple):
    """A trained model: its configuration, its data, and its averaged parameters."""

    config: Config
    train: Dataset
    test: Dataset
    model: VDM | bfn.BFN
    params: dict[str, Any]


def load(path: Path, device: str, *, dataless: bool = False, **changes: Any) -> Run:
    """Loads a trained model from its files.

    Args:
        path: a checkpoint; or the folder of a run, which stands for its best checkpoint, or its latest; or the folder of an
            exported model; or the params.safetensors that digits.py writes, of the digits preset from gamma -8, its seed 0
            unless changed.
        device: where to.
        dataless: whether an exported model does without its data where they are not there.
        changes: to the configuration's data or model, ``{"data.path": ...}``; None leaves an entry as it is.

    Raises:
        CheckpointError, DataError: what is missing or damaged.
    """
    if (path / "checkpoints").is_dir():
        folder = path / "checkpoints"
        path = checkpoint.best(folder) or checkpoint.latest(folder) or path
    form: dict[str, Any] = {}
    if path.suffix == ".safetensors":
        preset = PRESETS["digits"][1]
        file, entries = path, as_json(replace(preset, seed=0, model=replace(preset.model, gamma_min=-8.0)))
    elif (path / MODEL).is_file():
        notes = programs.saved(path / MODEL)
        file, entries, form = path / PARAMS, notes.get("config", {}), notes.get("data", {})
    else:
        file, entries = None, checkpoint.notes(path)["extra"]
    try:
        for name, value in changes.items():
            part, _, entry = name.partition(".")
            if value is not None:
                entries[part][entry] = value
        config = replace(from_json(entries), device=device)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = "expected a checkpoint of train.py, whose notes hold its configuration, got none"
        raise checkpoint.CheckpointError(f"{path}: {message} ({type(error).__name__}: {error})") from None
    try:
        train, test = datasets(config.data, keys(config.seed)["split"])
    except DataError as error:
        if not (dataless and form):
            raise
        train, test = (absent(path / MODEL, form, split, error) for split in ("train", "test"))
    try:
        model = build(config, train.event_shape, train.vocab_size, train.classes)
        like = model.init(random.key(0, device="meta"))  # in no memory, as its sizes are only what the file says
    except (TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{error}, in the settings of {path}") from None
    try:
        params = checkpoint.load_params(path, like) if file is None else interop.load_params(file, like)
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(str(error)) from None
    return Run(config, train, test, model, optree.tree_map(lambda leaf: leaf.to(device), params))


def absent(file: Path, form: dict[str, Any], split: str, error: DataError) -> Dataset:
    """Makes the form of data that are not there: no examples, and an error for whoever asks for some."""
    try:
        shape, vocab_size, classes = tuple(form["event_shape"]), form["vocab_size"], form["classes"]
        plain = all(type(n) is int and n > 0 for n in (*shape, 1 if vocab_size is None else vocab_size, classes + 1))
        if not (plain and isinstance(form["name"], str)):
            raise TypeError(f"event_shape {shape}, vocab_size {vocab_size}, classes {classes}")
    except (KeyError, TypeError) as wrong:
        raise DataError(f"{file}: expected the form of the model's data, got {type(wrong).__name__}: {wrong}") from None
    labels = np.zeros(0, np.int64) if classes else None
    return Dataset(f"{form['name']} {split}", 0, shape, vocab_size, partial(_none, str(error)), labels, classes)


def _none(message: str, index: np.ndarray) -> NoReturn:
    raise DataError(message)


def export(run: Run, out: Path, dtype: Literal["float32", "bfloat16"] | None = None) -> None:
    """Writes a model on its own into a folder; ``dtype`` is what its network computes in from now on."""
    programs.folder(out)
    config = run.config if dtype is None else replace(run.config, dtype=dtype)
    data = run.train
    form = {"name": data.name.removesuffix(" train"), "event_shape": data.event_shape}
    form |= {"vocab_size": data.vocab_size, "classes": data.classes}
    interop.save_params(out / PARAMS, run.params)
    programs.write(out / MODEL, json.dumps({"data": form, "config": as_json(config)}, indent=1) + "\n")


@dataclass
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or one of its checkpoints."""
    out: Annotated[Path, tyro.conf.Positional]
    """The folder to write."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What the network computes in from now on; as in training where left out."""
    path: str | None = None
    """Where the data are, if not where they were in training."""
    overwrite: bool = False
    """Whether to write over a model in the folder."""


@programs.program
def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    programs.other(args.out / PARAMS, args.run, args.run / PARAMS)
    run = load(args.run, "cpu", **{"data.path": args.path})
    programs.fresh(args.out, args.overwrite, PARAMS, MODEL)
    export(run, args.out, args.dtype)
    size = (args.out / PARAMS).stat().st_size
    print(f"{args.out}: {run.config.model.network} of {run.train.name.removesuffix(' train')}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
