"""Any ``torch.nn.Module`` as a score network."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from purevdm import _checks
from purevdm.networks import _drawing
from purevdm.networks._drawing import Call, Keyed
from purevdm.networks._network import Network
from purevdm.networks._template import Source
from purevdm.types import Key, Params, Shape

__all__ = ["from_module", "load_module", "module_params"]


class Settings(NamedTuple):
    """The settings of :func:`from_module`."""

    source: Source
    call: Callable[..., Tensor] | None
    self_condition: bool
    dtype: torch.dtype | None = None


def from_module(
    module: Module | Callable[[], Module],
    *,
    call: Callable[..., Tensor] | None = None,
    predicts: str = "eps",
    self_condition: bool = False,
    residual: bool = False,
    outputs: int | None = None,
) -> Network:
    """TODO"""
    if not isinstance(module, Module) and not callable(module):
        raise TypeError(f"module: expected a torch.nn.Module or a function that makes one, got {_checks.describe(module)}")
    if call is not None and not callable(call):
        raise TypeError(f"call: expected a function, got {_checks.describe(call)}")
    settings = Settings(Source(module), call, bool(self_condition))
    return Network(
        init=partial(_init, settings),
        apply=partial(_apply, settings),
        batched=True,
        predicts=_checks.choice("predicts", predicts, ("eps", "x", "v")),
        self_condition=settings.self_condition,
        residual=bool(residual),
        outputs=None if outputs is None else _checks.integer("outputs", outputs, 1),
        update=partial(_update, settings),
    )


def module_params(network: Network, module: Module) -> Params:
    """A module's own parameters and buffers as the parameters of its network, ``params["network"]``: copies."""
    return _settings(network).source.read(module)


def load_module(network: Network, params: Params, module: Module) -> Module:
    """A module with a network's parameters, ``params["network"]``, copied into it, in place; it is returned."""
    source = _settings(network).source
    held = dict(module.named_parameters()) | dict(module.named_buffers())
    source.read(module)
    with torch.no_grad():
        for name, leaf in source.flat(params).items():
            held[name].copy_(leaf if held[name].is_floating_point() else leaf.round())
    return module


def _settings(network: Network) -> Settings:
    found = network.apply.args[0] if isinstance(network.apply, partial) and network.apply.args else None
    if not isinstance(found, Settings):
        raise TypeError(f"network: expected one of networks.from_module, got {network!r}")
    return found


def _init(settings: Settings, key: Key, event_shape: Shape) -> Params:
    return settings.source.init(_checks.key("key", key))


def _called(settings: Settings, module: Callable[..., Tensor], z: Tensor, gamma: Tensor, cond: Any, x_hat: Any) -> Tensor:
    extra = {}
    if settings.self_condition:
        extra["x_hat"] = torch.zeros_like(z) if x_hat is None else x_hat
    if settings.call is not None:
        return settings.call(module, z, gamma, cond, **extra)
    return module(z, gamma, **extra) if cond is None else module(z, gamma, cond, **extra)


def _run(
    settings: Settings, params: Params, z: Tensor, gamma: Tensor, cond: Any, key: Tensor | None, x_hat: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """What the module returns, and its tensors after it."""
    source, train = settings.source, key is not None
    call, values = Call(source.name, key), source.values(params, z.device, train)
    if settings.dtype is None:
        precision: Any = nullcontext()
    else:
        precision = torch.autocast(z.device.type, settings.dtype, cache_enabled=False)
    _drawing.begin()
    try:
        if torch.compiler.is_compiling():

            def module(*args: Any, **kwargs: Any) -> Tensor:
                return torch.func.functional_call(source.templates[train], values, args, kwargs)

            with precision, Keyed(call):
                return _called(settings, module, z, gamma, cond, x_hat), values
        filled = source.filled(values, call)
        if torch.is_grad_enabled() and not _drawing.transformed() and any(v.requires_grad for v in values.values()):
            z = z if z.requires_grad else z.detach().requires_grad_()  # reentrant checkpoints record for such inputs alone
        with precision, _drawing.within(call):
            found = _called(settings, filled, z, gamma, cond, x_hat)
        _drawing.drawn(call)
        return found, dict(filled.named_parameters()) | dict(filled.named_buffers()) if train else {}
    finally:
        _drawing.end()


def _apply(
    settings: Settings,
    params: Params,
    z: Tensor,
    gamma: Tensor,
    cond: Any = None,
    key: Tensor | None = None,
    x_hat: Tensor | None = None,
) -> Tensor:
    return _run(settings, params, z, gamma, cond, key, x_hat)[0]


def _update(
    settings: Settings,
    params: Params,
    z: Tensor,
    gamma: Tensor,
    cond: Any = None,
    key: Tensor | None = None,
    x_hat: Tensor | None = None,
) -> Params:
    return settings.source.update(params, _run(settings, params, z, gamma, cond, key, x_hat)[1])
