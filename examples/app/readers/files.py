"""Your own data: arrays, folders of images, Hugging Face."""

import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from purevdm.training.data import Dataset
from readers import npy
from readers._common import DataError, classes_of, labels_or_none, over, reading

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".pnm", ".tif", ".tiff"}
SUFFIXES |= {".jp2", ".j2k", ".avif", ".sgi"}


def array(path: str | os.PathLike, layout: str | None = None, vocab_size: int = 256, key: str | None = None) -> Dataset:
    """Reads an array of integers, or of real numbers (float32 or float64), in a ``.npy`` (memory-mapped) or ``.npz`` file.

    Args:
        path: the file.
        layout: "channels_first", "channels_last" or "none" for (n, height, width), (n, depth, height, width) and others
            without channels, which get one. Left out, arrays of 3 axes have none. Of more axes, the one of at most 4 at
            either end is taken for the channels.
        vocab_size: how many values integers take; booleans take 2. Real numbers make a data set with None for it.
        key: which array of an ``.npz``; needed where it holds several. One named "labels" gives the classes. Labels that
            are all -1 stand for none.

    Raises:
        DataError: no such file, a damaged one, another dtype, no or several arrays, a layout that cannot be guessed, values
            beyond the vocabulary, real numbers that are not finite or given a vocabulary, labels that are not integers.
    """
    path, labels = Path(path), None
    if layout not in (None, "channels_first", "channels_last", "none"):
        raise ValueError(f"layout: expected 'channels_first', 'channels_last' or 'none', got {layout!r}")
    if path.exists() and path.suffix not in (".npy", ".npz"):
        raise DataError(f"{path}: expected a .npy or .npz file, which numpy.save writes")
    with reading(path, "a .npy or .npz file"):
        if path.suffix == ".npz":
            with npy.archive(path) as arrays:
                names = [name for name in arrays.entries if name != "labels"]
                if key not in names and (key is not None or len(names) != 1):
                    raise DataError(f"expected one array or a key, found {names} and key {key!r}")
                x = arrays[key or names[0]]
                labels = labels_or_none(arrays["labels"], len(x)) if "labels" in arrays.entries else None
        else:
            x = npy.mapped(path)
        real = x.dtype.kind == "f" and x.dtype.itemsize in (4, 8)
        if not (real or x.dtype.kind in "biu") or x.ndim < 2 or 0 in x.shape:
            raise DataError(f"expected integers, float32 or float64 of shape (n, ...), found {x.dtype} of shape {x.shape}")
        if vocab_size != 256 and (real or (x.dtype.kind == "b" and vocab_size != 2)):
            raise DataError(f"expected integers for a vocab_size of {vocab_size}, found {x.dtype}")
        if real and not np.isfinite(x).all():
            raise DataError(f"expected finite numbers, found {'NaN' if np.isnan(x).any() else 'an infinity'}")
        if layout is None and x.ndim >= 4:
            first, last = x.shape[1] <= 4, x.shape[-1] <= 4
            if first == last:
                advice = "give the layout ('none' for data without channels, such as volumes)"
                raise DataError(f"channels_first or channels_last? cannot tell from shape {x.shape}; {advice}")
            layout = "channels_first" if first else "channels_last"
        if x.dtype.kind == "b":
            vocab_size = 2
        elif not real and (x.dtype != np.uint8 or vocab_size < 256):
            low, high = int(x.min()), int(x.max())
            if low < 0 or high >= vocab_size:
                fitting, value = f"[0, {vocab_size - 1}]", high if high >= vocab_size else low
                raise DataError(f"expected values in {fitting}, found {value}; vocab_size says how many values there are")
    if layout == "channels_last":
        x = np.moveaxis(x, -1, 1)
    elif layout != "channels_first" and x.ndim >= 3:
        x = x[:, None]
    return over(str(path), x, None if real else vocab_size, labels, classes_of(labels))


def image_folder(
    path: str | os.PathLike, size: int | None = None, channels: int | None = 3, background: int | None = None
) -> Dataset:
    """Reads a folder of image files, decoded when they are asked for, in the order of their names; subfolders are classes.

    Every file's header is read at once, so that one that does not fit is named before training starts.

    Args:
        path: the folder, searched through.
        size: if given, images are cropped to their central square and resized to this; else all must be of one size.
        channels: 1 for grey, 3 for colour, 2 and 4 for these with their opacity; None for grey or colour as each image is.
        background: a grey, 0 to 255, that pictures with transparent pixels are laid on.

    Raises:
        DataError: no image in the folder, or one that cannot be read, has more than 8 bits a channel or is of another size;
            transparent pixels, where neither ``channels`` keeps nor ``background`` fills them.
    """
    folder = Path(path)
    every = (f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    files = sorted(file for file in every if not file.is_dir())  # a pipe is refused, a link to nothing named as missing
    if not files:
        raise DataError(f"{folder}: expected a folder of images ({', '.join(sorted(SUFFIXES))}), found none")
    groups = [file.relative_to(folder).parts[:-1] for file in files]
    labels = np.unique([group[0] for group in groups], return_inverse=True)[1] if all(groups) else None

    def fetch(indices: np.ndarray) -> list[tuple[Any, Any]]:
        return [(files[i], files[i]) for i in indices]

    pixels = Pixels(size, channels, background)
    return _decoded(str(folder), fetch, len(files), pixels, labels, classes_of(labels))


# The channels of the modes that a data set's images may be declared to have.
MODES = {"1": 1, "L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


def huggingface(
    name: str,
    split: str = "train",
    image: str | None = None,
    label: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    background: int | None = None,
) -> Dataset:
    """Reads a data set of Hugging Face's library, by name or as a local path saved by it (extra ``huggingface``).

    Args:
        name: a name of the hub, or a folder that ``save_to_disk`` wrote.
        split: which split.
        image, label: the columns; left out, the first column of images, and "label" if there is one. An empty ``label``
            reads none. Labels that are all -1 or None stand for none.
        size, background: as in :func:`image_folder`.
        channels: as there; left out, as the set's images are declared, by ``Image(mode="L")``, or else as each image is.

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
    loaded = loaded.with_format(None)  # a saved format would make tensors of the columns
    columns = loaded.features
    image = image or next((column for column, kind in columns.items() if isinstance(kind, datasets.Image)), None)
    label = label if label is not None else "label" if "label" in columns else ""
    if not isinstance(columns.get(image), datasets.Image) or label not in ("", *columns):
        raise DataError(f"{name}: expected columns of images and labels, got {image!r} and {label!r}, found {columns}")
    labels = None
    if label:
        with reading(f"{name}, column {label!r}", "labels", "an empty label reads none"):
            labels = labels_or_none(loaded[label][:], len(loaded))
    mode = columns[image].mode
    if channels is None and mode is not None:
        if mode not in MODES:
            raise DataError(f"{name}: expected images of a mode of {', '.join(MODES)}, found {mode!r}; give the channels")
        channels = MODES[mode]
    undecoded = loaded.cast_column(image, datasets.Image(decode=False))

    def fetch(indices: np.ndarray) -> list[tuple[Any, Any]]:
        items = zip(indices, undecoded[indices][image], strict=True)
        return [(f"{name}, image {i}", x and (io.BytesIO(x["bytes"]) if x["bytes"] else x["path"])) for i, x in items]

    classes = 0 if labels is None else getattr(columns[label], "num_classes", classes_of(labels))
    return _decoded(f"{name} {split}", fetch, len(loaded), Pixels(size, channels, background), labels, classes)


# Formats of at most 8 bits a channel, as far as Pillow reads them. PNG, TIFF and PPM say their depth; others are refused.
EIGHT = {"BMP", "DIB", "GIF", "JPEG", "MPO", "MSP", "PCX", "PSD", "QOI", "SUN", "TGA", "WEBP", "XBM"}
START = 1 << 16  # bytes that hold a header


def _depth(opened: Image.Image, file: Any) -> int | None:
    """Reads the bits of a picture's channels, of which Pillow leaves 8 without a word; None where they are unknown."""
    if opened.format in EIGHT:
        return 8
    if opened.format == "TIFF":
        if not {*opened.tag_v2.get(339, (1,))} <= {1, 4}:
            raise DataError("expected unsigned integers, found signed ones; convert it beforehand")
        if opened.tag_v2.get(277, 1) > len(opened.getbands()):
            raise DataError(f"expected {len(opened.getbands())} channels, found {opened.tag_v2[277]}; convert it beforehand")
        return max(opened.tag_v2.get(258, (1,)))
    at = file.tell()
    file.seek(0)
    content = file.read(START)
    file.seek(at)
    if opened.format == "PNG":
        return max(8, content[24])
    if opened.format == "PPM":
        gap = rb"(?:\s|#[^\r\n]*[\r\n])+"
        largest = re.match(rb"P[2356]%b\d+%b\d+%b(\d+)" % (gap, gap, gap), content)
        return int(largest[1]).bit_length() if largest else 1 if content[:2] in (b"P1", b"P4") else None
    return None


class Pixels(NamedTuple):
    """How files become pixels: settings of :func:`image_folder`."""

    size: int | None
    channels: int | None
    background: int | None

    def check(self) -> None:
        if self.channels not in (None, 1, 2, 3, 4):
            raise ValueError(f"channels: expected 1, 2, 3, 4 or None, got {self.channels}")
        if self.size is not None and (type(self.size) is not int or self.size < 1):
            raise ValueError(f"size: expected an integer of at least 1 or None, got {self.size!r}")
        if self.background is not None and (type(self.background) is not int or not 0 <= self.background <= 255):
            raise ValueError(f"background: expected an integer from 0 to 255 or None, got {self.background!r}")

    @contextmanager
    def opened(self, where: Any, source: Any) -> Iterator[tuple[Image.Image, str]]:
        """Opens a picture that is fit to be read, and says the mode that its pixels are to have."""
        with reading(where, "an image"), _bounded(), _file(source) as file, Image.open(file) as picture:
            if getattr(picture, "n_frames", 1) != 1:
                raise DataError(f"expected one picture, found {picture.n_frames} of an animation; convert it beforehand")
            depth = 16 if picture.mode[0] in "IF" else _depth(picture, file)
            if depth is None:
                raise DataError(f"expected a format whose depth is known, found {picture.format}; convert it beforehand")
            if depth > 8:
                raise DataError(f"expected 8 bits a channel, found more (mode {picture.mode}); convert it beforehand")
            grey = self.channels in (1, 2) or (self.channels is None and picture.mode in ("1", "L", "LA"))
            yield picture, ("L" if grey else "RGB") + "A" * (self.channels in (2, 4))

    def shape(self, where: Any, source: Any) -> tuple[int, ...]:
        """Returns the shape of a picture's pixels; they are read only where its header does not say enough."""
        with self.opened(where, source) as (picture, mode):
            turned = {"exif", "xmp", "XML:com.adobe.xmp"} & {*picture.info} or picture.format == "TIFF"
            if not (_transparent(picture) or (turned and picture.getexif().get(0x0112, 1) != 1)):
                return len(mode), *((picture.height, picture.width) if self.size is None else (self.size, self.size))
        return self.pixels(where, source).shape

    def pixels(self, where: Any, source: Any) -> np.ndarray:
        """Reads a picture's pixels, (channels, height, width)."""
        with self.opened(where, source) as (picture, mode):
            picture = ImageOps.exif_transpose(picture)
            if _transparent(picture) and not mode.endswith("A"):
                picture = picture.convert("RGBA")
                if self.background is not None:
                    behind = Image.new("RGBA", picture.size, (self.background,) * 3 + (255,))
                    picture = Image.alpha_composite(behind, picture)
                elif picture.getextrema()[3][0] < 255:
                    advice = "give a background (0 to 255) to lay them on, or 2 or 4 channels to keep their opacity"
                    raise DataError(f"expected an opaque picture, found transparent pixels; {advice}")
            picture = picture.convert(mode)
            if self.size is not None:
                picture = ImageOps.fit(picture, (self.size, self.size), Image.Resampling.BOX)
        x = np.asarray(picture)
        return x[None] if x.ndim == 2 else x.transpose(2, 0, 1)


def _transparent(picture: Image.Image) -> bool:
    """Says whether a picture's pixels may be transparent."""
    return picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info


@contextmanager
def _file(source: Any) -> Iterator[BinaryIO]:
    """Opens a file's content at its start."""
    if isinstance(source, io.BytesIO):
        source.seek(0)
        yield source
    else:
        with open(source, "rb") as file:
            yield file


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
    pixels: Pixels,
    labels: np.ndarray | None,
    classes: int,
) -> Dataset:
    """Makes a data set of image files; ``fetch(indices)`` gives each one's name for messages, and its path or content."""
    pixels.check()
    shape: tuple[int, ...] = ()

    def fits(where: Any, own: tuple[int, ...]) -> None:
        if own != shape:
            raise DataError(f"{where}: expected {shape} as the first image, found {own}; give size and channels")

    for start in range(0, n, 64):
        for where, source in fetch(np.arange(start, min(n, start + 64))):
            own = pixels.shape(where, source)
            shape = shape or own
            fits(where, own)

    def take(indices: np.ndarray) -> np.ndarray:
        x = np.empty((len(indices), *shape), np.uint8)
        for row, (where, source) in zip(x, fetch(indices), strict=True):
            own = pixels.pixels(where, source)
            fits(where, own.shape)
            row[...] = own
        return x

    return Dataset(name, n, shape, 256, take, labels, classes)
