"""What the programs share at their door: failures that a user can mend become one line and an exit status, and what would
stop a run at its end is noticed at its start."""

import ctypes
import functools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from readers import DataError

import purevdm
from purevdm import _files, parallel
from purevdm.training import NonFiniteLossError
from purevdm.training.checkpoint import CheckpointError

T = TypeVar("T")
OURS = (Path(__file__).resolve().parents[1], Path(purevdm.__file__).resolve().parent)


def program(main: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a program's ``main`` so that it ends with a line on stderr and the exit status 1 where the user can mend what
    failed: data, files, settings, a full disk, too little memory. Any other error is a fault of the program's, and keeps its
    traceback. Freed memory stays with the program, unless the environment says what malloc does."""

    @functools.wraps(main)
    def run(*args: Any, **options: Any) -> Any:
        if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
            keep_memory()
        try:
            return main(*args, **options)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if not expected(error):
                raise
            sys.exit(message(error))

    return run


def keep_memory() -> bool:
    """Has glibc keep the memory that PyTorch frees for its next tensors.

    Else glibc gives a free end of its heap back to the system, and the next step takes it again, page by page.
    Returns whether this system has these settings; others stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    return mallopt is not None and mallopt(trim_threshold, -1) == 1 and mallopt(mmap_max, 0) == 1


def expected(error: Exception) -> bool:
    """Says whether a user can mend it."""
    if isinstance(error, DataError | CheckpointError | NonFiniteLossError | OSError | ImportError | MemoryError):
        return True
    if isinstance(error, RuntimeError):
        return re.search("out of memory|can't allocate memory", str(error)) is not None
    if not isinstance(error, TypeError | ValueError) or ": " not in str(error):
        return False
    # The library's and the programs' own checks begin with the name of what is wrong.
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(Path(frames[-1].filename).resolve().is_relative_to(folder) for folder in OURS)


def message(error: Exception) -> str:
    """Writes an error in one line."""
    text = " ".join(str(error).split())
    named = isinstance(error, TypeError | ValueError | NonFiniteLossError) and text
    return text if named else f"{type(error).__name__}: {text}"


def in_order(parts: dict[int, T]) -> list[T]:
    """Returns the numbered parts of a piece of work, of which each process has made some, in the order of their numbers."""
    return [part for _, part in sorted(item for each in parallel.gather(parts) for item in each.items())]


def least(low: int, **sizes: int | None) -> None:
    """Refuses sizes below ``low``, and what is no integer; None stands for one that is left out."""
    for name, size in sizes.items():
        if size is not None and (type(size) is not int or size < low):
            raise ValueError(f"{name.replace('_', '-')}: expected an integer of at least {low}, got {size}")


def folder(path: Path, name: str = "out") -> Path:
    """Makes a folder to write into, if it is not there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{name}: expected a folder, got {path}, where a file is in the way") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"{name}: expected a folder that can be written into, got {path}")
    return path


def fresh(path: Path, overwrite: bool, *names: str) -> Path:
    """Makes a folder to write these files into; those of another call are written over only if the user says so."""
    for name in names:
        if (path / name).exists() and not overwrite:
            raise ValueError(f"out: expected a folder without {name}, got {path}; give another, or --overwrite")
    return folder(path)


def beside(run: Path, name: str) -> Path:
    """Returns the folder of this name in a run's folder; the run may be given by one of its files or checkpoints, too."""
    run = run.parent if run.suffix == ".safetensors" else run
    return (run.parent.parent if run.parent.name == "checkpoints" else run) / name


def file(path: Path | None, name: str = "out") -> None:
    """Refuses a path where no file can be written, and makes its folder."""
    if path is not None:
        folder(path.parent, name)
        if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
            kind = "a folder" if path.is_dir() else "read only" if path.is_file() else "a pipe, a socket or a device"
            raise ValueError(f"{name}: expected a file to write, got {path}, {kind}")


def other(path: Path, *read: Path | None, name: str = "out") -> None:
    """Refuses to write over what is read: a file by any name, or what a run's folder holds of the run."""
    for source in filter(None, read):
        inside = path.suffix in (".json", ".jsonl", ".safetensors") and path.resolve().is_relative_to(source.resolve())
        if path.exists() and source.exists() and (inside or path.samefile(source)):
            raise ValueError(f"{name}: expected another path than what is read, got {path}")


def device(name: str) -> str:
    """Returns a device's name, if PyTorch can compute there."""
    try:
        torch.zeros(1, device=name).tolist()
    except Exception as error:  # of several kinds
        why = message(error)[:120]
        raise ValueError(f"device: expected one that this PyTorch computes on, got {name!r} ({why})") from None
    return name


def saved(path: Path) -> dict[str, Any]:
    """Reads a JSON file of an earlier call."""
    try:
        entries = json.loads(_files.regular(path).read_text(encoding="utf-8"))
        if not isinstance(entries, dict):
            raise TypeError(f"a {type(entries).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: expected what an earlier call wrote, got {type(error).__name__}: {error}") from None
    return entries


def write(path: Path, content: str | bytes) -> None:
    """Writes a file, whole or not at all; a link is replaced, not what it leads to."""
    with _files.naming(path), _files.replaced(path) as draft:
        draft.write_bytes(content if isinstance(content, bytes) else content.encode())
