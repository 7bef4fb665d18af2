"""What a model is to the rest of the library, and what its data and latents must be."""

from collections.abc import Callable
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from purevdm import _checks
from purevdm.codes import Code
from purevdm.decoders import Decoder, plain
from purevdm.networks import Network
from purevdm.noise import Seeds
from purevdm.parts import Encoder, Reverse, Subspace
from purevdm.schedules import Schedule
from purevdm.types import Key, Params

__all__ = ["Bounded", "Model"]


class Model(Protocol):
    """What the bound and the sampler need of a model; :class:`purevdm.VDM` is one."""

    @property
    def network(self) -> Network: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def decoder(self) -> Decoder: ...
    @property
    def event_shape(self) -> tuple[int, ...]: ...
    @property
    def timesteps(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def subspace(self) -> Subspace | None: ...
    @property
    def reverse(self) -> Reverse: ...
    @property
    def code(self) -> Code | None: ...
    @property
    def encoder(self) -> Encoder | None: ...


@runtime_checkable
class Bounded(Protocol):
    """What training and evaluation need of a model: a loss, and a bound on -log p(x). :class:`purevdm.VDM`,
    :class:`purevdm.bfn.BFN` and :class:`purevdm.masked.MaskedDiffusion` have it."""

    @property
    def network(self) -> Network: ...
    @property
    def decoder(self) -> Decoder: ...
    @property
    def event_shape(self) -> tuple[int, ...]: ...
    @property
    def timesteps(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def _replace(self) -> Callable[..., Self]: ...
    def init(self, key: Key) -> Params: ...
    def seeds(self, key: Key, n: int) -> Seeds: ...
    def loss_and_stats(
        self, params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Any]]: ...
    def nll_bound(
        self, params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, *, mask: Tensor | None = None
    ) -> Any: ...


def bounded(model: Any) -> Any:
    """Refuses what is not :class:`Bounded`."""
    return _checks.instance("model", model, Bounded, "a purevdm VDM, BFN or MaskedDiffusion")  # type: ignore[type-abstract]


def latent_shape(model: Any) -> tuple[int, ...]:
    """Gives the shape of one example's latent."""
    return (model.flow if hasattr(model, "flow") else model.decoder).latent_shape(model.event_shape)  # type: ignore[no-any-return]


def direct(model: Any, use: str, *, flow: bool = False, coded: bool = False) -> None:
    """Refuses a model whose latents are not its data encoded by a fixed map, for what has no formula for others.

    Args:
        model: a VDM.
        use: for what, as messages say it.
        flow: whether latents may lie in a subspace, and have another shape than the data.
        coded: whether the model may have a code.
    """
    decoder = _checks.instance("decoder", model.decoder, Decoder, "a purevdm Decoder")
    if model.code is not None and not coded:
        raise ValueError(f"model: expected one without a code for {use}; purevdm.coded.conditional gives it, given codes")
    if model.encoder is not None:
        raise ValueError(f"model: expected one whose means stay, without an encoder, for {use}, got {model.encoder!r}")
    if model.subspace is not None and not flow:
        raise ValueError(f"model: expected one without a subspace for {use}, got {model.subspace!r}")
    if decoder.learned or not (flow or plain(decoder, model.event_shape)):
        shaped = "" if flow else ", whose latents have the data's shape,"
        raise ValueError(f"model: expected a decoder without parameters{shaped} for {use}, got {decoder!r}")
