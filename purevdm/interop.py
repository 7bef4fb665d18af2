"""Other people's parameters: trees and checkpoints of the official Flax code, to ours and back.

Their arrays are channels last (convolution kernels HWIO), ours channels first (OIHW); dense kernels are (in, out) in
both. Numbers are copied, never computed with, so a round trip is exact.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks
from purevdm.types import Params

__all__ = ["Checkpoint", "from_flax", "load_flax", "to_flax"]

Path_ = tuple[str, ...]

_BLOCK = {"GroupNorm_0": "norm1", "GroupNorm_1": "norm2"} | {
    name: name for name in ("conv1", "conv2", "cond_proj", "nin_shortcut")
}
_ATTENTION = {"GroupNorm_0": "norm"} | {name: name for name in ("q", "k", "v", "proj_out")}
_PARTS = {"block": (_BLOCK, ("resnet",)), "attn": (_ATTENTION, ("attn", "0"))}  # one attention pattern, the first
_TOP = {"GroupNorm_0": "norm_out"} | {name: name for name in ("dense0", "dense1", "conv_in", "conv_out")}


class Checkpoint(NamedTuple):
    """An official checkpoint.

    Attributes:
        step: the training step.
        params: the parameters, as ours.
        ema_params: their exponential moving average, as ours.
    """

    step: int
    params: Params
    ema_params: Params


def _unet_path(path: Path_) -> Path_:
    """Where a leaf of the official ScoreUNet lives in our ``vdm_unet``."""
    head, rest = path[0], path[1:]
    if "." not in head:
        return (_TOP[head], *rest)
    half, name = head.split(".", 1)
    kind, _, index = name.partition("_")
    names, room = _PARTS[kind]
    block = {
        "mid": ("mid", f"block{int(index)}"),
        "down": ("down", "0", str(int(index))),
        "up": ("up", "0", str(int(index))),
    }
    return (*block[half], *room, names[rest[0]], *rest[1:])


def _path_from_flax(path: Path_) -> Path_:
    part, rest = path[0], path[1:]
    if part == "score_model":
        return ("network", *_unet_path(rest))
    return ({"gamma": "schedule", "score_net": "network", "noise_schedule": "schedule"}[part], *rest)


def _path_to_flax(path: Path_, image: bool) -> Path_:
    part, rest = path[0], path[1:]
    if part == "schedule":
        return ("gamma" if image else "noise_schedule", *rest)
    if not image:
        return ("score_net", *rest)
    if rest[0] not in ("down", "mid", "up"):
        return ("score_model", _inverse(_TOP)[rest[0]], *rest[1:])
    half, (index, room, *inner) = rest[0], rest[1:] if rest[0] == "mid" else rest[2:]
    kind = {"resnet": "block", "attn": "attn"}[room]
    names, prefix = _PARTS[kind]
    inner = inner[len(prefix) - 1 :]
    return ("score_model", f"{half}.{kind}_{index.removeprefix('block')}", _inverse(names)[inner[0]], *inner[1:])


def _inverse(names: dict[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in names.items()}


def _leaves(tree: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    if isinstance(tree, Mapping):
        for name, branch in tree.items():
            yield from _leaves(branch, (*path, str(name)))
    else:
        yield path, tree


def _put(tree: Params, path: Path_, leaf: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf


def _tensor(name: str, leaf: Any) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf.clone()
    if hasattr(leaf, "__array__"):
        import numpy  # whoever holds such a leaf has it

        return torch.from_numpy(numpy.array(leaf))
    raise TypeError(f"{name}: expected an array, got {_checks.describe(leaf)}")


def from_flax(tree: Mapping[str, Any]) -> Params:
    """The parameters of the official model (or of its 2D example) as ours.

    Args:
        tree: nested dicts of arrays (NumPy, JAX or torch) with the official names, ``{"params": ...}`` around it or not.

    Returns:
        Parameters for a model of ``networks.vdm_unet`` (of ``networks.mlp``, for the 2D example) with the matching
        schedule. Copies, dtypes kept.

    Raises:
        TypeError, ValueError: a leaf that is no array, or whose path is not one of the official model's.
    """
    if not isinstance(tree, Mapping):
        raise TypeError(f"tree: expected nested dicts of arrays, got {_checks.describe(tree)}")
    if set(tree) == {"params"}:
        tree = tree["params"]
    params: Params = {"network": {}, "schedule": {}}
    for path, leaf in _leaves(tree):
        name = "/".join(path)
        try:
            ours = _path_from_flax(path)
        except (KeyError, IndexError, ValueError):
            raise ValueError(f"tree: expected parameters of the official VDM, got a leaf at {name!r}") from None
        value = _tensor(name, leaf)
        if value.ndim == 4:
            value = value.permute(3, 2, 0, 1).contiguous()
        _put(params, ours, value.reshape(()) if ours in _SCALARS else value)
    if not params["network"]:
        raise ValueError(f"tree: expected the official VDM's score_model or score_net, got {sorted(map(str, tree))}")
    return params


_SCALARS = {("schedule", "w"), ("schedule", "b")}


def to_flax(params: Params) -> dict[str, Any]:
    """Our parameters as the official model's: nested dicts of NumPy arrays. The inverse of :func:`from_flax`.

    Args:
        params: of a model of ``networks.vdm_unet`` or ``networks.mlp``.

    Raises:
        TypeError, ValueError: a leaf that is no tensor, or parameters that have no place in the official model.
    """
    _checks.verify(_checks.finite("params", dict(_leaves(params))))
    tree: dict[str, Any] = {}
    image = "conv_in" in params.get("network", {})
    for path, leaf in _leaves(params):
        try:
            theirs = _path_to_flax(path, image)
        except (KeyError, IndexError):
            raise ValueError(f"params: the official VDM has no place for {'/'.join(path)!r}") from None
        value = leaf.reshape(1) if path in _SCALARS else leaf
        value = value.permute(2, 3, 1, 0) if value.ndim == 4 else value
        _put(tree, theirs, value.detach().cpu().contiguous().numpy())
    return tree


def load_flax(path: str | Path) -> Checkpoint:
    """Reads an official ``.flax`` checkpoint (msgpack), without Flax. Needs the extra ``flax``, which brings msgpack.

    Args:
        path: the file, with the fields ``step``, ``params`` and ``ema_params`` at its top (others are left alone).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a truncated file, one of another format, or one without those fields.
        ImportError: msgpack is not installed.
    """
    try:
        import msgpack
    except ImportError as error:
        raise ImportError("reading .flax files needs msgpack: pip install 'purevdm[flax]'") from error
    data = Path(path).read_bytes()

    def array(payload: bytes) -> Tensor:
        shape, name, raw = msgpack.unpackb(payload, raw=True)
        dtype = getattr(torch, name.decode())
        if len(raw) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of shape {tuple(shape)} has {len(raw)} bytes")
        return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)

    def extension(code: int, payload: bytes) -> Any:
        if code in (1, 3):  # an array; a NumPy scalar, packed like one
            return array(payload)
        return msgpack.ExtType(code, payload)

    try:
        state = msgpack.unpackb(data, ext_hook=extension, raw=False, strict_map_key=False, max_ext_len=2**32 - 1)
    except Exception as error:  # msgpack raises many kinds; each means the same to the caller
        raise ValueError(f"{path}: no whole .flax checkpoint ({error or type(error).__name__})") from error
    missing = [f for f in Checkpoint._fields if not isinstance(state, dict) or f not in state]
    if missing:
        raise ValueError(f"{path}: no VDM checkpoint: without {', '.join(missing)}")
    try:
        step, *trees = (_unchunk(state[field]) for field in Checkpoint._fields)
        return Checkpoint(int(step), *(from_flax(tree) for tree in trees))
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: no VDM checkpoint: {error}") from error


def _unchunk(tree: Any) -> Any:
    """Arrays above a gibibyte are stored in pieces, in a dict with a mark; this joins them."""
    if not isinstance(tree, dict):
        return tree
    if "__msgpack_chunked_array__" in tree:
        shape, chunks = (_in_order(tree[field]) for field in ("shape", "chunks"))
        return torch.cat(chunks).reshape([int(d) for d in shape])
    return {name: _unchunk(branch) for name, branch in tree.items()}


def _in_order(numbered: dict[str, Any]) -> list[Any]:
    return [numbered[str(i)] for i in range(len(numbered))]
