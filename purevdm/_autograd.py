"""Gradients by ``torch.autograd``, in the form of ``torch.func``.

``torch.func.grad`` keeps its backward pass differentiable, so norms and swish run no kernels of their own there; and it does
not know checkpoints.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import optree
import torch
from torch import Tensor
from torch._functorch import config

from purevdm._compile import exact, transformed


def grad_and_value(f: Callable[..., tuple[Tensor, Any]], *trees: Any, given: Any = None) -> tuple[Any, tuple[Tensor, Any]]:
    """Differentiates ``f(*trees) -> (value, aux)`` by all trees, as ``torch.func.grad_and_value`` does; and by that one in a
    compiled graph, within a transform, and where a tensor of these or of what else f is ``given`` requires a gradient, as
    derivatives of the gradients may follow."""
    leaves: Any = optree.tree_leaves((trees, given))  # type: ignore[arg-type]
    further = torch.is_grad_enabled() and any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)
    if torch.compiler.is_compiling() or transformed() or further:
        return torch.func.grad_and_value(f, argnums=tuple(range(len(trees))), has_aux=True)(*trees)  # type: ignore[no-any-return]
    return outside(f, *trees)


def outside(f: Callable[..., tuple[Tensor, Any]], *trees: Any, remat: bool = False) -> tuple[Any, tuple[Tensor, Any]]:
    """Differentiates ``f(*trees) -> (value, aux)`` with respect to all trees: a gradient for each, and the value and aux
    without derivatives. With ``remat`` also through reentrant checkpoints."""
    leaves: Any
    leaves, spec = optree.tree_flatten(trees)  # type: ignore[arg-type]
    # A copy of what was made in inference mode, as it takes no gradient.
    leaves = [(leaf.clone() if leaf.is_inference() else leaf.detach()).requires_grad_() for leaf in leaves]
    device = leaves[0].device if leaves else torch.device("cpu")
    with torch.enable_grad(), _backward_exact(device):
        value, aux = f(*optree.tree_unflatten(spec, leaves))
    with exact(value.device):
        if remat:  # reentrant checkpoints do not know torch.autograd.grad
            value.backward()
            grads: Any = [leaf.grad for leaf in leaves]
        else:
            grads = torch.autograd.grad(value, leaves, allow_unused=True)
    grads = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads, strict=True)]
    return optree.tree_unflatten(spec, grads), (value.detach(), optree.tree_map(torch.detach, aux))


def _backward_exact(device: torch.device) -> AbstractContextManager[Any]:
    """Gives a block in which a compiler makes backward passes without the user's autocast."""
    if not torch.is_autocast_enabled(device.type) or not hasattr(config, "backward_pass_autocast"):
        return nullcontext()
    return config.patch(backward_pass_autocast="off")  # type: ignore[no-any-return]
