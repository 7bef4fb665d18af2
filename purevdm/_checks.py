"""The checks that every public function makes of its arguments.

Shapes, dtypes and Python values are checked here, always, and returned; trees of tensors in :mod:`purevdm._trees`; values
inside tensors in eager mode, by :mod:`purevdm._facts`. Every message names the argument, what was given, and what is wanted.
"""

import math
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from purevdm._facts import Fact, plain, readable, verify
from purevdm.types import PyTree

T = TypeVar("T")
WIDE_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # for which PyTorch has few operations


def describe(x: object) -> str:
    """Describes a value in short, for messages."""
    if isinstance(x, Tensor):
        return f"a {str(x.dtype).removeprefix('torch.')} tensor of shape {tuple(x.shape)}"
    try:
        if isinstance(x, (dict, tuple, list)) and any(isinstance(leaf, Tensor) for leaf in leaves(x).values()):
            parts = x if isinstance(x, dict) else x._asdict() if hasattr(x, "_asdict") else dict(enumerate(x))
            text = ", ".join(f"{name}: {describe(part)}" for name, part in parts.items())
            return f"a {type(x).__name__} of {text if len(text) <= 240 else f'{text[:240]}...'}"
        text = repr(x)
    except Exception:  # somebody's own that fails
        return f"a {type(x).__name__}"
    return f"{text if len(text) <= 120 else f'{text[:120]}...'} ({type(x).__name__})"


def instance(name: str, x: object, kind: type[T] | tuple[type[T], ...], wanted: str) -> T:
    """Checks that x is of a class, or of one of several; ``wanted`` says what, for messages."""
    if not isinstance(x, kind):
        raise TypeError(f"{name}: expected {wanted}, got {describe(x)}")
    return x


def tensor(name: str, x: object) -> Tensor:
    """Checks that x is a dense tensor."""
    x = instance(name, x, Tensor, "a torch.Tensor")
    if x.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {describe(x)} in {x.layout}")
    return x


def dense(x: object) -> bool:
    """Says whether x is a dense tensor."""
    return isinstance(x, Tensor) and x.layout == torch.strided


def floating(name: str, x: object) -> Tensor:
    """Checks that x is a tensor of a real floating-point dtype."""
    x = tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {describe(x)}")
    return x


def shaped(name: str, x: object, shape: Sequence[int]) -> Tensor:
    """Checks that x is a tensor of exactly this shape."""
    x = tensor(name, x)
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {describe(x)}")
    return x


def broadcasting(name: str, x: object, shape: Sequence[int] | None) -> Tensor:
    """Checks that x is a tensor that broadcasts to the shape, if there is one, without making it larger."""
    x = tensor(name, x)
    own = x.shape[::-1]
    if shape is not None and not (
        len(own) <= len(shape) and all(n in (1, wanted) for n, wanted in zip(own, shape[::-1], strict=False))
    ):
        raise ValueError(f"{name}: expected a tensor that broadcasts to {tuple(shape)}, got {describe(x)}")
    return x


def alike(name: str, x: object, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Checks that x is a tensor of exactly this shape and dtype."""
    x = shaped(name, x, shape)
    if x.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {describe(x)}")
    return x


def together(name: str, x: Tensor, device: torch.device) -> Tensor:
    """Checks that a tensor is on this device; a number, of shape (), may be on the CPU."""
    if x.device != device and (x.ndim or x.device.type != "cpu"):
        raise ValueError(f"{name}: expected a tensor on {device}, as the rest, got {describe(x)} on {x.device}")
    return x


def key(name: str, x: object) -> Tensor:
    """Checks that x is a random key: int32, shape (2,)."""
    wanted = "expected a key, an int32 tensor of shape (2,) as purevdm.random.key makes it"
    if not isinstance(x, Tensor):
        hint = f"; did you mean purevdm.random.key({x})?" if isinstance(x, int) else ""
        raise TypeError(f"{name}: {wanted}, got {describe(x)}{hint}")
    if x.dtype != torch.int32:
        raise TypeError(f"{name}: {wanted}, got {describe(x)}")
    if x.shape != (2,):
        raise ValueError(f"{name}: {wanted}, got {describe(x)}; map over many keys with torch.func.vmap")
    return x


LARGEST = 2**63 - 1


def integer(name: str, x: object, low: int | None = None, high: int | None = None) -> int:
    """Checks that x is a Python integer (no bool, no float) within [low, high]; a compiler's symbolic ones pass unread."""
    if isinstance(x, torch.SymInt):
        return x  # type: ignore[return-value]
    if isinstance(x, bool):
        raise TypeError(f"{name}: expected an integer, got {describe(x)}")
    try:
        # A compiler's symbolic size is an int to it, and index() would fix its value.
        value = x if type(x) is int else operator.index(x)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {describe(x)}") from None
    if high is None and low is not None and value > LARGEST:
        high = LARGEST  # what a tensor of integers holds
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = [f"at {end} {bound}" for end, bound in (("least", low), ("most", high)) if bound is not None]
        raise ValueError(f"{name}: expected an integer {' and '.join(bounds)}, got {value}")
    return value


def timesteps(x: object, dtype: torch.dtype) -> int:
    """Checks that x is a number of discrete steps, 0 for continuous time. Beyond some number a dtype does not tell a step's
    gamma from the next: the difference of two, near 18 / T, is rounded by about 18 times the dtype's epsilon."""
    return integer("timesteps", x, 0, most_steps(dtype))


def most_steps(dtype: torch.dtype) -> int:
    """Counts the most steps that a dtype tells apart; see :func:`timesteps`."""
    return int(0.012 / torch.finfo(dtype).eps)


def count(name: str, x: int | Tensor) -> int | Tensor:
    """Checks that x is a number of steps: an integer >= 1, or an integer tensor of shape () that holds one."""
    if not isinstance(x, Tensor):
        return integer(name, x, 1, 2**31 - 1)
    shaped(name, x, ())
    if x.is_floating_point() or x.dtype == torch.bool:
        raise TypeError(f"{name}: expected an integer tensor, got {describe(x)}")
    within(name, x, 1, 2**31 - 1)
    return x


def real(name: str, x: object) -> float:
    """Checks that x is a finite Python number."""
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise TypeError(f"{name}: expected a number, got {describe(x)}")
    if not -math.inf < x < math.inf:  # math.isfinite would not take a compiler's symbolic number
        raise ValueError(f"{name}: expected a finite number, got {x}")
    return float(x)


def positive(name: str, x: object) -> float:
    """Checks that x is a number above 0."""
    value = real(name, x)
    if value <= 0.0:
        raise ValueError(f"{name}: expected a number above 0, got {x}")
    return value


def boolean(name: str, x: object) -> bool:
    """Checks that x is True or False, and nothing that merely counts as such."""
    return instance(name, x, bool, "True or False")


def integers(
    name: str, x: object, low: int | None = None, high: int | None = None, wanted: str = "a sequence of integers"
) -> tuple[int, ...]:
    """Checks that x is a sequence of integers, each within [low, high]."""
    if isinstance(x, (str, bytes, dict, set, frozenset, Tensor)) or not isinstance(x, Iterable):
        raise TypeError(f"{name}: expected {wanted}, got {describe(x)}")
    return tuple(integer(f"{name}[{i}]", value, low, high) for i, value in enumerate(x))


def path(name: str, x: object) -> Path:
    """Checks that x is the path of a file or a folder."""
    if not isinstance(x, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a path, got {describe(x)}")
    if "\0" in str(x):
        raise ValueError(f"{name}: expected a path without null characters, got {describe(x)}")
    return Path(x)


def function(name: str, x: object) -> Callable[..., Any]:
    """Checks that x can be called."""
    if not callable(x):
        raise TypeError(f"{name}: expected a function, got {describe(x)}")
    return x


def dtype(name: str, x: object, options: Iterable[torch.dtype]) -> torch.dtype:
    """Checks that x is one of some dtypes."""
    x, options = instance(name, x, torch.dtype, "a torch.dtype"), tuple(options)
    if x not in options:
        raise TypeError(f"{name}: expected one of {', '.join(map(str, options))}, got {x}")
    return x


def device(name: str, x: object) -> torch.device:
    """Checks that x is a device that PyTorch computes on, or the name of one."""
    named: Any = instance(name, x, (torch.device, str), "a torch.device or its name")
    try:
        found = torch.device(named)
        if not torch.compiler.is_compiling():
            torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        wanted = "expected a device such as 'cpu' or 'cuda:0' that this PyTorch computes on"
        raise ValueError(f"{name}: {wanted}, got {str(x)!r}: {str(error).splitlines()[0][:120]}") from None
    return found


def increasing(low_name: str, low: object, high_name: str, high: object) -> tuple[float, float]:
    """Checks that two numbers are finite, the first below the second."""
    low, high = real(low_name, low), real(high_name, high)
    if not low < high:
        raise ValueError(f"{low_name}, {high_name}: expected {low_name} < {high_name}, got {low} and {high}")
    return low, high


def probability(name: str, x: object) -> float:
    """Checks that x is a number in [0, 1)."""
    value = real(name, x)
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name}: expected a number in [0, 1), got {value}")
    return value


def shape(name: str, x: object) -> tuple[int, ...]:
    """Checks that x is a shape: a sequence of integers, none negative."""
    return integers(name, x, 0, wanted="a shape (a sequence of integers)")


def choice(name: str, x: object, options: Sequence[str]) -> str:
    """Checks that x is one of some texts."""
    if not isinstance(x, str) or x not in options:
        kind = ValueError if isinstance(x, str) else TypeError
        raise kind(f"{name}: expected one of {', '.join(map(repr, options))}, got {describe(x)}")
    return x


def outside(wanted: str, name: str, x: Tensor) -> ValueError:
    """Makes the error for values that are not all among those wanted."""
    if x.is_floating_point() and plain(x).isnan().any():
        return ValueError(f"{name}: expected {wanted}, got NaN in {describe(x)}")
    wide = plain(x).double() if x.dtype in WIDE_UNSIGNED else plain(x)  # no order of their own
    low, high = (v.item() for v in wide.aminmax())
    return ValueError(f"{name}: expected {wanted}, got values from {low} to {high}")


def within(name: str, x: Tensor, low: int, high: int) -> None:
    """Checks that every value of an integer tensor is in [low, high]; reads them only in eager mode."""
    if readable(x) and x.numel() > 0:
        wanted = f"integers in [{low}, {high}]"
        wide = x.to(torch.int64)  # the bounds may not fit x's dtype
        low = max(low, 0) if x.dtype == torch.uint64 else low  # what int64 does not hold turns negative
        verify([Fact((wide >= low) & (wide <= high), lambda: outside(wanted, name, x))])


def leaves(tree: PyTree) -> dict[tuple[Any, ...], Any]:
    """Flattens a tree of dicts, lists and tuples (a NamedTuple by its fields) to what it holds, by path; None is nothing."""
    # Not optree's flattening, which a compiler does not follow.
    flat: dict[tuple[Any, ...], Any] = {}
    rest: list[tuple[tuple[Any, ...], Any]] = [((), tree)]
    while rest:
        path, node = rest.pop()
        node = node._asdict() if hasattr(node, "_asdict") else node
        if isinstance(node, (dict, tuple, list)):
            branches = node.items() if isinstance(node, dict) else enumerate(node)
            rest += [((*path, key), branch) for key, branch in branches][::-1]
        elif node is not None:
            flat[path] = node
    return flat
