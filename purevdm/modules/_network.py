"""Any ``torch.nn.Module`` as a score network."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import optree
import torch
from torch import Tensor
from torch.nn import Module

from purevdm import _checks
from purevdm.modules import _calls, _dropout
from purevdm.modules._calls import Call
from purevdm.modules._dropout import Keyed
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

    def apply(
        self,
        params: Params,
        z: Tensor,
        gamma: Tensor,
        cond: Any = None,
        key: Tensor | None = None,
        x_hat: Tensor | None = None,
    ) -> Tensor:
        return _run(self, params, z, gamma, cond, key, x_hat)[0]

    def update(  # type: ignore[override]
        self,
        params: Params,
        z: Tensor,
        gamma: Tensor,
        cond: Any = None,
        key: Tensor | None = None,
        x_hat: Tensor | None = None,
    ) -> Params:
        return self.source.update(params, _run(self, params, z, gamma, cond, key, x_hat)[1])

    def computing_in(self, dtype: torch.dtype | None) -> Network:
        return self._replace(autocast=dtype)


def from_module(
    module: Module | Callable[[], Module],
    *,
    call: Callable[..., Tensor] | None = None,
    time: Callable[[Tensor], Tensor] | None = None,
    pretrained: bool = False,
    predicts: str = "eps",
    self_condition: bool = False,
    residual: bool = False,
    outputs: int | None = None,
) -> Network:
    """Any ``torch.nn.Module`` as a network, given gamma = log(sigma**2 / alpha**2) as it is: normalise it, or give ``time``.

    The module is called with a batch as ``module(z, gamma)``, or ``module(z, gamma, cond)`` where a condition is given, in
    train mode where the network is given a key and in eval mode where it is not: latents (B, *event_shape), gamma as it is,
    (B,) (or (B, *event_shape) under a schedule of that shape), and the batch's condition. It returns (B, *event_shape), with
    a last axis of ``outputs`` where it has several. What it is given is never changed. Its parameters and buffers are in the
    tree, and dropout is by key.

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

    **A pretrained module** is drawn anew like any other, unless ``pretrained=True``: then ``init`` gives its own values for
    every key. They are a tree by :func:`module_params`, too, and :func:`load_module` puts a tree back into a module:

    >>> pretrained = Net(16)
    >>> start = networks.from_module(pretrained, pretrained=True).init(random.key(0), (2,))
    >>> params["network"] = networks.module_params(network, pretrained)
    >>> bool((start["params"]["out"]["weight"] == params["network"]["params"]["out"]["weight"]).all())
    True
    >>> pretrained = networks.load_module(network, params["network"], pretrained)

    It also expects the levels of its own training, in its own time. ``time`` makes that of gamma. A DDPM's is the index of
    its betas; between two indices it is interpolated:

    >>> betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    >>> levels = torch.log(torch.expm1(-torch.log1p(-betas).cumsum(0))).float()  # gamma at the indices 0 to 999
    >>> def index(gamma):
    ...     above = torch.searchsorted(levels, gamma.detach().contiguous()).clamp(1, 999)
    ...     low, high = levels[above - 1], levels[above]
    ...     return above - 1 + (gamma - low) / (high - low)
    >>> index(levels[[0, 10, 999]])
    tensor([  0.,  10., 999.])
    >>> ddpm = networks.from_module(Net(16), time=index, pretrained=True)
    >>> ends = float(levels[0]), float(levels[-1])
    >>> model_of_ddpm = purevdm.vdm(ddpm, schedules.fixed_linear(*ends), event_shape=(2,))

    **There are no masks.** A padding mask inside the module keeps padded elements out of its attention, not out of the
    bound: log p, the loss and bits per dimension count every element of ``event_shape``.

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

    **Freezing**: parameters that do not require gradients in the module get zero gradients, and
    ``training.gradients`` gives None for them, so that a step leaves them as they are. ``training.gradients(model,
    frozen=["network.params.body"])`` freezes by path.

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
        time: ``time(gamma) -> time``, of gamma's shape, elementwise: what the module is given in gamma's stead.
        pretrained: whether ``init`` gives the values that the module has. (Where a function makes the module, they are
            always the function's.)
        predicts: what the output is: "eps", "x" or "v".
        self_condition: whether the module takes an earlier estimate of the data, ``x_hat=`` (zeros for none).
        residual: whether z is added to the output.
        outputs: how many numbers the module returns for each of z's, on a new last axis; None for one, of z's shape.

    Returns:
        A :class:`~purevdm.networks.Network`, ``batched``.

    Raises:
        TypeError, ValueError: something that neither is a module nor makes one; a lazy module whose shapes are not known;
            parameters that are not floating-point; a module in which no layer can be reinitialised; from a model's
            methods, a module that returns something else than a tensor, or a time of another shape than gamma's.
        RuntimeError: from a model's methods, what a module does and cannot do here; it names the module and the remedy.
    """
    if not isinstance(module, Module) and not callable(module):
        raise TypeError(f"module: expected a torch.nn.Module or a function that makes one, got {_checks.describe(module)}")
    for name, function in (("call", call), ("time", time)):
        if function is not None and not callable(function):
            raise TypeError(f"{name}: expected a function, got {_checks.describe(function)}")
    return ModuleNetwork(
        source=Source(module, _checks.boolean("pretrained", pretrained)),
        call=call,
        time=time,
        predicts=_checks.choice("predicts", predicts, ("eps", "x", "v")),
        self_condition=_checks.boolean("self_condition", self_condition),
        residual=_checks.boolean("residual", residual),
        outputs=None if outputs is None else _checks.integer("outputs", outputs, 1),
    )


def module_params(network: Network, module: Module) -> Params:
    """A module's own parameters and buffers as the parameters of its network, ``params["network"]``: copies.

    They have the module's dtypes: a float64 model takes those of ``module.double()``.
    """
    return _source(network).read(_checks.instance("module", module, Module, "a torch.nn.Module"))


def load_module(network: Network, params: Params, module: Module) -> Module:
    """A module with a network's parameters, ``params["network"]``, copied into it, in place; it is returned.

    They must have its dtypes: ``module.double()`` takes those of a float64 model.
    """
    source = _source(network)
    own = source.read(_checks.instance("module", module, Module, "a torch.nn.Module"))
    _checks.verify(_checks.matches("params", params, _checks.structure(own)))
    held = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        for name, leaf in source.flat(params).items():
            held[name].copy_(leaf if held[name].is_floating_point() else leaf.round())
    return module


def _source(network: Network) -> Source:
    return _checks.instance("network", network, ModuleNetwork, "one of networks.from_module").source


def _called(network: ModuleNetwork, module: Callable[..., Any], z: Tensor, gamma: Tensor, cond: Any, x_hat: Any) -> Tensor:
    found = _returned(network, module, z, gamma, cond, x_hat)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"network: expected a tensor of {network.name}, got {_checks.describe(found)}; tell from_module how to "
            "get one, such as call=lambda module, z, gamma, cond: module(z, gamma).sample"
        )
    return found


def _returned(network: ModuleNetwork, module: Callable[..., Any], z: Tensor, gamma: Tensor, cond: Any, x_hat: Any) -> Any:
    extra = {}
    if network.time is not None:
        gamma = _checks.shaped("time", network.time(gamma), gamma.shape)
    if network.self_condition:
        extra["x_hat"] = torch.zeros_like(z) if x_hat is None else x_hat
    if network.call is not None:
        return network.call(module, z, gamma, cond, **extra)
    given = (z, gamma) if cond is None else (z, gamma, cond)
    if not torch.compiler.is_compiling():
        try:
            inspect.signature(network.source.kind.forward).bind(module, *given, **extra)
        except TypeError as error:
            form = ", ".join((*("z", "gamma", "cond")[: len(given)], *(f"{name}=" for name in extra)))
            which = f"{network.source.name} is called as module({form})"
            raise TypeError(f"cond: {which}, as the condition is {_checks.describe(cond)}: {error}") from None
    return module(*given, **extra)


def _run(
    network: ModuleNetwork, params: Params, z: Tensor, gamma: Tensor, cond: Any, key: Tensor | None, x_hat: Tensor | None
) -> tuple[Tensor, Tensors]:
    """What the module returns, and its tensors after it."""
    source, train = network.source, key is not None
    call, values = Call(source.name, key), source.values(params, z.device)
    if network.autocast is None:
        precision: Any = nullcontext()
    else:
        precision = torch.autocast(z.device.type, network.autocast, cache_enabled=False)
    if not torch.compiler.is_compiling():
        with precision, _calls.counted(call):
            return _run_eager(network, call, values, z, gamma, cond, x_hat)

    module, values = source.functional(values, train)
    # A compiled loop, as sampling is, admits no such block; there, nothing is keyed or differentiated.
    block = Keyed(call) if train or torch.is_grad_enabled() else nullcontext()
    _calls.begin()
    try:
        with precision, block:
            return _called(network, module, z, gamma, cond, x_hat), values
    finally:
        _calls.end()


def _run_eager(
    network: ModuleNetwork, call: Call, values: Tensors, z: Tensor, gamma: Tensor, cond: Any, x_hat: Tensor | None
) -> tuple[Tensor, Tensors]:
    """In a copy of the module made for this call alone, which a checkpoint's second run finds as the first did."""
    module, loose = network.source.filled(values, call)
    watched = [tensor for tensor in (*loose, *module.parameters()) if not tensor.is_inference()]  # these have no version
    versions = [tensor._version for tensor in watched]
    recorded = _recorded(values, (z, gamma, cond, x_hat))
    if recorded and not _calls.transformed() and not z.requires_grad:
        z = z.detach().requires_grad_()  # reentrant checkpoints record where an input does
    quiet: Any = _quiet() if network.source.checkpoints and not recorded else nullcontext()
    with torch.set_grad_enabled(recorded), _dropout.within(call), quiet:
        found = _called(network, module.__call__, z, gamma, cond, x_hat)
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
    if not torch.is_grad_enabled() or _calls.transformed():
        return torch.is_grad_enabled()
    leaves: Any = optree.tree_leaves(trees)  # type: ignore[arg-type]
    return any(leaf.requires_grad for leaf in leaves)
