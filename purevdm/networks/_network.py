"""The base class of score networks; networks of one's own functions, around another, or in another dtype."""

import dataclasses
import dis
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._values import Value
from purevdm.types import Key, Params, Shape

PAPER = (-13.3, 5.0)  # the endpoints of a network outside of a model


class Network(Value):
    """A score network. Derive from it and write :meth:`init` and :meth:`apply`, or give two functions to :meth:`of`.

    Attributes:
        batched: whether ``apply`` takes a whole batch, with a leading axis B on z, gamma, every tensor of the condition, the
            mask, and the keys, (B, 2). It is then called without ``vmap``. A network needs this if it normalises over the
            batch, checkpoints, or calls kernels without a batching rule.
        predicts: what the output is: the noise "eps", the clean data "x", or "v" = alpha eps - sigma x (Salimans & Ho
            2022).
        self_condition: whether ``apply`` also takes ``x_hat``, an earlier estimate of the data (``event_shape``) or None
            for none (Chen, Zhang, Hinton 2022, arXiv 2208.04202).
        masked: whether ``apply`` (and ``update``) also takes ``mask``, bool, which broadcasts to z and is True where an
            element exists, or None where all do.
        residual: whether z is added to what ``apply`` returns.
        outputs: how many numbers ``apply`` returns for each of z's, on a new last axis; None for one, of z's shape.
        dtype: what ``apply`` computes in: floating-point parameters are cast to it in each call. None leaves them.
        endpoints: the values of gamma that ``apply`` normalises between; None where it does not, and takes gamma as it is. A
            model refuses a schedule with a different pair, and gives its own to a network by :meth:`between`.
        update: ``update(params, z, gamma, cond=None, key=None) -> params``, for networks whose parameters hold statistics
            of their inputs, such as a batch norm's means: the parameters with the statistics that a training pass leaves.
            None where there are none.
        frozen: paths of leaves or branches of the parameters that training does not change, such as ``"params.encoder"``.
    """

    batched: bool = False
    predicts: str = "eps"
    self_condition: bool = False
    masked: bool = False
    residual: bool = False
    outputs: int | None = None
    dtype: torch.dtype | None = None
    endpoints: tuple[float, float] | None = None
    update: Callable[..., Params] | None = None
    frozen: tuple[str, ...] = ()

    def init(self, key: Key, event_shape: Shape) -> Params:
        """Draws parameters for latents of this shape."""
        raise NotImplementedError

    def apply(self, params: Params, z: Tensor, gamma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Predicts for one example: ``apply(params, z, gamma, cond=None, key=None)``.

        Args:
            params: the parameters.
            z: the latent, ``event_shape``.
            gamma: its noise level, shape (), or ``event_shape`` under a schedule of that shape.
            cond: the example's condition.
            key: switches on what is random in training (dropout of features and of the condition); without one the network
                is deterministic.
            x_hat: a further keyword for a self-conditioned network, of z's shape.
            mask: a further keyword for a masked network: a bool tensor that broadcasts to z.
        """
        raise NotImplementedError

    def between(self, endpoints: tuple[float, float]) -> "Network":
        """Returns the network for a schedule between these endpoints, which fill its field for them where that is None.

        Raises:
            ValueError: it has others; or its ``apply`` calls a library network that was given none, and would normalise
                gamma by the paper's. Give that one its ``gamma_min`` and ``gamma_max``, or derive from :class:`Wrapped`.
        """
        if self.endpoints is not None:
            if not _same(self.endpoints, endpoints):
                raise _outside("it normalises", self.endpoints, endpoints, "leave its gamma_min and gamma_max out")
        elif self._settable("endpoints"):
            return self._replace(endpoints=endpoints)
        elif not _same(endpoints, PAPER):
            for inner in _networks_in(self._applied, set()):
                if inner.endpoints is None and inner._settable("endpoints"):
                    remedy = f"make that one with gamma_min={endpoints[0]}, gamma_max={endpoints[1]}"
                    raise _outside(f"its apply calls {inner!r}, which would normalise", PAPER, endpoints, remedy)
        return self

    def computing_in(self, dtype: torch.dtype | None) -> "Network":
        """Returns the network that computes in another dtype; see :func:`purevdm.networks.mixed`."""
        if not self._settable("dtype"):
            raise TypeError(f"network: expected one with a field dtype, got {_checks.describe(self)}")
        return self._replace(dtype=dtype)

    def _settable(self, name: str) -> bool:
        return any(field.name == name for field in dataclasses.fields(self))  # type: ignore[arg-type]

    @property
    def _applied(self) -> Callable[..., Tensor]:
        return self.apply

    @property
    def name(self) -> str:
        """The network's name in messages."""
        return type(self).__name__.lower()

    @staticmethod
    def of(init: Callable[[Key, Shape], Params], apply: Callable[..., Tensor], **settings: Any) -> "Network":
        """Makes a network of one's own functions, with the arguments of the methods; ``settings`` are the attributes of
        :class:`Network`."""
        return Functions(init, apply, **settings)


class _OfFunctions(Network):
    own_init: Callable[[Key, Shape], Params]
    own_apply: Callable[..., Tensor]

    def init(self, key: Key, event_shape: Shape) -> Params:
        return self.own_init(key, event_shape)

    def apply(self, params: Params, z: Tensor, gamma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.own_apply(params, z, gamma, *args, **kwargs)

    def _settable(self, name: str) -> bool:
        return name != "endpoints" and super()._settable(name)  # its functions would not receive them

    @property
    def _applied(self) -> Callable[..., Tensor]:
        return self.own_apply

    @property
    def name(self) -> str:
        return getattr(self.own_apply, "__qualname__", repr(self.own_apply))


# A network made of two functions, and the attributes of any as fields.
_FIELDS = [(name, kind, getattr(Network, name)) for name, kind in Network.__annotations__.items()]
Functions = dataclasses.make_dataclass(
    "Functions",
    [("own_init", Any), ("own_apply", Any), *_FIELDS],
    bases=(_OfFunctions,),
    namespace={"__module__": __name__},
    frozen=True,
)


@dataclass(frozen=True)
class Wrapped(Network):
    """A network around another, with the other's parameters and attributes. Derive from it and write ``around``."""

    own: Network

    def around(
        self, apply: Callable[..., Tensor], params: Params, z: Tensor, gamma: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Computes the output by the other network's ``apply``, or by its form for batches: then z and the rest have a
        leading axis."""
        return apply(params, z, gamma, *args, **kwargs)

    def apply(self, params: Params, z: Tensor, gamma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.around(self.own.apply, params, z, gamma, *args, **kwargs)

    def init(self, key: Key, event_shape: Shape) -> Params:
        return self.own.init(key, event_shape)

    def between(self, endpoints: tuple[float, float]) -> Network:
        return self._replace(own=self.own.between(endpoints))

    def computing_in(self, dtype: torch.dtype | None) -> Network:
        return self._replace(own=self.own.computing_in(dtype))

    @property
    def name(self) -> str:
        return self.own.name


def _of_own(name: str) -> Any:
    return property(lambda self: getattr(self.own, name))


for _name in Network.__annotations__:
    setattr(Wrapped, _name, _of_own(_name))


def mixed(network: Network, dtype: torch.dtype = torch.bfloat16) -> Network:
    """Makes a network compute in ``dtype``, to which its parameters are cast in each call.

    A network of :func:`from_module` runs under ``torch.autocast`` instead, which casts the inputs of its matrix products and
    convolutions, and leaves norms and buffers. The parameters themselves, their gradients and averages stay float32, and so
    do the latent and its Fourier features, the embedding of gamma, the schedule, the random numbers and the losses.

    Raises:
        TypeError: another dtype than bfloat16 or float16.
    """
    _checks.instance("network", network, Network, "a purevdm Network")
    _checks.dtype("dtype", dtype, (torch.bfloat16, torch.float16))
    return network.computing_in(dtype)


def checked_predicts(x: str) -> str:
    """Checks a network's argument."""
    return _checks.choice("predicts", x, ("eps", "x", "v"))


# Endpoints


def _same(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return all(math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-6) for x, y in zip(a, b, strict=True))


def _outside(what: str, own: tuple[float, float], endpoints: tuple[float, float], remedy: str) -> ValueError:
    levels = f"but the model's levels go from {endpoints[0]} to {endpoints[1]}"
    return ValueError(f"network: {what} gamma between {own[0]} and {own[1]}, {levels}; {remedy}")


def _networks_in(value: Any, seen: set[int]) -> Iterator[Network]:
    """Yields the networks that a user's function calls: bound to it, in its closure, its object or its globals."""
    if id(value) in seen:
        return
    seen.add(id(value))
    parts: list[Any] = []
    if isinstance(value, Network):
        yield value
        parts = [*vars(value).values(), type(value).apply]
    elif isinstance(value, partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif inspect.ismethod(value):
        parts = [value.__func__, *getattr(value.__self__, "__dict__", {}).values()]
    elif inspect.isfunction(value) and (value.__module__ or "").partition(".")[0] not in ("purevdm", "torch"):
        named = inspect.getclosurevars(value)
        read = {step.argval for step in dis.get_instructions(value) if step.opname == "LOAD_GLOBAL"}
        found = (x for name, x in named.globals.items() if name in read)  # getclosurevars takes attributes for globals, too
        near = (x for x in found if isinstance(x, Network) or getattr(x, "__module__", None) == value.__module__)
        parts = [*named.nonlocals.values(), *near]
    elif not isinstance(value, (type, torch.nn.Module)) and inspect.ismethod(getattr(value, "__call__", None)):  # noqa: B004
        parts = [value.__call__]
    for part in parts:
        yield from _networks_in(part, seen)
