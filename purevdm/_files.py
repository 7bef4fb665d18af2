"""Files written whole or not at all, and tensors in safetensors files: on the disk before a call returns, damage named."""

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("safetensors files need the package safetensors: pip install 'purevdm[train]'") from error
    return safetensors


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Makes contiguous copies on the CPU; copies, since safetensors refuses tensors that share memory."""
    return {name: leaf.detach().to("cpu", copy=True).contiguous() for name, leaf in tensors.items()}


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors as :func:`plain` makes them, and waits until the disk has them; an OSError names the file."""
    safetensors = _safetensors()
    path.touch()
    mode = path.stat().st_mode  # what the user's umask gives, where safetensors lets nobody else read
    try:
        safetensors.torch.save_file(tensors, path, metadata)
    except safetensors.SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    path.chmod(mode)
    sync(path)


def load(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a file's tensors, copied out of it, and its metadata; on the meta device by its header only.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or no safetensors file.
    """
    safetensors = _safetensors()
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file" if path.exists() else "no file"
        raise FileNotFoundError(f"{path}: expected a safetensors file, found {kind}")
    try:
        meta = str(device) == "meta"
        with safetensors.safe_open(path, "pt", "cpu" if meta else str(device)) as file:
            # On the CPU they are a memory map: who writes into the file later would change them, or end the process.
            tensors = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
            return {name: x.to("meta") if meta else x.clone() for name, x in tensors}, file.metadata() or {}
    except OSError:
        raise
    except Exception as error:  # safetensors raises several kinds for what it does not know
        raise ValueError(f"{path}: damaged ({error or type(error).__name__})") from None


def regular(path: Path) -> Path:
    """Refuses, by a ValueError, what is no regular file, such as a pipe, where opening waits for a writer."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path}: expected a regular file, got a pipe, a socket or a device")
    return path


# Whole or not at all


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Gives a path to write to, and puts what was written there in the place of ``path`` once the disk has it. A link is
    replaced, not what it leads to. What killed writers of this file left is removed.

    Raises:
        IsADirectoryError, ValueError: ``path`` is a folder, or there but no regular file.
    """
    if path.is_dir():
        raise IsADirectoryError(f"path: expected a file to write, got the folder {path}")
    sweep(path.parent, re.escape(regular(path).name))
    with drafted(path) as folder:
        draft = folder / path.name
        yield draft
        sync(draft)
        draft.replace(path)
    sync(path.parent)


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """Makes a new folder beside a path, in which to write what shall be there. It is locked while it is written, and removed
    at the end, unless it was renamed."""
    while True:
        folder = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        folder.mkdir()
        with _locked(folder) as locked:
            if locked is not False:  # else another process just took it for a killed one's
                try:
                    yield folder
                finally:
                    remove(folder)
                return


def sweep(folder: Path, names: str) -> None:
    """Removes the drafts of killed writers, for paths in a folder whose names match a regular expression: those without a
    lock, or, where the file system has no locks, those to which nothing happened for a day."""
    for draft in folder.glob(".*"):
        if re.fullmatch(rf"\.({names})\.[0-9a-f]{{32}}", draft.name):
            with _locked(draft) as locked:
                if locked or (locked is None and stale(draft, 24)):
                    remove(draft)


@contextmanager
def _locked(draft: Path) -> Iterator[bool | None]:
    """Holds a draft's lock: False if another process does, or removed it; None where there are no locks."""
    descriptor = None
    try:
        import fcntl

        descriptor = os.open(draft, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked: bool | None = draft.exists()
    except (BlockingIOError, FileNotFoundError):
        locked = False
    except (ImportError, OSError):
        locked = None
    try:
        yield locked
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file or a folder, or a link to one but not what it links to."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def stale(path: Path, hours: int) -> bool:
    """Says whether nothing happened to a folder and what is in it for so long."""
    try:
        times = [max(s.st_mtime, s.st_ctime) for s in (p.lstat() for p in (path, *path.glob("*")))]
        return max(times) < time.time() - 3600 * hours
    except FileNotFoundError:
        return False


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes errors of the system name the file; by itself a write to a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
    """Waits until the disk has a file or a folder, so that a rename does not come first."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
