"""Repeated blocks as regions: a compiler makes the code of one, and calls it for every other of the same form.

Only in a graph that is differentiated from outside, if at all: the transforms of ``torch.func`` know no regions. There a
network of blocks is applied to a whole batch, each block a region that maps over the examples inside. Everywhere else the
network of one example is mapped over the batch as any network is. Both compute the same.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import optree
import torch

from purevdm._compile import OLD, transformed

F = TypeVar("F", bound=Callable[..., Any])


def batch_of(apply: Callable[..., Any]) -> Callable[[F], F]:
    """Says of a function that it is a network's ``apply`` for a batch, by regions."""

    def say(f: F) -> F:
        apply.over_batch = f  # type: ignore[attr-defined]
        return f

    return say


def known(apply: Callable[..., Any]) -> bool:
    """Whether a network's ``apply`` has a form for a batch, by regions, and this compiler takes it."""
    return isinstance(apply, partial) and hasattr(apply.func, "over_batch") and not OLD


def for_batch(apply: Callable[..., Any]) -> Callable[..., Any] | None:
    """A network's ``apply`` for a batch, by regions, where there is one and regions go; else None."""
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting() or transformed() or not known(apply):
        return None
    return partial(apply.func.over_batch, *apply.args, **apply.keywords)  # type: ignore[attr-defined]


def region(f: F) -> F:
    """A function that a compiler makes once for all inputs of one form; of as many forms as a network may have."""
    return f if OLD else torch.compiler.nested_compile_region(f, max_reuse_entries=2**16)  # type: ignore[return-value]


def one(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function of parameters and one example, for one example."""
    return f


def over_batch(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function of parameters and one example, for a batch: every tensor but the parameters has a leading axis."""

    def mapped(params: Any, *inputs: Any) -> Any:
        axes: Any = optree.tree_map(lambda leaf: None if leaf is None else 0, inputs, none_is_leaf=True)  # type: ignore[arg-type]
        return torch.func.vmap(f, in_dims=(None, *axes))(params, *inputs)

    return mapped
