"""Where data sets come from: scikit-learn's digits, published archives, arrays, folders of images, Hugging Face.

Each reader returns a :class:`~purevdm.training.data.Dataset`. What is missing, damaged or of another form is refused with
a :class:`DataError` that names the file, what was found and what is wanted. Nothing is downloaded except by Hugging Face's
own library.
"""

import io
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from purevdm.training.data import Dataset

CIFAR = "get the python or the binary version of CIFAR-10 from https://www.cs.toronto.edu/~kriz/cifar.html"
IMAGENET = "get the downsampled images in npz format from https://image-net.org/download-images (an account is needed)"
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".tif", ".tiff"}


class DataError(ValueError):
    """A data file that is missing, damaged or of the wrong form; the message names it and where to get it."""


@contextmanager
def _reading(file: object, wanted: str, advice: str = "") -> Iterator[None]:
    """Whatever damaged bytes make a library raise, as a DataError that names the file."""
    advice = advice and f"; {advice}"
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or file}: no such file{advice}") from None
    except DataError as error:
        raise DataError(f"{file}: {error}{advice}") from None
    except Exception as error:
        raise DataError(f"{file}: damaged, not {wanted} ({type(error).__name__}: {error}){advice}") from error


def _labels(labels: Any, n: int, low: int = 0, high: int | None = None) -> np.ndarray:
    """The classes of n examples, int64 from 0, where the file counts them from low to high."""
    y = np.asarray(labels)
    if y.dtype.kind not in "iu" or y.shape != (n,):
        raise DataError(f"expected {n} integer labels, found {y.dtype} of shape {y.shape}")
    if y.min() < low or (high is not None and y.max() > high):
        wanted = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise DataError(f"expected labels {wanted}, found {y.min()} to {y.max()}")
    return y.astype(np.int64) - low


def _images(x: Any, size: int) -> np.ndarray:
    """Colour images of a published batch, which holds one in a row."""
    x = np.asarray(x)
    if x.dtype != np.uint8 or x.ndim != 2 or len(x) == 0 or x.shape[1] != 3 * size**2:
        raise DataError(f"expected data of uint8 and shape (n, {3 * size**2}), found {x.dtype} of shape {x.shape}")
    return x.reshape(-1, 3, size, size)


def _names(split: str, train: list[str], test: list[str]) -> list[str]:
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    return train if split == "train" else test


def _over(name: str, x: np.ndarray, vocab_size: int | None, labels: np.ndarray | None = None, classes: int = 0) -> Dataset:
    """A data set over an array (n, *event_shape), in memory or mapped."""
    return Dataset(name, len(x), x.shape[1:], vocab_size, lambda i: np.asarray(x[i]), labels, classes)


def _count(labels: np.ndarray | None) -> int:
    return 0 if labels is None else int(labels.max()) + 1


def digits() -> Dataset:
    """scikit-learn's 1797 digits, (1, 8, 8), 17 grey levels, 10 classes; embedded in scikit-learn."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return _over("digits", found.images[:, None].astype(np.uint8), 17, _labels(found.target, 1797), 10)


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
    names = _names(split, [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"])
    path, inner, suffix = Path(path), "cifar-10-batches-py", ""
    published = (inner, "cifar-10-python.tar.gz", "cifar-10-batches-bin", "cifar-10-binary.tar.gz")
    path = next((path / name for name in published if (path / name).exists()), path)
    with _reading(path, "an archive of CIFAR-10", CIFAR):
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
        with _reading(file, "a batch of CIFAR-10", CIFAR):
            if suffix:
                table = np.frombuffer(content, np.uint8).reshape(-1, 3073)
                entries = {b"data": table[:, 1:], b"labels": table[:, 0]}
            else:
                entries = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
            images.append(_images(entries[b"data"], 32))
            labels.append(_labels(entries[b"labels"], len(images[-1]), 0, 9))
    return _over(f"cifar10 {split}", np.concatenate(images), 256, np.concatenate(labels), 10)


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
    files = [folder / name for name in _names(split, [f"train_data_batch_{i}.npz" for i in range(1, 11)], ["val_data.npz"])]

    def entry(file: Path, name: str) -> np.ndarray:
        """One array of a batch; the rest stay compressed."""
        with _reading(file, f"a batch of {size}x{size} images", IMAGENET), file.open("rb") as opened:
            found = np.load(opened)[name]
            return _images(found, size) if name == "data" else _labels(found, len(found), 1, 1000)

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
    return _over(f"imagenet{size} {split}", np.load(cache, mmap_mode="r"), 256, np.concatenate(labels), 1000)


def _current(cache: Path, shape: tuple[int, ...], files: list[Path]) -> bool:
    """Whether a cache holds these batches, as far as its form and its age tell."""
    try:
        x = np.load(cache, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    newest = max(file.stat().st_mtime_ns for file in files)
    return x.dtype == np.uint8 and x.shape == shape and cache.stat().st_mtime_ns >= newest


def array(path: str | os.PathLike, layout: str | None = None, vocab_size: int = 256, key: str | None = None) -> Dataset:
    """An array of uint8, or of real numbers (float32 or float64), in a ``.npy`` (memory-mapped) or ``.npz`` file.

    Args:
        path: the file.
        layout: "channels_first", "channels_last" or "none" for (n, height, width) or other events without channels. Left
            out, it is guessed from the one axis of at most 4 at either end of an array of 4 axes.
        vocab_size: how many values integers take; real numbers make a data set whose ``vocab_size`` is None.
        key: which array of an ``.npz``; needed where it holds several. One named "labels" gives the classes.

    Raises:
        DataError: no such file, a damaged one, another dtype, no or several arrays, a layout that cannot be guessed, values
            beyond the vocabulary, real numbers that are not finite or given a vocabulary, labels that are not integers.
    """
    path, labels = Path(path), None
    if layout not in (None, "channels_first", "channels_last", "none"):
        raise ValueError(f"layout: expected 'channels_first', 'channels_last' or 'none', got {layout!r}")
    with _reading(path, "a .npy or .npz file"):
        if path.suffix == ".npz":
            with path.open("rb") as opened, np.load(opened) as found:
                names = [name for name in found.files if name != "labels"]
                if key not in names and (key is not None or len(names) != 1):
                    raise DataError(f"expected one array or a key, found {names} and key {key!r}")
                x = found[key or names[0]]
                labels = _labels(found["labels"], len(x)) if "labels" in found.files else None
        else:
            x = np.load(path, mmap_mode="r")
        real = x.dtype in (np.float32, np.float64)
        if not (real or x.dtype == np.uint8) or x.ndim < 2 or 0 in x.shape:
            wanted = "uint8, float32 or float64 of shape (n, ...)"
            raise DataError(f"expected {wanted}, found {x.dtype} of shape {x.shape}")
        if real and vocab_size != 256:
            raise DataError(f"expected uint8 for a vocab_size of {vocab_size}, found {x.dtype}")
        if real and not np.isfinite(x).all():
            raise DataError(f"expected finite numbers, found {'NaN' if np.isnan(x).any() else 'an infinity'}")
        if layout is None and x.ndim == 4:
            first, last = x.shape[1] <= 4, x.shape[3] <= 4
            if first == last:
                raise DataError(f"channels_first or channels_last? cannot tell from shape {x.shape}; give the layout")
            layout = "channels_first" if first else "channels_last"
        if not real and vocab_size < 256 and x.max() >= vocab_size:
            raise DataError(f"expected values in [0, {vocab_size - 1}], found {x.max()}")
    if layout == "channels_last":
        x = np.moveaxis(x, -1, 1)
    elif layout != "channels_first" and x.ndim == 3:
        x = x[:, None]
    return _over(str(path), x, None if real else vocab_size, labels, _count(labels))


def image_folder(path: str | os.PathLike, size: int | None = None, channels: int | None = 3) -> Dataset:
    """A folder of image files, decoded when they are asked for, in the order of their names; subfolders are classes.

    Args:
        path: the folder, searched through.
        size: if given, images are cropped to their central square and resized to this; else all must be of one size.
        channels: 3 for colour, 1 for grey; None for as each image is.

    Raises:
        DataError: no image in the folder, or one that cannot be read, has more than 8 bits a channel or is of another size.
    """
    folder = Path(path)
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    if not files:
        raise DataError(f"{folder}: expected a folder of images ({', '.join(sorted(SUFFIXES))}), found none")
    groups = [file.relative_to(folder).parts[:-1] for file in files]
    labels = np.unique([group[0] for group in groups], return_inverse=True)[1] if all(groups) else None
    classes = _count(labels)
    return _decoded(str(folder), lambda i: [(files[j], files[j]) for j in i], len(files), size, channels, labels, classes)


def huggingface(
    name: str,
    split: str = "train",
    image: str | None = None,
    label: str | None = None,
    size: int | None = None,
    channels: int | None = None,
) -> Dataset:
    """A data set of Hugging Face's library, by name or as a local path saved by it (extra ``huggingface``).

    Args:
        name: a name of the hub, or a folder that ``save_to_disk`` wrote.
        split: which split.
        image, label: the columns; left out, the first column of images, and "label" if there is one.
        size, channels: as in :func:`image_folder`.

    Raises:
        ImportError: the library is not installed.
        DataError: no such data set, split or column, labels that are not integers, and as in :func:`image_folder`.
    """
    try:
        import datasets
    except ImportError:
        raise ImportError("datasets: needed for Hugging Face data sets; pip install 'purevdm[huggingface]'") from None
    try:
        loaded = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{name}: {error}") from error
    if isinstance(loaded, dict):
        if split not in loaded:
            raise DataError(f"{name}: expected a split {split!r}, found {sorted(loaded)}")
        loaded = loaded[split]
    if not len(loaded):
        raise DataError(f"{name} {split}: expected examples, found none")
    columns = loaded.features
    image = image or next((column for column, kind in columns.items() if isinstance(kind, datasets.Image)), None)
    label = label or ("label" if "label" in columns else None)
    if not isinstance(columns.get(image), datasets.Image) or label not in (None, *columns):
        raise DataError(f"{name}: expected columns of images and labels, got {image!r} and {label!r}, found {columns}")
    labels = None
    if label is not None:
        with _reading(f"{name}, column {label!r}", "labels"):
            labels = _labels(loaded[label][:], len(loaded))
    undecoded = loaded.cast_column(image, datasets.Image(decode=False))

    def fetch(indices: np.ndarray) -> list[tuple[str, Any]]:
        items = zip(indices, undecoded[indices][image], strict=True)
        return [(f"{name}, image {i}", x and (io.BytesIO(x["bytes"]) if x["bytes"] else x["path"])) for i, x in items]

    classes = getattr(columns.get(label), "num_classes", _count(labels))
    return _decoded(f"{name} {split}", fetch, len(loaded), size, channels, labels, classes)


def _decoded(
    name: str,
    fetch: Callable[[np.ndarray], list[tuple[Any, Any]]],
    n: int,
    size: int | None,
    channels: int | None,
    labels: np.ndarray | None,
    classes: int,
) -> Dataset:
    """A data set of image files; ``fetch(indices)`` gives each one's name for messages, and its path or content."""
    if channels not in (None, 1, 3):
        raise ValueError(f"channels: expected 1, 3 or None, got {channels}")

    def pixels(where: Any, file: Any) -> np.ndarray:
        with _reading(where, "an image"), Image.open(file) as opened:
            if opened.mode[0] in "IF" or any(f";16{order}" in str(opened.tile) for order in "BLN"):
                raise DataError(f"expected 8 bits a channel, found more (mode {opened.mode}); convert it beforehand")
            grey = channels == 1 or (channels is None and opened.mode in ("1", "L", "LA"))
            picture = ImageOps.exif_transpose(opened).convert("L" if grey else "RGB")
            if size is not None:
                picture = ImageOps.fit(picture, (size, size), Image.Resampling.BOX)
        x = np.asarray(picture)
        return x[None] if grey else x.transpose(2, 0, 1)

    shape = pixels(*fetch(np.array([0]))[0]).shape

    def take(indices: np.ndarray) -> np.ndarray:
        x = np.empty((len(indices), *shape), np.uint8)
        for row, (where, file) in zip(x, fetch(indices), strict=True):
            found = pixels(where, file)
            if found.shape != shape:
                raise DataError(f"{where}: expected {shape} as the first image, found {found.shape}; give size and channels")
            row[...] = found
        return x

    return Dataset(name, n, shape, 256, take, labels, classes)
