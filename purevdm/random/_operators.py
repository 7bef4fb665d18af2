"""Operators of draws: eager mode runs one at a time, and a compiler traces one node, where there are hundreds of operations.
Inductor, which makes code, is told the operations, and fuses them into one loop: but not in a region within a loop, which it
does not take apart, so blocks of networks are given their masks."""

from collections.abc import Callable
from typing import Any

import torch

from purevdm._compile import OLD, constant, exporting

_library = torch.library.Library("purevdm", "FRAGMENT")
_OPERATIONS: dict[Any, Callable[..., Any]] = {}


def operator(
    schema: str, run: Callable[..., Any], batch: Callable[..., Any], operations: Callable[..., Any]
) -> Callable[..., Any]:
    """Defines an operator without derivatives.

    Args:
        schema: its name and types.
        run: what computes it in eager mode, and its shape on the meta device.
        batch: its rule for vmap, ``(overload, n, in_dims, *arguments) -> (result, axis)``.
        operations: the same, operation by operation.

    Returns:
        A function that calls it. Older compilers are given the operations, and so are programs that ``torch.export`` makes,
        which then need no operator of this library.
    """
    name = schema[: schema.index("(")]
    _library.define(schema)
    _library.impl(name, run, "CompositeExplicitAutograd")
    overload = getattr(torch.ops.purevdm, name).default

    def mapped(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return batch(overload, info.batch_size, in_dims, *arguments)

    torch.library.register_vmap(f"purevdm::{name}", mapped, lib=_library)
    _OPERATIONS[overload] = operations

    def call(*arguments: Any) -> Any:
        return (operations if _taken_apart() else overload)(*arguments)

    return call


def _taken_apart() -> bool:
    """Says whether operations are traced, not operators."""
    if not torch.compiler.is_compiling():
        return False
    return OLD or exporting() or not _known_to_inductor()


@constant
def _known_to_inductor() -> bool:
    """Tells inductor the operations of each operator."""
    from torch._inductor import decomposition

    decomposition.decompositions.update(_OPERATIONS)
    decomposition.fast_random_decomps.cache_clear()  # the same table with more in it
    return True
