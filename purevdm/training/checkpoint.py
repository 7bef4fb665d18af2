"""Checkpoints: tensors in safetensors, the rest in JSON, written whole or not at all.

A checkpoint is a folder named by its step, ``00001000/``, with ``state.safetensors`` (leaves by path, joined by dots) and
``state.json`` (the step, a metric, the caller's notes, the tensors' SHA-256, and its own). It is written under another name
and then renamed, so that what has its name is whole, whenever a process stops. Needs safetensors (extra ``train``).

A sharded state (:mod:`purevdm.parallel`) is written by all of its processes together, each its part, by
``torch.distributed.checkpoint``: ``shard-00001-...safetensors`` and so on. Either kind is read by any number of processes,
into whole or sharded leaves, as ``like`` has them. :class:`Saver` saves while training goes on.
"""

import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optree
import torch
import torch.distributed as dist
from torch import Tensor

from purevdm import _checks, _files, _sharding, _spread, _trees
from purevdm.training import _shards
from purevdm.training.optimizer import Moments
from purevdm.training.state import TrainState

__all__ = ["CheckpointError", "Saver", "best", "latest", "load", "load_params", "notes", "save"]

WHOLE, SHARDED = 2, 3  # formats; 1 was 2 without a digest of the notes themselves
TENSORS, NOTES = "state.safetensors", "state.json"
_NUMBER = "[0-9]{8}|[1-9][0-9]{8,17}"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model; the message names the file and what is wrong."""


def save(
    folder: str | os.PathLike, state: TrainState, *, metric: float | None = None, extra: Any = None, keep: int = 3
) -> Path:
    """Writes a checkpoint into a folder of them, in the place of one of the same step, and removes old ones.

    One run at a time may write into a folder. All processes of a sharded state call this together, for a folder that all
    see; what goes wrong in one is raised in all. Where a checkpoint's notes are damaged, none is removed.

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
    return _save(folder, state, metric, extra, keep, None)


def _save(folder: Any, state: TrainState, metric: float | None, extra: Any, keep: int, group: Any) -> Path:
    """Does :func:`save` with the processes' messages in a group of their own."""
    folder, keep = _checks.path("folder", folder), _checks.integer("keep", keep, 1)
    _checks.instance("state", state, TrainState, "a TrainState")
    step = _checks.integer("state.step", state.step, 0, 10**18 - 1)
    written = {"format": WHOLE, "step": step, "metric": _metric(metric), "extra": extra}
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"extra: expected what JSON holds, got {error}") from None
    leaves, final = _named(_of_state(state)), folder / f"{step:08d}"
    if _spread.mesh_of(_checks.leaves(leaves), "state") is None:
        leaves = _files.plain(leaves)
        with _draft(final) as draft:
            _files.save(draft / TENSORS, leaves)
            _finish(draft, final, written | {"sha256": _shards.digest(draft / TENSORS)})
        _prune(folder, keep, final)
        return final
    first, work = dist.get_rank(group) == 0, ExitStack()
    with work:
        draft = next(filter(None, _shards.agreed(lambda: work.enter_context(_draft(final)) if first else None, group)))
        written |= {"format": SHARDED, "files": _shards.write(draft, leaves, group)}
        _shards.agreed(lambda: _finish(draft, final, written) if first else None, group)
    _shards.agreed(lambda: _prune(folder, keep, final) if first else None, group)
    return final


@contextmanager
def _draft(final: Path) -> Iterator[Path]:
    """Makes a folder to write a checkpoint into; an unfinished one is removed, and so are those of killed writers."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _files.sweep(final.parent, _NUMBER)
    with _files.drafted(final) as draft:
        yield draft


def _finish(draft: Path, final: Path, written: dict[str, Any]) -> None:
    """Writes the notes, and gives a checkpoint its name."""
    written["notes_sha256"] = _notes_digest(written)
    with _files.naming(draft / NOTES):
        (draft / NOTES).write_text(json.dumps(written, indent=1, allow_nan=False))
    _files.sync(draft / NOTES)
    _files.sync(draft)
    _discard(final)
    draft.rename(final)
    _files.sync(final.parent)


class Saver:
    """Saves checkpoints in a thread while training goes on, one at a time.

    All processes of a sharded state make one together.

    States are never written to, so that nothing is copied first. Use it as a context manager, which waits for the last.

    >>> from purevdm.training import checkpoint
    >>> with checkpoint.Saver() as saver:  # doctest: +SKIP
    ...     for step in range(1000):
    ...         state, metrics = training.train_step(settings, grad_fn, state, x, k_train)
    ...         if step % 100 == 0:
    ...             saver.save(folder, state)
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self._group = dist.new_group(backend="gloo") if together else None
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[Path] | None = None

    def save(
        self, folder: str | os.PathLike, state: TrainState, *, metric: float | None = None, extra: Any = None, keep: int = 3
    ) -> None:
        """Begins what :func:`save` does, once the save before has ended; raises what went wrong in that one."""
        self.wait()
        self._last = self._pool.submit(_save, folder, state, metric, extra, keep, self._group)

    def wait(self) -> Path | None:
        """Waits for the last save: returns its folder, None where there was none, or raises what went wrong."""
        last, self._last = self._last, None
        return None if last is None else last.result()

    def close(self) -> None:
        """Ends the thread, after the last save, and the group that it spoke over."""
        self._pool.shutdown()
        group, self._group = self._group, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.close()


def _of_state(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "ema_params": state.ema_params, **state.moments._asdict()}


def _named(trees: dict[str, Any]) -> dict[str, Tensor]:
    """Names the leaves by their paths, joined by dots."""
    paths, leaves, _ = optree.tree_flatten_with_path(trees)  # type: ignore[arg-type, var-annotated]
    names = [_trees.dotted(*path) for path in paths]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise ValueError(f"state: expected leaves whose paths differ when joined by dots, got {twice!r} twice")
    return dict(zip(names, leaves, strict=True))


def _metric(metric: Any) -> float | None:
    """Gives a metric that can be compared, or None."""
    infinite = isinstance(metric, float) and not math.isfinite(metric)
    return None if metric is None or infinite else _checks.real("metric", metric)


def _notes_digest(found: dict[str, Any]) -> str:
    """Computes the SHA-256 of notes, their own left out."""
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
    """Lists the checkpoints of a folder, oldest first."""
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
        if found["format"] not in (1, WHOLE, SHARDED):
            raise ValueError(f"expected format {SHARDED}, {WHOLE} or 1, got {found['format']}")
        if found.get("notes_sha256") != (None if found["format"] == 1 else _notes_digest(found)):
            raise ValueError("its SHA-256 is not the one in it")
        step, found["metric"] = _checks.integer("step", found["step"], 0), _metric(found["metric"])
        if found["format"] == SHARDED:
            named = _checks.instance("files", found["files"], dict, "an object").items()
            if not all(re.fullmatch("[a-z0-9-]+[.]safetensors", name) and isinstance(text, str) for name, text in named):
                raise ValueError("files: expected names of safetensors files, and the SHA-256 of each")
        else:
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
    trees = _read(path, _of_state(_checks.instance("like", like, TrainState, "a TrainState")))
    return TrainState(notes(path)["step"], trees["params"], trees["ema_params"], Moments(trees["mu"], trees["nu"]))


def load_params(path: str | os.PathLike, like: Any, *, ema: bool = True) -> Any:
    """Returns only the parameters of a checkpoint, by default their moving average, as a tree like ``like``.

    They are on its device, or on the CPU where that is meta.

    Raises:
        CheckpointError: it is missing or damaged, or its leaves have other names, shapes or dtypes.
    """
    name = "ema_params" if _checks.boolean("ema", ema) else "params"
    _trees.structure(like, "like")
    return _read(_checks.path("path", path), {name: like}, f"{name}.")[name]


def _read(path: Path, trees: dict[str, Any], only: str = "") -> dict[str, Any]:
    """Returns the trees with a checkpoint's tensors; those whose names do not start with ``only`` may be there besides."""
    noted, like = notes(path), _named(trees)
    device = next((leaf.device for leaf in like.values() if not leaf.is_meta), torch.device("cpu"))
    whole = noted["format"] != SHARDED
    file = path / TENSORS if whole else path
    try:
        if whole and _files.regular(file).is_file() and _shards.digest(file) != noted["sha256"]:
            raise CheckpointError(f"{file}: damaged (its SHA-256 is not the one in {NOTES})")
        # First the names and shapes, as numbers of another model may not fit into memory.
        headers = _files.load(file, "meta")[0] if whole else _shards.shapes(path)
        shapes = {name: leaf for name, leaf in headers.items() if name.startswith(only)}
        try:
            _trees.matches("state", _checks.leaves(shapes), _trees.structure(like))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{file}: of another model: {error}") from None
        if whole:
            found = _sharding.like({name: leaf for name, leaf in _files.load(file, device)[0].items() if name in like}, like)
        else:
            found = _shards.read(path, noted["files"], like, device)
    except (ValueError, FileNotFoundError) as error:
        raise CheckpointError(str(error)) from None
    return optree.tree_map_with_path(lambda path, _: found[_trees.dotted(*path)], trees)  # type: ignore[return-value, arg-type]
