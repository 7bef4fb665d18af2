"""Numbers that other repositories print for a model, each a method as :func:`purevdm.evaluation.per_example` takes it: their
arithmetic on the model's own flow or bound, so that what differs is the convention."""

import math
from typing import Any

import torch

from purevdm import VDM, NLLBound, decoders, likelihood, process, random
from purevdm.likelihood import Estimate, flow
from purevdm.noise import Seeds, draw_noise
from purevdm.ode import Integrator

SCORE_SDE = (
    "As that code prints it: the log density at the first time of 2 (v + u) / V - 1, by one uniform u and one probe, with "
    "log2(V) - 1 added for the width of a bin (7 for V = 256). It is one draw of a bound, but of latents at the first time, "
    "rounded: data without noise are taken for them."
)
DENSITY = (
    "The log density at 2 v / (V - 1) - 1, without noise and bins: no likelihood of integers. It moves by log2(V / 2) bits "
    "with the scaling of the data, may be negative, and has no lower end. In nats it reads 0.69 of this."
)
SEES_Z_0 = (
    "The bound with a decoder that sees z_0 only, as a VDM's: valid, but a DDPM's z_0 is so noisy that this step costs bits "
    "which its own last step, around the network's estimate, saves."
)
IMPROVED_DIFFUSION = (
    "The bound with estimates clamped, and in the last step a normal distribution by tanh, floored at 1e-12: no code length "
    "to the last digit, and bits off where the estimate is bad."
)


def ranged(model: VDM, x: torch.Tensor) -> int:
    """Gives the number of values of data that the network takes from -1 to 1, and refuses others."""
    values = model.decoder.vocab_size
    ends = None if values is None else model.decoder.bounds(torch.zeros(1, dtype=model.dtype, device=x.device))
    if ends is None or not 1.0 - 2.0 / values < float(ends[1]) == -float(ends[0]) < 1.0 + 2.0 / values:
        raise ValueError(f"model.decoder: expected values from -1 to 1, which this convention is for, got {model.decoder}")
    return values


def density(
    model: VDM,
    params: Any,
    x: torch.Tensor,
    key: torch.Tensor,
    cond: Any = None,
    *,
    noise: bool,
    integrator: Integrator,
) -> Estimate:
    """Gives log p by the flow of data taken for latents at the first time: with a uniform noise and score_sde's offset, or
    bare."""
    values, (k_noise, k_probe) = ranged(model, x), random.split(key)
    if noise:
        z = 2.0 * (x + random.uniform(k_noise, tuple(x.shape), model.dtype)) / values - 1.0
    else:
        z = 2.0 * x.to(model.dtype) / (values - 1) - 1.0
    probes = flow.draw_probes(random.split(k_probe, len(x)), 1, model.event_shape, model.dtype)
    found = likelihood.log_prob_latent(model, params, z, cond, probe_noise=probes, integrator=integrator)
    offset = math.prod(model.event_shape) * math.log(values / 2.0) if noise else 0.0
    return likelihood.combine(found.log_weights - offset, found.evaluations)


def sees_z_0(model: VDM) -> VDM:
    """Gives the model with a decoder of the same values that sees the latent only."""
    own: Any = model.decoder
    return model._replace(decoder=decoders.discrete(own.vocab_size, loc=own.loc, scale=own.scale))


def improved_diffusion(model: VDM, params: Any, x: torch.Tensor, seeds: Seeds, cond: Any = None) -> NLLBound:
    """Gives the bound of a model whose estimates are clamped, with that code's arithmetic in its last step. Noise and times
    are those of ``model.nll_bound`` under the same seeds."""
    values = ranged(model, x)
    f = model.decoder.encode({}, x, cond, model.dtype)
    gamma_0 = model.gamma(params, f.new_zeros(len(x)), cond)
    level = process.align(gamma_0, f)
    z_0 = process.diffuse(f, level, draw_noise(seeds, model.event_shape).eps_0)
    prediction, v = model.denoiser(params, cond, n=len(x)).with_range(z_0, gamma_0)
    off, std, half = f - prediction.x, torch.exp(0.5 * model.reverse.last(level, v)), 1.0 / (values - 1)
    above = torch.where(x == values - 1, 1.0, normal_by_tanh((off + half) / std))
    below = torch.where(x == 0, 0.0, normal_by_tanh((off - half) / std))
    recon = -torch.log((above - below).clamp(min=1e-12)).reshape(len(x), -1).sum(1)
    return model.nll_bound(params, x, seeds, cond)._replace(recon=recon)


def normal_by_tanh(x: torch.Tensor) -> torch.Tensor:
    """Approximates the normal distribution function, within 1.8e-4."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
