"""Gradients of a model's loss, compiled or not, of a batch whole or in pieces."""

from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from purevdm import _apply, _autograd, _checks, _spread, _trees
from purevdm._batches import unpacked
from purevdm._compile import OLD, exact, transformed
from purevdm._door import batch_axes, seeded
from purevdm._masks import mask_of
from purevdm._vdm import VDM
from purevdm.model import Bounded, bounded
from purevdm.noise import Seeds
from purevdm.types import Key, Params

GradFn = Callable[..., tuple[Params, tuple[Tensor, dict[str, Any]]]]
"""``(params, x, key, cond) -> (grads, (loss, stats))``, with ``mask=`` for data that have one. The key is a key or the
batch's Seeds; frozen leaves have the gradient None."""


def gradients(
    model: Bounded,
    *,
    variance: bool = False,
    compile: bool = False,
    remat: bool = False,
    accumulate: int = 1,
    frozen: Sequence[str] = (),
    **options: Any,
) -> GradFn:
    """Makes the function that gives a step its gradients, ``(params, x, key, cond, mask=...) -> (grads, (loss, stats))``:
    the bound's, or with the schedule's interior following the variance. For x it takes a batch, too, (x, cond) or (x, cond,
    mask).

    Args:
        model: the model, a VDM, a BFN or a MaskedDiffusion.
        variance: whether the interior follows the variance (App. I.2), by ``model.vlb_and_variance_grads``.
        compile: whether to compile it.
        remat: whether the loss is differentiated from outside, by ``torch.autograd``, which knows checkpoints as
            ``torch.func`` does not. So networks made with ``remat=True``, and, compiled, modules with checkpoints, compute
            them again in the backward pass, for less memory.
        accumulate: into how many pieces to cut each batch, one after the other; the result is that of the whole, with less
            memory. One graph serves all pieces.
        frozen: paths of leaves or branches of the parameters, as ``"network.down"`` or ``"network.params.encoder"``, whose
            gradients are None: a step leaves them as they are. So are those of ``model.network.frozen``, the parameters of a
            module that do not require gradients.
        options: for ``torch.compile``.

    Raises:
        RuntimeError: remat and compile with a PyTorch older than 2.13, whose compiler fails on it.
        ValueError: settings that exclude one another; a schedule of :mod:`purevdm.importance` in T steps; from the function,
            a batch that does not divide into the pieces, and frozen paths that the parameters do not have.
    """
    bounded(model)
    for name, value in (("variance", variance), ("compile", compile), ("remat", remat)):
        _checks.boolean(name, value)
    if getattr(getattr(model, "schedule", None), "observe", None) is not None and model.timesteps:
        raise ValueError(f"timesteps: expected 0 with a warped schedule, as in {model.timesteps} steps it is another model")
    if remat and variance:
        raise ValueError("remat: expected variance=False with it")
    if variance and not isinstance(model, VDM):
        raise ValueError(f"variance: expected False for a {type(model).__name__}, got True; it is for a VDM's schedule")
    if remat and compile and OLD:  # inductor forgets a buffer in the backward pass
        raise RuntimeError(f"remat: expected PyTorch 2.13 or newer, got {torch.__version__}")
    accumulate = _checks.integer("accumulate", accumulate, 1)
    if isinstance(frozen, str) or not all(isinstance(path, str) for path in frozen):
        raise TypeError(f"frozen: expected a sequence of paths such as 'network.down', got {_checks.describe(frozen)}")
    frozen = (*frozen, *(f"network.{path}" for path in model.network.frozen))

    def whole(params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, **masks: Any) -> Any:
        if variance and isinstance(model, VDM):
            return model.vlb_and_variance_grads(params, x, key, cond, has_aux=True, **masks)  # type: ignore[arg-type]

        if not (transformed() or torch.compiler.is_compiling()):
            return outside(params, x, key, cond, **masks)

        def loss_and_stats(params: Params) -> tuple[Tensor, dict[str, Any]]:
            return model.loss_and_stats(params, x, key, cond, **masks)

        if x.is_meta or not torch.is_autocast_enabled(x.device.type):
            return torch.func.grad_and_value(loss_and_stats, has_aux=True)(params)
        # Autocast is for what a network computes, and not for backward passes, the schedule's among them.
        found: Any = torch.func.vjp(loss_and_stats, params, has_aux=True)
        loss, pull, stats = found
        with exact(loss.device):
            return pull(torch.ones_like(loss))[0], (loss, stats)

    outside = _from_outside(model.loss_and_stats)
    # A backend "eager" does not differentiate regions.
    regions = compile and not variance and options.get("backend") != "eager" and _apply.has_regions(model.network)
    if remat or regions:
        if regions:
            network = model.network._replace(owned_buffers=True)
            model, options = model._replace(network=network), _apply.without_reuse(options)
        loss = model.loss_and_stats
        whole = _from_outside(torch.compile(loss, fullgraph=True, **options) if compile else loss, remat)
    elif compile:
        whole = _of_either(torch.compile(whole, fullgraph=True, **options), model, variance, options)
    if frozen:
        whole = _without(frozen, whole)
    grad_fn = whole if accumulate == 1 else _in_pieces(model, accumulate, whole)

    def of_batch(params: Params, x: Any, key: Key | Seeds, cond: Any = None, **masks: Any) -> Any:
        if not isinstance(x, Tensor):
            x, cond, mask = unpacked(x, cond)
            masks = masks if mask is None else {"mask": mask}
        return grad_fn(params, x, key, cond, **masks)

    return of_batch


def _of_either(inside: GradFn, model: Bounded, variance: bool, options: dict[str, Any]) -> GradFn:
    """Makes compiled gradients: of whole parameters by ``inside``, of sharded ones by ``torch.autograd``, as those do not
    pass the transforms of ``torch.func`` in a compiled graph."""
    of_shards = _from_outside(torch.compile(model.loss_and_stats, fullgraph=True, **options))

    def whole(params: Params, *args: Any, **masks: Any) -> Any:
        if not _spread.sharded(params):
            return inside(params, *args, **masks)
        if variance:
            raise ValueError("variance: expected whole parameters where it is compiled, got sharded ones; use compile=False")
        return of_shards(params, *args, **masks)

    return whole


def _in_pieces(model: Bounded, pieces: int, grad_fn: GradFn) -> GradFn:
    """Makes the gradients the mean over pieces of each batch."""

    def mean(params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, **masks: Any) -> Any:
        n = len(_checks.tensor("x", x)) if x.ndim else 0
        if not n:
            return grad_fn(params, x, key, cond)  # which says what is wrong with it
        if n % pieces:
            raise ValueError(f"accumulate: expected a divisor of the batch of {n}, got {pieces}")
        batch_axes(cond, n)
        seeds = seeded(model, key, n)
        _checks.shaped("key.t", seeds.t, (n,))
        _checks.shaped("key.key", seeds.key, (n, 2))
        masks = {name: mask_of(mask, tuple(x.shape)).expand_as(x) for name, mask in masks.items()}
        total: Any = []
        form: Any = None
        for start in range(0, n, n // pieces):
            rows = slice(start, start + n // pieces)
            some, given = optree.tree_map(lambda leaf, rows=rows: leaf[rows], (cond, masks))  # type: ignore[arg-type, misc]
            leaves, form = _spread.flatten(grad_fn(params, x[rows], seeds.rows(rows), some, **given))
            total = torch._foreach_add(total, leaves) if total else leaves
        return _spread.unflatten(form, torch._foreach_div(total, pieces))

    return mean


def _without(frozen: Sequence[str], grad_fn: GradFn) -> GradFn:
    """Makes the gradients None for the leaves at these paths and below them."""

    def some(params: Params, *args: Any, **masks: Any) -> Any:
        names = [_trees.dotted(*path) for path in optree.tree_paths(params)]  # type: ignore[arg-type]
        stays = [[f"{name}.".startswith(f"{path}.") for name in names] for path in frozen]
        for path, of_path in zip(frozen, stays, strict=True):
            if not any(of_path):
                raise ValueError(f"frozen: expected paths of parameters, such as {names[0]!r}, got {path!r}")
        grads, rest = grad_fn(params, *args, **masks)
        leaves: Any
        leaves, spec = optree.tree_flatten(grads)  # type: ignore[arg-type]
        kept = [None if any(of_leaf) else leaf for leaf, *of_leaf in zip(leaves, *stays, strict=True)]
        return optree.tree_unflatten(spec, kept), rest

    return some


def _from_outside(loss_and_stats: Callable[..., tuple[Tensor, dict[str, Any]]], remat: bool = False) -> GradFn:
    """Makes the gradients of a loss by ``torch.autograd``, which knows checkpoints as ``torch.func`` does not."""

    def grad_fn(params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, **masks: Any) -> Any:
        x, cond = optree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, (x, cond))  # type: ignore[arg-type, assignment]
        (grads,), found = _autograd.outside(lambda own: loss_and_stats(own, x, key, cond, **masks), params, remat=remat)
        return grads, found

    return grad_fn
