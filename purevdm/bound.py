"""The variational bound: -log p(x) <= reconstruction + prior + diffusion (eq. 11), in nats.

The mathematics is elementwise, and takes all that is random, and the predicted noise, as arguments. :func:`terms` puts it
together for a batch, unsummed; :func:`summed` adds its elements up.
"""

from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm import _checks, coded, encoders, process, schedules
from purevdm._compile import exact
from purevdm._door import parse
from purevdm._masks import share
from purevdm._stable import expm1
from purevdm.denoiser import Denoiser, last_step, of_model
from purevdm.model import Model
from purevdm.noise import CodedNoise, Noise, kind_of
from purevdm.schedules import Levels
from purevdm.types import Params

T = TypeVar("T", bound=tuple[Tensor, ...])

__all__ = ["CodedNLLBound", "NLLBound", "bound", "diffusion_loss", "prior_loss", "reverse_loss", "summed", "terms"]


class NLLBound(NamedTuple):
    """The three terms of the bound on -log p(x), in nats: of each example, (B,), or, unsummed, of each element.

    Attributes:
        recon: E[-log p(x given z_0)], the reconstruction loss; unsummed, (B, *event_shape).
        prior: KL(q(z_1 given x) || N(0, I)), the latent or prior loss; unsummed, (B, *latent_shape).
        diffusion: the diffusion loss, L_T(x) or L_infinity(x); unsummed, (B, *latent_shape).
    """

    recon: Tensor
    prior: Tensor
    diffusion: Tensor

    @property
    def total(self) -> Tensor:
        """The bound on -log p(x) of each example, in nats."""
        return self.recon + self.prior + self.diffusion


class CodedNLLBound(NamedTuple):
    """The four terms of the bound on -log p(x) of a model with a code (:mod:`purevdm.codes`), in nats.

    Attributes:
        recon, prior, diffusion: as in :class:`NLLBound`, given the code.
        code: KL(q(c given x) || p(c)), (B,); unsummed, its terms, (B, ...).
    """

    recon: Tensor
    prior: Tensor
    diffusion: Tensor
    code: Tensor

    @property
    def total(self) -> Tensor:
        """The bound on -log p(x) of each example, in nats."""
        return self.recon + self.prior + self.diffusion + self.code


Terms = NLLBound | CodedNLLBound


# The mathematics, elementwise


def prior_loss(f: Tensor, gamma_1: Tensor, share: float | Tensor = 1.0) -> Tensor:
    """Computes KL(q(z_1 given x) || N(0, I)) of encoded data f, nats: of f's shape.

    Per dimension, (alpha_1**2 f**2 + sigma_1**2 - 1 - log sigma_1**2) / 2. gamma_1 broadcasts. In a subspace, ``share`` is
    its rank over the number of elements, and each element has that share of what does not depend on f.
    """
    alpha2 = torch.sigmoid(-gamma_1)
    # sigma**2 - 1 - log sigma**2 = softplus(-gamma) - sigmoid(-gamma), about alpha**4 / 2: in float64, as the two nearly
    # cancel. Most often one number an example.
    wide = -gamma_1.double()
    excess = (F.softplus(wide, threshold=700) - torch.sigmoid(wide)).to(gamma_1.dtype)
    return 0.5 * (alpha2 * f.square() + excess * share)


def diffusion_loss(eps: Tensor, eps_hat: Tensor, weight: Tensor) -> Tensor:
    """Computes weight (eps - eps_hat)**2 / 2, nats: of eps' shape.

    The weight broadcasts. It is gamma'(t) in continuous time (eq. 17), T expm1(gamma(t) - gamma(s)) in T steps (eq. 14).
    """
    return 0.5 * (weight * (eps - eps_hat).square())


def reverse_loss(loss: Tensor, log_ratio: Tensor, timesteps: int, share: float | Tensor = 1.0) -> Tensor:
    """Computes the diffusion loss in T steps under another variance of p(z_s given z_t) than the posterior's, elementwise,
    nats.

    For a variance r times the posterior's, KL(q || p) is the posterior's over r, plus (1 / r - 1 + log r) / 2.

    Args:
        loss: :func:`diffusion_loss`.
        log_ratio: log r, which broadcasts; in float64, as r is near 1.
        timesteps: T.
        share: as in :func:`prior_loss`.
    """
    excess = expm1(-log_ratio) + log_ratio  # about log_ratio**2 / 2
    return (torch.exp(-log_ratio) * loss + 0.5 * timesteps * share * excess).to(loss.dtype)


# A batch


def terms(
    model: Model, denoise: Denoiser, params: Params, x: Tensor, noise: Any, levels: Levels, mask: Tensor | None = None
) -> NLLBound:
    """Computes the bound's terms of each element, a deterministic function of the noise; behind the door.

    Args:
        model: the model.
        denoise: of the network, with the batch's condition, the noise's keys and the mask of the latents.
        params: the model's, of which the decoder's and the encoder's are read.
        x: data, (B, *event_shape).
        noise: the batch's noise.
        levels: the schedule's at its times.
        mask: bool, of x's shape: what exists of the data. Elements that do not have no noise, and terms of 0.

    Returns:
        Terms that add up over elements to those of the examples, nats.
    """
    decoder, subspace, own = model.decoder, model.subspace, params.get("decoder", {})
    eps_0, eps, cond, there = noise.eps_0, noise.eps, denoise.cond, denoise.mask
    f = decoder.encode(own, x, cond, eps.dtype)
    shares = share(model, f, there, f.dtype)
    if there is not None:
        f, eps_0, eps = (torch.where(there, part, 0.0) for part in (f, eps_0, eps))
    if subspace is not None:
        f, eps_0, eps = (subspace.project(part, there) for part in (f, eps_0, eps))
    # (B,) or (B, *latent_shape) each, the ends without the leading axis where no context tells examples apart
    gamma_0, gamma_1, gamma_t, weight = (process.align(level.expand_as(levels.gamma_t), f) for level in levels)
    if model.encoder is None:
        f_0 = f_1 = f
        eps_hat, v = denoise.eps_and_range(process.diffuse(f, gamma_t, eps), levels.gamma_t)
    else:
        moved = encoders.of_batch(model, params.get("encoder", {}), f, levels, denoise)
        f_0, f_1 = f + moved.shift_0, f + moved.shift_1
        prediction, v = denoise.prediction_and_range(process.diffuse(f + moved.shift_t, gamma_t, eps), levels.gamma_t)
        eps_hat = prediction.eps - moved.missed(prediction.x)
    level_0, estimate = gamma_0, None
    if decoder.takes_estimate:
        at_0 = levels.gamma_0.expand_as(levels.gamma_t)
        level_0, estimate = last_step(model, denoise, process.diffuse(f_0, gamma_0, eps_0), at_0)
    if model.encoder is not None:  # the decoder counts the noise from f
        eps_0 = eps_0 + torch.exp(-0.5 * gamma_0) * moved.shift_0
    with exact(f.device):
        recon = reconstruction(model, own, x, f, eps_0, level_0, cond, estimate, mask)
        prior = prior_loss(f_1, gamma_1, shares)
        diffusion = latent_loss(model, eps, eps_hat, gamma_t, weight, v, shares)
    if mask is not None and there is not None:
        recon, prior, diffusion = (
            torch.where(mask, recon, 0.0),
            torch.where(there, prior, 0.0),
            torch.where(there, diffusion, 0.0),
        )
    return NLLBound(recon, prior, diffusion)


def reconstruction(
    model: Model,
    params: Params,
    x: Tensor,
    f: Tensor,
    eps_0: Tensor,
    gamma_0: Tensor,
    cond: Any = None,
    estimate: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Computes -log p(x given z_0) of each element of x, nats, in the model's subspace; arguments as the decoder takes them.

    Args:
        model: the model.
        params: the decoder's parameters.
        f: the encoded data.
        eps_0: noise within the subspace.
        gamma_0: its level; with an estimate, that of :func:`last_step`.
        mask: bool, which broadcasts to x.
    """
    recon = model.decoder.reconstruction(params, x, eps_0, gamma_0, cond, estimate)
    if model.subspace is None:
        return recon
    # What does not depend on the noise counts by the subspace's share.
    exactly = None if estimate is None else f
    still = model.decoder.reconstruction(params, x, torch.zeros_like(eps_0), gamma_0, cond, exactly)
    return recon + (share(model, x, mask, recon.dtype) - 1.0) * still


def latent_loss(
    model: Model,
    eps: Tensor,
    eps_hat: Tensor,
    gamma_t: Tensor,
    weight: Tensor,
    v: Tensor | None = None,
    share: float | Tensor = 1.0,
) -> Tensor:
    """Computes the diffusion loss of each element of the latent under the model's reverse process, nats; the arguments
    broadcast, and are those of :func:`diffusion_loss` and :func:`reverse_loss`, with v of a learned range."""
    loss, steps = diffusion_loss(eps, eps_hat, weight), model.timesteps
    if steps == 0:  # the two variances meet
        return loss
    gamma_t = gamma_t.double()
    gamma_s = gamma_t - torch.log1p(weight.double() / steps)  # weight = T expm1(gamma_t - gamma_s)
    log_ratio = model.reverse.log_ratio(gamma_t, gamma_s, v)
    return loss if log_ratio is None else reverse_loss(loss, log_ratio, steps, share)


def summed(terms: T) -> T:
    """Sums the terms of each example, (B,), over its elements."""
    return type(terms)(*(term.reshape(term.shape[0], -1).sum(1) for term in terms))


def with_code(terms: NLLBound, code: Tensor | None) -> Terms:
    """Gives the terms with those of a code, where there is one."""
    return terms if code is None else CodedNLLBound(*terms, code)


def bound(
    model: Model, params: Params, x: Tensor, noise: Noise | CodedNoise, cond: Any = None, mask: Tensor | None = None
) -> Terms:
    """Computes the bound's terms for a batch, a deterministic function of its noise.

    Args:
        model: the model.
        params: its parameters, the whole tree.
        x: data, (B, *event_shape).
        noise: the batch's noise.
        cond: the batch's condition, as the network takes it.
        mask: bool, which broadcasts to x: what exists. With the same noise where something exists, the bound of a padded
            example is that of the unpadded one.

    Returns:
        Each term (B,), nats.

    Raises:
        TypeError, ValueError: bad arguments, as for :meth:`purevdm.VDM.nll_bound`; noise of another shape, dtype or device
            than the model's, or that is not finite; times out of range, or that are none of the model's steps.
    """
    batch = parse(model, params, x, _checks.instance("noise", noise, *kind_of(model.code)), cond, mask=mask)
    params = batch.params
    cond, code = coded.of_data(model, params, batch.x, noise, cond)
    levels = schedules.levels(model.schedule, params["schedule"], noise.t, model.timesteps, cond)
    denoise = of_model(model, params, cond, noise.key, batch.there)
    return summed(with_code(terms(model, denoise, params, batch.x, noise, levels, batch.mask), code))
