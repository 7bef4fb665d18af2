"""The network of a module: :func:`purevdm.networks.from_module`, and its parameters to and from modules."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from purevdm import _checks, _facts, _trees
from purevdm.modules import _dropout
from purevdm.modules._source import Source, Tensors
from purevdm.networks import Network
from purevdm.types import Key, Params, Shape

__all__ = ["from_module", "load_module", "module_params"]


@dataclass(frozen=True, kw_only=True)
class ModuleNetwork(Network):
    """The network of :func:`from_module`."""

    source: Source
    call: Callable[..., Tensor] | None
    predicts: str
    time: Callable[[Tensor], Tensor] | None
    self_condition: bool
    masked: bool
    residual: bool
    outputs: int | None
    autocast: torch.dtype | None = None

    batched = True

    @property
    def frozen(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"params.{name}" for name in self.source.frozen)

    @property
    def name(self) -> str:
        return self.source.name

    def init(self, key: Key, event_shape: Shape) -> Params:
        return self.source.init(_checks.key("key", key))

    def apply(self, params: Params, z: Tensor, gamma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._run(params, z, gamma, *args, **kwargs)[0]

    def update(self, params: Params, *args: Any, **kwargs: Any) -> Params:  # type: ignore[override]
        return self.source.update(params, self._run(params, *args, **kwargs)[1])

    def computing_in(self, dtype: torch.dtype | None) -> Network:
        return self._replace(autocast=dtype)

    def _run(
        self,
        params: Params,
        z: Tensor,
        gamma: Tensor,
        cond: Any = None,
        key: Tensor | None = None,
        x_hat: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensors]:
        """Runs the module; returns its output, and its tensors after the run."""
        given: tuple[Any, ...] = (z, gamma if self.time is None else _checks.shaped("time", self.time(gamma), gamma.shape))
        given = given if cond is None and self.call is None else (*given, cond)
        extra: dict[str, Any] = {"mask": mask} if self.masked else {}
        if self.self_condition:
            extra["x_hat"] = torch.zeros_like(z) if x_hat is None else x_hat

        def output(module: Callable[..., Any]) -> Tensor:
            out = module(*given, **extra) if self.call is None else self.call(module, *given, **extra)
            if not isinstance(out, Tensor):
                raise TypeError(
                    f"network: expected a tensor of {self.name}, got {_checks.describe(out)}; tell from_module how to get "
                    "one, such as call=lambda module, z, gamma, cond: module(z, gamma).sample"
                )
            return out

        call, precision = _dropout.Call(self.name, key), nullcontext()
        if self.autocast is not None:
            precision = torch.autocast(z.device.type, self.autocast, cache_enabled=False)  # type: ignore[assignment]
        module, tensors = self.source.functional(self.source.values(params, z.device), call)
        if not torch.compiler.is_compiling():
            with self.source.lock, precision, _dropout.running(call):
                return output(module), tensors
        # A compiled loop, as sampling is, does not allow such a block; nothing is keyed or differentiated there.
        block = _dropout.Keyed(call) if key is not None or torch.is_grad_enabled() else nullcontext()
        _dropout.begin()
        try:
            with precision, block:
                return output(module), tensors
        finally:
            _dropout.end()


def from_module(
    module: Module | Callable[[], Module],
    *,
    call: Callable[..., Tensor] | None = None,
    time: Callable[[Tensor], Tensor] | None = None,
    pretrained: bool = False,
    predicts: str = "eps",
    self_condition: bool = False,
    masked: bool = False,
    residual: bool = False,
    outputs: int | None = None,
) -> Network:
    """Makes any ``torch.nn.Module`` a network, which is given gamma = log(sigma**2 / alpha**2) as it is, or ``time``'s.

    The module is called with a batch as ``module(z, gamma)``, or ``module(z, gamma, cond)`` where there is a condition:
    latents (B, *event_shape), gamma (B,), or (B, *event_shape) under a schedule of that shape. It returns (B, *event_shape),
    with a last axis of ``outputs`` where it has several. It is in train mode where the network is given a key, and in eval
    mode where not. The module itself never changes.

    >>> import functools
    >>> import torch
    >>> import purevdm
    >>> from purevdm import networks, random, schedules, training
    >>> class Net(torch.nn.Module):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.into, self.label = torch.nn.Linear(3, width), torch.nn.Embedding(10, width)
    ...         self.norm, self.out = torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 2)
    ...     def forward(self, z, gamma, label):
    ...         h = self.into(torch.cat([z, gamma[:, None] / 10.0], 1)) + self.label(label)
    ...         return self.out(torch.relu(self.norm(h)))
    >>> network = networks.from_module(functools.partial(Net, width=16))
    >>> model = purevdm.vdm(network, schedules.learned_linear(), event_shape=(2,))
    >>> params, label = model.init(random.key(0)), torch.tensor([1, 2, 3, 4])
    >>> x = random.randint(random.key(1), (4, 2), 0, 256)
    >>> grads, loss = torch.func.grad_and_value(model.loss_fn)(params, x, random.key(2), label)

    **Parameters** are ``{"params": ..., "buffers": ...}``, nested by the modules' names; tied ones appear once. All leaves
    are floating-point: other buffers are stored as floats, and cast back in each call. Buffers that float32 does not hold
    exactly, and tensors that are not registered, are constants outside the tree. To an optimiser of your own, give only
    ``params["network"]["params"]`` and ``params["schedule"]``. Parameters that do not require gradients are frozen.

    **Initialisation is by key.** A function that makes the module runs on the CPU under a seed of the key's. A module is
    drawn anew by each layer's ``reset_parameters``; constant parameters (zeros, ones) stay, and so do those of layers
    without that method. With ``pretrained=True`` its own values are used for every key. :func:`module_params` and
    :func:`load_module` convert between modules and trees.

    **Dropout is by key** in every form that torch has, attention's too; recurrent layers must have none between them. The
    masks are the same in eager mode and compiled. Each example's mask comes from its own key, if examples lie along the
    first axis of an activation (heads or windows may be folded into it) or along the second. Draws from torch's global
    generator are refused.

    **Batch norms** use the batch's statistics with a key, and their running ones without. A loss changes no parameter, so
    the statistics are returned by :meth:`purevdm.VDM.update`, which a training step takes. Before averaged parameters are
    evaluated, recompute theirs: ``model.update(state.ema_params, ...)``.

    >>> state, grad_fn = training.init(model, random.key(0)), training.gradients(model)
    >>> state, _ = training.train_step(training.AdamW(), grad_fn, state, x, random.key(1), label, update=model.update)
    >>> int(state.params["network"]["buffers"]["norm"]["num_batches_tracked"])
    1

    **Checkpoints** (``torch.utils.checkpoint``) work in ``training.gradients(model, compile=True, remat=True)``. Eager
    gradients refuse them. **Recurrent layers** run in eager mode only, and have no gradients of each example. **Mixed
    precision** is ``torch.autocast``; see :func:`purevdm.networks.mixed`.

    Args:
        module: the module, which is copied, or a function without arguments that makes one: a class, or
            ``functools.partial(Net, width=16)``, which compares and pickles by content.
        call: ``call(module, z, gamma, cond) -> output``, for modules with another signature; it also takes the keywords
            ``x_hat`` and ``mask`` where the network does. A model pickles if this function does.
        time: ``time(gamma) -> time``, elementwise, of gamma's shape: what the module takes instead of gamma, such as the
            index of a DDPM's betas, interpolated.
        pretrained: whether ``init`` gives the values that the module has.
        predicts, self_condition, masked, residual, outputs: attributes of :class:`~purevdm.networks.Network`. The module
            takes ``x_hat=`` (zeros for none) and ``mask=`` as keywords.

    Returns:
        A :class:`~purevdm.networks.Network`, ``batched``.

    Raises:
        TypeError, ValueError: an argument that is no module and makes none; a lazy module without shapes; parameters that
            are not floating-point; a module without layers to draw anew; dropout between recurrent layers; from a model's
            methods, another output than a tensor, or a time of another shape than gamma's.
        RuntimeError: from a model's methods, what a module does and cannot do here; it names the module and the remedy.
    """
    if not isinstance(module, Module) and not callable(module):
        raise TypeError(f"module: expected a torch.nn.Module or a function that makes one, got {_checks.describe(module)}")
    for name, function in (("call", call), ("time", time)):
        if function is not None:
            _checks.function(name, function)
    return ModuleNetwork(
        source=Source(module, _checks.boolean("pretrained", pretrained)),
        call=call,
        time=time,
        predicts=_checks.choice("predicts", predicts, ("eps", "x", "v")),
        self_condition=_checks.boolean("self_condition", self_condition),
        masked=_checks.boolean("masked", masked),
        residual=_checks.boolean("residual", residual),
        outputs=None if outputs is None else _checks.integer("outputs", outputs, 1),
    )


def module_params(network: Network, module: Module) -> Params:
    """Copies a module's parameters and buffers, in its dtypes, into a tree for its network, ``params["network"]``."""
    return _source(network).read(_checks.instance("module", module, Module, "a torch.nn.Module"))


def load_module(network: Network, params: Params, module: Module) -> Module:
    """Copies a network's parameters, ``params["network"]``, of the module's dtypes, into a module, and returns it."""
    source = _source(network)
    own = source.read(_checks.instance("module", module, Module, "a torch.nn.Module"))
    leaves = _checks.leaves(params)
    _trees.matches("params", leaves, _trees.structure(own))
    _facts.verify(_trees.finite("params", leaves))
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        for name, leaf in source.flat(params).items():
            tensors[name].copy_(leaf if tensors[name].is_floating_point() else leaf.round())
    return module


def _source(network: Network) -> Source:
    return _checks.instance("network", network, ModuleNetwork, "one of networks.from_module").source
