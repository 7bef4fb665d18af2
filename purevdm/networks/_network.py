"""The base class of score networks, and networks of one's own functions or around another."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._compile import constant
from purevdm._values import Value
from purevdm.types import Key, Params, Shape

_FORMS = ("apply", "apply_by_regions")


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
            ValueError: its ``apply`` calls a library network that was given no endpoints, and would normalise gamma by the
                paper's. Give that one its ``gamma_min`` and ``gamma_max``, or derive from :class:`Wrapped`.
        """
        if self.endpoints is None and self._settable("endpoints"):
            return self._replace(endpoints=endpoints)
        if self.endpoints is None:
            _check_inner(self, endpoints)
        return self

    def computing_in(self, dtype: torch.dtype | None) -> "Network":
        """Returns the network that computes in another dtype; see :func:`purevdm.networks.mixed`."""
        if not self._settable("dtype"):
            raise TypeError(f"network: expected one with a field dtype, got {_checks.describe(self)}")
        return self._replace(dtype=dtype)

    @constant
    def has_regions(self) -> bool:
        """Says whether ``apply_by_regions`` computes what ``apply`` does: not where a subclass overrides only one."""
        owners = [next((kind for kind in type(self).__mro__ if name in vars(kind)), None) for name in _FORMS]
        return owners[0] is owners[1]

    def _settable(self, name: str) -> bool:
        return any(field.name == name for field in dataclasses.fields(self))  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """The network's name in messages."""
        return type(self).__name__.lower()

    @staticmethod
    def of(init: Callable[[Key, Shape], Params], apply: Callable[..., Tensor], **settings: Any) -> "Network":
        """Makes a network of one's own functions, with the arguments of the methods; ``settings`` are the attributes of
        :class:`Network`."""
        return Functions(init, apply, **settings)


@dataclass(frozen=True)
class Functions(Network):
    """A network made of two functions."""

    own_init: Callable[[Key, Shape], Params]
    own_apply: Callable[..., Tensor]
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
        return self.own_init(key, event_shape)

    def apply(self, params: Params, z: Tensor, gamma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.own_apply(params, z, gamma, *args, **kwargs)

    def between(self, endpoints: tuple[float, float]) -> "Network":
        if self.endpoints is None:  # its functions would not receive them
            _check_inner(self.own_apply, endpoints)
        return self

    @property
    def name(self) -> str:
        return getattr(self.own_apply, "__qualname__", repr(self.own_apply))


@dataclass(frozen=True)
class Wrapped(Network):
    """A network around another, with the other's parameters and attributes. Derive from it and write :meth:`apply`."""

    own: Network

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


def checked_predicts(x: str) -> str:
    """Checks a network's argument."""
    return _checks.choice("predicts", x, ("eps", "x", "v"))


PAPER = (-13.3, 5.0)  # the endpoints of a network outside of a model


def _check_inner(apply: Any, endpoints: tuple[float, float]) -> None:
    """Refuses library networks without endpoints in a user's function, unless the paper's are the model's."""
    if same(endpoints, PAPER):
        return
    for inner in _networks_in(apply, set()):
        if inner.endpoints is None and inner._settable("endpoints") and not isinstance(inner, Functions):
            low, high = endpoints
            raise ValueError(
                f"network: its apply calls {inner!r}, which would normalise gamma between {PAPER[0]} and {PAPER[1]}, "
                f"but the model's levels go from {low} to {high}; make that one with gamma_min={low}, gamma_max={high}"
            )


def same(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Compares two pairs of endpoints."""
    return all(math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-6) for x, y in zip(a, b, strict=True))


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
    elif inspect.isfunction(value) and value.__module__.partition(".")[0] not in ("purevdm", "torch"):
        named = inspect.getclosurevars(value)
        near = (
            x for x in named.globals.values() if isinstance(x, Network) or getattr(x, "__module__", None) == value.__module__
        )
        parts = [*named.nonlocals.values(), *near]
    elif not isinstance(value, (type, torch.nn.Module)) and inspect.ismethod(getattr(value, "__call__", None)):  # noqa: B004
        parts = [value.__call__]
    for part in parts:
        yield from _networks_in(part, seen)
