"""The variational bound: -log p(x) <= prior + reconstruction + diffusion (eq. 11), each term in nats.

The mathematics of one example takes all that is random, and the predicted noise, as arguments. :func:`bound` puts it
together for a batch.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm import _checks, denoiser, process, schedules
from purevdm._compile import exact
from purevdm.decoders import Decoder
from purevdm.model import Model, checked
from purevdm.noise import Noise
from purevdm.schedules import Levels
from purevdm.types import Params

__all__ = ["NLLBound", "bound", "bound_at", "diffusion_loss", "prior_loss", "reconstruction_loss", "terms"]


class NLLBound(NamedTuple):
    """The three terms of the bound on -log p(x), in nats; their sum lies above it.

    Attributes:
        recon: E[-log p(x given z_0)], the reconstruction loss.
        prior: KL(q(z_1 given x) || N(0, I)), the latent or prior loss.
        diffusion: the diffusion loss, L_T(x) or L_infinity(x).
    """

    recon: Tensor
    prior: Tensor
    diffusion: Tensor

    @property
    def total(self) -> Tensor:
        """The bound on -log p(x), in nats."""
        return self.recon + self.prior + self.diffusion


# The mathematics, for one example


def prior_loss(f: Tensor, gamma_1: Tensor) -> Tensor:
    """KL(q(z_1 given x) || N(0, I)) in nats, summed over one encoded example f: shape ().

    Per dimension, (alpha_1**2 f**2 + sigma_1**2 - 1 - log sigma_1**2) / 2. gamma_1 is of shape () or of f's.
    """
    alpha2 = torch.sigmoid(-gamma_1)
    # sigma**2 - 1 - log sigma**2 = softplus(-gamma) - sigmoid(-gamma), about alpha**4 / 2: in float64, as the two nearly
    # cancel. Most often one number an example.
    wide = -gamma_1.double()
    excess = (F.softplus(wide, threshold=700) - torch.sigmoid(wide)).to(gamma_1.dtype)
    return 0.5 * (alpha2 * f.square() + excess).sum()


def reconstruction_loss(decoder: Decoder, x: Tensor, eps_0: Tensor, gamma_0: Tensor) -> Tensor:
    """-log p(x given z_0) in nats, summed over one example x whose latent z_0 has the noise eps_0: shape ()."""
    return decoder.reconstruction({}, x, eps_0, gamma_0).sum()


def diffusion_loss(eps: Tensor, eps_hat: Tensor, weight: Tensor) -> Tensor:
    """weight |eps - eps_hat|**2 / 2 in nats, summed over one example: shape ().

    The weight, of shape () or of eps', is gamma'(t) in continuous time (eq. 17), T expm1(gamma(t) - gamma(s)) in T steps
    (eq. 14).
    """
    return 0.5 * (weight * (eps - eps_hat).square()).sum()


def terms(decoder: Decoder, x: Tensor, eps_0: Tensor, eps: Tensor, eps_hat: Tensor, levels: Levels) -> NLLBound:
    """The bound's three terms for one example, each of shape (), from its noise and the noise that a network saw in z_t."""
    return NLLBound(
        recon=reconstruction_loss(decoder, x, eps_0, levels.gamma_0),
        prior=prior_loss(decoder.encode({}, x, dtype=eps.dtype), levels.gamma_1),
        diffusion=diffusion_loss(eps, eps_hat, levels.weight),
    )


# A batch


def bound(model: Model, params: Params, x: Tensor, noise: Noise, cond: Any = None) -> NLLBound:
    """The bound's three terms for a batch, a deterministic function of its noise.

    Args:
        model: the model.
        params: ``{"network": ..., "schedule": ...}``.
        x: data, (B, *event_shape).
        noise: the batch's noise.
        cond: the batch's condition, as the network takes it.

    Returns:
        Each term (B,), nats.

    Raises:
        TypeError, ValueError: bad arguments, as for :meth:`purevdm.VDM.nll_bound`; noise of another shape, dtype or device
            than the model's, or that is not finite; times out of range, or that are none of the model's steps.
    """
    checked(model, params, x, _checks.instance("noise", noise, Noise, "a purevdm.Noise"), cond)
    levels = schedules.levels(model.schedule, params["schedule"], noise.t, model.timesteps, cond)
    return bound_at(model, params["network"], x, noise, levels, cond)


def bound_at(model: Model, params: Params, x: Tensor, noise: Noise, levels: Levels, cond: Any = None) -> NLLBound:
    """:func:`bound` with the schedule's values given; ``params`` are the network's."""
    f = model.decoder.encode({}, x, cond, noise.eps.dtype)
    z_t = process.diffuse(f, process.align(levels.gamma_t, f), noise.eps)
    eps_hat = denoiser.in_bound(model.network, model.decoder, params, z_t, levels.gamma_t, cond, noise.key)
    each = Levels(*(level.expand_as(levels.gamma_t) for level in levels))

    def one(x: Tensor, eps_0: Tensor, eps: Tensor, eps_hat: Tensor, levels: Levels) -> NLLBound:
        return terms(model.decoder, x, eps_0, eps, eps_hat, levels)

    with exact(z_t.device):
        return torch.func.vmap(one)(x, noise.eps_0, noise.eps, eps_hat, each)
