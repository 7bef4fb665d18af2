"""The IDX format of MNIST, Fashion-MNIST and their kin: arrays of bytes under a header of big-endian sizes."""

import gzip
import math
import os
import re
import struct
from pathlib import Path

import numpy as np

from purevdm.training.data import Dataset
from readers._common import DataError, labels_of, names_of, over, pieces, reading

ADVICE = (
    "get the four files of Fashion-MNIST from Debian's package dataset-fashion-mnist, or those of MNIST from its authors"
)
UBYTE = 8  # the format's code of unsigned bytes


def idx(path: str | os.PathLike, split: str = "train") -> Dataset:
    """Reads MNIST, Fashion-MNIST or another set of that form: grey images of 8 bits with their classes.

    Args:
        path: the folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
            ``t10k-labels-idx1-ubyte``, each plain or gzipped (``.gz``). Their names may be those of Kaggle
            (``train-images.idx3-ubyte``) or EMNIST (``emnist-letters-test-images-idx3-ubyte.gz``). Of a folder with
            several sets, the path goes on with the name of one: ``gzip/emnist-letters``. EMNIST's images are stored
            transposed, and stay so.
        split: "train" or "test" (the files ``t10k-...`` or ``test-...``).

    Raises:
        DataError: a file that is missing, damaged or of another form, or several sets.
    """
    path, names = Path(path), names_of(split, ["train"], ["t10k", "test"])
    x = _array(_file(path, names, "images", 3), 3)
    file = _file(path, names, "labels", 1)
    classes = _array(file, 1)
    with reading(file, "labels", ADVICE):
        labels = labels_of(classes, len(x))
    return over(f"{path.resolve().name} {split}", x[:, None], 256, labels, int(labels.max()) + 1)


def _file(path: Path, names: list[str], what: str, ndim: int) -> Path:
    """Finds the file of a split's images or labels, rather plain than gzipped."""
    folder, chosen = (path, None) if path.is_dir() or not path.parent.is_dir() else (path.parent, path.name)
    form = re.compile(rf"(?:(.+)[-_.])?(?:{'|'.join(names)})-{what}[-.]idx{ndim}-ubyte(?:\.gz)?")
    sets: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir() if folder.is_dir() else ()):
        if (named := form.fullmatch(file.name)) and not file.is_dir() and chosen in (None, named[1]):
            sets.setdefault(named[1] or "", []).append(file)
    if len(sets) > 1:
        raise DataError(f"{folder}: expected one set, found {', '.join(sets)}; give the path of one, {folder / min(sets)}")
    missing = f"{chosen}-" * bool(chosen) + f"{names[0]}-{what}-idx{ndim}-ubyte"
    return min(next(iter(sets.values()), [folder / missing]), key=lambda file: file.suffix == ".gz")


def _array(file: Path, ndim: int) -> np.ndarray:
    with reading(file, "an IDX file", ADVICE), (gzip.open if file.suffix == ".gz" else open)(file, "rb") as opened:
        header = opened.read(4 + 4 * ndim)
        if len(header) < 4 + 4 * ndim:
            raise DataError(f"expected a header of {4 + 4 * ndim} bytes, found {len(header)}")
        zero, kind, axes, *shape = struct.unpack(f">HBB{ndim}I", header)
        if (zero, kind, axes) != (0, UBYTE, ndim) or 0 in shape:
            raise DataError(f"expected unsigned bytes in {ndim} axes, found the header {header.hex(' ')}")
        size = math.prod(shape)
        content = pieces(opened, size)
        if len(content) != size:
            count = "more" if len(content) > size else len(content)
            raise DataError(f"expected {size} bytes of shape {tuple(shape)}, found {count}")
    return np.frombuffer(content, np.uint8).reshape(shape)
