"""Checkpoints: tensors in safetensors, the rest in JSON, written whole or not at all.

A checkpoint is a folder named by its step, ``00001000/``, with ``state.safetensors`` (leaves by path, joined by dots) and
``state.json`` (the step, a metric, the caller's notes, the tensors' SHA-256, and its own). It is written under another name
and then renamed, so that whoever stops the process, and when, what is there is whole. Needs safetensors (extra ``train``).
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import sys
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
ASIDE = ".old"  # ends the name of a checkpoint that another of its step is about to replace


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model; the message names the file and what is wrong."""


def _named(trees: Any) -> dict[str, Tensor]:
    """The leaves by their paths, joined by dots; of a state, all but its step."""
    if isinstance(trees, TrainState):
        trees = {"params": trees.params, "ema_params": trees.ema_params, **trees.moments._asdict()}
    paths, leaves, _ = optree.tree_flatten_with_path(trees)
    names = [_checks.dotted(*path) for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"state: expected leaves whose paths differ when joined by dots, got {twice!r} twice")
    return dict(zip(names, leaves, strict=True))  # type: ignore[arg-type]


def save(
    folder: str | os.PathLike, state: TrainState, *, metric: float | None = None, extra: Any = None, keep: int = 3
) -> Path:
    """Writes a checkpoint into a folder of them, and removes old ones.

    Several processes may write into one folder. The new checkpoint always stays, as do those whose notes are damaged.

    Args:
        folder: made if it is not there.
        state: the state.
        metric: what the best is judged by, the less the better. One that is not finite is written as null, and judges
            nothing.
        extra: anything that JSON holds, so no NaN and no infinity.
        keep: how many of the latest stay; the best stays besides.

    Returns:
        The checkpoint's folder.

    Raises:
        TypeError, ValueError: arguments that cannot be written; nothing is then.
        OSError: a full disk, or a folder that cannot be written; what was there before stays.
    """
    folder, keep = _checks.path("folder", folder), _checks.integer("keep", keep, 1)
    _checks.instance("state", state, TrainState, "a TrainState")
    step = _checks.integer("state.step", state.step, 0, 10**18 - 1)
    described = {"format": FORMAT, "step": step, "metric": _metric(metric), "sha256": "", "extra": extra, "notes_sha256": ""}
    try:
        json.dumps(described, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"extra: expected what JSON holds, got {error}") from None
    leaves = _files.plain(_named(state))
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{step:08d}"
    _files.sweep(folder, _NUMBER)
    with _files.drafted(final) as draft:
        _files.save(draft / TENSORS, leaves)
        described["sha256"] = _digest(draft / TENSORS)
        described["notes_sha256"] = _notes_digest(described)
        with _files.naming(draft / NOTES):
            (draft / NOTES).write_text(json.dumps(described, indent=1, allow_nan=False))
        for path in (draft / NOTES, draft):
            _files.sync(path)
        _replace(draft, final)
    _prune(folder, keep, final)
    return final


def _metric(metric: Any) -> float | None:
    """A metric that can be compared, or None."""
    if isinstance(metric, Tensor) and metric.numel() == 1:
        metric = metric.item()
    if metric is not None and (isinstance(metric, bool) or not isinstance(metric, int | float)):
        raise TypeError(f"metric: expected a real number or None, got {_checks.describe(metric)}")
    return float(metric) if metric is not None and -sys.float_info.max <= metric <= sys.float_info.max else None


def _replace(draft: Path, final: Path) -> None:
    """Gives a draft its name. A checkpoint of that name is first set aside, where `_all` finds it should we die here."""
    while True:
        try:
            draft.rename(final)
            break
        except OSError as error:
            # By the error, too: another process may have set it aside since.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) and not os.path.lexists(final):
                raise
        with contextlib.suppress(FileNotFoundError):
            final.rename(final.with_name(f".{final.name}.{uuid.uuid4().hex}{ASIDE}"))
    _files.sync(final.parent)
    for aside in final.parent.glob(f".{final.name}.*{ASIDE}"):
        _files.remove(aside)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _notes_digest(found: dict[str, Any]) -> str:
    """The SHA-256 of notes, their own left out."""
    rest = {name: value for name, value in found.items() if name != "notes_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _all(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by their steps, oldest first; one set aside only where there is no other of its step."""
    paths = sorted((path for path in folder.glob("*") if path.is_dir()), key=lambda path: not path.name.startswith("."))
    steps = {step: path for path in paths if (step := _step(path)) is not None}
    return dict(sorted(steps.items()))


def _step(path: Path) -> int | None:
    """The step that a folder's name says, where it is one that `save` gives."""
    # isdigit() is true of other alphabets' digits, too.
    match = re.fullmatch(rf"({_NUMBER})|\.({_NUMBER})\.[0-9a-f]+{re.escape(ASIDE)}", path.name)
    return int(match[1] or match[2]) if match else None


def _prune(folder: Path, keep: int, new: Path) -> None:
    found = _all(folder)
    metrics, damaged = _metrics(found)
    stay = {new, *list(found.values())[-keep:], *damaged}  # of the damaged, nobody can tell whether one is the best
    if metrics:
        stay.add(found[_least(metrics)])
    for step, path in found.items():
        if path not in stay:
            # First out of sight, then away: a half-removed checkpoint must not look like one.
            gone = folder / f".{step:08d}.{uuid.uuid4().hex}"
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                path.rename(gone)
            _files.remove(gone)
    for path in folder.glob(".*"):
        if re.fullmatch(rf"\.({_NUMBER})\.[0-9a-z.]+", path.name) and path not in found.values() and _files.stale(path, 1):
            _files.remove(path)


def _metrics(found: dict[int, Path]) -> tuple[dict[int, float], dict[Path, CheckpointError]]:
    """The metrics of checkpoints by their steps, and the errors of those that are damaged. One that another process just
    removed has neither."""
    metrics, damaged = {}, {}
    for step, path in found.items():
        try:
            metric = _metric(notes(path)["metric"])
        except CheckpointError as error:
            if path.exists():
                damaged[path] = error
            continue
        if metric is not None:
            metrics[step] = metric
    return metrics, damaged


def _least(metrics: dict[int, float]) -> int:
    """The step with the least metric, the latest of equals."""
    return min(metrics, key=lambda step: (metrics[step], -step))


def latest(folder: str | os.PathLike) -> Path | None:
    """The newest checkpoint of a folder, or None where there is none."""
    return next(reversed(_all(_checks.path("folder", folder)).values()), None)


def best(folder: str | os.PathLike) -> Path | None:
    """The checkpoint with the least finite metric, the latest of equals, or None where none has one.

    Raises:
        CheckpointError: the notes of one of them are missing or damaged.
    """
    found = _all(_checks.path("folder", folder))
    metrics, damaged = _metrics(found)
    for error in damaged.values():
        raise error
    return found[_least(metrics)] if metrics else None


def notes(path: str | os.PathLike) -> dict[str, Any]:
    """What ``state.json`` says.

    Raises:
        CheckpointError: it is missing or damaged, of a later format, or of another step than the folder's name says.
    """
    path = _checks.path("path", path)
    file = path / NOTES
    try:
        found = json.loads(_files.regular(file).read_text())
        if found["format"] in (1, FORMAT):
            _checks.integer("step", found["step"], 0)
            _metric(found["metric"])
            if not isinstance(found["sha256"], str):
                raise TypeError(f"sha256: expected text, got {_checks.describe(found['sha256'])}")
            if found.get("notes_sha256") != (None if found["format"] == 1 else _notes_digest(found)):
                raise ValueError("its SHA-256 is not the one in it")
            named = _step(path)
            if named not in (None, found["step"]):
                raise CheckpointError(
                    f"{path}: expected the checkpoint of step {named}, got that of {found['step']}, renamed"
                )
            return found
    except CheckpointError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{file}: expected a checkpoint's notes, found no file") from None
    except (ValueError, KeyError, TypeError, RecursionError, MemoryError, IsADirectoryError) as error:
        raise CheckpointError(f"{file}: damaged ({error or type(error).__name__})") from None
    raise CheckpointError(f"{file}: expected format {FORMAT} or 1, got {found['format']}")


def _tensors(path: Path, like: dict[str, Tensor], only: str = "") -> dict[str, Tensor]:
    """The tensors of a checkpoint that are like these, on their device, or on the CPU where that is meta; those whose names
    do not start with ``only`` may be there besides."""
    sha256 = notes(path)["sha256"]
    file = path / TENSORS
    if not file.is_file():
        found = "a folder" if file.is_dir() else "no regular file" if file.exists() else "no file"
        raise CheckpointError(f"{file}: expected a checkpoint's tensors, found {found}")
    if _digest(file) != sha256:
        raise CheckpointError(f"{file}: damaged (its SHA-256 is not the one in {NOTES})")
    device = next((leaf.device for leaf in like.values() if not leaf.is_meta), torch.device("cpu"))
    try:
        _match(file, {name: leaf for name, leaf in _files.load(file, "meta")[0].items() if name.startswith(only)}, like)
        return _files.load(file, device)[0]
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def load(path: str | os.PathLike, like: TrainState) -> TrainState:
    """A checkpoint as a state of the same form as ``like``, bit for bit what was saved.

    Raises:
        CheckpointError: it is missing or damaged, or its leaves have other names, shapes or dtypes.
    """
    path = _checks.path("path", path)
    tensors = _tensors(path, _named(_checks.instance("like", like, TrainState, "a TrainState")))
    params, ema_params, mu, nu = (
        _tree(tensors, name, tree)
        for name, tree in (("params", like.params), ("ema_params", like.ema_params), *like.moments._asdict().items())
    )
    return TrainState(notes(path)["step"], params, ema_params, Moments(mu, nu))


def load_params(path: str | os.PathLike, like: Any, *, ema: bool = True) -> Any:
    """The parameters of a checkpoint alone, by default their moving average, as a tree like ``like``.

    They are on its device, or on the CPU where that is meta.

    Raises:
        CheckpointError: it is missing or damaged, or its leaves have other names, shapes or dtypes.
    """
    name = "ema_params" if _checks.boolean("ema", ema) else "params"
    path = _checks.path("path", path)
    _checks.structure(like, "like")
    wanted = _named({name: like})
    return _tree(_tensors(path, wanted, f"{name}."), name, like)


def _tree(found: dict[str, Tensor], name: str, like: Any) -> Any:
    return optree.tree_map_with_path(lambda p, _: found[_checks.dotted(name, *p)], like)


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
