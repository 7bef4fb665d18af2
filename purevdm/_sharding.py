"""Trees whose leaves are spread over processes: made whole where they are computed with, and worked on in parts elsewhere.

A sharded leaf is a ``DTensor``. To make it whole is an all-gather, whose derivative takes each process's part of the mean of
the gradients over all processes: a reduce-scatter, or an all-reduce where the leaf is replicated. So the gradient of a loss
over each process's own rows is that of the mean loss over all rows, in the parameters' own shards (FSDP, Zhao et al. 2023;
within a compiled graph, SimpleFSDP, arXiv 2411.00284). What works element by element takes the local parts (:func:`local`).

All processes of a mesh must make the same leaves whole, in the same order.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks
from purevdm._compile import constant, transformed, untraced
from purevdm._layout import laid_out


@constant
def kind() -> Any:
    """The class of sharded leaves, or None where nothing has imported it yet: that takes half a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return None if module is None else module.DTensor


def below(leaf: Any) -> Any:
    """A leaf below every ``torch.func`` transform, if it is sharded there, and else None."""
    if kind() is None:
        return None
    while not torch.compiler.is_compiling() and isinstance(leaf, Tensor) and _wrapped(leaf):
        leaf = torch._C._functorch.get_unwrapped(leaf)
    return leaf if isinstance(leaf, kind()) else None


def _wrapped(leaf: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(leaf)  # type: ignore[no-any-return]


def mesh_of(leaves: dict[tuple[Any, ...], Any], name: str) -> Any:
    """The device mesh of a tree's leaves, by their paths, or None where they are whole.

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
            at = _checks.dotted(name, *path)
            raise ValueError(f"{name}: expected leaves that are all whole or all sharded over one mesh, got {at} {got}")
    return None if first is ... else first


def finite(name: str, leaves: dict[tuple[Any, ...], Any], mesh: Any) -> list[_checks.Fact]:
    """That sharded leaves are finite, in eager mode: every process raises the error where one finds that they are not."""
    floats = {path: below(leaf) for path, leaf in leaves.items() if leaf.is_floating_point()}
    if not floats or torch.compiler.is_compiling():
        return []
    with untraced():
        bad = torch.stack([(~local(leaf)[0].isfinite()).any() for leaf in floats.values()])
        bad = total(bad.double(), mesh) > 0

    def error() -> Exception:
        at = _checks.dotted(name, *list(floats)[int(bad.nonzero()[0])])
        return ValueError(f"{at}: expected finite numbers, got NaN or an infinity in a part of it")

    return [_checks.Fact(~bad, error)]


# Whole, with derivatives

_WHOLE = "gradients of each example, second derivatives and directions need whole ones (purevdm.parallel.whole)"


class _Gathered(torch.autograd.Function):
    """A leaf made whole, which is given; its derivative is the mean over the processes."""

    @staticmethod
    def forward(leaf: Any, whole: Tensor, mesh: Any, placements: Any) -> Tensor:
        if not isinstance(leaf, kind()):
            raise NotImplementedError(f"sharded parameters: {_WHOLE}")
        return whole.view_as(whole)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, _, ctx.mesh, ctx.placements = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Scattered.apply(grad, ctx.mesh, ctx.placements), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Any, *_: Any) -> Tensor:
        raise NotImplementedError(f"sharded parameters: {_WHOLE}")

    @staticmethod
    def vmap(*_: Any) -> Any:
        raise NotImplementedError(f"sharded parameters: {_WHOLE}")


class _Scattered(torch.autograd.Function):
    """A process's part of the mean of whole tensors, one from each process."""

    @staticmethod
    def forward(grad: Tensor, mesh: Any, placements: Any) -> Any:
        return scattered(grad, mesh, placements)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(f"sharded parameters: {_WHOLE}")

    @staticmethod
    def vmap(*_: Any) -> Any:
        raise NotImplementedError(f"sharded parameters: {_WHOLE}")


class _Mean(torch.autograd.Function):
    """A tensor itself; its derivative is divided by the number of processes."""

    @staticmethod
    def forward(x: Tensor, n: int) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.n = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad / ctx.n, None


def scattered(x: Tensor, mesh: Any, placements: Any) -> Any:
    """A process's part of the mean over processes, which the caller need not wait for before it goes on."""
    from torch.distributed.tensor import DTensor, Partial

    parts = DTensor.from_local(x.contiguous() / mesh.size(), mesh, [Partial()] * mesh.ndim, run_check=False)
    return parts.redistribute(placements=placements, async_op=True)


def whole(tree: Any) -> Any:
    """A tree with every sharded leaf made whole, the same tree where there is none."""
    if not sharded(tree):
        return tree
    leaves: Any
    leaves, spec = optree.tree_flatten(tree)
    owns = [below(leaf) for leaf in leaves]
    if torch.compiler.is_compiling():
        return optree.tree_unflatten(spec, [leaf if own is None else _in_graph(leaf) for leaf, own in zip(leaves, owns)])  # noqa: B905
    wholes = iter(fetched([own for own in owns if own is not None]))
    made = [
        leaf if own is None else _Gathered.apply(leaf, next(wholes), own.device_mesh, own.placements)
        for leaf, own in zip(leaves, owns, strict=True)
    ]
    return optree.tree_unflatten(spec, made)


def _in_graph(leaf: Any) -> Tensor:
    """A leaf made whole in a compiled graph, with its derivative."""
    from torch.distributed.tensor import Partial, Replicate

    n = leaf.device_mesh.ndim
    full = leaf.redistribute(placements=[Replicate()] * n).to_local(grad_placements=[Partial()] * n)
    return _Mean.apply(full, leaf.device_mesh.size())  # type: ignore[no-any-return]


def fetched(leaves: Sequence[Any]) -> list[Tensor]:
    """Sharded leaves made whole, contiguous, without derivatives. Those whose parts are equal travel in one message for each
    dtype."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    done: list[Any] = [None] * len(leaves)
    together: dict[torch.dtype, list[int]] = {}
    with untraced(), torch.no_grad():
        for i, leaf in enumerate(leaves):
            *others, last = leaf.placements
            even = isinstance(last, Shard) and leaf.shape[last.dim] % leaf.device_mesh.size(-1) == 0
            if even and all(isinstance(placement, Replicate) for placement in others):
                together.setdefault(leaf.dtype, []).append(i)
            else:
                done[i] = _arrived(leaf.full_tensor()).contiguous()
        for rows in together.values():
            parts = [local(leaves[i])[0] for i in rows]
            mesh = leaves[rows[0]].device_mesh
            flat = torch.cat([part.reshape(-1) for part in parts])
            placements = [Replicate()] * (mesh.ndim - 1) + [Shard(0)]
            all_parts = _arrived(DTensor.from_local(flat, mesh, placements, run_check=False).full_tensor())
            split = all_parts.view(mesh.size(-1), -1).split([part.numel() for part in parts], 1)
            for i, part, several in zip(rows, parts, split, strict=True):
                axis = leaves[i].placements[-1].dim
                done[i] = several.unflatten(1, part.shape).movedim(0, axis).flatten(axis, axis + 1).contiguous()
    return done


def entered(params: Any, dtype: torch.dtype | None) -> Any:
    """A network's parameters, or a part of them, whole as it computes with them: floats in this dtype."""
    return optree.tree_map(lambda leaf: laid_out(leaf, dtype), whole(params))


def before_blocks(params: Any, dtype: torch.dtype | None) -> Any:
    """A network's parameters as its blocks are given them: sharded ones as they are, others as they compute with them."""
    return params if sharded(params) else entered(params, dtype)


def block(params: Any, dtype: torch.dtype | None) -> Any:
    """A part of a network's parameters, made whole if it is sharded."""
    return entered(params, dtype) if sharded(params) else params


def in_blocks(f: Callable[..., Tensor], dtype: torch.dtype | None, keep: bool) -> Callable[..., Tensor]:
    """Makes ``f(params, *inputs)`` take sharded parameters, which it makes whole for as long as it runs.

    Its backward pass makes them whole again, one by one, where ``torch.autograd`` differentiates in eager mode. With
    ``keep`` it does not: for a function that is computed again in the backward pass.
    """

    def run(params: Any, *inputs: Any) -> Tensor:
        if not sharded(params):
            return f(params, *inputs)
        full = entered(params, dtype)
        if keep or torch.compiler.is_compiling() or transformed() or not torch.is_grad_enabled():
            return f(full, *inputs)
        leaves: list[Any] = optree.tree_leaves(params)
        wholes: list[Tensor] = optree.tree_leaves(full)
        of_memory = {w.untyped_storage().data_ptr(): (leaf, w.dtype) for leaf, w in zip(leaves, wholes, strict=True)}

        def pack(saved: Tensor) -> Any:
            own = of_memory.get(saved.untyped_storage().data_ptr()) if saved.numel() else None
            return saved if own is None else (*own, saved.shape, saved.stride(), saved.storage_offset())

        def unpack(kept: Any) -> Tensor:
            if isinstance(kept, Tensor):
                return kept
            leaf, dtype, *view = kept
            return fetched([leaf.detach()])[0].to(dtype).as_strided(*view)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return f(full, *inputs)

    return run


def sharded(params: Any) -> bool:
    """Whether a tree has sharded leaves."""
    return kind() is not None and any(below(leaf) is not None for leaf in optree.tree_leaves(params))


# In parts, without derivatives


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
    """A leaf's part in this process, and how it is spread; a whole one as it is, and None."""
    if below(leaf) is None:
        return leaf, None
    own: Any = leaf
    return _arrived(own.to_local()), Spread(own.device_mesh, own.placements, own.shape, own.stride())


def _arrived(x: Any) -> Tensor:
    """A tensor whose message may be under way, once it is there."""
    return x.wait() if hasattr(x, "wait") else x  # type: ignore[no-any-return]


def spread(part: Tensor, how: Spread | None) -> Tensor:
    """The inverse of :func:`local`."""
    if how is None:
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements, shape, strides = how
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=strides)


def flatten(tree: Any) -> tuple[list[Tensor], Any]:
    """A tree's leaves, of sharded ones the parts in this process, and the form that :func:`unflatten` takes."""
    leaves: Any
    leaves, spec = optree.tree_flatten(tree)
    parts = [local(leaf) for leaf in leaves]
    return [part for part, _ in parts], (spec, [how for _, how in parts])


def unflatten(form: Any, parts: Any) -> Any:
    """The tree of this form with these parts."""
    spec, how = form
    return optree.tree_unflatten(spec, map(spread, parts, how))


def total(x: Tensor, mesh: Any) -> Tensor:
    """The sum over the processes of a mesh, in all of them."""
    from torch.distributed.tensor import DTensor, Partial

    return DTensor.from_local(x, mesh, [Partial()] * mesh.ndim, run_check=False).full_tensor()


def mean(tree: Any, mesh: Any) -> Any:
    """The mean of each tensor over the processes of a mesh, by one message."""
    leaves: Any
    leaves, spec = optree.tree_flatten(tree)
    if mesh is None or not leaves:
        return tree
    flat = total(torch.cat([leaf.detach().reshape(-1).double() for leaf in leaves]), mesh) / mesh.size()
    parts = flat.split([leaf.numel() for leaf in leaves])
    return optree.tree_unflatten(spec, [new.view(old.shape).to(old.dtype) for old, new in zip(leaves, parts, strict=True)])


def norm(leaves: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all leaves together, shape (), whole or sharded over one mesh."""
    parts, how = zip(*map(local, leaves), strict=True) if leaves else ((), ())
    if not how or how[0] is None:
        return torch.nn.utils.get_total_norm(list(parts))
    squares = torch.stack(torch._foreach_norm(list(parts))).double().square()
    # Every element counts once: a leaf is held by as many processes as the axes that replicate it have.
    copies = [_copies(each) for each in how]
    squares = squares / torch.tensor(copies, dtype=torch.float64, device=squares.device)
    return total(squares.sum(), how[0].mesh).sqrt().to(parts[0].dtype)


def _copies(how: Spread) -> int:
    sizes = [how.mesh.size(i) for i, placement in enumerate(how.placements) if placement.is_replicate()]
    return int(torch.tensor(sizes or [1]).prod())


def like(whole: Any, sharded: Any, *, mean: bool = False) -> Any:
    """A whole tree sharded as another of the same form is; each process has the same one, or, with ``mean``, the mean of
    theirs is meant. Leaves that are sharded already stay."""

    def one(leaf: Tensor, example: Any) -> Any:
        own = below(example)
        if own is None or below(leaf) is not None:
            return leaf
        return scattered(leaf, own.device_mesh, own.placements) if mean else divided(leaf, own.device_mesh, own.placements)

    return optree.tree_map(one, whole, sharded)


def restored(after: Any, before: Any, sharded: Any) -> Any:
    """A whole tree, made of one that ``sharded`` was made whole as, sharded alike: a leaf that is the same object as before
    is the one that it was made of. Others are the mean over the processes."""
    if after is before:
        return sharded

    def one(new: Tensor, old: Tensor, own: Any) -> Any:
        return own if new is old else scattered(new, own.device_mesh, own.placements) if below(own) is not None else new

    return optree.tree_map(one, after, before, sharded)


def divided(leaf: Tensor, mesh: Any, placements: Any) -> Any:
    """This process's part of a leaf that all have, in memory of its own."""
    from torch.distributed.tensor import distribute_tensor

    made: Any = distribute_tensor(leaf.detach(), mesh, placements, src_data_rank=None)
    part, how = local(made)
    return spread(part.clone(), how)
