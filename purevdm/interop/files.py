"""Parameters as a safetensors file: leaves by their paths joined by dots. Needs safetensors (extra ``train``)."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import optree
import torch
from torch import Tensor

from purevdm import _checks, _files, _spread, _trees
from purevdm.interop.flax import DTYPES
from purevdm.types import Params

__all__ = ["load_params", "save_params"]

FORMAT = "parameters 1"
DEEPEST = 100  # dicts that a file may nest


def save_params(path: str | os.PathLike, params: Params) -> None:
    """Writes parameters as one safetensors file, whole or not at all: a file or a link of that name is replaced at the end.

    Any program that reads safetensors finds each leaf by its path joined by dots, ``network.dense1.kernel``. The metadata
    hold what the leaves do not say: which dicts are empty, and a SHA-256 of names, dtypes, shapes and numbers.

    Args:
        path: the file; its folder is made if it is not there.
        params: nested dicts of tensors, of any device. Dtypes are kept.

    Raises:
        TypeError, ValueError: a node that is neither a dict nor a dense tensor of a plain dtype, or a key that is not text,
            is empty, or holds a dot; it is named, and nothing is written. Sharded leaves.
        IsADirectoryError: the path is a folder.
        ImportError: safetensors is not installed.

    >>> import tempfile, torch
    >>> from purevdm import interop
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     interop.save_params(f"{folder}/params.safetensors", {"network": {"w": torch.ones(2)}, "schedule": {}})
    ...     interop.load_params(f"{folder}/params.safetensors")
    {'network': {'w': tensor([1., 1.])}, 'schedule': {}}
    """
    path, named, empty = _checks.path("path", path), dict[str, Tensor](), list[str]()
    _flatten(_checks.instance("params", params, dict, "nested dicts of tensors"), (), named, empty)
    if _spread.sharded(named):
        raise ValueError("params: expected whole leaves, got sharded ones; purevdm.parallel.whole makes them whole")
    leaves = _files.plain(named)
    metadata = {"format": "pt", "purevdm": FORMAT, "empty": json.dumps(empty), "sha256": _digest(leaves, empty)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with _files.replaced(path) as draft:
        _files.save(draft, leaves, metadata)


def _flatten(tree: Any, path: tuple[str, ...], leaves: dict[str, Tensor], empty: list[str]) -> None:
    name = _trees.dotted("params", *path)
    if isinstance(tree, Tensor):
        if tree.dtype not in DTYPES.values() or tree.layout != torch.strided or tree.is_meta:
            raise TypeError(f"{name}: expected a dense tensor of one of {', '.join(DTYPES)}, got {_checks.describe(tree)}")
        leaves[_trees.dotted(*path)] = tree
    elif not isinstance(tree, dict):
        raise TypeError(f"{name}: expected a dict or a tensor, got {_checks.describe(tree)}")
    elif not tree:
        empty.append(_trees.dotted(*path))
    else:
        for key, branch in tree.items():
            if not isinstance(key, str):
                raise TypeError(f"{name}: expected keys that are text, got {_checks.describe(key)}")
            if not key or "." in key or key == "__metadata__":  # the last is the file format's own
                raise ValueError(f"{name}: expected keys without dots, not empty and not '__metadata__', got {key!r}")
            _flatten(branch, (*path, key), leaves, empty)


def _digest(leaves: dict[str, Tensor], empty: list[str]) -> str:
    digest = hashlib.sha256(json.dumps(empty).encode())
    for name, leaf in sorted(leaves.items()):
        digest.update(f"{name} {leaf.dtype} {tuple(leaf.shape)}".encode())
        digest.update(leaf.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def load_params(path: str | os.PathLike, like: Params | None = None, device: str | torch.device = "cpu") -> Params:
    """Reads what :func:`save_params` wrote: nested dicts of tensors, bit for bit what they were.

    Args:
        path: the file.
        like: parameters, or what ``model.init`` gives, on any device, meta included: the file must hold their leaves, shapes
            and dtypes, which its header tells before anything is read. None takes what there is.
        device: where to.

    Raises:
        FileNotFoundError: no such file.
        TypeError, ValueError: a damaged file, one that :func:`save_params` did not write, or a leaf that is missing,
            surplus, or of another shape or dtype than in ``like``. File and leaf are named.
        ImportError: safetensors is not installed.
    """
    path, device = _checks.path("path", path), _checks.device("device", device)
    if like is not None:
        structure = _trees.structure(_checks.instance("like", like, dict, "nested dicts of tensors"), "like")
    shapes, metadata = _files.load(path, "meta")
    if metadata.get("purevdm") != FORMAT:
        raise ValueError(f"{path}: expected 'purevdm': {FORMAT!r} in its metadata, as save_params writes it, got {metadata}")
    damaged = ValueError(f"{path}: damaged (its SHA-256 is not the one in its metadata)")
    try:
        empty = json.loads(metadata["empty"])
    except (KeyError, ValueError, RecursionError):
        raise damaged from None
    if not (isinstance(empty, list) and all(isinstance(name, str) for name in empty)):
        raise damaged
    if like is not None:  # before room is made for any number
        try:
            _trees.matches("params", _checks.leaves(_nested(path, shapes, empty)), structure)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: of another model: {error}") from None
    leaves, again = _files.load(path)
    if again != metadata:  # another process replaced the file
        return load_params(path, like, device)
    if _digest(leaves, empty) != metadata.get("sha256"):
        raise damaged
    leaves = {name: leaf.to(device) for name, leaf in leaves.items()}
    if like is None:
        return _nested(path, leaves, empty)
    return optree.tree_map_with_path(lambda p, _: leaves[_trees.dotted(*p)], like)  # type: ignore[arg-type, return-value]


def _nested(path: Path, leaves: dict[str, Tensor], empty: list[str]) -> Params:
    """Nests leaves by their dotted paths."""
    params: Params = {}
    for name in sorted([*leaves, *filter(None, empty)]):
        *nodes, last = name.split(".")
        node: Any = params
        for key in nodes:
            node = node.setdefault(key, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last in node or len(nodes) > DEEPEST:
            raise ValueError(f"{path}: expected one leaf at each path, of at most {DEEPEST} dicts, got {name[:80]!r}")
        node[last] = leaves.get(name, {})
    return params
