"""What readers share: the error of a bad file, and a data set over an array."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from purevdm.training.data import Dataset


class DataError(ValueError):
    """A data file that is missing, damaged or of the wrong form; the message names it and where to get it."""


@contextmanager
def reading(file: object, form: str, advice: str = "") -> Iterator[None]:
    """Makes a DataError that names the file of whatever damaged bytes make a library raise."""
    advice = advice and f"; {advice}"
    try:
        if isinstance(file, Path) and file.exists() and not (file.is_file() or file.is_dir()):
            raise DataError("expected a regular file, got a pipe, a socket or a device")  # opening one may wait
        yield
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or file}: no such file{advice}") from None
    except DataError as error:
        raise DataError(f"{file}: {error}{advice}") from None
    except Exception as error:
        raise DataError(f"{file}: damaged, not {form} ({type(error).__name__}: {error}){advice}") from error


def pieces(file: BinaryIO, size: int) -> bytearray:
    """Reads so many bytes of a file, or what there are, or one more where there are more.

    They are taken in pieces, so that a size that lies costs no memory which the file does not fill. Of a packed file that is
    read to its end the checksum is right.
    """
    content = bytearray()
    while len(content) <= size and (piece := file.read(min(1 << 20, size + 1 - len(content)))):
        content += piece
    return content


LARGEST = 2**63 - 1  # of int64


def labels_of(labels: Any, n: int, low: int = 0, high: int = LARGEST) -> np.ndarray:
    """Reads the classes of n examples, int64 from 0, where the file counts them from low to high."""
    plain = isinstance(labels, list) and all(isinstance(label, int | float | np.number) for label in labels)
    if not (plain or isinstance(labels, np.ndarray)):  # NumPy would make an array of nested lists, however large
        raise DataError(f"expected {n} integer labels, found a {type(labels).__name__} of something else")
    y = np.asarray(labels)
    if y.dtype.kind not in "iu" or y.shape != (n,):
        raise DataError(f"expected {n} integer labels, found {y.dtype} of shape {y.shape}")
    if y.min() < low or y.max() > high:
        fitting = f"of at least {low}" if high == LARGEST and y.max() <= high else f"from {low} to {high}"
        raise DataError(f"expected labels {fitting}, found {y.min()} to {y.max()}")
    return y.astype(np.int64) - low


def labels_or_none(labels: Any, n: int) -> np.ndarray | None:
    """Reads the same, or None for a split without labels, whose every label is -1 or None."""
    each = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if isinstance(each, list) and len(each) == n and all(y is None or (type(y) is int and y == -1) for y in each):
        return None
    return labels_of(labels, n)


def images_of(x: Any, size: int) -> np.ndarray:
    """Reads colour images of a published batch, which holds one in a row."""
    if not isinstance(x, np.ndarray):
        raise DataError(f"expected data in an array, found a {type(x).__name__}")
    if x.dtype != np.uint8 or x.ndim != 2 or len(x) == 0 or x.shape[1] != 3 * size**2:
        raise DataError(f"expected data of uint8 and shape (n, {3 * size**2}), found {x.dtype} of shape {x.shape}")
    return x.reshape(-1, 3, size, size)


def names_of(split: str, train: list[str], test: list[str]) -> list[str]:
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    return train if split == "train" else test


def over(name: str, x: np.ndarray, vocab_size: int | None, labels: np.ndarray | None = None, classes: int = 0) -> Dataset:
    """Makes a data set over an array (n, *event_shape), in memory or mapped. Its numbers come in this machine's byte order,
    integers as uint8 or int64."""
    integers = np.uint8 if x.dtype in (np.uint8, np.bool_) else np.int64
    dtype = x.dtype.newbyteorder("=") if vocab_size is None else integers
    return Dataset(name, len(x), x.shape[1:], vocab_size, lambda i: np.asarray(x[i], dtype), labels, classes)


def classes_of(labels: np.ndarray | None) -> int:
    return 0 if labels is None else int(labels.max()) + 1
