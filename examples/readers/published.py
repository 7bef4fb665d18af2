"""Published data sets: scikit-learn's digits, CIFAR-10, downsampled ImageNet."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np

from purevdm.training.data import Dataset
from readers._common import DataError, images_of, labels_of, names_of, over, reading

CIFAR = "get the python or the binary version of CIFAR-10 from https://www.cs.toronto.edu/~kriz/cifar.html"
IMAGENET = "get the downsampled images in npz format from https://image-net.org/download-images (an account is needed)"


def digits() -> Dataset:
    """scikit-learn's 1797 digits, (1, 8, 8), 17 grey levels, 10 classes; embedded in scikit-learn."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return over("digits", found.images[:, None].astype(np.uint8), 17, labels_of(found.target, 1797), 10)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles what the published batches hold, NumPy arrays in dicts and lists, and nothing that could run code."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "encode", "scalar"})

    def find_class(self, module: str, name: str) -> object:
        if name in self.ALLOWED and module.split(".")[0] in ("numpy", "_codecs"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def cifar10(path: str | os.PathLike, split: str = "train") -> Dataset:
    """CIFAR-10 as published, in its python or its binary version.

    Args:
        path: ``cifar-10-python.tar.gz`` or ``cifar-10-binary.tar.gz``, the folder unpacked from it, or the folder that holds
            either.
        split: "train" (50,000) or "test" (10,000).

    Raises:
        DataError: an archive or a batch that is missing or damaged.
    """
    names = names_of(split, [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"])
    path, inner, suffix = Path(path), "cifar-10-batches-py", ""
    published = (inner, "cifar-10-python.tar.gz", "cifar-10-batches-bin", "cifar-10-binary.tar.gz")
    path = next((path / name for name in published if (path / name).exists()), path)
    with reading(path, "an archive of CIFAR-10", CIFAR):
        if path.is_dir():
            suffix = ".bin" if any(path.glob("*.bin")) else ""
            batches = {path / name: (path / f"{name}{suffix}").read_bytes() for name in names}
        else:
            with tarfile.open(path) as archive:
                if any("cifar-10-batches-bin" in name for name in archive.getnames()):
                    inner, suffix = "cifar-10-batches-bin", ".bin"
                batches = {path / name: archive.extractfile(f"{inner}/{name}{suffix}").read() for name in names}
    images, labels = [], []
    for file, content in batches.items():
        with reading(file, "a batch of CIFAR-10", CIFAR):
            if suffix:
                table = np.frombuffer(content, np.uint8).reshape(-1, 3073)
                entries = {b"data": table[:, 1:], b"labels": table[:, 0]}
            else:
                entries = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
            images.append(images_of(entries[b"data"], 32))
            labels.append(labels_of(entries[b"labels"], len(images[-1]), 0, 9))
    return over(f"cifar10 {split}", np.concatenate(images), 256, np.concatenate(labels), 10)


def imagenet(path: str | os.PathLike, size: int, split: str = "train") -> Dataset:
    """ImageNet downsampled to 32 or 64 (Chrabaszcz et al. 2017), in its published npz batches, with 1000 classes.

    The first call writes the images into one uncompressed ``.npy`` beside the batches, which is memory-mapped: only what
    is read is in memory. It is written again when a batch is newer than it, or when it does not fit the batches.

    Args:
        path: the folder with ``train_data_batch_1.npz`` to ``train_data_batch_10.npz``, or ``val_data.npz``.
        size: 32 or 64.
        split: "train" or "test" (the validation set).

    Raises:
        DataError: a batch that is missing or damaged.
    """
    if size not in (32, 64):
        raise ValueError(f"size: expected 32 or 64, got {size}")
    folder = Path(path)
    files = [
        folder / name for name in names_of(split, [f"train_data_batch_{i}.npz" for i in range(1, 11)], ["val_data.npz"])
    ]

    def entry(file: Path, name: str) -> np.ndarray:
        """One array of a batch; the rest stay compressed."""
        with reading(file, f"a batch of {size}x{size} images", IMAGENET), file.open("rb") as opened:
            found = np.load(opened)[name]
            return images_of(found, size) if name == "data" else labels_of(found, len(found), 1, 1000)

    labels = [entry(file, "labels") for file in files]
    shape = (sum(map(len, labels)), 3, size, size)
    cache = folder / f"imagenet{size}_{split}.npy"
    if not _current(cache, shape, files):
        draft = cache.with_suffix(f".{os.getpid()}.npy")
        try:
            with draft.open("wb") as out:
                np.lib.format.write_array_header_1_0(out, dict(descr="|u1", fortran_order=False, shape=shape))
                for file, y in zip(files, labels, strict=True):
                    x = entry(file, "data")
                    if len(x) != len(y):
                        raise DataError(f"{file}: damaged, {len(x)} images and {len(y)} labels; {IMAGENET}")
                    out.write(np.ascontiguousarray(x))
            draft.replace(cache)
        finally:
            draft.unlink(missing_ok=True)
    return over(f"imagenet{size} {split}", np.load(cache, mmap_mode="r"), 256, np.concatenate(labels), 1000)


def _current(cache: Path, shape: tuple[int, ...], files: list[Path]) -> bool:
    """Whether a cache holds these batches, as far as its form and its age tell."""
    try:
        x = np.load(cache, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    newest = max(file.stat().st_mtime_ns for file in files)
    return x.dtype == np.uint8 and x.shape == shape and cache.stat().st_mtime_ns >= newest
