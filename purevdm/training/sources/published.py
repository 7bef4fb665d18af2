"""Published data sets: digits, CIFAR-10, downsampled ImageNet."""

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from purevdm import _checks
from purevdm.training.data import Dataset
from purevdm.training.sources._common import DataError, in_memory

__all__ = ["cifar10", "digits", "imagenet"]

CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
IMAGENET = "https://image-net.org/download-images (Downsampled image data, npz format; an account is needed)"


def digits() -> Dataset:
    """scikit-learn's 1797 digits, (1, 8, 8), 17 grey levels, 10 classes; embedded in scikit-learn."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return in_memory("digits", loaded.images[:, None].astype(np.uint8), 17, loaded.target)


# CIFAR-10

TRAIN, TEST = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]


class _ArraysOnly(pickle.Unpickler):
    """Unpickles what the published batches hold, NumPy arrays in dicts and lists, and nothing that could run code."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "encode", "scalar"})

    def find_class(self, module: str, name: str) -> object:
        if name in self.ALLOWED and module.split(".")[0] in ("numpy", "_codecs"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def cifar10(path: str | os.PathLike, split: str = "train") -> Dataset:
    """CIFAR-10 as published: the python or the binary version, as the ``.tar.gz`` or the folder unpacked from it.

    Args:
        path: the archive, the folder with the batches, or the folder that holds either.
        split: "train" (50,000) or "test" (10,000).

    Raises:
        DataError: no such file, a batch missing or damaged.
    """
    _checks.choice("split", split, ("train", "test"))
    names = TRAIN if split == "train" else TEST
    files = _cifar_files(Path(path), names)
    images, labels = [], []
    for name, (where, content) in files.items():
        try:
            if name.endswith(".bin"):
                table = np.frombuffer(content, np.uint8).reshape(-1, 3073)
                x, y = table[:, 1:], table[:, 0]
            else:
                entries = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
                x, y = entries[b"data"], np.asarray(entries[b"labels"])
            images.append(x.reshape(-1, 3, 32, 32))
            labels.append(y)
        except (pickle.UnpicklingError, ValueError, KeyError, EOFError, AttributeError, TypeError, IndexError) as error:
            raise DataError(f"{where}: damaged, not a batch of CIFAR-10 ({error}); get it from {CIFAR}") from None
        if not len(y) or len(x) != len(y) or int(y.max()) > 9:
            raise DataError(f"{where}: damaged, not a batch of CIFAR-10; get it from {CIFAR}")
    return in_memory(f"cifar10 {split}", np.concatenate(images), 256, np.concatenate(labels))


def _cifar_files(path: Path, names: list[str]) -> dict[str, tuple[str, bytes]]:
    """Each batch's file name, where it lies, and its bytes; python batches first, as they come with a name each."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; get CIFAR-10 from {CIFAR}")
    if path.is_dir():
        for folder in (path, path / "cifar-10-batches-py", path / "cifar-10-batches-bin"):
            for suffix in ("", ".bin"):
                found = [folder / f"{name}{suffix}" for name in names]
                if any(file.exists() for file in found):
                    for file in found:
                        if not file.exists():
                            raise DataError(f"{file}: missing, though others of CIFAR-10 are there; get it from {CIFAR}")
                    return {file.name: (str(file), file.read_bytes()) for file in found}
        for packed in ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"):
            if (path / packed).exists():
                return _cifar_files(path / packed, names)
        raise DataError(f"{path}: holds neither an archive of CIFAR-10 nor {names[0]}; get it from {CIFAR}")
    try:
        with tarfile.open(path) as archive:
            members = {Path(m.name).name: m for m in archive.getmembers() if m.isfile()}
            suffix = ".bin" if f"{names[0]}.bin" in members else ""
            result = {}
            for name in (f"{name}{suffix}" for name in names):
                if name not in members:
                    raise DataError(f"{path}: holds no {name}; get CIFAR-10 from {CIFAR}")
                result[name] = (f"{path}:{name}", archive.extractfile(members[name]).read())  # type: ignore[union-attr]
            return result
    except (tarfile.TarError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged, not an archive of CIFAR-10 ({error}); get it from {CIFAR}") from None


# Downsampled ImageNet


def imagenet(path: str | os.PathLike, size: int, split: str = "train") -> Dataset:
    """ImageNet downsampled to 32 or 64 (Chrabaszcz et al. 2017), in its published npz batches, with 1000 classes.

    The first call writes the batches into one uncompressed ``.npy`` beside them, which is memory-mapped: only what is read
    is in memory.

    Args:
        path: the folder with ``train_data_batch_1.npz`` ... or ``val_data.npz``.
        size: 32 or 64.
        split: "train" or "test" (the validation set).

    Raises:
        DataError: no such file, a batch missing or damaged.
    """
    _checks.choice("split", split, ("train", "test"))
    if size not in (32, 64):
        raise ValueError(f"size: expected 32 or 64, got {size}")
    folder = Path(path)
    files = sorted(folder.glob("train_data_batch_*.npz")) if split == "train" else [folder / "val_data.npz"]
    cache, labels = folder / f"purevdm_{split}_{size}.npy", folder / f"purevdm_{split}_{size}_labels.npy"
    if not (cache.exists() and labels.exists()):
        numbers = {int(file.stem.rpartition("_")[2]) for file in files} if split == "train" else set()
        if not files or not files[0].exists() or (numbers and numbers != set(range(1, max(numbers) + 1))):
            wanted = "train_data_batch_1.npz and those after it" if split == "train" else "val_data.npz"
            raise DataError(f"{folder}: expected {wanted}; get ImageNet {size}x{size} from {IMAGENET}")
        _write_mapped(files, size, cache, labels)
    x = np.load(cache, mmap_mode="r")
    return in_memory(f"imagenet{size} {split}", x, 256, np.load(labels))


def _entry(file: Path, name: str, size: int) -> np.ndarray:
    """One array of a batch; the others stay compressed."""
    try:
        with file.open("rb") as opened, np.load(opened) as batch:
            return batch[name]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise _damaged(file, size, error) from None


def _damaged(file: Path, size: int, reason: object) -> DataError:
    return DataError(f"{file}: damaged, no batch of {size}x{size} images ({reason}); get it from {IMAGENET}")


def _write_mapped(files: list[Path], size: int, cache: Path, labels: Path) -> None:
    # published classes count from 1
    classes = [np.asarray(_entry(file, "labels", size), np.int64) - 1 for file in files]
    draft = cache.with_suffix(f".{os.getpid()}.npy")
    try:
        whole = np.lib.format.open_memmap(draft, "w+", np.uint8, (sum(map(len, classes)), 3, size, size))
        start = 0
        for file, y in zip(files, classes, strict=True):
            x = _entry(file, "data", size)
            if x.dtype != np.uint8 or x.shape != (len(y), 3 * size * size):
                raise _damaged(file, size, f"data of {x.dtype} {x.shape}")
            whole[start : start + len(x)] = x.reshape(-1, 3, size, size)
            start += len(x)
        whole.flush()
        np.save(labels, np.concatenate(classes))
        draft.replace(cache)
    finally:
        draft.unlink(missing_ok=True)
