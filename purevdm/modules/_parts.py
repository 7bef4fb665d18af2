"""The parts of a module: copied fast, with tensors put in place of its own, and run so that they draw by key."""

import copy
import functools
import types
from collections import OrderedDict
from typing import Any

import optree
import torch
from torch import Tensor
from torch.nn import Module

from purevdm.modules import _dropout
from purevdm.modules._calls import Call

# Copies

_PLAIN = {bool, int, float, str, type(None), torch.dtype, torch.device, types.FunctionType, types.BuiltinFunctionType, type}
_CONTAINERS = {dict, OrderedDict, set, list}


LOOSE = 0  # where a memo may hold a list, for copies of unregistered tensors; no object has this id


def copied(module: Module, memo: dict[int, Any]) -> Module:
    """What ``copy.deepcopy(module, memo)`` gives, many times faster: what is empty or plain, as most of a module's
    attributes are, is not handed to it. Tensors are as the memo tells."""
    if id(module) in memo:
        return memo[id(module)]  # type: ignore[no-any-return]
    new = object.__new__(type(module))
    memo[id(module)] = new
    for name, value in module.__dict__.items():
        kind, held = type(value), value
        if kind in _PLAIN or (kind is tuple and all(type(item) in _PLAIN for item in value)):
            pass
        elif kind in _CONTAINERS and not value:
            held = kind()
        elif name == "_modules":
            held = {key: None if part is None else copied(part, memo) for key, part in value.items()}
        elif name in ("_parameters", "_buffers"):
            held = {key: _deep(item, memo) for key, item in value.items()}
        else:
            held = _deep(value, memo)
        new.__dict__[name] = held
    return new


def deep(module: Module) -> Module:
    """``copy.deepcopy`` of a module, also of one with results of its last call among its attributes, as weight norm's."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        leaves: list[Any] = optree.tree_leaves(vars(part))  # type: ignore[arg-type]
        memo |= {id(x): x.detach().clone() for x in leaves if isinstance(x, Tensor) and not x.is_leaf}
    return copy.deepcopy(module, memo)


def _deep(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if not isinstance(value, Tensor):
        return copy.deepcopy(value, memo)
    memo[id(value)] = value.detach().clone()
    memo.get(LOOSE, []).append(memo[id(value)])
    return memo[id(value)]


# Attributes, where a module runs as it is

_OWN = frozenset(vars(Module())) | {"_purevdm"}  # names of what torch keeps in a module, and what this file does

Attributes = list[tuple[Module, list[tuple[str, Any, Any]]]]


def attributes(module: Module, copies: bool) -> Attributes:
    """The attributes of a module's parts, with what is in them, for :func:`restore`. With ``copies``, the parts get copies
    of unregistered tensors, which a call may write to; a compiled loop admits none."""
    found = []
    for part in module.modules():
        if not type(part).__module__.startswith("torch.nn.modules.") or part._forward_pre_hooks:
            kept = [(name, value, _content(value)) for name, value in part.__dict__.items() if name not in _OWN]
            found.append((part, kept))
            for name, value, _ in kept if copies else ():
                if type(value) is Tensor:
                    setattr(part, name, value.clone())
    return found


def _content(value: Any) -> Any:
    return value.copy() if type(value) in (list, dict) else None


def restore(before: Attributes) -> None:
    """Gives the parts their attributes back, with what was in them, and takes away those that are new."""
    for part, kept in before:
        for name, value, content in kept:
            if part.__dict__.get(name) is not value:
                setattr(part, name, value)
            if type(content) is list and not _alike(value, content):
                value[:] = content
            if type(content) is dict and not (value.keys() == content.keys() and _alike(value.values(), content.values())):
                value.clear()
                value.update(content)
        names = [name for name, *_ in kept]
        for name in [name for name in part.__dict__ if name not in names and name not in _OWN]:
            delattr(part, name)


def _alike(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


# Parts that checkpoint, and parts that draw


def checkpoints(part: Module) -> bool:
    """Whether the code of a part's own methods speaks of checkpoints."""

    def speaks(code: types.CodeType) -> bool:
        inner = (value for value in code.co_consts if isinstance(value, types.CodeType))
        return any("checkpoint" in name for name in (*code.co_names, *code.co_freevars)) or any(map(speaks, inner))

    own = (kind for kind in type(part).__mro__ if not kind.__module__.startswith("torch."))
    return any(speaks(f.__code__) for kind in own for f in vars(kind).values() if isinstance(f, types.FunctionType))


_DRAWING = (
    torch.nn.modules.dropout._DropoutNd,
    torch.nn.MultiheadAttention,
    torch.nn.RNNBase,
    torch.nn.RReLU,
)
CALL = Call("", None)  # stands for the call in a module's parts


def keyed(module: Module) -> Module:
    """The module, whose parts from now on draw by the call that they hold, also when a checkpoint computes them again."""
    for part in module.modules():
        kind = type(part)
        if isinstance(part, _DRAWING) or not kind.__module__.startswith("torch.nn.modules."):
            part.__dict__["_purevdm"] = CALL
            part.__class__ = _keyed(_unguarded(kind))  # type: ignore[arg-type]
    return module


class _Part:
    """A part of a module under way, first in the order of its classes."""

    _purevdm: Call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        with _dropout.within(self._purevdm):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


@functools.cache
def _keyed(kind: type) -> type:
    return type(kind.__name__, (_Part, kind), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


@functools.cache
def _unguarded(kind: type) -> type:
    """A recurrent layer of torch's as a class that is not one of torch's, which a compiler would refuse to follow."""
    if kind not in (torch.nn.GRU, torch.nn.LSTM, torch.nn.RNN):
        return kind
    # super() in a copied method would look for the class that it was written in.
    members = {**vars(torch.nn.RNNBase), **vars(kind)}
    members["_flat_weights"] = property(_flat_weights, lambda self, value: None)
    members["_weights_have_changed"] = lambda self: False  # no list of them to renew
    for name in ("__setattr__", "__dict__", "__weakref__"):
        members.pop(name, None)
    return type(kind.__name__, (Module,), members)


def _flat_weights(self: Any) -> list[Tensor]:
    return [getattr(self, name) for name in self._flat_weights_names]
