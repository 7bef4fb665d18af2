"""A network that is as good at a mirror image as at the image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from purevdm import _checks
from purevdm.networks._network import Network, Wrapped
from purevdm.types import Params


@dataclass(frozen=True)
class Mirrored(Wrapped):
    """The network of :func:`mirrored`."""

    axis: int

    def around(
        self, apply: Callable[..., Tensor], params: Params, z: Tensor, gamma: Tensor, *args: Any, **given: Any
    ) -> Tensor:
        own = apply(params, z, gamma, *args, **given)
        like_z = {name: x.flip(self.axis) for name, x in given.items() if name in ("x_hat", "mask") and x is not None}
        levels = gamma.flip(self.axis) if gamma.ndim == z.ndim else gamma
        other = apply(params, z.flip(self.axis), levels, *args, **(given | like_z))
        return 0.5 * (own + other.flip(self.axis - (self.outputs is not None)))


def mirrored(network: Network, axis: int = -1) -> Network:
    """Makes a network whose output is the mean of another's at z and of the mirror image of its output at the mirror image
    of z, so that what it makes of a mirror image is the mirror image (group averaging, Puny et al. 2022, arXiv 2110.03336).

    The mean of two estimates errs less than they do where their errors differ. It takes twice the time. The other network
    may be trained alone, on images of which half are mirrored, and put into this one after: the parameters are the same. A
    model of it gives an image and its mirror image one density, which costs at most a bit an image where data have a side.

    Args:
        network: any, but one that takes a map as its condition. Other conditions are passed as they are.
        axis: of an event, counted from its last, negative; -1 is left and right of images.

    Raises:
        TypeError, ValueError: another network, or an axis that is not negative.

    >>> import torch
    >>> from purevdm import networks, random
    >>> own = networks.unet(4, (1,), 1, groups=2)
    >>> network, z, gamma = networks.mirrored(own), random.normal(random.key(0), (1, 4, 4)), torch.tensor(0.0)
    >>> params = network.init(random.key(1), (1, 4, 4))
    >>> torch.allclose(network.apply(params, z.flip(-1), gamma), network.apply(params, z, gamma).flip(-1))
    True
    """
    inner = _checks.instance("network", network, Network, "a purevdm Network")
    while isinstance(inner, Wrapped):
        inner = inner.own
    if getattr(getattr(inner, "condition", None), "map_channels", 0):
        raise ValueError("network: expected one that takes no map, which would have to be mirrored, too, got map_channels")
    return Mirrored(network, _checks.integer("axis", axis, None, -1))
