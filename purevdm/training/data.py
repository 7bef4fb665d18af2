"""Data for training: integers or real numbers, in an order that is a pure function of a key and the step.

A :class:`Dataset` gives any rows by index, from memory, a memory map, or files read when they are asked for;
``examples/app/readers`` makes them of published and of your own data. Needs NumPy (extra ``train``).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm.types import Key

__all__ = ["Dataset", "augment", "batch", "rows", "split"]


class Dataset(NamedTuple):
    """Examples by index.

    Attributes:
        name: for messages.
        size: how many.
        event_shape: the shape of one, channels first.
        vocab_size: their values are integers in [0, vocab_size), or real numbers where it is None.
        take: ``take(indices) -> x``: an int64 array of indices to (n, *event_shape), uint8 or int64, or for real numbers
            float32 or float64.
        labels: the class of each, int64 (size,), or None.
        classes: how many classes, 0 without labels.
    """

    name: str
    size: int
    event_shape: tuple[int, ...]
    vocab_size: int | None
    take: Callable[[np.ndarray], np.ndarray]
    labels: np.ndarray | None = None
    classes: int = 0


@functools.lru_cache(maxsize=4)
def _permutation(words: tuple[int, int], epoch: int, n: int) -> np.ndarray:
    key = torch.tensor(words, dtype=torch.int32, device="cpu")
    return random.permutation(random.fold_in(key, epoch), n).numpy()


def rows(key: Key, n: int, step: int, batch: int) -> np.ndarray:
    """Returns the indices of a step's batch: passes over all n in a fresh order each, with no gap between them.

    Epoch e has the order ``permutation(fold_in(key, e), n)``, and step i takes the positions i * batch to (i + 1) * batch of
    the endless sequence of epochs.

    Raises:
        TypeError, ValueError: a key of the wrong form, n or batch below 1, a step that is negative or beyond 2**32 epochs.
    """
    _checks.key("key", key)
    n, batch = _checks.integer("n", n, 1), _checks.integer("batch", batch, 1, 2**31 - 1)
    step = _checks.integer("step", step, 0, 2**32 * n // batch - 1)
    words = tuple(key.tolist())
    epochs, positions = np.divmod(np.arange(step * batch, (step + 1) * batch), n)
    return np.concatenate([_permutation(words, int(e), n)[positions[epochs == e]] for e in np.unique(epochs)])


def batch(data: Dataset, indices: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor | None]:
    """Returns rows of a data set as tensors: x, (n, *event_shape) in the data's dtype, and the labels, int64 (n,), or None.

    Raises:
        TypeError, ValueError: indices that are not an array of integers in [0, size), no such device, or data or labels that
            are masked or of another shape than the data set says.
    """
    _checks.instance("data", data, Dataset, "a purevdm.training.data.Dataset")
    device = _checks.device("device", device)
    if not isinstance(indices, np.ndarray) or indices.dtype.kind not in "iu" or indices.ndim != 1:
        raise TypeError(f"indices: expected an array of integers, (n,), got {_checks.describe(indices)}")
    if indices.size and not (indices.min() >= 0 and indices.max() < data.size):
        raise ValueError(f"indices: expected them in [0, {data.size - 1}], got {indices.min()} to {indices.max()}")
    x = _tensor("data.take", data.take(indices), (len(indices), *data.event_shape))
    labels = None if data.labels is None else _tensor("data.labels", data.labels[indices], indices.shape).to(device)
    return x.to(device), labels


def _tensor(name: str, x: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """Makes a tensor of an array, if it is of this shape and nothing in it is masked."""
    if np.ma.is_masked(x):
        raise TypeError(f"{name}: expected a plain array, got a masked one; fill it, or leave out what is masked")
    if np.shape(x) != shape:
        raise ValueError(f"{name}: expected the shape {shape}, channels first, got {np.shape(x)}")
    return torch.from_numpy(np.ascontiguousarray(x, x.dtype.newbyteorder("=")))


def augment(keys: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Flips and turns square images at random, as the official ``cifar10_aug`` does it.

    Each image is flipped left to right with probability 1/2, and then turned by 90, 180 or 270 degrees with probability 1/2.
    A network that sees the flag learns to tell the true distribution from the wider one: the bound is that of the flag 0.

    Args:
        keys: a key for each image, (B, 2): ``random.split(key, B)``, or the rows of these images of a larger split.
        x: (B, channels, size, size), B at least 1.

    Returns:
        The images, and the flags, float32 (B,): 1 where changed.

    Raises:
        TypeError, ValueError: keys that are not one for each image, images that are not square, or none.
    """
    if _checks.tensor("x", x).ndim != 4 or x.shape[2] != x.shape[3] or not len(x):
        raise ValueError(f"x: expected square images (B, channels, size, size), got {_checks.describe(x)}")
    _checks.together("keys", _checks.alike("keys", keys, (x.shape[0], 2), torch.int32), x.device)

    def draw(key: Key) -> tuple[Tensor, Tensor]:
        k_flip, k_turn, k_by = random.split(key, 3).unbind(0)
        turns = random.randint(k_by, (), 1, 4) * random.bernoulli(k_turn, 0.5, ())
        return random.bernoulli(k_flip, 0.5, ()), turns

    flip, turns = torch.func.vmap(draw)(keys)
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    turned = torch.stack([x.rot90(k, (-2, -1)) for k in range(4)])
    x = turned[turns, torch.arange(x.shape[0], device=x.device)]
    return x, (flip | (turns > 0)).to(torch.float32)


def split(data: Dataset, key: Key, held_out: int) -> tuple[Dataset, Dataset]:
    """Splits a data set in two by a key: all but ``held_out`` examples, and those.

    Raises:
        ValueError: as many held out as there are, or more.
    """
    _checks.instance("data", data, Dataset, "a purevdm.training.data.Dataset")
    if _checks.integer("held_out", held_out, 1) >= data.size:
        raise ValueError(f"held_out: expected fewer than the {data.size} examples of {data.name}, got {held_out}")
    order = random.permutation(_checks.key("key", key), data.size).numpy()

    def part(name: str, chosen: np.ndarray) -> Dataset:
        labels = None if data.labels is None else data.labels[chosen]
        take = data.take
        return data._replace(name=name, size=len(chosen), take=lambda i: take(chosen[i]), labels=labels)

    return part(f"{data.name} train", order[held_out:]), part(f"{data.name} test", order[:held_out])
