"""Gradients that lie in memory as their parameters do.

Fused optimisers go by memory order, and ``torch.func.grad`` returns what the last operation of a backward pass leaves: the
gradient of a convolution's kernel may follow its map's layout, that of a sum is one number expanded.
"""

from typing import Any

import torch
from torch import Tensor


def _laid_out(x: Tensor) -> Tensor:
    y, shape, strides = x.view_as(x), x.shape, x.stride()

    def restored(grad: Tensor) -> Tensor:
        return grad if grad.stride() == strides else grad.new_empty_strided(shape, strides).copy_(grad)

    if y.requires_grad and not any(n > 1 and step == 0 for n, step in zip(shape, strides, strict=True)):
        y.register_hook(restored)
    return y


def _laid_out_batch(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
    return _LAID_OUT(x), in_dims[0]


# An operator, as a compiler follows no hook: it keeps this one whole, and compiles what the backward pass does.
_library = torch.library.Library("purevdm", "FRAGMENT")
_library.define("laid_out(Tensor(a) x) -> Tensor(a)")
_library.impl("laid_out", _laid_out, "CompositeImplicitAutograd")
torch.library.register_vmap("purevdm::laid_out", _laid_out_batch, lib=_library)
_LAID_OUT = torch.ops.purevdm.laid_out.default


def laid_out(leaf: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Lays out a parameter for a network, floats in this dtype; its gradient gets its strides, however it is taken."""
    if not leaf.is_floating_point():
        return leaf
    if leaf.ndim and torch.is_grad_enabled():
        leaf = _LAID_OUT(leaf)
    return leaf if dtype is None else leaf.to(dtype)
