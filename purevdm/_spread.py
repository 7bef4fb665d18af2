"""Leaves of trees that are spread over processes: which they are, and work on the parts that a process holds.

What works element by element takes the local parts (:func:`flatten`); what needs all of them adds them up (:func:`total`).
:mod:`purevdm._sharding` makes leaves whole where they are computed with.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, _facts, _trees
from purevdm._compile import constant, untraced


@constant
def kind() -> Any:
    """Gives the class of sharded leaves, or None where nothing has imported it yet: that takes half a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return None if module is None else module.DTensor


def below(leaf: Any) -> Any:
    """Gives a leaf below every ``torch.func`` transform, if it is sharded there, and else None."""
    if kind() is None:
        return None
    while not torch.compiler.is_compiling() and isinstance(leaf, Tensor) and _wrapped(leaf):
        leaf = torch._C._functorch.get_unwrapped(leaf)
    return leaf if isinstance(leaf, kind()) else None


def _wrapped(leaf: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(leaf)  # type: ignore[no-any-return]


def mesh_of(leaves: dict[tuple[Any, ...], Any], name: str) -> Any:
    """Gives the device mesh of a tree's leaves, by their paths, or None where they are whole.

    Raises:
        ValueError: some are sharded and others are not, or they are on several meshes.
    """
    if kind() is None:
        return None
    first: Any = ...
    for path, leaf in leaves.items():
        own = getattr(below(leaf), "device_mesh", None)
        first = own if first is ... else first
        if own != first:
            kinds = ["whole" if each is None else "sharded" for each in (own, first)]
            got = "{} after {} ones".format(*kinds) if None in (own, first) else "on another mesh"
            at = _trees.dotted(name, *path)
            raise ValueError(f"{name}: expected leaves that are all whole or all sharded over one mesh, got {at} {got}")
    return None if first is ... else first


def finite(name: str, leaves: dict[tuple[Any, ...], Any], mesh: Any) -> list[_facts.Fact]:
    """Makes the fact that sharded leaves are finite, in eager mode: if one process finds otherwise, all raise the error."""
    floats = {path: below(leaf) for path, leaf in leaves.items() if leaf.is_floating_point()}
    if not floats or torch.compiler.is_compiling():
        return []
    with untraced():
        bad = torch.stack([(~local(leaf)[0].isfinite()).any() for leaf in floats.values()])
        bad = total(bad.double(), mesh) > 0

    def error() -> Exception:
        at = _trees.dotted(name, *list(floats)[int(bad.nonzero()[0])])
        return ValueError(f"{at}: expected finite numbers, got NaN or an infinity in a part of it")

    return [_facts.Fact(~bad, error)]


def sharded(params: Any) -> bool:
    """Says whether a tree has sharded leaves."""
    if kind() is None:
        return False
    # A compiler follows optree's walk step by step: that was 0.4 of the time that it took to trace a U-Net.
    leaves: Any = _checks.leaves(params).values() if torch.compiler.is_compiling() else optree.tree_leaves(params)
    return any(below(leaf) is not None for leaf in leaves)


# Parts


class Spread(NamedTuple):
    """How a leaf lies over processes.

    Attributes:
        mesh, placements: the processes, and how each of the mesh's axes divides it or not.
        shape, strides: of the whole.
    """

    mesh: Any
    placements: tuple[Any, ...]
    shape: torch.Size
    strides: tuple[int, ...]


def local(leaf: Tensor) -> tuple[Tensor, Spread | None]:
    """Gives a leaf's part in this process, and how it is spread; a whole one as it is, and None."""
    if below(leaf) is None:
        return leaf, None
    own: Any = leaf
    return arrived(own.to_local()), Spread(own.device_mesh, own.placements, own.shape, own.stride())


def arrived(x: Any) -> Tensor:
    """Waits for a tensor whose message may be under way, and returns it."""
    return x.wait() if hasattr(x, "wait") else x  # type: ignore[no-any-return]


def spread(part: Tensor, how: Spread | None) -> Tensor:
    """Inverts :func:`local`."""
    if how is None:
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements, shape, strides = how
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=strides)


def flatten(tree: Any) -> tuple[list[Tensor], Any]:
    """Lists a tree's leaves, of sharded ones the parts in this process, and gives the form that :func:`unflatten` takes."""
    leaves: Any
    leaves, spec = optree.tree_flatten(tree)
    parts = [local(leaf) for leaf in leaves]
    return [part for part, _ in parts], (spec, [how for _, how in parts])


def unflatten(form: Any, parts: Any) -> Any:
    """Makes the tree of this form with these parts."""
    spec, how = form
    return optree.tree_unflatten(spec, map(spread, parts, how))


def total(x: Tensor, mesh: Any) -> Tensor:
    """Computes the sum over the processes of a mesh, in all of them."""
    from torch.distributed.tensor import DTensor, Partial

    return DTensor.from_local(x, mesh, [Partial()] * mesh.ndim, run_check=False).full_tensor()


def mean(tree: Any, mesh: Any) -> Any:
    """Computes the mean of each tensor over the processes of a mesh, by one message."""
    leaves: Any
    leaves, spec = optree.tree_flatten(tree)
    flat = total(torch.cat([leaf.detach().reshape(-1).double() for leaf in leaves]), mesh) / mesh.size()
    parts = flat.split([leaf.numel() for leaf in leaves])
    return optree.tree_unflatten(spec, [new.view(old.shape).to(old.dtype) for old, new in zip(leaves, parts, strict=True)])


def norm(leaves: Sequence[Tensor]) -> Tensor:
    """Computes the Euclidean norm of all leaves together, shape (), whole or sharded over one mesh."""
    parts, how = zip(*map(local, leaves), strict=True) if leaves else ((), ())
    if not how or how[0] is None:
        return torch.nn.utils.get_total_norm(list(parts))
    squares = torch.stack(torch._foreach_norm(list(parts))).double().square()
    # Every element counts once: a leaf is held by as many processes as the axes that replicate it have.
    copies = [_copies(each) for each in how]
    squares = squares / torch.tensor(copies, dtype=torch.float64, device=squares.device)
    return total(squares.sum(), how[0].mesh).sqrt().to(parts[0].dtype)


def _copies(how: Spread) -> int:
    return math.prod(how.mesh.size(i) for i, placement in enumerate(how.placements) if placement.is_replicate())
