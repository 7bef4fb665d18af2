"""Published data sets: scikit-learn's digits, CIFAR-10, downsampled ImageNet."""

import bz2
import gzip
import json
import lzma
import os
import tarfile
from pathlib import Path

import numpy as np

from purevdm import _files
from purevdm.training.data import Dataset
from readers import npy
from readers._common import DataError, images_of, labels_of, names_of, over, pieces, reading
from readers.pickled import unpickled

CIFAR = "get the python or the binary version of CIFAR-10 from https://www.cs.toronto.edu/~kriz/cifar.html"
IMAGENET = "get the downsampled images in npz format from https://image-net.org/download-images (an account is needed)"


def digits() -> Dataset:
    """Reads scikit-learn's 1797 digits, (1, 8, 8), 17 grey levels, 10 classes; embedded in scikit-learn."""
    from sklearn.datasets import load_digits

    x, labels = load_digits(return_X_y=True)
    return over("digits", x.reshape(-1, 1, 8, 8).astype(np.uint8), 17, labels_of(labels, 1797), 10)


def cifar10(path: str | os.PathLike, split: str = "train") -> Dataset:
    """Reads CIFAR-10 as published, in its python or its binary version.

    Args:
        path: ``cifar-10-python.tar.gz`` or ``cifar-10-binary.tar.gz``, the folder unpacked from it, or the folder that holds
            either.
        split: "train" (50,000) or "test" (10,000).

    Raises:
        DataError: an archive or a batch that is missing or damaged.
    """
    names = names_of(split, [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"])
    path = Path(path)
    published = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar-10-batches-bin", "cifar-10-binary.tar.gz")
    path = next((path / name for name in published if (path / name).exists()), path)
    with reading(path, "an archive of CIFAR-10", CIFAR):
        if path.is_dir():
            binary = any(path.glob("*.bin"))
            batches = {name: _whole(path / (f"{name}.bin" if binary else name)) for name in names}
        else:
            members = _archived(path, names)
            binary = any(name.endswith(".bin") for name in members)
            batches = {name: members.get(f"{name}.bin" if binary else name) for name in names}
            lacking = [name for name, content in batches.items() if content is None]
            if lacking:
                raise DataError(f"damaged, not an archive of CIFAR-10 (no {', '.join(lacking)} in it)")
    images, labels = [], []
    for name, content in batches.items():
        with reading(path / name, "a batch of CIFAR-10", CIFAR):
            if binary:
                table = np.frombuffer(content, np.uint8).reshape(-1, 3073)
                entries = {b"data": table[:, 1:], b"labels": table[:, 0]}
            else:
                entries = unpickled(content)
                if not isinstance(entries, dict):
                    raise DataError(f"expected a dict, found a {type(entries).__name__}")
            images.append(images_of(entries[b"data"], 32))
            labels.append(labels_of(entries[b"labels"], len(images[-1]), 0, 9))
    return over(f"cifar10 {split}", np.concatenate(images), 256, np.concatenate(labels), 10)


BATCH = 1 << 26  # bytes; published ones have less than half


def _whole(file: Path) -> bytes:
    with _files.regular(file).open("rb") as opened:
        content = pieces(opened, BATCH)
    if len(content) > BATCH:
        raise DataError(f"damaged, not a batch of CIFAR-10 ({file.name} has more than {BATCH} bytes)")
    return bytes(content)


def _archived(path: Path, names: list[str]) -> dict[str, bytes]:
    """Reads the batches of an archive, packed or not. It is read to its end, where its checksum is."""
    packed = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
    with path.open("rb") as file:
        start = file.read(2)
    members: dict[str, bytes] = {}
    with packed.get(start, open)(path, "rb") as unpacked:
        with tarfile.open(fileobj=unpacked, mode="r|") as archive:
            for member in archive:
                folder, _, name = member.name.removeprefix("./").partition("/")
                if folder not in ("cifar-10-batches-py", "cifar-10-batches-bin") or name.removesuffix(".bin") not in names:
                    continue
                if name in members or not member.isfile() or member.size > BATCH:
                    raise DataError(f"expected one {name}, a file of at most {BATCH} bytes, found another or more")
                members[name] = archive.extractfile(member).read()
                if len(members[name]) != member.size:
                    raise DataError(f"expected {member.size} bytes of {name}, found {len(members[name])}")
        while unpacked.read(1 << 20):
            pass
    return members


def imagenet(path: str | os.PathLike, size: int, split: str = "train") -> Dataset:
    """Reads ImageNet downsampled to 32 or 64 (Chrabaszcz et al. 2017), in its published npz batches, with 1000 classes.

    The first call writes the images into one uncompressed ``.npy`` beside the batches, which is memory-mapped: only what
    is read is in memory. It is written again when it or a batch is of another size or time than then, as a ``.json`` tells.

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
        folder / f"{name}.npz" for name in names_of(split, [f"train_data_batch_{i}" for i in range(1, 11)], ["val_data"])
    ]

    def entry(file: Path, name: str) -> np.ndarray:
        """Reads one array of a batch; the rest stay compressed."""
        with reading(file, f"a batch of {size}x{size} images", IMAGENET), npy.archive(file) as batch:
            data, labels = batch.header("data"), batch.header("labels")
            if data.dtype != np.uint8 or data.shape[1:] != (3 * size**2,) or not 0 < data.shape[0] <= MOST:
                raise DataError(f"expected data of uint8 and shape (n, {3 * size**2}), found {data}")
            if labels.shape != data.shape[:1]:
                raise DataError(f"expected a label of each of {data.shape[0]} images, found {labels}")
            return images_of(batch[name], size) if name == "data" else labels_of(batch[name], data.shape[0], 1, 1000)

    labels = [entry(file, "labels") for file in files]
    shape = (sum(map(len, labels)), 3, size, size)
    cache = folder / f"imagenet{size}_{split}.npy"
    if not _current(cache, shape, files):
        with _files.replaced(cache) as draft, draft.open("wb") as out:
            np.lib.format.write_array_header_1_0(out, dict(descr="|u1", fortran_order=False, shape=shape))
            for file in files:
                out.write(np.ascontiguousarray(entry(file, "data")))
        with _files.replaced(cache.with_suffix(".json")) as draft:
            draft.write_text(json.dumps(_written_from(cache, files)))
    return over(f"imagenet{size} {split}", npy.mapped(cache), 256, np.concatenate(labels), 1000)


MOST = 1 << 21  # images of a batch; all of ImageNet are fewer


def _written_from(cache: Path, files: list[Path]) -> list[list]:
    """Lists the sizes and times of a cache and its batches, by which they are known again."""
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in (cache, *files)]


def _current(cache: Path, shape: tuple[int, ...], files: list[Path]) -> bool:
    """Says whether a cache was written from just these batches, and nothing happened to either since."""
    try:
        x, source = npy.mapped(cache), json.loads(_files.regular(cache.with_suffix(".json")).read_text())
        return (x.dtype, x.shape) == (np.uint8, shape) and source == _written_from(cache, files)
    except Exception:  # whatever is wrong with it, it is written again
        return False
