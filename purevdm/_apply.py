"""How a network is applied to a batch: whole, where it has a form for that, by regions in a compiled graph, and else mapped
over the examples; and what to say where torch cannot.

A network of blocks maps only what it does before the first of them, and its blocks take a batch as they take an example. So
no call of ``torch.func.vmap`` stands around a block, which could not be computed again in the backward pass there.

In a compiled graph a repeated block is a region: a compiler makes the code of one, and calls it for all others of the same
form. The transforms of ``torch.func`` do not support regions, so they are used only outside of these. All ways compute the
same.

Under gradients, the inductor of PyTorch 2.13 to 2.15 reuses the memory of what a region saves for the backward pass, even
if that is an input such as a parameter. So regions are used under gradients only if the network's ``owned_buffers`` says
that the compiler was given the options of :func:`without_reuse`, which are part of the key of its cache. To set
``torch._functorch.config.donated_buffer = False`` is not enough: gradients of a small U-Net, ``vdm_unet(4, 1)`` on 4 x 4,
stay 0.2 off, relative.
"""

import re
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import optree
import torch
from torch import Tensor

from purevdm import _checks, _spread, _trees
from purevdm._compile import OLD, constant, exporting, transformed
from purevdm.types import Params

if TYPE_CHECKING:
    from purevdm.networks import Network

F = TypeVar("F", bound=Callable[..., Any])


# Regions


@constant
def has_regions(network: "Network") -> bool:
    """Says whether this compiler supports regions, and the network has them."""
    return not OLD and _has(network, "apply_by_regions")


def _owners(network: "Network", name: str) -> list[type]:
    """Lists the classes of a network that define a method, the one that counts first."""
    return [kind for kind in type(network).__mro__ if name in vars(kind)]


def _has(network: "Network", form: str) -> bool:
    """Says whether a network has another form of ``apply``: not where a subclass overrides only one of the two."""
    owners = _owners(network, form)
    return bool(owners) and owners[0] is _owners(network, "apply")[0]


def _is_around(network: "Network") -> bool:
    """Says whether a network takes any form of another: its ``apply`` is the one of ``networks.Wrapped``."""
    owners = _owners(network, "around")
    return bool(owners) and owners[-1] is _owners(network, "apply")[0]


def for_batch(network: "Network", *inputs: Any) -> Callable[..., Any] | None:
    """Returns the form of a network's ``apply`` that takes a batch of these inputs, or None: by regions in a compiled graph,
    if they work there, and ``apply_to_batch`` elsewhere."""
    if _is_around(network):
        own = for_batch(network.own, *inputs)  # type: ignore[attr-defined]
        return None if own is None else partial(network.around, own)  # type: ignore[attr-defined]
    if not _has(network, "apply_to_batch"):
        return None
    whole = network.apply_to_batch  # type: ignore[attr-defined]
    if OLD or not torch.compiler.is_compiling() or exporting() or transformed() or not has_regions(network):
        return whole  # type: ignore[no-any-return]
    leaves = _checks.leaves(inputs).values()
    differentiated = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
    whole_leaves = all(_spread.below(leaf) is None for leaf in leaves)
    works = (not differentiated or network.owned_buffers) and whole_leaves  # type: ignore[attr-defined]
    return network.apply_by_regions if works else whole  # type: ignore[attr-defined, no-any-return]


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
            names = " ".join(_trees.dotted(*path) for path in leaves)
            return known(names, *settings, *leaves.values(), *inputs)

        return call  # type: ignore[return-value]

    return of


def over_batch(f: Callable[..., Any]) -> Callable[..., Any]:
    """Maps a function of parameters and one example over a batch: every tensor but the parameters has a leading axis."""

    def mapped(params: Any, *inputs: Any) -> Any:
        axes: Any = optree.tree_map(lambda leaf: None if leaf is None else 0, inputs, none_is_leaf=True)  # type: ignore[arg-type]
        # Parameters are not arguments of vmap's function, as a compiler would flatten them by Python's own steps.
        return torch.func.vmap(lambda *inputs: f(params, *inputs), in_dims=axes)(*inputs)

    return mapped


# Errors

_REMATERIALISE = (
    "Checkpoints work in a compiled gradient, training.gradients(model, compile=True, remat=True), and under "
    "torch.no_grad(); elsewhere, switch them off"
)

# A pattern of torch's message, or of the function that raised it (" in name"); what happened in plain words; what to do.
_KNOWN = (
    ("saved tensor hooks", "checkpoints its activations", _REMATERIALISE),
    (
        "setup_context",
        "runs an autograd.Function without setup_context, as reentrant checkpoints do",
        f"{_REMATERIALISE}. Give a function of your own a setup_context",
    ),
    (
        "Expected more than 1 (value per channel|spatial element)",
        "normalises over a single value",
        "A batch norm needs a batch of at least 2 in training, where one will do in evaluation (train=False); a group norm "
        "needs two values in each group of an example, and an instance norm in each channel",
    ),
    (
        "mutate a captured Tensor|inplace arithmetic|in-place operation|is not possible because there exists a Tensor",
        "writes in place to a tensor that it did not make in this call",
        "Keep what changes in registered buffers, which VDM.update hands back, or write out of place",
    ),
    (
        "could not generate a fallback|[Bb]atching rule not implemented|do not support batching operators",
        "calls an operation that torch.func.vmap does not know",
        "Take gradients of whole batches, or use another operation",
    ),
    (
        "randomness error mode|randomness='error'",
        "draws from torch's global generator under vmap",
        "Draw by the key that apply is given: purevdm.random, or the dropout of networks.from_module",
    ),
)


def explained(network: "Network", error: BaseException) -> RuntimeError | None:
    """Makes the error to raise instead of torch's, or None for an unknown one, which passes as it is."""
    trace = traceback.extract_tb(error.__traceback__)
    text = " in ".join([str(error), *(frame.name for frame in reversed(trace) if not frame.name.startswith("_"))])
    for pattern, happened, remedy in _KNOWN:
        if re.search(pattern, text):
            return RuntimeError(f"network: {network.name} {happened}. {remedy}.")
    return None
