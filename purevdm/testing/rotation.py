"""The law of turned examples: a model of points knows no direction."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, bound, random
from purevdm._vdm import VDM
from purevdm.model import latent_shape
from purevdm.testing._law import off, require, trying
from purevdm.types import Key, Params

__all__ = ["check_rotation"]


def check_rotation(
    model: VDM,
    params: Params,
    x: Tensor,
    cond: Any = None,
    *,
    coordinates: int = 3,
    mask: Tensor | None = None,
    reflections: bool = True,
    key: Key | None = None,
) -> None:
    """Holds a model of points in space against symmetry under rotations: an example that is turned, with its noise, has the
    same bound, term by term, and the network's estimates turn with the latent.

    Training moves a network that is not equivariant only near to this. Of a model that obeys it, the density of an example
    is that of the turned one.

    Args:
        model: the model.
        params: its parameters; of a network that starts as 0, take others than ``init``'s, or nothing is tested.
        x: data, (B, *event_shape), whose last axis begins with coordinates. They turn about the origin: the decoder's
            ``loc`` is 0 there, and its ``scale`` one number.
        cond: their conditions, which do not turn.
        coordinates: how many.
        mask: what exists of the data.
        reflections: whether to try reflections, too; False for a network that tells left from right.
        key: a key.

    Raises:
        LawError: a law does not hold; the message says which, by how much, and how to see it.
        TypeError, ValueError: another thing than a model, events of fewer coordinates, bad data.

    >>> import torch, purevdm
    >>> from purevdm import decoders, networks, parts, random, schedules, testing
    >>> subspace, options = parts.zero_centre(), dict(event_shape=(5, 3), decoder=decoders.gaussian())
    >>> model = purevdm.vdm(networks.egnn(16, 1), schedules.fixed_linear(-6.0, 5.0), subspace=subspace, **options)
    >>> x = subspace.project(random.normal(random.key(0), (4, 5, 3)))
    >>> testing.check_rotation(model, model.init(random.key(1)), x)
    """
    _checks.instance("model", model, VDM, "a model of purevdm.vdm")
    coordinates = _checks.integer("coordinates", coordinates, 1)
    for name, shape in (("event_shape", model.event_shape), ("latent_shape", latent_shape(model))):
        if not shape or shape[-1] < coordinates:
            raise ValueError(f"model: expected a last axis of at least {coordinates} coordinates, got {name} {tuple(shape)}")
    k_noise, k_turn = random.split(random.key(0) if key is None else key).unbind(0)
    n = len(_checks.tensor("x", x))
    noise, there = model.draw(k_noise, n, train=False), None if mask is None else model.decoder.latent_mask(mask)
    denoise = model.denoiser(params, cond, n=n, mask=there)
    z, gamma = denoise.within(noise.eps), torch.linspace(*(model.network.endpoints or (-8.0, 5.0)), n).to(noise.eps)
    found, eps = bound.bound(model, params, x, noise, cond, mask), denoise.eps(z, gamma)
    for sign in (1.0, -1.0) if reflections else (1.0,):
        what, turn = ("turned", "reflected")[sign < 0], _orthogonal(k_turn, coordinates, sign)
        law, see = f"the network's estimate must be {what} with the latent", "model.denoiser(params, n=n).eps(z, gamma)"
        other = trying(law, see, partial(denoise.eps, _turned(z, turn), gamma))
        missed = off(other, _turned(eps, turn))
        require(missed <= 1e-4, law, f"off by {missed:.2g} of its norm", f"{see}, of z with its coordinates @ turn, too")
        moved = noise._replace(eps_0=_turned(noise.eps_0, turn), eps=_turned(noise.eps, turn))
        again = bound.bound(model, params, _turned(x, turn), moved, cond, mask)
        for name, term in again._asdict().items():
            law, missed = f"{name} must be the same of a {what} example with its noise", off(term, getattr(found, name))
            see = "bound.bound(model, params, x, noise), of x, eps_0 and eps with their coordinates @ turn, too"
            require(missed <= 1e-4, law, f"off by {missed:.2g} of its norm", see)


def _orthogonal(key: Key, d: int, sign: float) -> Tensor:
    """Draws a turn in d dimensions, or with a negative sign one with a reflection, (d, d)."""
    q = torch.linalg.qr(random.normal(key, (d, d), torch.float64))[0]
    return torch.cat([q[:, :1] * torch.linalg.det(q).sign() * sign, q[:, 1:]], 1)


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Turns the first entries of x's last axis."""
    d = len(turn)
    return torch.cat([(x[..., :d].double() @ turn.to(x.device)).to(x.dtype), x[..., d:]], -1)
