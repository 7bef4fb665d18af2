"""The checks of trees of tensors: their leaves' paths, shapes, dtypes, devices, and finite numbers."""

from typing import Any

import optree
import torch
from torch import Tensor

from purevdm._checks import dense, describe, shaped, tensor, together
from purevdm._facts import Fact, plain, readable
from purevdm.types import PyTree

Structure = tuple[tuple[tuple[Any, ...], tuple[int, ...], torch.dtype], ...]
"""The path, the shape and the dtype of each leaf of a tree, in order."""


def structure(tree: PyTree, name: str = "params") -> Structure:
    """Lists the structure of a tree of tensors; ``name`` is what messages call it."""
    if not isinstance(tree, (dict, tuple, list)):
        raise TypeError(f"{name}: expected a tree of tensors, got {describe(tree)}")
    paths, leaves, _ = optree.tree_flatten_with_path(tree)  # type: ignore[arg-type, var-annotated]
    for path, leaf in zip(paths, leaves, strict=True):
        tensor(dotted(name, *path), leaf)
    return tuple((path, tuple(leaf.shape), leaf.dtype) for path, leaf in zip(paths, leaves, strict=True))


def dotted(*path: Any) -> str:
    """Spells a leaf's path, as messages and files do."""
    return ".".join(map(str, path))


def matches(name: str, leaves: dict[tuple[Any, ...], Any], wanted: Structure) -> None:
    """Holds the leaves of a tree against a structure: their paths, shapes and dtypes.

    Raises:
        TypeError, ValueError: a leaf that is missing, surplus, misshapen or of another dtype; it is named by its path.
    """
    for path, shape, dtype in wanted:
        if path not in leaves:
            raise ValueError(f"{name}: expected a leaf {dotted(name, *path)} of shape {shape}, found none")
        leaf = leaves[path]
        # One condition, and no name before it is wanted: a compiler follows every step of this for every leaf.
        if not dense(leaf) or tuple(leaf.shape) != shape or leaf.dtype != dtype:
            shaped(dotted(name, *path), leaf, shape)
            raise TypeError(f"{dotted(name, *path)}: expected {dtype}, got {describe(leaf)}")
    if len(leaves) != len(wanted):
        known = {path for path, _, _ in wanted}
        surplus = next(path for path in leaves if path not in known)
        raise ValueError(f"{name}: expected no leaf {dotted(name, *surplus)}, got {describe(leaves[surplus])}")


def one_device(trees: dict[str, dict[tuple[Any, ...], Any]]) -> torch.device | None:
    """Finds the device that all tensors of some trees are on; the first that is elsewhere than most is named."""
    places = {(name, *path): leaf for name, tree in trees.items() for path, leaf in tree.items() if isinstance(leaf, Tensor)}
    devices = [leaf.device for leaf in places.values()]
    if not devices:
        return None
    if any(device != devices[0] for device in devices):
        device = max(devices, key=devices.count)
        for path, leaf in places.items():
            together(dotted(*path), leaf, device)
    return devices[0]


def finite(name: str, leaves: dict[tuple[Any, ...], Any], dtype: torch.dtype | None = None) -> list[Fact]:
    """Makes one fact of it that every floating-point leaf is finite, in eager mode, and stays so in a dtype that it is cast
    to; the first that is not is named by its path."""
    floats = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, Tensor) and leaf.is_floating_point()}
    for path, leaf in floats.items():
        if not dense(leaf):
            tensor(dotted(name, *path), leaf)
    floats = {path: plain(leaf) for path, leaf in floats.items() if leaf.numel() and readable(leaf)}
    if not floats:
        return []

    def error() -> Exception | None:
        path = next((path for path, value in floats.items() if not value.to(dtype).isfinite().all()), None)
        if path is None:  # a sum of squares that its dtype does not hold
            return None
        value = floats[path]
        infinite = "an infinity" if value.isinf().any() else f"one that {dtype} does not hold"
        got = "NaN" if value.isnan().any() else infinite
        return ValueError(f"{dotted(name, *path)}: expected finite numbers, got {got} in {describe(leaves[path])}")

    norms = torch._foreach_norm([value.to(dtype) for value in floats.values()], 2)  # an eighth of the time of order infinity
    return [Fact(torch.stack([norm.to(norms[0].device) for norm in norms]).isfinite(), error)]
