"""From data to latents at time 0: the distributions q(z_0 given x) of :mod:`purevdm.likelihood`'s table."""

import math

import torch
from torch import Tensor

from purevdm import _checks, process, random
from purevdm.decoders import Decoder
from purevdm.likelihood._estimate import log_normal, summed

DISCRETE, REAL = ("variational", "truncated", "uniform"), ("none", "variational")


def fitting(decoder: Decoder, dequantisation: str | None) -> str:
    """Gives the dequantisation, or the data's own where left out.

    Raises:
        TypeError, ValueError: one that does not fit the data.
    """
    kind, allowed = ("real-valued", REAL) if decoder.log_probs is None else ("discrete", DISCRETE)
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
    dequantisation: str, x: Tensor, eps: Tensor, decoder: Decoder, f: Tensor, gamma_0: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gives the latents that noise makes of data, 0 where nothing exists, and log w - log p(z_0), (B,)."""
    alpha, sigma = process.alpha(gamma_0), process.sigma(gamma_0)
    if dequantisation == "none":
        # log p(x) = log p(z_0) + log |dz_0 / dx|, and the decoder's density at its own mean holds df / dx.
        peak = -decoder.reconstruction({}, x, torch.zeros_like(eps), gamma_0)
        z_0, extra = alpha * f, torch.log(alpha) + peak + 0.5 * (math.log(2.0 * math.pi) + gamma_0)
    elif dequantisation == "uniform":
        half = 0.5 * _spacing(decoder, f)
        z_0, extra = alpha * (f + half * eps), torch.log(2.0 * half * alpha)
    else:
        z_0, log_q = alpha * f + sigma * eps, log_normal(eps) - torch.log(sigma)
        if dequantisation == "truncated":
            extra = torch.log(torch.erf(_reach(decoder, f, gamma_0) / math.sqrt(2.0))) - log_q
        else:
            extra = -decoder.reconstruction({}, x, eps, gamma_0) - log_q
    return z_0 if mask is None else torch.where(mask, z_0, 0.0), summed(extra.expand_as(f), mask)


def _spacing(decoder: Decoder, f: Tensor) -> Tensor:
    """The distance between neighbouring values, one for each dimension or for all."""
    low, high = decoder.bounds(f[:1])  # type: ignore[misc]
    return (high - low) / (decoder.vocab_size - 1)  # type: ignore[operator]


def _reach(decoder: Decoder, f: Tensor, gamma_0: Tensor) -> Tensor:
    """tau: half a bin of z_0 in units of its noise."""
    return 0.5 * _spacing(decoder, f) * torch.exp(-0.5 * gamma_0)
