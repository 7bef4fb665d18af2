"""From data to latents at time 0: the distributions q(z_0 given x) of :mod:`purevdm.likelihood`'s table."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, process, random
from purevdm._vdm import VDM
from purevdm.decoders import Decoder
from purevdm.likelihood._estimate import log_normal, summed
from purevdm.sampling.trajectory import level
from purevdm.types import Params

DISCRETE, REAL = ("variational", "truncated", "uniform"), ("none", "variational")


def fitting(decoder: Decoder, kind: str | None) -> str:
    """Gives the kind, or the data's own where left out, and refuses one that does not fit the data."""
    data, allowed = ("real-valued", REAL) if decoder.log_probs is None else ("discrete", DISCRETE)
    return allowed[0] if kind is None else _checks.choice(f"dequantisation of {data} data", kind, allowed)


class Dequantisation(NamedTuple):
    """A distribution of the latents of given data: the kind, and what it is made from."""

    kind: str
    decoder: Decoder
    x: Tensor
    f: Tensor
    gamma_0: Tensor

    def draw(self, keys: Tensor) -> Tensor:
        """Draws the noise that latents are made of, of f's shape and dtype, from a key for each example, (B, 2)."""
        shape, dtype = self.f.shape[1:], self.f.dtype
        if self.kind == "uniform":
            return torch.func.vmap(lambda k: random.uniform(k, shape, dtype, -1.0, 1.0))(keys)
        if self.kind == "truncated":
            tau = self.reach().expand_as(self.f)
            return torch.func.vmap(lambda k, tau: random.truncated_normal(k, -tau, tau, shape, dtype))(keys, tau)
        return torch.func.vmap(lambda k: random.normal(k, shape, dtype))(keys)

    def latents(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the latents that noise makes of the data, and log w - log p(z_0), (B,)."""
        f, gamma_0, alpha, sigma = self.f, self.gamma_0, process.alpha(self.gamma_0), process.sigma(self.gamma_0)
        if self.kind == "none":
            # log p(x) = log p(z_0) + log |dz_0 / dx|, and the decoder's density at its own mean holds df / dx, if its noise
            # is that of z_0.
            decoder = self.decoder._replace(noise=None) if hasattr(self.decoder, "noise") else self.decoder
            peak = -decoder.reconstruction({}, self.x, torch.zeros_like(eps), gamma_0)
            z_0, extra = alpha * f, torch.log(alpha) + peak + 0.5 * (math.log(2.0 * math.pi) + gamma_0)
        elif self.kind == "uniform":
            half = 0.5 * self.spacing()
            z_0, extra = alpha * (f + half * eps), torch.log(2.0 * half * alpha)
        else:
            z_0, log_q = alpha * f + sigma * eps, log_normal(eps) - torch.log(sigma)
            if self.kind == "truncated":
                extra = torch.log(torch.erf(self.reach() / math.sqrt(2.0))) - log_q
            else:
                extra = -self.decoder.reconstruction({}, self.x, eps, gamma_0) - log_q
        return z_0, summed(extra.expand_as(f))

    def spacing(self) -> Tensor:
        """Gives the distance between neighbouring values, one for each dimension or for all."""
        low, high = self.decoder.bounds(self.f[:1])  # type: ignore[misc]
        return (high - low) / (self.decoder.vocab_size - 1)  # type: ignore[operator]

    def reach(self) -> Tensor:
        """Gives tau: half a bin of z_0 in units of its noise."""
        return 0.5 * self.spacing() * torch.exp(-0.5 * self.gamma_0)


def dequantised(kind: str, model: VDM, params: Params, x: Tensor, cond: Any) -> Dequantisation:
    """Makes the distribution for a model and its data."""
    f = model.decoder.encode({}, x, cond, model.dtype)
    return Dequantisation(kind, model.decoder, x, f, level(model, params, f.new_zeros(()), len(f), cond))
