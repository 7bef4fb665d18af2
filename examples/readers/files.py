"""Your own data: arrays, folders of images, Hugging Face."""

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from purevdm.training.data import Dataset
from readers import npy
from readers._common import DataError, classes_of, labels_of, over, reading

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".tif", ".tiff"}


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
    with reading(path, "a .npy or .npz file"):
        if path.suffix == ".npz":
            with npy.archive(path) as found:
                names = [name for name in found.entries if name != "labels"]
                if key not in names and (key is not None or len(names) != 1):
                    raise DataError(f"expected one array or a key, found {names} and key {key!r}")
                x = found[key or names[0]]
                labels = labels_of(found["labels"], len(x)) if "labels" in found.entries else None
        else:
            x = npy.mapped(path)
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
    return over(str(path), x, None if real else vocab_size, labels, classes_of(labels))


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
    classes = classes_of(labels)
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
        with reading(f"{name}, column {label!r}", "labels"):
            labels = labels_of(loaded[label][:], len(loaded))
    undecoded = loaded.cast_column(image, datasets.Image(decode=False))

    def fetch(indices: np.ndarray) -> list[tuple[str, Any]]:
        items = zip(indices, undecoded[indices][image], strict=True)
        return [(f"{name}, image {i}", x and (io.BytesIO(x["bytes"]) if x["bytes"] else x["path"])) for i, x in items]

    classes = getattr(columns.get(label), "num_classes", classes_of(labels))
    return _decoded(f"{name} {split}", fetch, len(loaded), size, channels, labels, classes)


@contextmanager
def _bounded() -> Iterator[None]:
    """Pillow refuses images that unpack to far more pixels than photographs have; here, where it warns, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


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
        with reading(where, "an image"), _bounded(), Image.open(file) as opened:
            if getattr(opened, "n_frames", 1) != 1:
                raise DataError(f"expected one picture, found {opened.n_frames} of an animation; convert it beforehand")
            if opened.mode[0] in "IF" or any(f";16{order}" in str(opened.tile) for order in "BLN"):
                raise DataError(f"expected 8 bits a channel, found more (mode {opened.mode}); convert it beforehand")
            grey = channels == 1 or (channels is None and opened.mode in ("1", "L", "LA"))
            picture = ImageOps.exif_transpose(opened).convert("L" if grey else "RGB")
            if size is not None:
                picture = ImageOps.fit(picture, (size, size), Image.Resampling.BOX)
        x = np.asarray(picture)
        return x[None] if grey else x.transpose(2, 0, 1)

    if size is not None and (type(size) is not int or size < 1):
        raise ValueError(f"size: expected an integer of at least 1 or None, got {size!r}")
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
