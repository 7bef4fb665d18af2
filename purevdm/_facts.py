"""Facts: what must hold of values inside tensors, and where these may be read.

Values are read only in eager mode, where reading them breaks no graph. :func:`verify` reads all facts of a call in one
transfer.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual


def readable(*tensors: Tensor) -> bool:
    """Says whether values may be read here: not while compiling, and not on the meta device."""
    return not torch.compiler.is_compiling() and not any(t.is_meta for t in tensors)


def plain(x: Tensor) -> Tensor:
    """Gives the tensor below every ``torch.func`` transform, so that its values can be read under grad and vmap."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.detach()


def differentiated(x: Tensor) -> bool:
    """Says whether a ``torch.func`` transform takes derivatives with respect to x, at any level; in eager mode."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_gradtrackingtensor(x) and (x.requires_grad or unpack_dual(x).tangent is not None):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return False


def mapped(x: Tensor) -> bool:
    """Says whether a ``torch.func.vmap`` maps over x, at any level; in eager mode."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return False


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
