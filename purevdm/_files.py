"""Tensors in safetensors files, for whoever writes them: written to the disk before the call returns, damage named."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["load", "naming", "plain", "save", "sync"]


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("safetensors files need the package safetensors: pip install 'purevdm[train]'") from error
    return safetensors


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU; copies, since safetensors refuses tensors that share memory."""
    return {name: leaf.detach().to("cpu", copy=True).contiguous() for name, leaf in tensors.items()}


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors as :func:`plain` makes them, and waits until the disk has them.

    Raises:
        OSError: the disk is full, or otherwise refuses; the file is named.
    """
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
    """A file's tensors, copied out of it, and its metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or no safetensors file.
    """
    safetensors = _safetensors()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a safetensors file, found {'a folder' if path.is_dir() else 'no file'}")
    try:
        with safetensors.safe_open(path, "pt", str(device)) as file:
            # On the CPU they are a memory map: who writes into the file later would change them, or end the process.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:  # safetensors raises several kinds for what it does not know
        raise ValueError(f"{path}: damaged ({error or type(error).__name__})") from None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system name the file; by itself a write to a full disk does not."""
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
