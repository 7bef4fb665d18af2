"""Any ``torch.nn.Module`` as a score network."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor
from torch.nn import Module

from purevdm import _checks
from purevdm.networks import _drawing, _uses
from purevdm.networks._drawing import Keyed
from purevdm.networks._network import Network
from purevdm.networks._template import Source, Tensors
from purevdm.networks._uses import Call
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
    """Any ``torch.nn.Module`` as a network: its parameters and buffers in the tree, dropout by key, batched.

    The module is called with a batch as ``module(z, gamma)``, or ``module(z, gamma, cond)`` where a condition is given, in
    train mode where the network is given a key and in eval mode where it is not: latents (B, *event_shape), gamma as it is,
    (B,) (or (B, *event_shape) under a schedule of that shape), and the batch's condition. It returns (B, *event_shape), with
    a last axis of ``outputs`` where it has several. What it is given is never changed.

    There are no masks of data: a mask that the module keeps to itself hides padding from its attention alone. The bound
    counts padded elements as data (:func:`purevdm.vdm`).

    >>> import functools
    >>> import torch
    >>> import purevdm
    >>> from purevdm import networks, random, schedules, training
    >>> class Net(torch.nn.Module):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.into = torch.nn.Linear(3, width)
    ...         self.label = torch.nn.Embedding(10, width)
    ...         self.body = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.BatchNorm1d(width), torch.nn.Dropout(0.1))
    ...         self.out = torch.nn.Linear(width, 2)
    ...     def forward(self, z, gamma, label):
    ...         h = self.into(torch.cat([z, gamma[:, None] / 10.0], 1)) + self.label(label)
    ...         return self.out(self.body(h))
    >>> network = networks.from_module(functools.partial(Net, width=16))
    >>> model = purevdm.vdm(network, schedules.learned_linear(), event_shape=(2,))
    >>> params, label = model.init(random.key(0)), torch.tensor([1, 2, 3, 4])
    >>> x = random.randint(random.key(1), (4, 2), 0, 256)
    >>> grads, loss = torch.func.grad_and_value(model.loss_fn)(params, x, random.key(2), label)
    >>> model.sample(params, random.key(3), 4, steps=5, cond=label).shape
    torch.Size([4, 2])

    **Parameters** are ``{"params": ..., "buffers": ...}``, nested by the modules' names. Tied parameters appear once. All
    leaves are floating-point, as gradients ask for: integer and bool buffers are held as floats, and cast back in each call.
    Buffers get zero gradients, and ``purevdm.training`` applies weight decay only to parameters with two or more axes. To an
    optimiser of your own, hand ``params["network"]["params"]`` and ``params["schedule"]``. Buffers that float32 does not
    hold exactly (complex, infinite, integers above 2**24) and tensors that are not registered are constants, and stay out of
    the tree.

    **Initialised by key.** A function that makes the module runs on the CPU, under a seed that the key draws. A
    module is drawn anew by each layer's ``reset_parameters``; parameters that are constant in it (zeros, ones) stay, and so
    do those of layers without that method. So give the function where a module draws its parameters in its own way. The
    global generator is as before.

    **A pretrained module's** own values are a tree, too, and a tree goes back into a module:

    >>> pretrained = Net(16)
    >>> params["network"] = networks.module_params(network, pretrained)
    >>> pretrained = networks.load_module(network, params["network"], pretrained)

    **Dropout by key** is that of ``nn.Dropout`` and its kin, ``F.dropout``, ``F.scaled_dot_product_attention``,
    ``nn.MultiheadAttention``, the transformer's and the recurrent layers: the same masks in eager, compiled, and in a
    checkpointed block that is computed again. Each example's mask comes from its own key, so a part of a batch computes what
    the whole does. This needs the examples along the activation's first axis (heads or windows may be folded into it, one
    example's after another's), or along its second axis where the batch size does not divide the first. Masks of other
    shapes come from the first example's key. A draw from torch's global generator is an error.

    **Batch norms** use the batch's statistics with a key, so there an example depends on its batch; without a key, their
    running ones. A loss changes no parameter, so those come back by :meth:`purevdm.VDM.update`, which a training step takes:

    >>> params = model.update(params, x, random.key(2), label)
    >>> int(params["network"]["buffers"]["body"]["1"]["num_batches_tracked"])
    1
    >>> state, grad_fn = training.init(model, random.key(0)), training.gradients(model)
    >>> state, _ = training.train_step(training.AdamW(), grad_fn, state, x, random.key(1), label, update=model.update)

    Before averaged parameters are evaluated, recompute their statistics on a few batches:
    ``model.update(state.ema_params, ...)``.

    **Checkpoints** (``torch.utils.checkpoint``, reentrant or not) are known to ``torch.autograd``, not to ``torch.func``:
    ``training.gradients(model, remat=True)`` takes gradients through them, in eager and compiled, and so does
    ``loss.backward()`` on parameters that require gradients. A compiled ``torch.func.grad`` computes them as plain calls.

    **Mixed precision**: :func:`mixed` runs the module under ``torch.autocast``; parameters and buffers stay as they are.

    Args:
        module: the module, which is copied, or a function without arguments that makes one: a class, or
            ``functools.partial(Net, width=16)``, which compares and pickles by content.
        call: ``call(module, z, gamma, cond) -> output``, for modules with another signature. ``module`` is then a function
            that runs the module, and ``x_hat`` a further keyword where the network is self-conditioned. A model pickles if
            this function does.
        predicts: what the output is: "eps", "x" or "v".
        self_condition: whether the module takes an earlier estimate of the data, ``x_hat=`` (zeros for none).
        residual: whether z is added to the output.
        outputs: how many numbers the module returns for each of z's, on a new last axis; None for one, of z's shape.

    Returns:
        A :class:`~purevdm.networks.Network`, ``batched``.

    Raises:
        TypeError, ValueError: something that neither is a module nor makes one; a lazy module whose shapes are not known;
            parameters that are not floating-point; a module in which no layer can be reinitialised.
        RuntimeError: from a model's methods, what a module does and cannot do here; it names the module and the remedy.
    """
    if not isinstance(module, Module) and not callable(module):
        raise TypeError(f"module: expected a torch.nn.Module or a function that makes one, got {_checks.describe(module)}")
    if call is not None and not callable(call):
        raise TypeError(f"call: expected a function, got {_checks.describe(call)}")
    settings = Settings(Source(module), call, _checks.boolean("self_condition", self_condition))
    return Network(
        init=partial(_init, settings),
        apply=partial(_apply, settings),
        batched=True,
        predicts=_checks.choice("predicts", predicts, ("eps", "x", "v")),
        self_condition=settings.self_condition,
        residual=_checks.boolean("residual", residual),
        outputs=None if outputs is None else _checks.integer("outputs", outputs, 1),
        update=partial(_update, settings),
    )


def module_params(network: Network, module: Module) -> Params:
    """A module's own parameters and buffers as the parameters of its network, ``params["network"]``: copies."""
    return _settings(network).source.read(_checks.instance("module", module, Module, "a torch.nn.Module"))


def load_module(network: Network, params: Params, module: Module) -> Module:
    """A module with a network's parameters, ``params["network"]``, copied into it, in place; it is returned."""
    source = _settings(network).source
    source.read(
        _checks.instance("module", module, Module, "a torch.nn.Module")
    )  # holds its names and shapes against the network's
    _checks.verify(_checks.matches("params", params, _checks.structure(source.tree(source.leaves))))
    held = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        for name, leaf in source.flat(params).items():
            held[name].copy_(leaf if held[name].is_floating_point() else leaf.round())
    return module


def _settings(network: Network) -> Settings:
    _checks.instance("network", network, Network, "one of networks.from_module")
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
    given = (z, gamma) if cond is None else (z, gamma, cond)
    if not torch.compiler.is_compiling():
        try:
            inspect.signature(settings.source.kind.forward).bind(module, *given, **extra)
        except TypeError as error:
            form = ", ".join((*("z", "gamma", "cond")[: len(given)], *(f"{name}=" for name in extra)))
            which = f"{settings.source.name} is called as module({form})"
            raise TypeError(f"cond: {which}, as the condition is {_checks.describe(cond)}: {error}") from None
    return module(*given, **extra)


def _run(
    settings: Settings, params: Params, z: Tensor, gamma: Tensor, cond: Any, key: Tensor | None, x_hat: Tensor | None
) -> tuple[Tensor, Tensors]:
    """What the module returns, and its tensors after it."""
    source, train = settings.source, key is not None
    call, values = Call(source.name, key), source.values(params, z.device)
    if settings.dtype is None:
        precision: Any = nullcontext()
    else:
        precision = torch.autocast(z.device.type, settings.dtype, cache_enabled=False)
    if not torch.compiler.is_compiling():
        with precision, _uses.counted(call):
            return _run_eager(settings, call, values, z, gamma, cond, x_hat)

    def module(*args: Any, **kwargs: Any) -> Tensor:
        return torch.func.functional_call(source.templates[int(train)], values, args, kwargs)

    # A compiled loop, as sampling is, admits no such block; there, nothing is keyed or differentiated.
    block = Keyed(call) if train or torch.is_grad_enabled() else nullcontext()
    _uses.begin()
    try:
        with precision, block:
            return _called(settings, module, z, gamma, cond, x_hat), values
    finally:
        _uses.end()


def _run_eager(
    settings: Settings, call: Call, values: Tensors, z: Tensor, gamma: Tensor, cond: Any, x_hat: Tensor | None
) -> tuple[Tensor, Tensors]:
    """In a copy of the module made for this call alone, which a checkpoint's second run finds as the first did."""
    module, loose = settings.source.filled(values, call)
    watched = [] if torch.is_inference_mode_enabled() else [*loose, *module.parameters()]
    versions = [tensor._version for tensor in watched]
    recorded = _recorded(values, (z, gamma, cond, x_hat))
    if recorded and not _uses.transformed() and not z.requires_grad:
        z = z.detach().requires_grad_()  # reentrant checkpoints record where an input does
    quiet: Any = _quiet() if settings.source.checkpoints and not recorded else nullcontext()
    with torch.set_grad_enabled(recorded), _drawing.within(call), quiet:
        found = _called(settings, module.__call__, z, gamma, cond, x_hat)
    if versions != [tensor._version for tensor in watched]:
        raise call.error("writes in place to a parameter, or to a tensor that is not registered; register it as a buffer")
    return found, dict(module.named_buffers(remove_duplicate=False))


@contextmanager
def _quiet() -> Iterator[None]:
    """A block in which reentrant checkpoints do not warn that they record nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
        yield


def _recorded(*trees: Any) -> bool:
    """Whether autograd has something to record; where not, checkpoints need not make ready to compute again."""
    if not torch.is_grad_enabled() or _uses.transformed():
        return torch.is_grad_enabled()
    leaves: Any = optree.tree_leaves(trees)  # type: ignore[arg-type]
    return any(leaf.requires_grad for leaf in leaves)


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
