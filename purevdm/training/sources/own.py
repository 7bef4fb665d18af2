"""One's own data: folders of images, arrays, Hugging Face."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from purevdm import _checks
from purevdm.training.data import Dataset
from purevdm.training.sources._common import DataError, in_memory

__all__ = ["array", "huggingface", "image_folder"]

BOX = 4  # PIL.Image.Resampling.BOX
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".tif", ".tiff"}


def _pixels(picture: Any, size: int | None) -> np.ndarray:
    """A PIL image as (channels, height, width), cropped to its central square and resized where a size is given."""
    if size is not None:
        side = min(picture.size)
        left, top = ((length - side) // 2 for length in picture.size)
        picture = picture.crop((left, top, left + side, top + side)).resize((size, size), BOX)
    x = np.asarray(picture)
    return x[None] if x.ndim == 2 else x.transpose(2, 0, 1)


def image_folder(path: str | os.PathLike, size: int | None = None, channels: int = 3) -> Dataset:
    """A folder of image files, read when they are asked for, in the order of their names; subfolders are classes.

    Args:
        path: the folder, searched through.
        size: if given, images are cropped to their central square and resized to this; else all must be of one size.
        channels: 3 for colour, 1 for grey.

    Raises:
        DataError: no folder, no image in it, an image that cannot be read or is of another size.
    """
    from PIL import Image, UnidentifiedImageError

    folder = Path(path)
    if channels not in (1, 3):
        raise ValueError(f"channels: expected 1 or 3, got {channels}")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{folder}: expected a folder of images ({', '.join(sorted(SUFFIXES))}), found none")

    def read(file: Path) -> np.ndarray:
        try:
            with Image.open(file) as image:
                converted = image.convert("RGB" if channels == 3 else "L")
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{file}: damaged, not an image ({error})") from None
        return _pixels(converted, size)

    shape = read(files[0]).shape

    def take(indices: np.ndarray) -> np.ndarray:
        images = [read(files[i]) for i in indices]
        for i, image in zip(indices, images, strict=True):
            if image.shape != shape:
                raise DataError(
                    f"{files[i]}: expected {shape} as {files[0]} is, got {image.shape}; give a size to resize to"
                )
        return np.stack(images) if images else np.zeros((0, *shape), np.uint8)

    groups = [file.parent.relative_to(folder).parts[:1] for file in files]
    names = {name: i for i, name in enumerate(sorted({group[0] for group in groups if group}))}
    labels = np.array([names[g[0]] for g in groups], np.int64) if names and all(groups) else None
    return Dataset(str(folder), len(files), shape, 256, take, labels, len(names) if labels is not None else 0)


def array(path: str | os.PathLike, layout: str | None = None, vocab_size: int = 256, key: str | None = None) -> Dataset:
    """An array of uint8 in a ``.npy`` (memory-mapped) or ``.npz`` file.

    Args:
        path: the file.
        layout: "channels_first", "channels_last" or "none" for (n, height, width) or other events without channels. Left
            out, it is guessed from the one axis of at most 4 at either end of an array of 4 axes.
        vocab_size: how many values the data take.
        key: which array of an ``.npz``; needed where it holds several. One named "labels" gives the classes.

    Raises:
        DataError: no such file, a damaged one, another dtype, no or several arrays, a layout that cannot be guessed, values
            beyond the vocabulary.
    """
    path = Path(path)
    try:
        labels = None
        if path.suffix == ".npz":
            with path.open("rb") as opened, np.load(opened) as loaded:
                names = [name for name in loaded.files if name != "labels"]
                if key is None and len(names) != 1:
                    raise DataError(f"{path}: expected one array or a key, found {names}")
                if key is not None and key not in names:
                    raise DataError(f"{path}: expected an array {key!r}, found {names}")
                x = loaded[key or names[0]]
                labels = loaded["labels"] if "labels" in loaded.files else None
        else:
            x = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: damaged, not a .npy or .npz file ({error})") from None
    if x.dtype != np.uint8 or x.ndim < 2 or 0 in x.shape:
        raise DataError(f"{path}: expected uint8 of shape (n, ...), got {x.dtype} of shape {x.shape}")
    if layout is None:
        ends = [x.ndim == 4 and x.shape[axis] <= 4 for axis in (1, 3)]
        if x.ndim == 4 and ends[0] == ends[1]:
            raise DataError(f"{path}: channels_first or channels_last? cannot tell from shape {x.shape}; give the layout")
        layout = "none" if x.ndim != 4 else "channels_first" if ends[0] else "channels_last"
    _checks.choice("layout", layout, ("channels_first", "channels_last", "none"))
    if layout == "channels_last":
        x = np.moveaxis(x, -1, 1)
    elif layout == "none" and x.ndim == 3:
        x = x[:, None]
    most = max(int(x[i : i + 4096].max()) for i in range(0, len(x), 4096))
    if most >= vocab_size:
        raise DataError(f"{path}: expected values in [0, {vocab_size - 1}], found {most}")
    return in_memory(str(path), x, vocab_size, labels)


def huggingface(
    name: str, split: str = "train", image: str | None = None, label: str | None = None, size: int | None = None
) -> Dataset:
    """A data set of Hugging Face's library, by name or as a local path saved by it (extra ``huggingface``).

    Args:
        name: a name of the hub, or a folder that ``save_to_disk`` wrote.
        split: which split.
        image, label: the columns; left out, the first column of images, and "label" if there is one.
        size: as in :func:`image_folder`.

    Raises:
        ImportError: the library is not installed.
        DataError: no such split or column, or images of different sizes.
    """
    try:
        import datasets
    except ImportError:
        raise ImportError("datasets: needed for Hugging Face data sets; pip install 'purevdm[huggingface]'") from None
    loaded = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    if isinstance(loaded, (datasets.DatasetDict, dict)):
        if split not in loaded:
            raise DataError(f"{name}: expected a split {split!r}, found {sorted(loaded)}")
        loaded = loaded[split]
    images = [column for column, feature in loaded.features.items() if isinstance(feature, datasets.Image)]
    image = image or (images[0] if images else None)
    if image not in loaded.features:
        raise DataError(f"{name}: expected a column of images, found {sorted(loaded.features)}")
    label = label or ("label" if "label" in loaded.features else None)

    def read(item: Any) -> np.ndarray:
        return _pixels(item if item.mode == "L" else item.convert("RGB"), size)

    shape = read(loaded[0][image]).shape

    def take(indices: np.ndarray) -> np.ndarray:
        found = [read(item) for item in loaded[indices][image]]
        for i, x in zip(indices, found, strict=True):
            if x.shape != shape:
                raise DataError(f"{name}: expected {shape} as the first image is, got {x.shape} at {i}; give a size")
        return np.stack(found) if found else np.zeros((0, *shape), np.uint8)

    labels = None if label is None else np.asarray(loaded[label], np.int64)
    return Dataset(f"{name} {split}", len(loaded), shape, 256, take, labels, 0 if labels is None else int(labels.max()) + 1)
