"""From data to latents at time 0: the distributions q(z_0 given x) of :mod:`purevdm.likelihood`'s table."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, process, random
from purevdm._masks import share
from purevdm._stable import erf
from purevdm._vdm import VDM
from purevdm.bound import reconstruction
from purevdm.decoders import Decoder, Gaussian, Product
from purevdm.denoiser import Denoiser, last_step, of_model
from purevdm.likelihood._estimate import log_normal, summed
from purevdm.sampling.trajectory import level
from purevdm.types import Params

DISCRETE, REAL = ("variational", "truncated", "uniform"), ("none", "variational")


def fitting(decoder: Decoder, kind: str | None) -> str:
    """Gives the kind, or the data's own where left out, and refuses one that does not fit the data."""
    integral = [part.decoder.integral for part in decoder.parts] if isinstance(decoder, Product) else [decoder.integral]
    data, allowed = "real-valued", REAL  # type: tuple[str, tuple[str, ...]]
    if any(integral):
        data = "discrete" if all(integral) else "mixed"
        elementwise = decoder.log_probs is not None and decoder.latent_shape((1,)) == (1,)
        allowed = DISCRETE if elementwise else DISCRETE[:1]
    return allowed[0] if kind is None else _checks.choice(f"dequantisation of {data} data", kind, allowed)


class Dequantisation(NamedTuple):
    """A distribution of the latents of given data: the kind, and what it is made from. ``denoise`` holds the mask of the
    latents and the subspace that they lie in."""

    kind: str
    model: VDM
    denoise: Denoiser
    x: Tensor
    f: Tensor
    gamma_0: Tensor
    mask: Tensor | None

    def draw(self, keys: Tensor) -> Tensor:
        """Draws the noise that latents are made of, of f's shape and dtype, from a key for each example, (B, 2)."""
        shape, dtype = self.f.shape[1:], self.f.dtype
        if self.kind == "uniform":
            eps = torch.func.vmap(lambda k: random.uniform(k, shape, dtype, -1.0, 1.0))(keys)
        elif self.kind == "truncated":
            tau = self.reach().expand_as(self.f)
            eps = torch.func.vmap(lambda k, tau: random.truncated_normal(k, -tau, tau, shape, dtype))(keys, tau)
        else:
            eps = torch.func.vmap(lambda k: random.normal(k, shape, dtype))(keys)
        return self.denoise.within(eps)

    def latents(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the latents that noise makes of the data, 0 where nothing exists, and log w - log p(z_0), (B,)."""
        f, gamma_0, alpha, sigma = self.f, self.gamma_0, process.alpha(self.gamma_0), process.sigma(self.gamma_0)
        there = self.denoise.mask
        part = share(self.model, f, there, f.dtype)
        if self.kind == "none":
            # log p(x) = log p(z_0) + log |dz_0 / dx|, and the decoder's density at its own mean holds df / dx, if its noise
            # is that of z_0.
            log_volume = torch.log(alpha) + 0.5 * (math.log(2.0 * math.pi) + gamma_0)
            own = self._replace(model=self.model._replace(decoder=_without_noise(self.model.decoder)))
            of_data, of_latents = own._log_p(torch.zeros_like(eps)), -(log_volume * part).expand_as(f)
            z_0, extra = alpha * f, _difference(of_data, of_latents, self.mask, there)
        elif self.kind == "uniform":
            half = 0.5 * self.spacing()
            z_0, extra = alpha * (f + half * eps), summed(torch.log(2.0 * half * alpha).expand_as(f), there)
        else:
            z_0 = alpha * f + sigma * eps
            log_q = (log_normal(eps, part) - torch.log(sigma) * part).expand_as(f)
            if self.kind == "truncated":
                of_data = torch.log(erf(self.reach() / math.sqrt(2.0))).expand_as(f)
            else:
                of_data = self._log_p(eps, z_0)
            extra = _difference(of_data, log_q, self.mask, there)
        return z_0 if there is None else torch.where(there, z_0, 0.0), extra

    def _log_p(self, eps: Tensor, z_0: Tensor | None = None) -> Tensor:
        """Gives log p(x given z_0) of each element; given latents, around the network's estimate if the decoder takes it."""
        level, estimate, denoise = self.gamma_0, None, self.denoise
        if z_0 is not None and self.model.decoder.takes_estimate:
            level, estimate = last_step(self.model, denoise, z_0, level)
        return -reconstruction(self.model, {}, self.x, self.f, eps, level, denoise.cond, estimate, self.mask)

    def spacing(self) -> Tensor:
        """Gives the distance between neighbouring values, one for each dimension or for all."""
        low, high = self.model.decoder.bounds(self.f[:1])  # type: ignore[misc]
        return (high - low) / (self.model.decoder.vocab_size - 1)  # type: ignore[operator]

    def reach(self) -> Tensor:
        """Gives tau: half a bin of z_0 in units of its noise."""
        return 0.5 * self.spacing() * torch.exp(-0.5 * self.gamma_0)


def _without_noise(decoder: Decoder) -> Decoder:
    """Gives the decoder the noise of z_0, where it has one of its own."""
    if isinstance(decoder, Product):
        return decoder._replace(parts=tuple(part._replace(decoder=_without_noise(part.decoder)) for part in decoder.parts))
    return decoder._replace(noise=None) if isinstance(decoder, Gaussian) else decoder


def _difference(of_data: Tensor, of_latents: Tensor, mask: Tensor | None, there: Tensor | None) -> Tensor:
    """Gives a sum over data minus a sum over latents, (B,), element by element where they can be paired."""
    if of_data.shape == of_latents.shape:
        return summed(of_data - of_latents, there)
    return summed(of_data, mask) - summed(of_latents, there)


def dequantised(kind: str, model: VDM, params: Params, x: Tensor, cond: Any, mask: Tensor | None = None) -> Dequantisation:
    """Makes the distribution for a model and its data; ``mask`` is that of the data."""
    there = None if mask is None else model.decoder.latent_mask(mask)
    f = model.decoder.encode({}, x, cond, model.dtype)
    gamma_0 = level(model, params, f.new_zeros(()), len(f), cond)
    return Dequantisation(kind, model, of_model(model, params, cond, mask=there), x, f, gamma_0, mask)
