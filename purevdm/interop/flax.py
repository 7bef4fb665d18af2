"""Parameters of the official Flax code, as trees and checkpoints, converted to ours and back.

Their arrays are channels last (convolution kernels HWIO), ours channels first (OIHW). Dense kernels are (in, out) in both.
Numbers are copied and never computed with, so a round trip is exact.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, _files
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


_NUMBER = "(?:0|[1-9][0-9]{0,8})"
_OFFICIAL = re.compile(
    rf"""score_model/(?:
        (?:dense0|dense1|conv_in|conv_out)/(?:kernel|bias)
        | GroupNorm_0/(?:scale|bias)
        | (?:down|mid|up)\.block_{_NUMBER}/(?:conv1|conv2|nin_shortcut)/(?:kernel|bias)
        | (?:down|mid|up)\.block_{_NUMBER}/(?:cond_proj/kernel|GroupNorm_[01]/(?:scale|bias))
        | (?:down|mid|up)\.attn_{_NUMBER}/(?:(?:q|k|v|proj_out)/(?:kernel|bias)|GroupNorm_0/(?:scale|bias))
    )
    | score_net/dense{_NUMBER}/(?:kernel|bias)
    | (?:gamma|noise_schedule)/(?:w|b|l[123]/(?:kernel|bias))""",
    re.VERBOSE | re.ASCII,
)
"""The paths of the official model's parameters, and of its 2D example's, with slashes between names. No other is taken."""


def _official(name: str) -> bool:
    return _OFFICIAL.fullmatch(name) is not None


def _unet_path(path: Path_) -> Path_:
    """Where a leaf of the official ScoreUNet lives in our ``vdm_unet``."""
    head, rest = path[0], path[1:]
    if "." not in head:
        return (_TOP[head], *rest)
    half, name = head.split(".", 1)
    kind, _, index = name.partition("_")
    names, room = _PARTS[kind]
    block = {"mid": ("mid", f"block{index}"), "down": ("down", "0", index), "up": ("up", "0", index)}
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


def _leaves(argument: str, tree: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    if len(path) > _checks.DEEPEST:
        raise _checks.too_deep(argument)
    if isinstance(tree, Mapping):
        for name, branch in tree.items():
            yield from _leaves(argument, branch, (*path, str(name)))
    else:
        yield path, tree


def _put(tree: Params, path: Path_, leaf: Any, source: str) -> None:
    """Sets a leaf; ``source`` says in messages which argument, and where in it, the leaf comes from."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    if path[-1] in tree:
        raise ValueError(f"{source}: expected one leaf that becomes {'/'.join(path)!r}, got a second")
    tree[path[-1]] = leaf


def _tensor(name: str, leaf: Any) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf.clone()
    if hasattr(leaf, "__array__"):
        import numpy  # whoever holds such a leaf has it

        array = numpy.array(leaf)
        if array.dtype.name == "bfloat16":  # which NumPy has by ml_dtypes, and torch does not read
            return torch.from_numpy(array.view(numpy.uint16)).view(torch.bfloat16)
        try:
            return torch.from_numpy(array)
        except (TypeError, ValueError):
            raise TypeError(f"{name}: expected numbers of a dtype that torch has, got {array.dtype}") from None
    raise TypeError(f"{name}: expected an array, got {_checks.describe(leaf)}")


def from_flax(tree: Mapping[str, Any]) -> Params:
    """The parameters of the official model (or of its 2D example) as ours.

    Args:
        tree: nested dicts of arrays (NumPy, JAX or torch) with the official names, ``{"params": ...}`` around it or not.

    Returns:
        Parameters for a model of ``networks.vdm_unet`` (of ``networks.mlp``, for the 2D example) with the matching
        schedule. Copies, dtypes kept.

    Raises:
        TypeError, ValueError: a leaf that is not an array, or whose path is not one of the official model's.
    """
    if not isinstance(tree, Mapping):
        raise TypeError(f"tree: expected nested dicts of arrays, got {_checks.describe(tree)}")
    if set(tree) == {"params"}:
        tree = tree["params"]
    params: Params = {"network": {}, "schedule": {}}
    for path, leaf in _leaves("tree", tree):
        name = "/".join(path)
        if not _official(name):
            raise ValueError(f"tree: expected parameters of the official VDM, got a leaf at {name!r}")
        ours, value = _path_from_flax(path), _tensor(name, leaf)
        if value.ndim == 4:
            value = value.permute(3, 2, 0, 1).contiguous()
        if ours in _SCALARS and value.numel() != 1:
            raise ValueError(f"tree: {name}: expected one number, got {_checks.describe(value)}")
        _put(params, ours, value.reshape(()) if ours in _SCALARS else value, f"tree: {name}")
    if {"score_model", "score_net"} <= set(tree):
        raise ValueError("tree: expected the score_model of images or the score_net of points, got both")
    if not params["network"]:
        raise ValueError(f"tree: expected the official VDM's score_model or score_net, got {sorted(map(str, tree))}")
    return params


_SCALARS = {("schedule", "w"), ("schedule", "b")}


def to_flax(params: Params) -> dict[str, Any]:
    """Our parameters as the official model's: nested dicts of NumPy arrays. The inverse of :func:`from_flax`.

    Args:
        params: of a model of ``networks.vdm_unet`` or ``networks.mlp``.

    Raises:
        TypeError, ValueError: a leaf that is not a tensor, or parameters that the official model does not have.
        ImportError: bfloat16, without the package ml_dtypes.
    """
    leaves = list(_leaves("params", _checks.instance("params", params, dict, "nested dicts of tensors")))
    for path, leaf in leaves:
        _checks.tensor(_checks.dotted("params", *path), leaf)
    _checks.verify(_checks.finite("params", dict(leaves)))
    tree: dict[str, Any] = {}
    image = any(path[:2] == ("network", "conv_in") for path, _ in leaves)
    for path, leaf in leaves:
        try:
            theirs = _path_to_flax(path, image)
        except (KeyError, IndexError, ValueError):
            theirs = ()
        if not _official("/".join(theirs)) or _path_from_flax(theirs) != path:
            raise ValueError(f"params: the official VDM has no parameter for {'/'.join(path)!r}")
        if path in _SCALARS:
            _checks.shaped(_checks.dotted("params", *path), leaf, ())
        value = leaf.reshape(1) if path in _SCALARS else leaf
        value = value.permute(2, 3, 1, 0) if value.ndim == 4 else value
        _put(tree, theirs, _array_of(value.detach().cpu().contiguous()), f"params: {'/'.join(path)}")
    return tree


def _array_of(value: Tensor) -> Any:
    """A tensor as a NumPy array, without a copy."""
    if value.dtype != torch.bfloat16:
        return value.numpy()
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("NumPy has bfloat16 by ml_dtypes, which JAX brings: pip install ml_dtypes") from error
    return value.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)


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

    def extension(code: int, payload: bytes) -> Any:
        # An array; a NumPy scalar, packed like one. Read later, when the leaf's name is known.
        return _Packed(payload) if code in (1, 3) else msgpack.ExtType(code, payload)

    try:
        state = msgpack.unpackb(
            data,
            ext_hook=extension,
            object_pairs_hook=_distinct,
            raw=False,
            strict_map_key=False,
            max_ext_len=2**32 - 1,
        )
    except Exception as error:  # msgpack raises many kinds; each means the same to the caller
        raise ValueError(f"{path}: no whole .flax checkpoint ({error or type(error).__name__})") from error
    missing = [f for f in Checkpoint._fields if not isinstance(state, dict) or f not in state]
    if missing:
        raise ValueError(f"{path}: no VDM checkpoint: without {', '.join(missing)}")
    try:
        step = state["step"]
        if isinstance(step, _Packed):
            step = _array("step", step.payload)
            step = step.item() if step.numel() == 1 else step
        step = _checks.integer("step", step, 0)
        trees = (from_flax(_unpack(state[field], (field,))) for field in ("params", "ema_params"))
        return Checkpoint(step, *trees)
    except (TypeError, ValueError, KeyError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path}: no VDM checkpoint: {error or type(error).__name__}") from error


class _Packed(NamedTuple):
    """An array as the file holds it: in msgpack, its shape, the name of its dtype, and its bytes."""

    payload: bytes


_PLAIN = "bool float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32 uint64"
DTYPES = {name: getattr(torch, name) for name in _PLAIN.split()}
_CHUNKED = "__msgpack_chunked_array__"


def _distinct(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dict of what one map of the file holds."""
    found: dict[Any, Any] = {}
    for name, entry in pairs:
        if name in found:
            raise ValueError(f"two entries are named {name!r}")
        found[name] = entry
    return found


def _unpack(tree: Any, path: Path_) -> Any:
    """What the file holds, with tensors for arrays. Those above a gibibyte lie there in pieces, in a dict with a mark."""
    name = "/".join(path)
    if isinstance(tree, _Packed):
        return _array(name, tree.payload)
    if not isinstance(tree, dict):
        raise ValueError(f"{name}: expected an array, got {type(tree).__name__}")
    if _CHUNKED not in tree:
        return {key: _unpack(branch, (*path, str(key))) for key, branch in tree.items()}
    shape, chunks = (_in_order(name, tree, field) for field in ("shape", "chunks"))
    pieces = [_unpack(chunk, (*path, "chunks", str(i))) for i, chunk in enumerate(chunks)]
    if not pieces or not all(isinstance(p, Tensor) and p.ndim == 1 and p.dtype == pieces[0].dtype for p in pieces):
        raise ValueError(f"{name}: expected chunks that are flat arrays of one dtype")
    count, whole = _count(name, shape, pieces[0].dtype), torch.cat(pieces)
    if whole.numel() != count:
        raise ValueError(f"{name}: expected {count} numbers for shape {tuple(shape)}, got {whole.numel()} in the chunks")
    return whole.reshape(shape)


def _in_order(name: str, tree: dict[Any, Any], field: str) -> list[Any]:
    """A list as Flax stores it: a dict by position."""
    numbered = tree.get(field)
    if not isinstance(numbered, dict) or numbered.keys() != {str(i) for i in range(len(numbered))}:
        raise ValueError(f"{name}: expected {field} of an array in chunks as entries '0', '1' and so on")
    return [numbered[str(i)] for i in range(len(numbered))]


def _array(name: str, payload: bytes) -> Tensor:
    import msgpack  # load_flax has found it

    try:
        shape, kind, raw = msgpack.unpackb(payload, raw=True)
        kind, raw = kind.decode(), memoryview(raw)
    except Exception as error:
        raise ValueError(
            f"{name}: expected a packed array, got another extension ({error or type(error).__name__})"
        ) from None
    if kind not in DTYPES:
        raise ValueError(f"{name}: expected a dtype out of {', '.join(DTYPES)}, got {kind[:40]!r}")
    dtype = DTYPES[kind]
    size = _count(name, shape, dtype) * dtype.itemsize
    if len(raw) != size:
        raise ValueError(f"{name}: expected {size} bytes for {kind} of shape {tuple(shape)}, got {len(raw)} bytes")
    if not size:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool and max(raw) > 1:
        raise ValueError(f"{name}: expected bytes 0 and 1 for bool, got {max(raw)}")
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


def _count(name: str, shape: Any, dtype: torch.dtype) -> int:
    """How many numbers an array of this shape has, if there can be one."""
    good = isinstance(shape, list) and len(shape) <= 64 and all(type(d) is int and d >= 0 for d in shape)
    if not good or math.prod(d or 1 for d in shape) * dtype.itemsize >= 2**63:
        raise ValueError(f"{name}: expected the shape of an array, got {str(shape)[:80]}")
    return math.prod(shape)
