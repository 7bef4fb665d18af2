"""The door: what every public function asks of its arguments.

Shapes, dtypes and Python values are checked always; values inside tensors only in eager, where reading them costs no
graph break (:func:`readable` says when). Every message names the argument, what was given, and what is wanted.
"""

import math
import operator
from collections.abc import Iterable, Sequence

import optree
import torch
from torch import Tensor


def readable(*tensors: Tensor) -> bool:
    """Whether the values of these tensors may be looked at here: not while compiling, and not on the meta device."""
    return not torch.compiler.is_compiling() and not any(t.is_meta for t in tensors)


def transformed(x: Tensor) -> bool:
    """Whether a tensor is under a transform of ``torch.func``."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def plain(x: Tensor) -> Tensor:
    """The tensor below every ``torch.func`` transform, so that its values can be read under grad and vmap."""
    while transformed(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.detach()


def describe(x: object) -> str:
    """A short account of a value, for messages."""
    if isinstance(x, Tensor):
        return f"a {str(x.dtype).removeprefix('torch.')} tensor of shape {tuple(x.shape)}"
    return f"{x!r} ({type(x).__name__})"


def tensor(name: str, x: object) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {describe(x)}")
    return x


def floating(name: str, x: object) -> Tensor:
    """A tensor of a real floating-point dtype."""
    x = tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {describe(x)}")
    return x


def shaped(name: str, x: object, shape: Sequence[int]) -> Tensor:
    """A tensor of exactly this shape."""
    x = tensor(name, x)
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {describe(x)}")
    return x


def key(name: str, x: object) -> Tensor:
    """A random key: int32, shape (2,)."""
    wanted = "expected a key, an int32 tensor of shape (2,) as purevdm.random.key makes it"
    if not isinstance(x, Tensor):
        hint = f"; did you mean purevdm.random.key({x})?" if isinstance(x, int) else ""
        raise TypeError(f"{name}: {wanted}, got {describe(x)}{hint}")
    if x.dtype != torch.int32:
        raise TypeError(f"{name}: {wanted}, got {describe(x)}")
    if x.shape != (2,):
        raise ValueError(f"{name}: {wanted}, got {describe(x)}; map over many keys with torch.func.vmap")
    return x


def integer(name: str, x: object, low: int | None = None, high: int | None = None) -> int:
    """A Python integer (no bool, no float) within [low, high]; symbolic integers of a compiled graph pass unread."""
    if isinstance(x, torch.SymInt):
        return x  # type: ignore[return-value]
    if isinstance(x, bool):
        raise TypeError(f"{name}: expected an integer, got {describe(x)}")
    try:
        # A compiler's symbolic size is an int to it, and index() would fix its value.
        value = x if type(x) is int else operator.index(x)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {describe(x)}") from None
    if (low is not None and value < low) or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        lower = "" if low is None else f"at least {low}"
        raise ValueError(f"{name}: expected an integer {lower}{upper}, got {value}")
    return value


def real(name: str, x: object) -> float:
    """A finite Python number."""
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise TypeError(f"{name}: expected a number, got {describe(x)}")
    if not math.isfinite(x):
        raise ValueError(f"{name}: expected a finite number, got {x}")
    return float(x)


def increasing(low_name: str, low: object, high_name: str, high: object) -> tuple[float, float]:
    """Two finite numbers, the first below the second."""
    low, high = real(low_name, low), real(high_name, high)
    if not low < high:
        raise ValueError(f"{low_name}, {high_name}: expected {low_name} < {high_name}, got {low} and {high}")
    return low, high


def probability(name: str, x: object) -> float:
    """A number in [0, 1)."""
    value = real(name, x)
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name}: expected a number in [0, 1), got {value}")
    return value


def shape(name: str, x: object) -> tuple[int, ...]:
    """A shape: a sequence of integers, none negative."""
    if isinstance(x, (str, bytes, Tensor)) or not isinstance(x, Iterable):
        raise TypeError(f"{name}: expected a shape (a sequence of integers), got {describe(x)}")
    return tuple(integer(f"{name}[{i}]", d, low=0) for i, d in enumerate(x))


def choice(name: str, x: object, options: Sequence[str]) -> str:
    if x not in options:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, options))}, got {describe(x)}")
    return x  # type: ignore[return-value]


def within(name: str, x: Tensor, low: int, high: int) -> None:
    """Every value of an integer tensor in [low, high]; looked at in eager only."""
    if readable(x) and x.numel() > 0:
        smallest, largest = (int(v) for v in plain(x).aminmax())
        if smallest < low or largest > high:
            raise ValueError(f"{name}: expected integers in [{low}, {high}], got values from {smallest} to {largest}")


def params(name: str, tree: object) -> None:
    """A pytree of tensors without NaN; the first bad leaf is named by its path. Values are looked at in eager only."""
    if torch.compiler.is_compiling():
        return
    paths: list[tuple]
    leaves: list[Tensor]
    paths, leaves, _ = optree.tree_flatten_with_path(tree)  # type: ignore[arg-type, assignment]
    for path, leaf in zip(paths, leaves, strict=True):
        tensor("/".join(map(str, (name, *path))), leaf)
    if not leaves or not readable(*leaves):
        return
    found = torch.stack([plain(leaf).isnan().any().cpu() for leaf in leaves])
    if found.any():
        first = int(found.nonzero()[0])
        where = "/".join(map(str, (name, *paths[first])))
        raise ValueError(f"{where}: expected numbers, got NaN in {describe(leaves[first])}")
