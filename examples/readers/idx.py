"""The IDX format of MNIST, Fashion-MNIST and their kin: arrays of bytes under a header of big-endian sizes."""

import gzip
import math
import os
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
    """MNIST, Fashion-MNIST or another set of that form: grey images of 8 bits with their classes.

    Args:
        path: the folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
            ``t10k-labels-idx1-ubyte``, each plain or gzipped (``.gz``).
        split: "train" or "test" (the files ``t10k-...``).

    Raises:
        DataError: a file that is missing, damaged or of another form.
    """
    folder, (name,) = Path(path), names_of(split, ["train"], ["t10k"])
    x = _array(_found(folder, f"{name}-images-idx3-ubyte"), 3)
    file = _found(folder, f"{name}-labels-idx1-ubyte")
    found = _array(file, 1)
    with reading(file, "labels", ADVICE):
        labels = labels_of(found, len(x))
    return over(f"{folder.resolve().name} {split}", x[:, None], 256, labels, int(labels.max()) + 1)


def _found(folder: Path, name: str) -> Path:
    """The file, plain or gzipped."""
    plain = folder / name
    return plain if plain.exists() else folder / f"{name}.gz"


def _array(file: Path, ndim: int) -> np.ndarray:
    """The array of a file."""
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
            found = "more" if len(content) > size else f"{len(content)}"
            raise DataError(f"expected {size} bytes of shape {tuple(shape)}, found {found}")
    return np.frombuffer(content, np.uint8).reshape(shape)
