"""A module held apart from its tensors: made once, drawn anew by key, and filled with given tensors for each call."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from purevdm import _checks, random
from purevdm._compile import untraced
from purevdm.modules import _parts
from purevdm.modules._calls import Call
from purevdm.types import Key, Params

Tensors = dict[str, Tensor]


class Source:
    """Where a network's modules come from: a module, or a function that makes one. Compares, pickles and prints by content.

    Attributes:
        kind, name: the module's class, and its name, for messages.
        leaves: the parameters (tied ones once) and the buffers that vary, by name, on the meta device, with their dtypes.
        constants: buffers that no float32 tells exactly, by name: complex, infinite, large integers.
        checkpoints: whether a part's code speaks of checkpoints.
    """

    def __init__(self, source: Module | Callable[[], Module], pretrained: bool = False) -> None:
        self.source, self.pretrained = source, pretrained
        with untraced(), torch.inference_mode(False):
            self._read(self._made(0))

    def _read(self, example: Module) -> None:
        self.kind = type(example)
        self.name = self.kind.__name__
        named, buffers = dict(example.named_parameters()), dict(example.named_buffers())
        self.frozen = tuple(name for name, leaf in named.items() if not leaf.requires_grad)
        for name, leaf in (named | buffers).items():
            if torch.nn.parameter.is_lazy(leaf):
                raise ValueError(f"module: expected a module of known shapes, got a lazy {name} in {self.name}; run it once")
        for name, leaf in named.items():
            if not leaf.is_floating_point():
                raise TypeError(f"module: expected floating-point parameters, got {name}, {_checks.describe(leaf)}")
        self.constants = {name: b.detach().clone() for name, b in buffers.items() if not _held(b)}
        kept = named | {name: b for name, b in buffers.items() if name not in self.constants}
        self.buffers = frozenset(kept) - frozenset(named)
        self.leaves = {name: torch.empty_like(leaf, device="meta") for name, leaf in kept.items()}
        # Where each tensor stands: once for a part under several names, and at each place for a tensor at several.
        names = {id(leaf): name for name, leaf in (named | buffers).items()}
        self._places = {
            f"{path}.{name}" if path else name: names[id(leaf)]
            for path, part in example.named_modules()
            for name, leaf in (part._parameters | part._buffers).items()
            if leaf is not None
        }
        if self._draws and named and not self._redraw(example, 0):
            raise ValueError(
                f"module: expected one with layers to draw anew (with reset_parameters), got {self.name} with none; "
                "give the class, or a function that makes the module, or pretrained=True to start from the module's values"
            )
        # The module without its tensors, in evaluation and in training.
        self._templates = tuple(self._template(example, train) for train in (False, True))
        self.checkpoints = any(map(_parts.checkpoints, example.modules()))
        self._placeholders = tuple(map(_tensors, self._templates))

    @property
    def _draws(self) -> bool:
        """Whether parameters are drawn by the layers' ``reset_parameters``."""
        return isinstance(self.source, Module) and not self.pretrained

    def __reduce__(self) -> Any:
        return Source, (self.source, self.pretrained)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and self.pretrained == other.pretrained and _same(self.source, other.source)

    def __hash__(self) -> int:
        return hash((Source, self.name))

    def __repr__(self) -> str:
        source, given = self.source, ""
        if isinstance(source, functools.partial):
            parts = [*map(repr, source.args), *(f"{name}={value!r}" for name, value in source.keywords.items())]
            source, given = source.func, f"({', '.join(parts)})"
        return f"{type(source).__name__ if isinstance(source, Module) else getattr(source, '__qualname__', source)}{given}"

    # Making and drawing

    def _made(self, seed: int) -> Module:
        """A module on the CPU, made by the function under a seed, or a copy of the one given."""
        if isinstance(self.source, Module):
            return _parts.deep(self.source).to("cpu")
        with _seeded(seed), torch.device("cpu"), untraced():
            module = self.source()
        if not isinstance(module, Module):
            raise TypeError(f"module: expected a torch.nn.Module of the function, got {_checks.describe(module)}")
        return module

    def _redraw(self, module: Module, seed: int) -> bool:
        """Draws the module's parameters anew, by each layer's ``reset_parameters``. Says whether any changed.

        Parameters that are constant (zeros, ones) stay: they were set so on purpose.
        """
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        with _seeded(seed), torch.no_grad():
            for layer in reversed(list(module.modules())):
                reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
                if callable(reset):
                    reset()
            changed = False
            for name, p in module.named_parameters():
                if _constant(before[name]):
                    p.copy_(before[name])
                changed = changed or not torch.equal(p, before[name])
        return changed

    def init(self, key: Key) -> Params:
        """The tree of a module that is drawn by key; on the meta device, where the key is, without computing."""
        if key.is_meta:
            return self.tree(self.leaves)
        seed = int(random.bits(key).to(torch.int64))  # torch's generator takes 32 bits: these are made of all the key's
        module = self._made(seed)
        if self._draws:
            self._redraw(module, seed)
        return self.read(module, key.device)

    # Trees

    def tree(self, leaves: Tensors) -> Params:
        """``{"params": ..., "buffers": ...}``, each of nested dicts by the modules' names, of floating-point leaves; without
        the empty ones. Integers become float64 where all else is."""
        found: Params = {}
        kinds = {leaf.dtype for leaf in leaves.values() if leaf.is_floating_point()}
        wide = torch.float64 if kinds == {torch.float64} else torch.float32
        for name, leaf in leaves.items():
            leaf = leaf if leaf.is_floating_point() else leaf.to(wide)
            branch = found.setdefault("buffers" if name in self.buffers else "params", {})
            *path, last = name.split(".")
            for part in path:
                branch = branch.setdefault(part, {})
            branch[last] = leaf
        return found

    def flat(self, params: Params) -> Tensors:
        """The leaves of a tree by name."""
        found = {}
        for name in self.leaves:
            leaf: Any = params["buffers" if name in self.buffers else "params"]
            for part in name.split("."):
                leaf = leaf[part]
            found[name] = leaf
        return found

    def read(self, module: Module, device: torch.device | None = None) -> Params:
        """A module's tensors as a tree of its own."""
        held = _tensors(module)
        missing = [name for name in self.leaves if name not in held or held[name].shape != self.leaves[name].shape]
        if missing:
            raise ValueError(f"module: expected a {self.name} with {missing[0]} of {tuple(self.leaves[missing[0]].shape)}")
        return self.tree({name: held[name].detach().to(device, copy=True) for name in self.leaves})

    def values(self, params: Params, device: torch.device) -> Tensors:
        """What a call gives the module: the parameters; the buffers in their own dtypes, and as copies, as the module may
        write to them; the constants. Buffers and frozen parameters have no gradient."""
        found = self.flat(params)
        found |= {name: found[name].detach() for name in self.frozen}
        for name in self.buffers:
            buffer, dtype = found[name].detach(), self.leaves[name].dtype
            found[name] = buffer.clone() if dtype.is_floating_point else buffer.round().to(dtype)
        return found | {name: constant.to(device) for name, constant in self.constants.items()}

    def update(self, params: Params, values: Tensors) -> Params:
        """The tree with the buffers that a call left, in the tree's dtypes, and the parameters as they are."""
        leaves = self.flat(params)
        return self.tree(leaves | {name: values[name].detach().to(leaves[name].dtype) for name in self.buffers})

    # Filling

    def _template(self, example: Module, train: bool) -> Module:
        """A copy of the module without its tensors, so that what is not given to a call fails, and does not pass unseen."""
        module = _parts.deep(example).train(train)
        named = _tensors(module)
        memo: dict[int, Any] = {id(leaf): torch.empty_like(leaf, device="meta").detach() for leaf in named.values()}
        return _parts.keyed(_parts.copied(module, memo))

    def filled(self, values: Tensors, call: Call) -> tuple[Module, list[Tensor]]:
        """A new module that holds these tensors, and draws by this call's keys; and copies of its unregistered tensors."""
        train, loose = int(call.keys is not None), list[Tensor]()
        memo: dict[int, Any] = {id(self._placeholders[train][name]): value for name, value in values.items()}
        memo |= {id(_parts.CALL): call, _parts.LOOSE: loose}
        return _parts.copied(self._templates[train], memo), loose

    def functional(self, values: Tensors, train: bool) -> tuple[Callable[..., Tensor], Tensors]:
        """The module as a function for a compiler, which holds these tensors; and its tensors, also after a call."""
        placed = {place: values[name] for place, name in self._places.items()}
        template = self._templates[train]

        def module(*args: Any, **kwargs: Any) -> Tensor:
            before = _parts.attributes(template, copies=train or torch.is_grad_enabled())
            try:
                # By default tensors are tied by name, which leaves those of a part under two names in the template.
                return torch.func.functional_call(template, placed, args, kwargs, tie_weights=False)
            finally:
                _parts.restore(before)

        return module, placed


def _tensors(module: Module) -> Tensors:
    """A module's parameters (tied ones once) and buffers by name."""
    return dict(module.named_parameters()) | dict(module.named_buffers(remove_duplicate=False))


class _seeded:  # noqa: N801 (reads as a function)
    """A block in which torch's CPU generator draws by a seed, in float32 by default; both are as before after it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.state, self.dtype = torch.default_generator.get_state(), torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        torch.default_generator.manual_seed(self.seed)

    def __exit__(self, *error: Any) -> None:
        torch.default_generator.set_state(self.state)
        torch.set_default_dtype(self.dtype)


def _constant(x: Tensor) -> bool:
    """Whether all numbers of a tensor are equal; a single one tells it where it is 0 or 1."""
    if x.numel() < 2:
        return all(value in (0.0, 1.0) for value in x.flatten().tolist())
    return bool((x == x.flatten()[0]).all())


def _held(x: Tensor) -> bool:
    """Whether float32 tells the numbers of a buffer exactly (or as finely as it is meant to, where they are floats)."""
    if x.is_complex():
        return False
    return bool(x.isfinite().all()) if x.is_floating_point() else torch.equal(x.float().to(x.dtype), x)


def _same(a: Any, b: Any) -> bool:
    """Whether two sources make the same: one function with one set of arguments, or modules of one state."""
    if isinstance(a, functools.partial) and isinstance(b, functools.partial):
        return bool((a.func, a.args, a.keywords) == (b.func, b.args, b.keywords))
    if not isinstance(a, Module) or not isinstance(b, Module):
        return bool(a == b)
    if type(a) is not type(b) or repr(a) != repr(b):
        return False
    one, other = _tensors(a), _tensors(b)
    return one.keys() == other.keys() and all(torch.equal(leaf.cpu(), other[name].cpu()) for name, leaf in one.items())
