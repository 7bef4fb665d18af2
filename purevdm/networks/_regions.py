"""Repeated blocks as regions: a compiler makes the code of one, and calls it for all others of the same form.

The transforms of ``torch.func`` do not support regions, so they are used only in a compiled graph outside of these. There a
network of blocks is applied to a whole batch, and each block is a region that maps over the examples inside. Everywhere else
the network of one example is mapped over the batch, as any network is. Both compute the same.

Under gradients, the inductor of PyTorch 2.13 reuses the memory of what a region saves for the backward pass, even if that is
an input such as a parameter. So regions are used under gradients only if the network's ``owned_buffers`` says that the
compiler was given the options of :func:`without_reuse`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor

from purevdm import _checks
from purevdm._compile import OLD, transformed
from purevdm.networks._network import Network
from purevdm.types import Params

F = TypeVar("F", bound=Callable[..., Any])


def known(network: Network) -> bool:
    """Says whether a network is applied to a batch by regions, and this compiler supports them."""
    return network.has_regions() and not OLD


def for_batch(network: Network, *inputs: Any) -> Callable[..., Any] | None:
    """Returns a network's ``apply_by_regions``, if there is one and regions work for these inputs; else None."""
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting() or transformed() or not known(network):
        return None
    if torch.is_grad_enabled() and not network.owned_buffers:  # type: ignore[attr-defined]
        leaves: list[Any] = optree.tree_leaves(inputs)  # type: ignore[arg-type]
        if any(leaf.requires_grad for leaf in leaves):
            return None
    return network.apply_by_regions  # type: ignore[attr-defined, no-any-return]


def without_reuse(options: dict[str, Any]) -> dict[str, Any]:
    """Adds options to ``torch.compile``'s, with which inductor never writes one result over another."""
    if options.get("backend", "inductor") != "inductor" or {"mode", "options"} <= options.keys():
        return options  # another compiler; or what torch.compile itself refuses
    mode = options.get("mode") or "default"
    given = torch._inductor.list_mode_options(mode) | (options.get("options") or {})
    rest = {name: value for name, value in options.items() if name not in ("mode", "options")}
    return {**rest, "options": {**given, "allow_buffer_reuse": False, "inplace_buffers": False}}


def region(kind: type[Any]) -> Callable[[F], F]:
    """Makes ``f(settings, params, *inputs)`` a region, which a compiler traces once for each form of inputs.

    Settings are a NamedTuple of this kind, of numbers and strings. Parameters are dicts of tensors, whose names are strings
    without spaces and dots. The inputs are tensors and None. They are passed flat, as the compiler follows a container
    step by step at every call.
    """

    def of(f: F) -> F:
        if OLD:
            return f

        def of_leaves(names: str, *given: Any) -> Any:
            paths, width = names.split(), len(kind._fields)
            end = width + len(paths)
            params: dict[str, Any] = {}
            for path, leaf in zip(paths, given[width:end], strict=True):
                *above, last = path.split(".")
                branch = params
                for name in above:
                    branch = branch.setdefault(name, {})
                branch[last] = leaf
            return f(kind(*given[:width]), params, *given[end:])

        known = torch.compiler.nested_compile_region(of_leaves, max_reuse_entries=2**16)

        def call(settings: Any, params: Params, *inputs: Tensor | None) -> Any:
            leaves = _checks.leaves(params)
            names = " ".join(_checks.dotted(*path) for path in leaves)
            return known(names, *settings, *leaves.values(), *inputs)

        return call  # type: ignore[return-value]

    return of


def one(f: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of parameters and one example, for one example."""
    return f


def over_batch(f: Callable[..., Any]) -> Callable[..., Any]:
    """Maps a function of parameters and one example over a batch: every tensor but the parameters has a leading axis."""

    def mapped(params: Any, *inputs: Any) -> Any:
        axes: Any = optree.tree_map(lambda leaf: None if leaf is None else 0, inputs, none_is_leaf=True)  # type: ignore[arg-type]
        # Parameters are not arguments of vmap's function, as a compiler would flatten them by Python's own steps.
        return torch.func.vmap(lambda *inputs: f(params, *inputs), in_dims=axes)(*inputs)

    return mapped
