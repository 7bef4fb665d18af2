"""The parts of a module: their copies, their attributes around a run, and their classes, which draw by key."""

import copy
import functools
import types
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from purevdm.modules import _dropout
from purevdm.modules._dropout import Call

# Copies

_PLAIN = {bool, int, float, str, type(None), torch.dtype, torch.device, types.FunctionType, types.BuiltinFunctionType, type}
_CONTAINERS = {dict, OrderedDict, set, list}


def copied(module: Module, memo: dict[int, Any], loose: list[Tensor]) -> Module:
    """Copies a module as ``copy.deepcopy(module, memo)`` does, many times faster: most attributes are plain or empty.

    The memo holds what stands for each parameter and buffer. Copies of other tensors are appended to ``loose``.
    """
    if id(module) in memo:
        return memo[id(module)]  # type: ignore[no-any-return]
    new = memo[id(module)] = object.__new__(type(module))
    for name, value in module.__dict__.items():
        kind = type(value)
        if kind in _CONTAINERS and not value:
            value = kind()
        elif name == "_modules":
            value = {key: part if part is None else copied(part, memo, loose) for key, part in value.items()}
        elif name in ("_parameters", "_buffers"):
            value = {key: leaf if leaf is None else memo[id(leaf)] for key, leaf in value.items()}
        elif isinstance(value, Tensor) and id(value) not in memo:
            value = memo[id(value)] = value.detach().clone()
            loose.append(value)
        elif kind not in _PLAIN and not (kind is tuple and all(type(item) in _PLAIN for item in value)):
            value = copy.deepcopy(value, memo)
        new.__dict__[name] = value
    return new


def deep(module: Module) -> Module:
    """Copies a module by ``copy.deepcopy``, also one that keeps results of its last call, as old weight norms do."""
    results = (x for part in module.modules() for x in vars(part).values() if isinstance(x, Tensor) and not x.is_leaf)
    return copy.deepcopy(module, {id(x): x.detach().clone() for x in results})


# Attributes, where a compiler runs the module itself

_OWN = frozenset(vars(Module())) | {"_call"}  # torch's own attributes of a module, and that of this file
Attributes = list[tuple[Module, dict[str, tuple[Any, Any]]]]


def attributes(module: Module, copies: bool) -> Attributes:
    """Reads the attributes of a module's parts, and the contents of lists and dicts, for :func:`restore`.

    With ``copies``, the parts get copies of their unregistered tensors, which a call may write to; a compiled loop does not
    allow that.
    """
    before = []
    for part in module.modules():
        if not type(part).__module__.startswith("torch.nn.modules.") or part._forward_pre_hooks:
            kept = {}
            for name, value in part.__dict__.items():
                if name not in _OWN:
                    kept[name] = value, value.copy() if type(value) in (list, dict) else None
            before.append((part, kept))
            for name, (value, _) in kept.items() if copies else ():
                if type(value) is Tensor:
                    setattr(part, name, value.clone())
    return before


def restore(before: Attributes) -> None:
    """Gives the parts their attributes back, with their contents, and deletes new ones."""
    for part, kept in before:
        for name, (value, content) in kept.items():
            if part.__dict__.get(name) is not value:
                setattr(part, name, value)
            if type(content) is list and not _alike(value, content):
                value[:] = content
            if type(content) is dict and not (value.keys() == content.keys() and _alike(value.values(), content.values())):
                value.clear()
                value.update(content)
        for name in [name for name in part.__dict__ if name not in kept and name not in _OWN]:
            delattr(part, name)


def _alike(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


# Parts that draw

CALL = Call("", None)  # the place of the call in a template's parts
_DRAWING = (torch.nn.modules.dropout._DropoutNd, torch.nn.MultiheadAttention, torch.nn.RNNBase)


def keyed(module: Module) -> Module:
    """Makes a module's parts draw by the call that they hold, also where a checkpoint computes them again."""
    for part in module.modules():
        kind = type(part)
        if isinstance(part, _DRAWING) or not kind.__module__.startswith("torch.nn.modules."):
            part.__dict__["_call"] = CALL
            part.__class__ = _keyed(_followed(kind))  # type: ignore[arg-type]
    return module


class _Part:
    """A part of a module that draws by key, first in the order of its classes."""

    _call: Call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        with _dropout.within(self._call):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


@functools.cache
def _keyed(kind: type) -> type:
    return type(kind.__name__, (_Part, kind), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


@functools.cache
def _followed(kind: type) -> type:
    """Copies the class of a recurrent layer, as a compiler does not follow torch's own; other classes stay."""
    if kind not in (torch.nn.GRU, torch.nn.LSTM, torch.nn.RNN):
        return kind
    # super() in a copied method would look for the class that it was written in, so there is only one class above.
    members = {**vars(torch.nn.RNNBase), **vars(kind)}
    members["_flat_weights"] = property(
        lambda self: [getattr(self, name) for name in self._flat_weights_names], lambda self, value: None
    )
    members["_weights_have_changed"] = lambda self: False  # there is no list of them to renew
    for name in ("__setattr__", "__dict__", "__weakref__"):
        members.pop(name, None)
    return type(kind.__name__, (Module,), members)
