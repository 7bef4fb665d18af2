"""Checkpoints: tensors in safetensors, the rest in JSON, written whole or not at all.

A checkpoint is a folder named by its step, ``00001000/``, with ``state.safetensors`` (leaves by path, joined by dots) and
``state.json`` (the step, a metric, the caller's notes, the tensors' SHA-256, and its own). It is written under another name
and then renamed, so that what has its name is whole, whenever the process stops. Needs safetensors (extra ``train``).
"""

import hashlib
import json
import math
import os
import re
import uuid
from pathlib import Path
from typing import Any

import optree
import torch
from torch import Tensor

from purevdm import _checks, _files
from purevdm.training.optimizer import Moments
from purevdm.training.state import TrainState

__all__ = ["CheckpointError", "best", "latest", "load", "load_params", "notes", "save"]

FORMAT = 2  # 1 had no digest of the notes themselves
TENSORS, NOTES = "state.safetensors", "state.json"
_NUMBER = "[0-9]{8}|[1-9][0-9]{8,17}"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model; the message names the file and what is wrong."""


def save(
    folder: str | os.PathLike, state: TrainState, *, metric: float | None = None, extra: Any = None, keep: int = 3
) -> Path:
    """Writes a checkpoint into a folder of them, in the place of one of the same step, and removes old ones.

    One process at a time may write into a folder. Where a checkpoint's notes are damaged, none is removed.

    Args:
        folder: made if it is not there.
        state: the state.
        metric: what the best is judged by, the less the better; null, and no judge, where it is not finite.
        extra: anything that JSON holds, so no NaN and no infinity.
        keep: how many of the latest stay, besides the new one and the best.

    Returns:
        The checkpoint's folder.

    Raises:
        TypeError, ValueError: arguments that cannot be written; nothing is then.
        OSError: a full disk, or a folder that cannot be written; what was there before stays.
    """
    folder, keep = _checks.path("folder", folder), _checks.integer("keep", keep, 1)
    _checks.instance("state", state, TrainState, "a TrainState")
    step = _checks.integer("state.step", state.step, 0, 10**18 - 1)
    written = {"format": FORMAT, "step": step, "metric": _metric(metric), "sha256": "", "extra": extra}
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"extra: expected what JSON holds, got {error}") from None
    leaves = _files.plain(_named(_trees(state)))
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{step:08d}"
    _files.sweep(folder, _NUMBER)
    with _files.drafted(final) as draft:
        _files.save(draft / TENSORS, leaves)
        written["sha256"] = _digest(draft / TENSORS)
        written["notes_sha256"] = _notes_digest(written)
        with _files.naming(draft / NOTES):
            (draft / NOTES).write_text(json.dumps(written, indent=1, allow_nan=False))
        _files.sync(draft / NOTES)
        _files.sync(draft)
        _discard(final)
        draft.rename(final)
    _files.sync(folder)
    _prune(folder, keep, final)
    return final


def _trees(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "ema_params": state.ema_params, **state.moments._asdict()}


def _named(trees: dict[str, Any]) -> dict[str, Tensor]:
    """The leaves by their paths, joined by dots."""
    paths, leaves, _ = optree.tree_flatten_with_path(trees)  # type: ignore[arg-type, var-annotated]
    names = [_checks.dotted(*path) for path in paths]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise ValueError(f"state: expected leaves whose paths differ when joined by dots, got {twice!r} twice")
    return dict(zip(names, leaves, strict=True))


def _metric(metric: Any) -> float | None:
    """A metric that can be compared, or None."""
    infinite = isinstance(metric, float) and not math.isfinite(metric)
    return None if metric is None or infinite else _checks.real("metric", metric)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _notes_digest(found: dict[str, Any]) -> str:
    """The SHA-256 of notes, their own left out."""
    rest = {name: value for name, value in found.items() if name != "notes_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _discard(path: Path) -> None:
    """Removes a checkpoint, first from sight, as a half-removed one must not look like one."""
    if os.path.lexists(path):
        _files.remove(path.rename(path.with_name(f".{path.name}.{uuid.uuid4().hex}")))


def _prune(folder: Path, keep: int, new: Path) -> None:
    found = _all(folder)
    try:
        stay = {new, best(folder), *found[-keep:]}
    except CheckpointError:  # of which nobody can tell whether it is the best
        return
    for path in found:
        if path not in stay:
            _discard(path)


def _all(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    named = (path for path in folder.glob("*") if re.fullmatch(_NUMBER, path.name) and path.is_dir())
    return sorted(named, key=lambda path: int(path.name))


def latest(folder: str | os.PathLike) -> Path | None:
    """Returns the newest checkpoint of a folder, or None where there is none."""
    return next(reversed(_all(_checks.path("folder", folder))), None)


def best(folder: str | os.PathLike) -> Path | None:
    """Returns the checkpoint with the least finite metric, the latest of equals, or None where none has one.

    Raises:
        CheckpointError: the notes of one of them are missing or damaged.
    """
    metrics = {path: notes(path)["metric"] for path in reversed(_all(_checks.path("folder", folder)))}
    return min((path for path, metric in metrics.items() if metric is not None), key=metrics.__getitem__, default=None)


def notes(path: str | os.PathLike) -> dict[str, Any]:
    """Returns what ``state.json`` says; a metric that is not finite, which older versions wrote, is None.

    Raises:
        CheckpointError: it is missing or damaged, of a later format, or of another step than the folder's name says.
    """
    path = _checks.path("path", path)
    try:
        found = json.loads(_files.regular(path / NOTES).read_text())
        if found["format"] not in (1, FORMAT):
            raise ValueError(f"expected format {FORMAT} or 1, got {found['format']}")
        if found.get("notes_sha256") != (None if found["format"] == 1 else _notes_digest(found)):
            raise ValueError("its SHA-256 is not the one in it")
        step, found["metric"] = _checks.integer("step", found["step"], 0), _metric(found["metric"])
        _checks.instance("sha256", found["sha256"], str, "text")
        if re.fullmatch(_NUMBER, path.name) and int(path.name) != step:
            raise ValueError(f"expected the checkpoint of step {int(path.name)}, got that of {step}, renamed")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{path / NOTES}: missing or damaged ({error or type(error).__name__})") from None
    return found  # type: ignore[no-any-return]


def load(path: str | os.PathLike, like: TrainState) -> TrainState:
    """Returns a checkpoint as a state of the same form as ``like``, bit for bit what was saved.

    Raises:
        CheckpointError: it is missing or damaged, or its leaves have other names, shapes or dtypes.
    """
    path = _checks.path("path", path)
    trees = _read(path, _trees(_checks.instance("like", like, TrainState, "a TrainState")))
    return TrainState(notes(path)["step"], trees["params"], trees["ema_params"], Moments(trees["mu"], trees["nu"]))


def load_params(path: str | os.PathLike, like: Any, *, ema: bool = True) -> Any:
    """Returns only the parameters of a checkpoint, by default their moving average, as a tree like ``like``.

    They are on its device, or on the CPU where that is meta.

    Raises:
        CheckpointError: it is missing or damaged, or its leaves have other names, shapes or dtypes.
    """
    name = "ema_params" if _checks.boolean("ema", ema) else "params"
    _checks.structure(like, "like")
    return _read(_checks.path("path", path), {name: like}, f"{name}.")[name]


def _read(path: Path, trees: dict[str, Any], only: str = "") -> dict[str, Any]:
    """The trees with the tensors of a checkpoint; those whose names do not start with ``only`` may be there besides."""
    sha256, file, like = notes(path)["sha256"], path / TENSORS, _named(trees)
    device = next((leaf.device for leaf in like.values() if not leaf.is_meta), torch.device("cpu"))
    try:
        if _files.regular(file).is_file() and _digest(file) != sha256:
            raise CheckpointError(f"{file}: damaged (its SHA-256 is not the one in {NOTES})")
        # First the names and shapes, as numbers of another model may not fit into memory.
        shapes = {name: leaf for name, leaf in _files.load(file, "meta")[0].items() if name.startswith(only)}
        try:
            _checks.matches("state", _checks.leaves(shapes), _checks.structure(like))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{file}: of another model: {error}") from None
        found = _files.load(file, device)[0]
    except (ValueError, FileNotFoundError) as error:
        raise CheckpointError(str(error)) from None
    return optree.tree_map_with_path(lambda path, _: found[_checks.dotted(*path)], trees)  # type: ignore[return-value, arg-type]
