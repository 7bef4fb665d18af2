"""Compiled functions on disk: a second process starts in seconds.

``torch.compile`` caches what its last stage makes; a new process still traces the whole function again. Here all is kept,
through PyTorch's ahead-of-time compilation (2.13 or newer; experimental there).
"""

import functools
import hashlib
import io
import json
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, _identity

__all__ = ["load_or_compile"]

FORMAT = 1


def load_or_compile(
    path: str | os.PathLike, f: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """``torch.compile(f, fullgraph=True)`` for arguments like ``args``: read from a file if that holds it, else compiled now
    and saved there.

    The file is used only if it was made of the same function for the same kind of arguments, by the same versions of
    purevdm, PyTorch and Python, for the same processor and as many threads. "The same function" looks at code, and into
    closures, defaults and globals: a model of another depth or another schedule is another function. Of modules that f
    names, other than installed ones, the source is compared. Anything else compiles again and replaces the file.

    Reading a file runs code that is in it, as with pickle: read no file that you do not trust.

    Args:
        path: the file; its folder must be there.
        f: a pure function of its positional arguments.
        args: example arguments, pytrees of contiguous tensors; other leaves become constants. Sizes are fixed but where
            marked by ``torch._dynamo.mark_dynamic``.
        options: inductor's, as ``torch.compile`` takes them.

    Returns:
        The compiled function, of positional arguments of the kind of ``args``.

    Raises:
        TypeError: a function that holds something whose content cannot be compared; from the compiled function, arguments
            of another structure, dtype or device, or under a transform of ``torch.func``.
        ValueError: a file that is damaged or something else; a tensor that is not contiguous; from the compiled function,
            arguments of other sizes.
        FileNotFoundError: no such folder.
        RuntimeError: a PyTorch older than 2.13; from the compiled function, a marked size that is out of
            the range that the compiler found it good for.

    Example:
        step = aot.load_or_compile("step.aot", torch.func.grad_and_value(model.loss_fn), (params, x, key))
        grads, loss = step(params, x, key)
    """
    if not callable(f):
        raise TypeError(f"f: expected a function, got {type(f).__name__}")
    if not isinstance(args, tuple):
        raise TypeError(f"args: expected a tuple of arguments, got {_checks.describe(args)}")
    if torch.__version__ < "2.13":
        raise RuntimeError(f"compiling ahead of time takes PyTorch 2.13 or newer, this is {torch.__version__}")
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: expected a file in a folder that is there, got {path}")
    kinds = _kinds(args, dynamic=True)
    key = _identity.digest(f, repr(kinds), json.dumps(options, sort_keys=True, default=str))
    saved = _read(path)
    if saved is not None and saved[0] == key:
        compiled = torch.compiler.load_compiled_function(io.BytesIO(saved[1]))
    else:
        settings = {**(options or {}), "guard_filter_fn": _guards}
        compiled = torch.compile(_bare(f), fullgraph=True, options=settings).aot_compile((args, {}))  # type: ignore[attr-defined]
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        compiled.save_compiled_function(str(partial))
        _write(path, key, partial)

    @functools.wraps(f)
    def call(*given: Any) -> Any:
        _check(kinds, given)
        return compiled(*given)

    return call


# The file: a line of JSON, and what PyTorch wrote.


def _read(path: Path) -> tuple[str, bytes] | None:
    if not path.exists():
        return None
    line, _, data = path.read_bytes().partition(b"\n")
    try:
        header = json.loads(line)
        known = header["format"] == FORMAT
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise ValueError(f"path: expected a file of load_or_compile, got {path}, which is something else")
    if hashlib.sha256(data).hexdigest() != header["sha256"]:
        raise ValueError(f"path: {path} is damaged; delete it to compile again")
    return header["key"], data


def _write(path: Path, key: str, partial: Path) -> None:
    """Puts the header before what PyTorch wrote; whole or not at all."""
    data = partial.read_bytes()
    header = json.dumps({"format": FORMAT, "key": key, "sha256": hashlib.sha256(data).hexdigest()})
    partial.write_bytes(header.encode() + b"\n" + data)
    partial.replace(path)


# What goes into a compiled function


class _Kind(NamedTuple):
    dtype: str
    device: str
    requires_grad: bool
    sizes: tuple[int | None, ...]  # None where any size will do

    def __str__(self) -> str:
        return f"a {self.dtype} tensor on {self.device}" + (" that requires a gradient" if self.requires_grad else "")


def _kinds(args: tuple[Any, ...], dynamic: bool) -> dict[str, Any]:
    """What each leaf is, by its path: a tensor's kind, another leaf itself."""
    paths, leaves, _ = optree.tree_flatten_with_path(args, none_is_leaf=True)  # type: ignore[arg-type, var-annotated]
    kinds: dict[str, Any] = {}
    for path, leaf in zip(paths, leaves, strict=True):
        name = f"args[{path[0]}]" + "".join(f"[{step!r}]" for step in path[1:])
        if isinstance(leaf, Tensor):
            if _checks.transformed(leaf):
                raise TypeError(
                    f"{name}: expected a tensor outside of torch.func's transforms; compile the transformed function"
                )
            if not leaf.is_contiguous():
                raise ValueError(
                    f"{name}: expected a contiguous tensor, got strides {leaf.stride()} of sizes {tuple(leaf.shape)}"
                )
            free = getattr(leaf, "_dynamo_dynamic_indices", ()) if dynamic else ()
            sizes = tuple(None if axis in free else size for axis, size in enumerate(leaf.shape))
            kinds[name] = _Kind(str(leaf.dtype).removeprefix("torch."), str(leaf.device), leaf.requires_grad, sizes)
        else:
            kinds[name] = leaf
    return kinds


def _check(wanted: dict[str, Any], args: tuple[Any, ...]) -> None:
    given = _kinds(args, dynamic=False)
    if wanted.keys() != given.keys():
        names = ", ".join(sorted(wanted.keys() ^ given.keys())[:3])
        raise TypeError(f"args: expected the structure that was compiled for, got one that differs at {names}")
    for name, kind in wanted.items():
        other = given[name]
        if isinstance(kind, _Kind) and isinstance(other, _Kind) and kind[:3] == other[:3]:
            if len(kind.sizes) != len(other.sizes) or any(
                a not in (None, b) for a, b in zip(kind.sizes, other.sizes, strict=True)
            ):
                raise ValueError(f"{name}: expected sizes {kind.sizes}, as it was compiled for, got {other.sizes}")
        elif kind != other:
            raise TypeError(f"{name}: expected {kind}, as it was compiled for, got {other}")


def _bare(f: Callable[..., Any]) -> Callable[..., Any]:
    """f as a function without a closure, which PyTorch would try to save."""

    def function(*args: Any) -> Any:
        return F(*args)  # type: ignore[name-defined] # noqa: F821

    return types.FunctionType(function.__code__, {"F": f, "__name__": __name__, "__builtins__": __builtins__}, "function")


def _guards(entries: Any) -> list[bool]:
    """Of the compiler's guards, those on sizes that vary; the rest is in the file's key and in ``_check``."""
    return [entry.guard_type == "SHAPE_ENV" for entry in entries]
