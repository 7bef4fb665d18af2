"""Parameters of the official Flax code, as trees and checkpoints, converted to ours and back.

Their arrays are channels last (convolution kernels HWIO), ours channels first (OIHW). Dense kernels are (in, out) in both.
Numbers are copied and never computed with, so a round trip is exact.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, _facts, _files, _trees
from purevdm.interop import _mulan
from purevdm.types import Params

__all__ = ["Checkpoint", "from_flax", "load_flax", "to_flax"]


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


# Names. Each rule pairs an official path with ours; # stands for a number, the same in both.


def _layers(theirs: str, ours: str, same: str, **others: str) -> list[tuple[str, str]]:
    """Lists the rules of layers: those of the same name, and official names with ours."""
    rules = []
    for name, own in {**{name: name for name in same.split()}, **others}.items():
        kernel = "scale" if name.startswith("GroupNorm") else "kernel"
        for leaf in (kernel,) if name == "cond_proj" else (kernel, "bias"):
            rules.append((f"{theirs}/{name}/{leaf}", f"{ours}/{own}/{leaf}"))
    return rules


_IMAGE = _layers("score_model", "network", "dense0 dense1 conv_in conv_out", GroupNorm_0="norm_out")
for _half, _ours in (("down", "down/0/#"), ("mid", "mid/block#"), ("up", "up/0/#")):
    _theirs, _norms = f"score_model/{_half}", dict(GroupNorm_0="norm1", GroupNorm_1="norm2")
    _IMAGE += _layers(f"{_theirs}.block_#", f"network/{_ours}/resnet", "conv1 conv2 cond_proj nin_shortcut", **_norms)
    _IMAGE += _layers(f"{_theirs}.attn_#", f"network/{_ours}/attn/0", "q k v proj_out", GroupNorm_0="norm")
_POINTS = _layers("score_net", "network", "dense#")
for _rules, _name in ((_IMAGE, "gamma"), (_POINTS, "noise_schedule")):
    _rules += [(f"{_name}/{leaf}", f"schedule/{leaf}") for leaf in "wb"] + _layers(_name, "schedule", "l1 l2 l3")
_MULAN = _layers(
    *("encoder_model", "code", "dense0 dense1 conv_in conv_out"),
    **dict(GroupNorm_0="norm_out", dense_layer_final="out", dense_layer_final_mu="mean", dense_layer_final_sigma="variance"),
)
for _half, _ours in (("down", "down/#"), ("mid", "mid/block#")):
    _theirs, _norms = f"encoder_model/{_half}", dict(GroupNorm_0="norm1", GroupNorm_1="norm2")
    _MULAN += _layers(f"{_theirs}.block_#", f"code/{_ours}/resnet", "conv1 conv2 cond_proj", **_norms)
    _MULAN += _layers(f"{_theirs}.attn_#", f"code/{_ours}/attn/0", "q k v proj_out", GroupNorm_0="norm")
_OUTS = dict(dense_1="dense1", dense_2="dense2", dense_out_a="a", dense_out_b="b", dense_out_c="c")
_IMAGE += _MULAN + _layers("gamma", "schedule", "", **_OUTS)
_SCALARS = ("schedule/w", "schedule/b")


def _renamed(name: str, rules: list[tuple[str, str]]) -> str | None:
    """Renames a path by the rules; None where none knows it."""
    for before, after in rules:
        match = re.fullmatch(before.replace(".", r"\.").replace("#", "(0|[1-9][0-9]{0,8})"), name)
        if match:
            return after.replace("#", match[1]) if match.groups() else after
    return None


def _leaves(tree: Any, *path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, branch in tree.items():
            yield from _leaves(branch, *path, str(name))
    else:
        yield "/".join(path), tree


def _put(tree: dict[str, Any], name: str, leaf: Any, source: str) -> None:
    """Sets a leaf of nested dicts; ``source`` says in messages where it comes from."""
    *nodes, last = name.split("/")
    for node in nodes:
        tree = tree.setdefault(node, {})
    if last in tree:
        raise ValueError(f"{source}: expected one leaf that becomes {name!r}, got a second")
    tree[last] = leaf


# Trees


def _tensor(name: str, leaf: Any) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf.clone()
    if not hasattr(leaf, "__array__"):
        raise TypeError(f"{name}: expected an array, got {_checks.describe(leaf)}")
    import numpy  # whoever holds such a leaf has it

    array = numpy.array(leaf)
    try:
        if array.dtype.name == "bfloat16":  # which NumPy has by ml_dtypes, and torch does not read
            return torch.from_numpy(array.view(numpy.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected numbers of a dtype that torch has, got {array.dtype}") from None


def from_flax(tree: Mapping[str, Any]) -> Params:
    """Converts the parameters of the official model (or of its 2D example), or of MuLAN's official model, to ours.

    Args:
        tree: nested dicts of arrays (NumPy, JAX or torch) with the official names, ``{"params": ...}`` around it or not.

    Returns:
        Parameters for a model of ``networks.vdm_unet`` (of ``networks.mlp``, for the 2D example) with the matching
        schedule; for MuLAN's, ``schedules.polynomial`` and a code of ``networks.unet_encoder``. Copies, dtypes kept.

    Raises:
        TypeError, ValueError: a leaf that is not an array, or whose path is not one of the official model's.
    """
    if not isinstance(tree, Mapping):
        raise TypeError(f"tree: expected nested dicts of arrays, got {_checks.describe(tree)}")
    if set(tree) == {"params"}:
        tree = tree["params"]
    params: Params = {"network": {}, "schedule": {}}
    for name, leaf in _leaves(tree):
        ours = _renamed(name, _IMAGE + _POINTS)
        if ours is None:
            raise ValueError(f"tree: expected parameters of the official VDM, got a leaf at {name!r}")
        value = _tensor(name, leaf)
        if ours in _SCALARS:
            if value.numel() != 1:
                raise ValueError(f"tree: {name}: expected one number, got {_checks.describe(value)}")
            value = value.reshape(())
        _put(params, ours, value.permute(3, 2, 0, 1).contiguous() if value.ndim == 4 else value, f"tree: {name}")
    if {"score_model", "score_net"} <= set(tree):
        raise ValueError("tree: expected the score_model of images or the score_net of points, got both")
    if not params["network"]:
        raise ValueError(f"tree: expected the official VDM's score_model or score_net, got {sorted(map(str, tree))}")
    return _mulan.to_ours(params) if "code" in params else params


def to_flax(params: Params) -> dict[str, Any]:
    """Converts our parameters to the official model's, nested dicts of NumPy arrays. The inverse of :func:`from_flax`.

    Args:
        params: of a model of ``networks.vdm_unet`` or ``networks.mlp``, or of MuLAN's.

    Raises:
        TypeError, ValueError: a leaf that is not a tensor, or parameters that the official model does not have.
        ImportError: bfloat16, without the package ml_dtypes.
    """
    _checks.instance("params", params, dict, "nested dicts of tensors")
    leaves = dict(_leaves(_mulan.to_theirs(params) if "code" in params else params))
    for name, leaf in leaves.items():
        _checks.tensor(_trees.dotted("params", *name.split("/")), leaf)
    _facts.verify(_trees.finite("params", {tuple(name.split("/")): leaf for name, leaf in leaves.items()}))
    image = any(name.startswith("network/conv_in/") for name in leaves)
    rules = [(ours, theirs) for theirs, ours in (_IMAGE if image else _POINTS)]
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        theirs = _renamed(name, rules)
        if theirs is None:
            raise ValueError(f"params: the official VDM has no parameter for {name!r}")
        if name in _SCALARS:
            leaf = _checks.shaped(_trees.dotted("params", *name.split("/")), leaf, ()).reshape(1)
        leaf = leaf.permute(2, 3, 1, 0) if leaf.ndim == 4 else leaf
        _put(tree, theirs, _array_of(leaf.detach().cpu().contiguous()), f"params: {name}")
    return tree


def _array_of(value: Tensor) -> Any:
    """Views a tensor as a NumPy array."""
    if value.dtype != torch.bfloat16:
        return value.numpy()
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("NumPy has bfloat16 by ml_dtypes, which JAX brings: pip install ml_dtypes") from error
    return value.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)


# Checkpoints


class _Packed(NamedTuple):
    """An array as the file holds it: in msgpack, its shape, the name of its dtype, and its bytes."""

    payload: bytes


_PLAIN = "bool float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32 uint64"
DTYPES = {name: getattr(torch, name) for name in _PLAIN.split()}


def load_flax(path: str | Path) -> Checkpoint:
    """Reads an official ``.flax`` checkpoint (msgpack), without Flax. Needs the extra ``flax``, which brings msgpack.

    Args:
        path: the file, with the fields ``step``, ``params`` and ``ema_params`` at its top (any other is ignored).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a truncated file, one of another format, or one without those fields; or a leaf that is not an array of
            the official model's, or has another dtype than NumPy's and JAX's plain ones, or an impossible shape.
        ImportError: msgpack is not installed.
    """
    try:
        import msgpack
    except ImportError as error:
        raise ImportError("reading .flax files needs msgpack: pip install 'purevdm[flax]'") from error
    data = _files.regular(_checks.path("path", path)).read_bytes()

    def extension(code: int, payload: bytes) -> Any:  # 1 is an array, 3 a NumPy scalar, packed like one
        return _Packed(payload) if code in (1, 3) else msgpack.ExtType(code, payload)

    try:
        state = msgpack.unpackb(data, raw=False, ext_hook=extension, strict_map_key=False, max_ext_len=2**32 - 1)
        if missing := [field for field in Checkpoint._fields if field not in state]:
            raise ValueError(f"without {', '.join(missing)}")
        step = _array(state["step"]).item() if isinstance(state["step"], _Packed) else state["step"]
        params, ema_params = (from_flax(_arrays(name, state[name])) for name in ("params", "ema_params"))
        return Checkpoint(_checks.integer("step", step, 0), params, ema_params)
    except Exception as error:  # msgpack raises many kinds; each means the same to the caller
        raise ValueError(f"{path}: no whole VDM checkpoint: {error or type(error).__name__}") from error


def _arrays(name: str, entry: Any) -> Any:
    """Reads a tree of the file, with tensors for arrays."""
    if isinstance(entry, dict) and "__msgpack_chunked_array__" not in entry:
        return {key: _arrays(f"{name}/{key}", branch) for key, branch in entry.items()}
    try:
        return _array(entry)
    except Exception as error:
        wanted = f"an array of one of {', '.join(DTYPES)}"
        raise ValueError(f"{name}: expected {wanted}, got {type(error).__name__}: {str(error)[:120]}") from None


def _array(entry: Any) -> Tensor:
    """Reads an array; one above a gibibyte lies in the file in pieces, in dicts by position."""
    import msgpack  # load_flax has imported it

    if isinstance(entry, dict):
        shape, chunks = ([entry[field][str(i)] for i in range(len(entry[field]))] for field in ("shape", "chunks"))
        pieces = [_array(chunk) for chunk in chunks]
        if len({piece.dtype for piece in pieces}) != 1:
            raise ValueError("pieces of several dtypes")
        flat = torch.cat(pieces)
    else:
        shape, kind, raw = msgpack.unpackb(entry.payload, raw=True)
        dtype = DTYPES[kind.decode()]
        if dtype == torch.bool and max(raw, default=0) > 1:
            raise ValueError("a bool that is neither 0 nor 1")
        flat = torch.frombuffer(bytearray(memoryview(raw)), dtype=dtype) if len(raw) else torch.empty(0, dtype=dtype)
    if len(shape) > 64 or not all(type(size) is int and size >= 0 for size in shape):  # more than reshape refuses
        raise ValueError(f"a shape {str(shape)[:80]}")
    return flat.reshape(shape)
