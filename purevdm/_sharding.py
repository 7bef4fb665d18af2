"""Trees whose leaves are spread over processes, made whole where they are computed with.

A sharded leaf is a ``DTensor``. To make it whole is an all-gather, whose derivative takes each process's part of the mean of
the gradients over all processes: a reduce-scatter, or an all-reduce where the leaf is replicated. So the gradient of a loss
over each process's own rows is that of the mean loss over all rows, in the parameters' own shards (FSDP, Zhao et al. 2023;
within a compiled graph, SimpleFSDP, arXiv 2411.00284).

All processes of a mesh must make the same leaves whole, in the same order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from purevdm._compile import transformed, untraced
from purevdm._layout import laid_out
from purevdm._spread import arrived, below, kind, local, sharded, spread

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
    """Gives a process's part of the mean over processes, which the caller need not wait for before it goes on."""
    from torch.distributed.tensor import DTensor, Partial

    parts = DTensor.from_local(x.contiguous() / mesh.size(), mesh, [Partial()] * mesh.ndim, run_check=False)
    return parts.redistribute(placements=placements, async_op=True)


def whole(tree: Any) -> Any:
    """Makes every sharded leaf of a tree whole, and returns the same tree where there is none."""
    if kind() is None:
        return tree
    if torch.compiler.is_compiling():  # by tree_map, as the compiler cannot flatten an empty dict of optree 0.20
        return optree.tree_map(lambda leaf: leaf if below(leaf) is None else _in_graph(leaf), tree)
    leaves: Any
    leaves, spec = optree.tree_flatten(tree)
    owns = [below(leaf) for leaf in leaves]
    if all(own is None for own in owns):
        return tree
    wholes = iter(fetched([own for own in owns if own is not None]))
    made = [
        leaf if own is None else _Gathered.apply(leaf, next(wholes), own.device_mesh, own.placements)
        for leaf, own in zip(leaves, owns, strict=True)
    ]
    return optree.tree_unflatten(spec, made)


def _in_graph(leaf: Any) -> Tensor:
    """Makes a leaf whole in a compiled graph, with its derivative."""
    from torch.distributed.tensor import Partial, Replicate

    n = leaf.device_mesh.ndim
    full = leaf.redistribute(placements=[Replicate()] * n).to_local(grad_placements=[Partial()] * n)
    return _Mean.apply(full, leaf.device_mesh.size())  # type: ignore[no-any-return]


def fetched(leaves: Sequence[Any]) -> list[Tensor]:
    """Makes sharded leaves whole, contiguous, without derivatives. Those whose parts are equal travel in one message for
    each dtype."""
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
                done[i] = arrived(leaf.full_tensor()).contiguous()
        for rows in together.values():
            parts = [local(leaves[i])[0] for i in rows]
            mesh = leaves[rows[0]].device_mesh
            flat = torch.cat([part.reshape(-1) for part in parts])
            placements = [Replicate()] * (mesh.ndim - 1) + [Shard(0)]
            all_parts = arrived(DTensor.from_local(flat, mesh, placements, run_check=False).full_tensor())
            split = all_parts.view(mesh.size(-1), -1).split([part.numel() for part in parts], 1)
            for i, part, several in zip(rows, parts, split, strict=True):
                axis = leaves[i].placements[-1].dim
                done[i] = several.unflatten(1, part.shape).movedim(0, axis).flatten(axis, axis + 1).contiguous()
    return done


def entered(params: Any, dtype: torch.dtype | None) -> Any:
    """Makes a network's parameters, or a part of them, whole as it computes with them: floats in this dtype."""
    return optree.tree_map(lambda leaf: laid_out(leaf, dtype), whole(params))


def before_blocks(params: Any, dtype: torch.dtype | None) -> Any:
    """Gives a network's parameters as its blocks take them: sharded ones as they are, others as they compute with them."""
    return params if sharded(params) else entered(params, dtype)


def block(params: Any, dtype: torch.dtype | None) -> Any:
    """Makes a part of a network's parameters whole if it is sharded."""
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


def like(whole: Any, sharded: Any, *, mean: bool = False) -> Any:
    """Shards a whole tree as another of the same form is; each process has the same one, or, with ``mean``, the mean of
    theirs is meant. Leaves that are sharded already stay."""

    return optree.tree_map(lambda leaf, example: _leaf_like(leaf, example, mean), whole, sharded)


def _leaf_like(leaf: Tensor, example: Any, mean: bool) -> Any:
    own = below(example)
    if own is None or below(leaf) is not None:
        return leaf
    return (scattered if mean else divided)(leaf, own.device_mesh, own.placements)


def restored(after: Any, before: Any, owns: Any) -> Any:
    """Shards ``after`` as ``owns`` is. It was made of ``before``, which is ``owns`` made whole: a leaf that is still the
    same object becomes the sharded one again. Others are the mean over the processes."""
    if not sharded(owns):
        return after
    return optree.tree_map(lambda new, old, own: own if new is old else _leaf_like(new, own, True), after, before, owns)


def divided(leaf: Tensor, mesh: Any, placements: Any) -> Any:
    """Gives this process's part of a leaf that all have, in memory of its own."""
    from torch.distributed.tensor import distribute_tensor

    made: Any = distribute_tensor(leaf.detach(), mesh, placements, src_data_rank=None)
    part, how = local(made)
    return spread(part.clone(), how)
