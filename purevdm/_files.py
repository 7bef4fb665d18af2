"""Tensors in safetensors files, for whoever writes them: written to the disk before the call returns, damage named."""

import os
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["load", "plain", "save", "sync"]


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
    """Writes tensors as :func:`plain` makes them, and waits until the disk has them."""
    safetensors = _safetensors()
    path.touch()
    mode = path.stat().st_mode  # what the user's umask gives, where safetensors lets nobody else read
    safetensors.torch.save_file(tensors, path, metadata)
    path.chmod(mode)
    sync(path)


def load(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors and its metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or no safetensors file.
    """
    safetensors = _safetensors()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a safetensors file, found {'a folder' if path.is_dir() else 'no file'}")
    try:
        with safetensors.safe_open(path, "pt", str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error})") from None


def sync(path: Path) -> None:
    """Waits until the disk has a file or a folder, so that a rename does not come first."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
