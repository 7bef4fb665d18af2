"""NumPy's own files, .npy and .npz, read by the bytes that are there: a header that lies is refused before anything is
allocated for it, and every checksum of an archive is held."""

import io
import math
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from purevdm import _files
from readers._common import DataError, pieces

HEAD = 1 << 16  # a header is far shorter


class Header(NamedTuple):
    """What an array's header says: its shape, its dtype, whether its first axis is contiguous, and where its bytes start."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int

    @property
    def size(self) -> int:
        """The bytes of header and array."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}"


def header(start: bytes) -> Header:
    """Reads the header that some bytes start with."""
    file = io.BytesIO(start)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise DataError(f"expected version 1.0 or 2.0 of the .npy format, found {version[0]}.{version[1]}")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject or dtype.names is not None or not all(type(n) is int and n >= 0 for n in shape):
        raise DataError(f"expected an array of numbers, found {dtype} of shape {shape}")
    return Header(shape, dtype, fortran, file.tell())


def mapped(path: Path) -> np.ndarray:
    """Maps the array of a .npy file into memory."""
    with _files.regular(path).open("rb") as file:
        head = header(file.read(HEAD))
        size = file.seek(0, 2)
    if size != head.size:
        raise DataError(f"damaged, {size} bytes where {head.size} hold {head}")
    if 0 in head.shape:
        return np.empty(head.shape, head.dtype)
    return np.memmap(path, head.dtype, "r", head.start, head.shape, "F" if head.fortran else "C")


class Archive:
    """The arrays of an .npz file by name."""

    def __init__(self, file: zipfile.ZipFile):
        self.file = file
        self.entries: dict[str, zipfile.ZipInfo] = {}
        for entry in file.infolist():
            name = entry.filename.removesuffix(".npy")
            if name in self.entries:
                raise DataError(f"expected arrays of distinct names, found two named {name!r}")
            self.entries[name] = entry

    def header(self, name: str) -> Header:
        """Reads what an array says of itself; the rest stays compressed."""
        if name not in self.entries:
            raise DataError(f"expected an array named {name!r}, found {list(self.entries)}")
        with self.file.open(self.entries[name]) as opened:
            head = header(opened.read(HEAD))
        size = self.entries[name].file_size
        if head.size != size:
            raise DataError(f"damaged, {size} bytes of {name} where {head.size} hold {head}")
        return head

    def __getitem__(self, name: str) -> np.ndarray:
        head = self.header(name)
        with self.file.open(self.entries[name]) as opened:
            content = pieces(opened, head.size)
        if len(content) != head.size:
            raise DataError(f"damaged, {len(content)} bytes of {name} where {head.size} hold {head}")
        flat = np.frombuffer(content, head.dtype, math.prod(head.shape), head.start)
        return flat.reshape(head.shape, order="F" if head.fortran else "C")


@contextmanager
def archive(path: Path) -> Iterator[Archive]:
    """Opens an .npz file."""
    with path.open("rb") as opened, zipfile.ZipFile(opened) as file:
        opened.seek(-22, 2)
        *_, count, _, _, comment = struct.unpack("<4s4H2LH", opened.read(22))
        if comment or count != len(file.infolist()):  # which zipfile does not hold against what it finds
            raise DataError(f"damaged, {len(file.infolist())} arrays of {count}")
        yield Archive(file)
