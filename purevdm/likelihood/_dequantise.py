"""From data to latents at time 0: the distributions q(z_0 given x) of :mod:`purevdm.likelihood`'s table."""

import math

import torch
from torch import Tensor

from purevdm import _checks, process, random
from purevdm.bound import reconstruction
from purevdm.decoders import Decoder, Product
from purevdm.likelihood._estimate import log_normal, share, summed
from purevdm.model import Model

DISCRETE, REAL = ("variational", "truncated", "uniform"), ("none", "variational")


def fitting(decoder: Decoder, dequantisation: str | None) -> str:
    """Gives the dequantisation, or the data's own where left out.

    Raises:
        TypeError, ValueError: one that does not fit the data.
    """
    whole = [part.decoder.integral for part in decoder.parts] if isinstance(decoder, Product) else [decoder.integral]
    kind, allowed = "real-valued", REAL  # type: tuple[str, tuple[str, ...]]
    if any(whole):
        kind = "discrete" if all(whole) else "mixed"
        elementwise = decoder.log_probs is not None and decoder.latent_shape((1,)) == (1,)
        allowed = DISCRETE if elementwise else ("variational",)
    return (
        allowed[0] if dequantisation is None else _checks.choice(f"dequantisation of {kind} data", dequantisation, allowed)
    )


def draw(dequantisation: str, keys: Tensor, decoder: Decoder, f: Tensor, gamma_0: Tensor) -> Tensor:
    """Draws the noise that latents are made of, of f's shape and dtype, from a key for each example, (B, 2)."""
    shape, dtype = f.shape[1:], f.dtype
    if dequantisation == "uniform":
        return torch.func.vmap(lambda k: random.uniform(k, shape, dtype, -1.0, 1.0))(keys)
    if dequantisation == "truncated":
        tau = _reach(decoder, f, gamma_0).expand_as(f)
        return torch.func.vmap(lambda k, tau: random.truncated_normal(k, -tau, tau, shape, dtype))(keys, tau)
    return torch.func.vmap(lambda k: random.normal(k, shape, dtype))(keys)


def inside(dequantisation: str, eps: Tensor, decoder: Decoder, f: Tensor, gamma_0: Tensor) -> list[_checks.Fact]:
    """Gives the fact that noise is within its range, for a dequantisation that has one."""
    if dequantisation not in ("truncated", "uniform") or not _checks.readable(eps):
        return []
    end = torch.ones_like(f) if dequantisation == "uniform" else _reach(decoder, f, gamma_0) * (1.0 + 1e-5)
    wanted = f"noise within +-{'1' if dequantisation == 'uniform' else 'tau'} for {dequantisation!r}"
    return [_checks.Fact(eps.abs() <= end, lambda: _checks.outside(wanted, "eps", eps))]


def latents(
    dequantisation: str, model: Model, x: Tensor, eps: Tensor, f: Tensor, gamma_0: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gives the latents that noise makes of data, 0 where nothing exists, and log w - log p(z_0), (B,); ``mask`` is that of
    the data, and noise is within the subspace."""
    alpha, sigma, decoder = process.alpha(gamma_0), process.sigma(gamma_0), model.decoder
    there = None if mask is None else decoder.latent_mask(mask)
    if dequantisation == "none":
        # log p(x) = log p(z_0) + log |dz_0 / dx|, and the decoder's density at its own mean holds df / dx.
        peak = -reconstruction(model, {}, x, f, torch.zeros_like(eps), gamma_0, mask=mask)
        scale = torch.log(alpha) + 0.5 * (math.log(2.0 * math.pi) + gamma_0)
        z_0, extra = alpha * f, _difference(peak, -(scale * share(model, f, there)).expand_as(f), mask, there)
    elif dequantisation == "uniform":
        half = 0.5 * _spacing(decoder, f)
        z_0, extra = alpha * (f + half * eps), summed(torch.log(2.0 * half * alpha).expand_as(f), there)
    else:
        z_0 = alpha * f + sigma * eps
        log_q = log_normal(eps, share(model, f, there)) - torch.log(sigma) * share(model, f, there)
        if dequantisation == "truncated":
            recon = torch.log(torch.erf(_reach(decoder, f, gamma_0) / math.sqrt(2.0))).expand_as(f)
        else:
            recon = -reconstruction(model, {}, x, f, eps, gamma_0, mask=mask)
        extra = _difference(recon, log_q.expand_as(f), mask, there)
    return z_0 if there is None else torch.where(there, z_0, 0.0), extra


def _difference(of_data: Tensor, of_latents: Tensor, mask: Tensor | None, there: Tensor | None) -> Tensor:
    """Gives a sum over data minus a sum over latents, (B,), element by element where they can be paired."""
    if of_data.shape == of_latents.shape:
        return summed(of_data - of_latents, there)
    return summed(of_data, mask) - summed(of_latents, there)


def _spacing(decoder: Decoder, f: Tensor) -> Tensor:
    """The distance between neighbouring values, one for each dimension or for all."""
    low, high = decoder.bounds(f[:1])  # type: ignore[misc]
    return (high - low) / (decoder.vocab_size - 1)  # type: ignore[operator]


def _reach(decoder: Decoder, f: Tensor, gamma_0: Tensor) -> Tensor:
    """tau: half a bin of z_0 in units of its noise."""
    return 0.5 * _spacing(decoder, f) * torch.exp(-0.5 * gamma_0)
