"""Whether two processes hold the same function: a digest of all that its results depend on beside its arguments."""

import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks

_PACKAGE = Path(__file__).parent
_INSTALLED = {_PACKAGE} | {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
_CONSTANTS = (type(None), type(...), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def digest(f: Any, *more: str) -> str:
    """Of f's content, this machine's compiler and versions, purevdm's source, and more.

    Raises:
        TypeError: f holds something whose content cannot be told.
    """
    parts = [*_content(f, {}), *_machine(), *more]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _machine() -> Iterator[str]:
    yield from (sys.version, torch.__version__, torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads()))
    if torch.cuda.is_available():
        yield torch.cuda.get_device_name()
    yield from (source.read_text() for source in sorted(_PACKAGE.rglob("*.py")))


def _content(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    """In an order that is the same in every process. ``seen`` holds what was met, so that no id is given twice."""
    if isinstance(value, _CONSTANTS):
        yield f"{type(value).__name__} {value!r}"
        return
    if id(value) in seen:
        yield "again"
        return
    seen[id(value)] = value
    match value:
        case Tensor():
            yield f"{value.dtype} {tuple(value.shape)} {value.device} {value.tolist()}"
        case tuple() | list():
            yield f"{type(value).__qualname__} {len(value)}"
            for item in value:
                yield from _content(item, seen)
        case dict():
            yield f"dict {list(value)}"
            for item in value.values():
                yield from _content(item, seen)
        case functools.partial():
            yield from _content((value.func, value.args, value.keywords), seen)
        case types.MethodType():
            yield from _content((value.__func__, value.__self__), seen)
        case types.FunctionType():
            yield from _function(value, seen)
        case types.ModuleType():
            source = Path(getattr(value, "__file__", None) or "")
            own = source.suffix == ".py" and not any(source.is_relative_to(folder) for folder in _INSTALLED)
            yield f"{value.__name__} {source.read_text() if own else ''}"
        case types.BuiltinFunctionType() | type():
            yield f"{value.__module__}.{value.__qualname__}"
        case torch.no_grad() | torch.enable_grad() | torch.inference_mode():  # decorators of these hold one
            yield type(value).__qualname__
        case _:
            raise TypeError(f"f: holds {_checks.describe(value)}, whose content cannot be compared with a file's")


def _function(f: types.FunctionType, seen: dict[int, Any]) -> Iterator[str]:
    yield f"{f.__module__}.{f.__qualname__}"
    yield from _content((f.__defaults__, f.__kwdefaults__), seen)
    for cell in f.__closure__ or ():
        try:
            yield from _content(cell.cell_contents, seen)
        except ValueError:  # a cell that nothing was put in
            yield "empty"
    # Installed packages are compared by their versions, purevdm by its source.
    if f.__module__ is not None and f.__module__.split(".")[0] in ("torch", "optree", "einops", "purevdm"):
        return
    yield from _code(f.__code__)
    for name in sorted(_names(f.__code__) & f.__globals__.keys()):
        yield name
        yield from _content(f.__globals__[name], seen)


def _code(code: types.CodeType) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames}"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code(constant)
        else:
            yield repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


def _names(code: types.CodeType) -> set[str]:
    """The names that a function, and those within it, may look up among globals."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)
