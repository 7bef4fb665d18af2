"""The checks that every public function makes of its arguments.

Structure, shapes, dtypes and Python values are checked always. Values inside tensors are checked only in eager mode, where
reading them breaks no graph (:func:`readable` says when). Such a check is a :class:`Fact`, and :func:`verify` reads all
facts of a call in one transfer. Every message names the argument, what was given, and what is wanted.
"""

import math
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import optree
import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from purevdm.types import PyTree

T = TypeVar("T")


def readable(*tensors: Tensor) -> bool:
    """Whether values may be read here: not while compiling, and not on the meta device."""
    return not torch.compiler.is_compiling() and not any(t.is_meta for t in tensors)


def plain(x: Tensor) -> Tensor:
    """The tensor below every ``torch.func`` transform, so that its values can be read under grad and vmap."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.detach()


def differentiated(x: Tensor) -> bool:
    """Whether a ``torch.func`` transform takes derivatives with respect to x, at any level; in eager mode."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_gradtrackingtensor(x) and (x.requires_grad or unpack_dual(x).tangent is not None):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return False


def mapped(x: Tensor) -> bool:
    """Whether a ``torch.func.vmap`` maps over x, at any level; in eager mode."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return False


def describe(x: object) -> str:
    """A short account of a value, for messages."""
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
    """An object of a class, or of one of several; ``wanted`` says what, for messages."""
    if not isinstance(x, kind):
        raise TypeError(f"{name}: expected {wanted}, got {describe(x)}")
    return x


def tensor(name: str, x: object) -> Tensor:
    """A dense tensor."""
    x = instance(name, x, Tensor, "a torch.Tensor")
    if x.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {describe(x)} in {x.layout}")
    return x


def _dense(x: object) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided


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


def broadcasting(name: str, x: object, shape: Sequence[int] | None) -> Tensor:
    """A tensor that broadcasts to the shape, if there is one, without making it larger."""
    x = tensor(name, x)
    own = x.shape[::-1]
    if shape is not None and not (
        len(own) <= len(shape) and all(n in (1, wanted) for n, wanted in zip(own, shape[::-1], strict=False))
    ):
        raise ValueError(f"{name}: expected a tensor that broadcasts to {tuple(shape)}, got {describe(x)}")
    return x


def alike(name: str, x: object, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of exactly this shape and dtype."""
    x = shaped(name, x, shape)
    if x.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {describe(x)}")
    return x


def together(name: str, x: Tensor, device: torch.device) -> Tensor:
    """A tensor on this device; a number, of shape (), may be on the CPU."""
    if x.device != device and (x.ndim or x.device.type != "cpu"):
        raise ValueError(f"{name}: expected a tensor on {device}, as the rest, got {describe(x)} on {x.device}")
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


LARGEST = 2**63 - 1


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
    if high is None and low is not None and value > LARGEST:
        high = LARGEST  # what a tensor of integers holds
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = [f"at {end} {bound}" for end, bound in (("least", low), ("most", high)) if bound is not None]
        raise ValueError(f"{name}: expected an integer {' and '.join(bounds)}, got {value}")
    return value


def timesteps(x: object, dtype: torch.dtype) -> int:
    """A number of discrete steps, 0 for continuous time. Beyond some number a dtype does not tell one step's gamma from
    the next: the difference of two, near 18 / T, is rounded by about 18 times the dtype's epsilon."""
    return integer("timesteps", x, 0, most_steps(dtype))


def most_steps(dtype: torch.dtype) -> int:
    return int(0.012 / torch.finfo(dtype).eps)


def count(name: str, x: int | Tensor) -> int | Tensor:
    """A number of steps: an integer >= 1, or an integer tensor of shape () that holds one."""
    if not isinstance(x, Tensor):
        return integer(name, x, 1, 2**31 - 1)
    shaped(name, x, ())
    if x.is_floating_point() or x.dtype == torch.bool:
        raise TypeError(f"{name}: expected an integer tensor, got {describe(x)}")
    within(name, x, 1, 2**31 - 1)
    return x


def real(name: str, x: object) -> float:
    """A finite Python number."""
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise TypeError(f"{name}: expected a number, got {describe(x)}")
    if not -math.inf < x < math.inf:  # math.isfinite would not take a compiler's symbolic number
        raise ValueError(f"{name}: expected a finite number, got {x}")
    return float(x)


def positive(name: str, x: object) -> float:
    """A number above 0."""
    value = real(name, x)
    if value <= 0.0:
        raise ValueError(f"{name}: expected a number above 0, got {x}")
    return value


def boolean(name: str, x: object) -> bool:
    """True or False, and nothing that merely counts as such."""
    return instance(name, x, bool, "True or False")


def integers(
    name: str, x: object, low: int | None = None, high: int | None = None, wanted: str = "a sequence of integers"
) -> tuple[int, ...]:
    """A sequence of integers, each within [low, high]."""
    if isinstance(x, (str, bytes, dict, set, frozenset, Tensor)) or not isinstance(x, Iterable):
        raise TypeError(f"{name}: expected {wanted}, got {describe(x)}")
    return tuple(integer(f"{name}[{i}]", value, low, high) for i, value in enumerate(x))


def path(name: str, x: object) -> Path:
    """The path of a file or a folder."""
    if not isinstance(x, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a path, got {describe(x)}")
    if "\0" in str(x):
        raise ValueError(f"{name}: expected a path without null characters, got {describe(x)}")
    return Path(x)


def function(name: str, x: object) -> Callable[..., Any]:
    """Something to call."""
    if not callable(x):
        raise TypeError(f"{name}: expected a function, got {describe(x)}")
    return x


def dtype(name: str, x: object, options: Iterable[torch.dtype]) -> torch.dtype:
    """One of some dtypes."""
    x, options = instance(name, x, torch.dtype, "a torch.dtype"), tuple(options)
    if x not in options:
        raise TypeError(f"{name}: expected one of {', '.join(map(str, options))}, got {x}")
    return x


def device(name: str, x: object) -> torch.device:
    """A device that PyTorch computes on, or the name of one."""
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
    return integers(name, x, 0, wanted="a shape (a sequence of integers)")


def choice(name: str, x: object, options: Sequence[str]) -> str:
    if not isinstance(x, str) or x not in options:
        kind = ValueError if isinstance(x, str) else TypeError
        raise kind(f"{name}: expected one of {', '.join(map(repr, options))}, got {describe(x)}")
    return x


class Fact(NamedTuple):
    """Something that must hold of values in tensors.

    Attributes:
        holds: bool, of any shape.
        error: makes the error where one of them does not hold, or None where a closer look finds that all do.
    """

    holds: Tensor
    error: Callable[[], Exception | None]


def verify(facts: Sequence[Fact]) -> None:
    """Raises the error of the first fact that does not hold. Waits for the device once, however many there are."""
    if not facts or torch.compiler.is_compiling():
        return
    held = [plain(fact.holds).all() for fact in facts]
    for fact, holds in zip(facts, torch.stack([h.to(held[0].device) for h in held]).tolist(), strict=True):
        error = None if holds else fact.error()
        if error is not None:
            raise error


def outside(wanted: str, name: str, x: Tensor) -> ValueError:
    """The error for values that are not all among those wanted."""
    if x.is_floating_point() and plain(x).isnan().any():
        return ValueError(f"{name}: expected {wanted}, got NaN in {describe(x)}")
    wide = plain(x).double() if x.dtype in (torch.uint16, torch.uint32, torch.uint64) else plain(x)  # no order of their own
    low, high = (v.item() for v in wide.aminmax())
    return ValueError(f"{name}: expected {wanted}, got values from {low} to {high}")


def within(name: str, x: Tensor, low: int, high: int) -> None:
    """Every value of an integer tensor in [low, high]; read only in eager mode."""
    if readable(x) and x.numel() > 0:
        wanted = f"integers in [{low}, {high}]"
        wide = x.to(torch.int64)  # the bounds may not fit x's dtype
        low = max(low, 0) if x.dtype == torch.uint64 else low  # what int64 does not hold turns negative
        verify([Fact((wide >= low) & (wide <= high), lambda: outside(wanted, name, x))])


Structure = tuple[tuple[tuple[Any, ...], tuple[int, ...], torch.dtype], ...]
"""The path, the shape and the dtype of each leaf of a tree, in order."""


def structure(tree: PyTree, name: str = "params") -> Structure:
    """The structure of a tree of tensors; ``name`` is what messages call it."""
    if not isinstance(tree, (dict, tuple, list)):
        raise TypeError(f"{name}: expected a tree of tensors, got {describe(tree)}")
    paths, leaves, _ = optree.tree_flatten_with_path(tree)  # type: ignore[arg-type, var-annotated]
    for path, leaf in zip(paths, leaves, strict=True):
        tensor(dotted(name, *path), leaf)
    return tuple((path, tuple(leaf.shape), leaf.dtype) for path, leaf in zip(paths, leaves, strict=True))


def dotted(*path: Any) -> str:
    """A leaf's path, as messages and files spell it."""
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
        if not _dense(leaf) or tuple(leaf.shape) != shape or leaf.dtype != dtype:
            shaped(dotted(name, *path), leaf, shape)
            raise TypeError(f"{dotted(name, *path)}: expected {dtype}, got {describe(leaf)}")
    if len(leaves) != len(wanted):
        known = {path for path, _, _ in wanted}
        surplus = next(path for path in leaves if path not in known)
        raise ValueError(f"{name}: expected no leaf {dotted(name, *surplus)}, got {describe(leaves[surplus])}")


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


def one_device(trees: dict[str, dict[tuple[Any, ...], Any]]) -> torch.device | None:
    """The device that all tensors of some trees are on; the first that is elsewhere than most is named."""
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
    """That every floating-point leaf is finite, in eager mode, and stays so in a dtype that it is cast to, as one fact; the
    first that is not is named by its path."""
    floats = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, Tensor) and leaf.is_floating_point()}
    for path, leaf in floats.items():
        if not _dense(leaf):
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
