"""Laws of networks of sets."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, denoiser, random, sizes
from purevdm.networks import Network
from purevdm.testing._law import initialised, off, require, trying
from purevdm.testing.networks import EXAMPLES, _moved
from purevdm.types import Key, Params, Shape

__all__ = ["check_padding", "check_permutation"]


def check_permutation(
    network: Network,
    event_shape: Shape,
    *,
    params: Params | None = None,
    cond: Any = None,
    gamma: tuple[float, float] | None = None,
    key: Key | None = None,
) -> None:
    """Holds a network against equivariance: permuted elements, along an event's first axis, have permuted outputs, with the
    mask of a network that takes one. A model of such a network gives a set the same density in any order.

    Args:
        network, event_shape, params, cond, gamma, key: as for :func:`check_network`.

    Raises:
        LawError: it does not hold; the message says by how much, and how to see it.

    >>> from purevdm import networks, testing
    >>> testing.check_permutation(networks.transformer(16, 1), (5, 3))
    """
    run, z, n, k = _network(network, event_shape, params, cond, gamma, key)
    order = random.permutation(k, z.shape[1])
    masks = [None, sizes.mask(n, event_shape)] if network.masked else [None]
    for mask in masks:
        see = f"network.apply(params, z, gamma{'' if mask is None else ', mask=mask'}), and of z[:, order]"
        found = run(z, mask)
        other = trying("apply must take elements in any order", see, partial(run, z[:, order], _at(mask, order)))
        here = torch.ones_like(z, dtype=torch.bool) if mask is None else mask.expand_as(z)
        missed = _off(other, found[:, order], here[:, order])
        law = "permuted elements must have permuted outputs"
        require(missed <= 1e-4, law, f"off by {missed:.2g} of the norm", see)


def check_padding(
    network: Network,
    event_shape: Shape,
    *,
    params: Params | None = None,
    cond: Any = None,
    gamma: tuple[float, float] | None = None,
    key: Key | None = None,
    any_size: bool = True,
) -> None:
    """Holds a masked network against invariance to padding: outputs for the elements that exist, along an event's first
    axis, depend on these only, and neither on what the padding holds nor on how much there is.

    Args:
        network, event_shape, params, cond, gamma, key: as for :func:`check_network`; events of at least 3 elements.
        any_size: whether to try other amounts of padding, too; False for a network of one size of events.

    Raises:
        LawError: it does not hold; the message says by how much, and how to see it.
        ValueError: a network that takes no mask.

    >>> from purevdm import networks, testing
    >>> testing.check_padding(networks.transformer(16, 1), (5, 3))
    """
    run, z, n, k = _network(network, event_shape, params, cond, gamma, key)
    if not network.masked:
        raise ValueError(f"network: expected one that takes a mask (masked=True), got {network.name}")
    mask, see = sizes.mask(n, event_shape), "network.apply(params, z, gamma, mask=mask)"
    found, here = trying("apply must take a mask", see, partial(run, z, mask)), mask.expand_as(z)
    missed = _off(run(torch.where(mask, z, 9.0 * random.normal(k, z.shape)), mask), found, here)
    law = "outputs must not depend on what the padding holds"
    require(missed <= 1e-4, law, f"off by {missed:.2g} of the norm", see + ", and with another z where mask is False")
    for cut in range(2, z.shape[1]) if any_size else ():
        law, told = "outputs must not depend on the amount of padding", see + f", and of z[:, :{cut}]"
        other = trying(law, told, partial(run, z[:, :cut], mask[:, :cut]))
        missed = _off(other, found[:, :cut], here[:, :cut] & (n <= cut).reshape(-1, *(1 for _ in event_shape)))
        require(missed <= 1e-4, law, f"off by {missed:.2g} of the norm", told)


def _network(
    network: Network,
    event_shape: Shape,
    params: Params | None,
    cond: Any,
    gamma: tuple[float, float] | None,
    key: Key | None,
) -> tuple[Any, Tensor, Tensor, Key]:
    """Gives the network as a function of latents and mask, latents of three examples, their unequal sizes, and a key."""
    _checks.instance("network", network, Network, "a Network such as purevdm.networks.transformer()")
    event_shape = _checks.shape("event_shape", event_shape)
    if not event_shape or event_shape[0] < EXAMPLES:
        raise ValueError(f"event_shape: expected at least {EXAMPLES} elements, got {event_shape}")
    k_init, k_move, k_z, k = random.split(random.key(0) if key is None else key, 4).unbind(0)
    if params is None:
        params = _moved(initialised("network", lambda k: network.init(k, event_shape), k_init), k_move)
    levels = torch.linspace(*(gamma or network.endpoints or (-13.3, 5.0)), EXAMPLES)

    def run(z: Tensor, mask: Tensor | None) -> Tensor:
        return denoiser.output(network, params, z, levels, cond, mask=mask)

    return run, random.normal(k_z, (EXAMPLES, *event_shape)), torch.tensor([2, event_shape[0], 1]), k


def _at(mask: Tensor | None, order: Tensor) -> Tensor | None:
    return None if mask is None else mask[:, order]


def _off(found: Tensor, wanted: Tensor, here: Tensor) -> float:
    """Says by what part of its norm an output is off where something exists; it may have several numbers for each of z's."""
    return off(found[here], wanted[here])
