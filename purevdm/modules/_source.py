"""A module without its tensors: read once, drawn anew by key, and given tensors for each call."""

import copy
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from purevdm import _checks, random
from purevdm._compile import OLD, untraced
from purevdm.modules._dropout import Call
from purevdm.types import Key, Params

Tensors = dict[str, Tensor]


class Source:
    """Makes a network's modules from one, or from a function that makes them. Compares, pickles and prints by content.

    Attributes:
        name: the module's class, for messages.
        leaves: the parameters (tied ones once) and the buffers that vary, by name, on the meta device, with their dtypes.
        constants: buffers that float32 does not hold exactly, by name: complex, infinite, large integers.
        buffers, frozen: the names of the buffers that vary, and of the parameters that require no gradients.
        lock: held by a run in eager mode.
    """

    def __init__(self, source: Module | Callable[[], Module], pretrained: bool = False) -> None:
        self.source, self.pretrained, self.lock = source, pretrained, threading.RLock()
        self._draws = isinstance(source, Module) and not pretrained  # by the layers' reset_parameters
        with untraced(), torch.inference_mode(False):
            self._read(self._made(0))

    def _read(self, example: Module) -> None:
        self.name = type(example).__name__
        named, buffers = dict(example.named_parameters()), dict(example.named_buffers())
        for name, leaf in (named | buffers).items():
            if torch.nn.parameter.is_lazy(leaf):
                raise ValueError(f"module: expected a module of known shapes, got a lazy {name} in {self.name}; run it once")
            if name in named and not leaf.is_floating_point():
                raise TypeError(f"module: expected floating-point parameters, got {name}, {_checks.describe(leaf)}")
        for name, part in example.named_modules():
            if isinstance(part, torch.nn.RNNBase) and part.dropout and part.num_layers > 1:
                raise ValueError(f"module: expected recurrent layers with dropout=0.0, which is by no key there, got {name}")
        self.frozen = tuple(name for name, leaf in named.items() if not leaf.requires_grad)
        self.constants = {name: b.detach().clone() for name, b in buffers.items() if not _exact(b)}
        self.buffers = buffers.keys() - self.constants.keys()
        kept = {name: leaf for name, leaf in (named | buffers).items() if name not in self.constants}
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
        # In evaluation and in training, without numbers, so that a call fails where a tensor is not given.
        self._templates = tuple(_copied(example, meta=True).train(train) for train in (False, True))
        # Those that may write to their attributes: torch's own layers do not.
        self._writing = tuple(
            name
            for name, part in example.named_modules()
            if not type(part).__module__.startswith("torch.nn.modules.") or part._forward_pre_hooks
        )

    def __reduce__(self) -> Any:
        return Source, (self.source, self.pretrained)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and self.pretrained == other.pretrained and _same(self.source, other.source)

    def __hash__(self) -> int:
        return hash((Source, self.name))

    def __repr__(self) -> str:
        return self.name if isinstance(self.source, Module) else repr(self.source)

    # Drawing

    def _made(self, seed: int) -> Module:
        """Makes a module on the CPU: by the function under a seed, or a copy of the one given."""
        if isinstance(self.source, Module):
            return _copied(self.source).to("cpu")
        with _seeded(seed), torch.device("cpu"), untraced():
            return _checks.instance("module", self.source(), Module, "a torch.nn.Module of the function")

    def _redraw(self, module: Module, seed: int) -> bool:
        """Draws the parameters anew, by each layer's ``reset_parameters``, but for constant ones; says if any changed."""
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        with _seeded(seed), torch.no_grad():
            for layer in reversed(list(module.modules())):
                reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
                if callable(reset):
                    reset()
            for name, p in module.named_parameters():
                if _constant(before[name]):
                    p.copy_(before[name])
        return any(not torch.equal(p, before[name]) for name, p in module.named_parameters())

    def init(self, key: Key) -> Params:
        """Draws a tree by key; on the meta device, where the key is, without computing."""
        if key.is_meta:
            return self.tree(self.leaves)
        seed = int(random.bits(key).to(torch.int64))  # torch's generator takes 32 bits: these are made of all the key's
        module = self._made(seed)
        if self._draws:
            self._redraw(module, seed)
        return self.read(module, key.device)

    # Trees

    def tree(self, leaves: Tensors) -> Params:
        """Nests leaves by the modules' names, ``{"params": ..., "buffers": ...}``, as floats; integers become float64 where
        all else is."""
        tree: Params = {}
        kinds = {leaf.dtype for leaf in leaves.values() if leaf.is_floating_point()}
        wide = torch.float64 if kinds == {torch.float64} else torch.float32
        for name, leaf in leaves.items():
            *path, last = "buffers" if name in self.buffers else "params", *name.split(".")
            branch = functools.reduce(lambda branch, part: branch.setdefault(part, {}), path, tree)
            branch[last] = leaf if leaf.is_floating_point() else leaf.to(wide)
        return tree

    def flat(self, params: Params) -> Tensors:
        """Lists the leaves of a tree by name."""
        roots = {name: params["buffers" if name in self.buffers else "params"] for name in self.leaves}
        return {name: functools.reduce(lambda tree, part: tree[part], name.split("."), root) for name, root in roots.items()}

    def read(self, module: Module, device: torch.device | None = None) -> Params:
        """Reads a module's tensors as a tree of their own."""
        own = _tensors(module)
        for name, leaf in self.leaves.items():
            if name not in own or own[name].shape != leaf.shape:
                raise ValueError(f"module: expected a {self.name} with {name} of {tuple(leaf.shape)}")
        return self.tree({name: own[name].detach().to(device, copy=True) for name in self.leaves})

    def values(self, params: Params, device: torch.device) -> Tensors:
        """Returns the tensors for a call: the parameters; copies of the buffers in their own dtypes, as the module may write
        to them; the constants. Buffers and frozen parameters have no gradient."""
        values = self.flat(params)
        values |= {name: values[name].detach() for name in self.frozen}
        for name in self.buffers:
            buffer, dtype = values[name].detach(), self.leaves[name].dtype
            values[name] = buffer.clone() if dtype.is_floating_point else buffer.round().to(dtype)
        return values | {name: constant.to(device) for name, constant in self.constants.items()}

    def update(self, params: Params, values: Tensors) -> Params:
        """Returns the tree with the buffers that a call left, in the tree's dtypes."""
        leaves = self.flat(params)
        return self.tree(leaves | {name: values[name].detach().to(leaves[name].dtype) for name in self.buffers})

    # Running

    def functional(self, values: Tensors, call: Call) -> tuple[Callable[..., Tensor], Tensors]:
        """Makes the module a function of its arguments; returns its tensors, too, also after a call.

        What a call writes to attributes is undone after it. In eager mode it may write to no tensor but buffers.
        """
        placed = {place: values[name] for place, name in self._places.items()}
        template, compiling = self._templates[int(call.keys is not None)], torch.compiler.is_compiling()
        writing = () if OLD and compiling else self._writing  # older compilers cannot list attributes
        # A compiled loop, as sampling is, does not allow copies; nothing is written there.
        copies = not compiling or call.keys is not None or torch.is_grad_enabled()

        def module(*args: Any, **kwargs: Any) -> Tensor:
            before, fixed = _attributes([template.get_submodule(name) for name in writing], copies)
            fixed = [] if compiling else [*fixed, *(values[name] for name in values if name not in self.buffers)]
            fixed = [tensor for tensor in fixed if not tensor.is_inference()]  # these have no version
            versions = [tensor._version for tensor in fixed]
            try:
                # By default tensors are tied by name, which leaves those of a part under two names in the template.
                out: Tensor = torch.func.functional_call(template, placed, args, kwargs, tie_weights=False)
            finally:
                _restore(before)
            if versions != [tensor._version for tensor in fixed]:
                raise call.error(
                    "writes in place to a parameter, or to a tensor that is not registered; register it as a buffer"
                )
            return out

        return module, placed


_OWN = frozenset(vars(Module()))  # torch's own attributes of a module


def _attributes(parts: list[Module], copies: bool) -> tuple[list[tuple[Module, dict[str, Any]]], list[Tensor]]:
    """Reads the attributes of parts of a module, each with the contents of a list or dict, for :func:`_restore`.

    With ``copies``, the parts get copies of their unregistered tensors, which a call may write to; they are returned, too.
    """
    before, loose = [], []
    for part in parts:
        own = {name: value for name, value in part.__dict__.items() if name not in _OWN}
        before.append((part, {name: (x, x.copy() if type(x) in (list, dict) else None) for name, x in own.items()}))
        for name, value in own.items() if copies else ():
            if type(value) is Tensor:
                loose.append(value.clone())
                setattr(part, name, loose[-1])
    return before, loose


def _restore(before: list[tuple[Module, dict[str, Any]]]) -> None:
    """Gives the parts their attributes back, with their contents, and deletes new ones."""
    for part, kept in before:
        for name, (value, content) in kept.items():
            if part.__dict__.get(name) is not value:
                setattr(part, name, value)
            if type(content) is list and not _alike(value, content):
                value[:] = content
            if type(content) is dict and not (_alike(value, content) and _alike(value.values(), content.values())):
                value.clear()
                value.update(content)
        for name in [name for name in part.__dict__ if name not in kept and name not in _OWN]:
            delattr(part, name)


def _alike(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _copied(module: Module, meta: bool = False) -> Module:
    """Copies a module, also one that keeps results of its last call, as old weight norms do; with ``meta``, without the
    numbers of its parameters and buffers."""
    memo: dict[int, Any] = {}
    for x in (x for part in module.modules() for x in vars(part).values() if isinstance(x, Tensor) and not x.is_leaf):
        memo[id(x)] = x.detach().clone()
    if meta:
        memo |= {id(leaf): torch.empty_like(leaf, device="meta").detach() for leaf in _tensors(module).values()}
    return copy.deepcopy(module, memo)


def _tensors(module: Module) -> Tensors:
    """Lists a module's parameters (tied ones once) and buffers by name."""
    return dict(module.named_parameters()) | dict(module.named_buffers(remove_duplicate=False))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draws from torch's CPU generator by a seed, in float32 by default; both are as before after it."""
    state, dtype = torch.default_generator.get_state(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
        torch.set_default_dtype(dtype)


def _constant(x: Tensor) -> bool:
    """Says whether all numbers of a tensor are equal, and a single one is 0 or 1."""
    if x.numel() < 2:
        return all(value in (0.0, 1.0) for value in x.flatten().tolist())
    return bool((x == x.flatten()[0]).all())


def _exact(x: Tensor) -> bool:
    """Says whether float32 holds a buffer's numbers exactly, or as finely as needed where they are floats."""
    if x.is_complex():
        return False
    return bool(x.isfinite().all()) if x.is_floating_point() else torch.equal(x.float().to(x.dtype), x)


def _same(a: Any, b: Any) -> bool:
    """Says whether two sources make the same: one function with one set of arguments, or modules of one state."""
    if isinstance(a, functools.partial) and isinstance(b, functools.partial):
        return bool((a.func, a.args, a.keywords) == (b.func, b.args, b.keywords))
    if not isinstance(a, Module) or not isinstance(b, Module):
        return bool(a == b)
    one, other = _tensors(a), _tensors(b)
    alike = type(a) is type(b) and repr(a) == repr(b) and one.keys() == other.keys()
    return alike and all(torch.equal(leaf.cpu(), other[name].cpu()) for name, leaf in one.items())
