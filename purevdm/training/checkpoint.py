"""Checkpoints: tensors in safetensors, the rest in JSON, written whole or not at all.

A checkpoint is a folder named by its step, ``00001000/``, with ``state.safetensors`` (leaves by path, joined by dots) and
``state.json`` (the step, a metric, the caller's notes, and the tensors' SHA-256). It is written under another name and
then renamed, so that whoever stops the process, and when, what is there is whole. Needs safetensors (extra ``train``).
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import optree
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from purevdm import _checks
from purevdm.training.optimizer import Moments
from purevdm.training.state import TrainState

__all__ = ["CheckpointError", "best", "latest", "load", "load_params", "notes", "save"]

FORMAT = 1
TENSORS, NOTES = "state.safetensors", "state.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model; the message names the file and what is wrong."""


def _flat(state: TrainState) -> dict[str, Tensor]:
    return _named({"params": state.params, "ema_params": state.ema_params, "mu": state.moments.mu, "nu": state.moments.nu})


def _named(trees: Any) -> dict[str, Tensor]:
    """The leaves by their paths, joined by dots."""
    paths, leaves, _ = optree.tree_flatten_with_path(trees)
    return {".".join(map(str, path)): leaf for path, leaf in zip(paths, leaves, strict=True)}


def save(
    folder: str | os.PathLike, state: TrainState, *, metric: float | None = None, extra: Any = None, keep: int = 3
) -> Path:
    """Writes a checkpoint into a folder of them, and removes old ones.

    Args:
        folder: made if it is not there.
        state: the state.
        metric: what the best is judged by, the less the better.
        extra: anything that JSON holds.
        keep: how many of the latest stay; the best stays besides.

    Returns:
        The checkpoint's folder.
    """
    folder, keep = Path(folder), _checks.integer("keep", keep, 1)
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{state.step:08d}"
    draft = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    save_file({name: leaf.detach().contiguous() for name, leaf in _flat(state).items()}, draft / TENSORS)
    described = {
        "format": FORMAT,
        "step": state.step,
        "metric": metric,
        "sha256": _digest(draft / TENSORS),
        "extra": extra,
    }
    (draft / NOTES).write_text(json.dumps(described, indent=1))
    for path in (draft / TENSORS, draft / NOTES, draft):
        _sync(path)
    if final.exists():
        shutil.rmtree(final)
    draft.rename(final)
    _sync(folder)
    _prune(folder, keep)
    return final


def _sync(path: Path) -> None:
    """Waits until the disk has it, so that the rename does not come first."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _all(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir() and path.name.isdigit())


def _prune(folder: Path, keep: int) -> None:
    stay = {*_all(folder)[-keep:], best(folder)}
    for path in _all(folder):
        if path not in stay:
            # First out of sight, then away: a half-removed checkpoint must not look like one.
            gone = folder / f".{path.name}.gone"
            path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
    for leftover in folder.glob(".[0-9]*"):
        shutil.rmtree(leftover, ignore_errors=True)


def latest(folder: str | os.PathLike) -> Path | None:
    """The newest checkpoint of a folder, or None where there is none."""
    found = _all(Path(folder))
    return found[-1] if found else None


def best(folder: str | os.PathLike) -> Path | None:
    """The checkpoint with the least metric, the latest of equals, or None where none has one."""
    judged = [(notes(path)["metric"], -i, path) for i, path in enumerate(_all(Path(folder)))]
    judged = [entry for entry in judged if entry[0] is not None]
    return min(judged)[2] if judged else None


def notes(path: str | os.PathLike) -> dict[str, Any]:
    """What ``state.json`` says.

    Raises:
        CheckpointError: it is missing or damaged, or of a later format.
    """
    file = Path(path) / NOTES
    try:
        found = json.loads(file.read_text())
        if found["format"] != FORMAT:
            raise CheckpointError(f"{file}: expected format {FORMAT}, got {found['format']}")
        return {"step": int(found["step"]), **found}
    except FileNotFoundError:
        raise CheckpointError(f"{file}: expected a checkpoint's notes, found no file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: damaged ({error})") from None


def _tensors(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    wanted = notes(path)["sha256"]
    file = path / TENSORS
    if not file.exists():
        raise CheckpointError(f"{file}: expected a checkpoint's tensors, found no file")
    if _digest(file) != wanted:
        raise CheckpointError(f"{file}: damaged (its SHA-256 is not the one in {NOTES})")
    try:
        return load_file(file, device=str(device))
    except SafetensorError as error:
        raise CheckpointError(f"{file}: damaged ({error})") from None


def load(path: str | os.PathLike, like: TrainState) -> TrainState:
    """A checkpoint as a state of the same form as ``like``, to the bit what was saved.

    Raises:
        CheckpointError: it is missing or damaged, or its leaves have other names, shapes or dtypes.
    """
    path = Path(path)
    wanted = _flat(like)
    found = _tensors(path, next(iter(wanted.values())).device)
    _match(path / TENSORS, found, wanted)

    def part(name: str, tree: Any) -> Any:
        return _tree(found, name, tree)

    moments = Moments(part("mu", like.moments.mu), part("nu", like.moments.nu))
    return TrainState(notes(path)["step"], part("params", like.params), part("ema_params", like.ema_params), moments)


def load_params(path: str | os.PathLike, like: Any, *, ema: bool = True) -> Any:
    """The parameters of a checkpoint alone, by default their moving average, as a tree like ``like``.

    Raises:
        CheckpointError: it is missing or damaged, or its leaves have other names, shapes or dtypes.
    """
    name = "ema_params" if ema else "params"
    path = Path(path)
    wanted = _named({name: like})
    device = next(iter(wanted.values())).device
    found = {k: v for k, v in _tensors(path, device).items() if k.split(".")[0] == name}
    _match(path / TENSORS, found, wanted)
    return _tree(found, name, like)


def _tree(found: dict[str, Tensor], name: str, like: Any) -> Any:
    return optree.tree_map_with_path(lambda p, _: found[".".join((name, *map(str, p)))], like)


def _match(file: Path, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    missing, surplus = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or surplus:
        first = f"no {missing[0]}" if missing else f"{surplus[0]}, which the model has not"
        raise CheckpointError(f"{file}: of another model: it holds {first}")
    for name, leaf in wanted.items():
        if found[name].shape != leaf.shape or found[name].dtype != leaf.dtype:
            raise CheckpointError(
                f"{file}: of another model: expected {name} to be {_checks.describe(leaf)}, "
                f"found {_checks.describe(found[name])}"
            )
