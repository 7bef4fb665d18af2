"""The bound of diffusion over tokens: -log p(x) <= reconstruction + prior + diffusion, with the noise of a batch explicit or
from seeds.

All three are of each token, and none is dropped. With masks, for K classes,

- ``recon`` is (1 - alpha(0)) log K: what is still hidden at time 0 is guessed evenly;
- ``prior`` is alpha(1) log K: what still shows at time 1 is any class, evenly, under p(z_1);
- ``diffusion`` is the integral over time of alpha gamma' -log p(x given z_t) of hidden tokens, or T times the mean over T
  steps of (alpha_s - alpha_t) / (1 - alpha_t) times it.

What others report: MD4 (Shi et al. 2024) has this ``recon`` and sets ``prior`` to 0, where its p(z_1), all masks, leaves the
exact term infinite. MDLM (Sahoo et al. 2024) and DUO have neither, and draw times from [1e-3, 1] without the factor 0.999 of
that interval, as GenMD4 does with its own.

In continuous time with masks, and for a network that takes no heed of the level, the diffusion loss depends on the schedule
by its ends only, as a VDM's does. The tokens that are hidden depend on the schedule, too, and by steps, through which no
derivative passes. So gradients of a schedule's parameters come by the score function: where it learns, a step's loss has
its value times the derivative of log q(z_t given x) besides.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from purevdm import _checks, _facts, denoiser, random, schedules
from purevdm._compile import exact, fixed
from purevdm._door import parse
from purevdm.bound import NLLBound, summed
from purevdm.decoders import is_class
from purevdm.masked import corruptions
from purevdm.noise import Seeds
from purevdm.process import align
from purevdm.schedules import Levels
from purevdm.types import Params

if TYPE_CHECKING:
    from purevdm.masked.model import MaskedDiffusion

__all__ = ["Noise", "bound"]


class Noise(NamedTuple):
    """All that is random in the bound of a batch; each field has a leading axis of B.

    Attributes:
        t: times (B,), as :class:`purevdm.Seeds` have them.
        u: uniform numbers in [0, 1), (B, *event_shape): where they are below 1 - alpha(t) tokens are noised.
        others: what tokens become then under uniform noise, int64 (B, *event_shape); None with masks.
        key: keys for the network's own randomness, or None.
    """

    t: Tensor
    u: Tensor
    others: Tensor | None = None
    key: Tensor | None = None


def draw_noise(model: "MaskedDiffusion", seeds: Seeds, train: bool) -> Noise:
    """Draws the noise of a batch from its seeds."""
    shape, dtype = tuple(map(fixed, model.event_shape)), seeds.t.dtype
    keys = vmap(lambda key: random.split(key, 3))(seeds.key)
    u = vmap(lambda key: random.uniform(key, shape, dtype))(keys[:, 0])
    others = None
    if isinstance(model.corruption, corruptions.Uniform):
        k = fixed(model.corruption.classes)
        others = vmap(lambda key: random.randint(key, shape, 0, k, torch.int64))(keys[:, 2])
    return Noise(seeds.t, u, others, keys[:, 1] if train else None)


def log_probs(
    model: "MaskedDiffusion",
    net_params: Params,
    z: Tensor,
    gamma: Tensor,
    cond: Any = None,
    key: Tensor | None = None,
    mask: Tensor | None = None,
    guidance: float | Tensor | None = None,
) -> Tensor:
    """Computes the network's log probabilities of the classes of all tokens: (B, *event_shape, K).

    Args:
        z: symbols, (B, *event_shape).
        gamma: their level, (B,), or of z's shape, of which the network takes the mean.
        guidance: weighs the logits under the condition against those without, see :func:`purevdm.denoiser.guide`.
        mask: what exists, bool, of z's shape.
    """
    level = gamma.reshape(len(z), -1).mean(1)
    seen, there = shown(model, z, mask, level.dtype)
    raw = denoiser.output(model.network, net_params, seen, level, cond, key, None, there)
    if guidance is not None:
        free = denoiser.output(model.network, net_params, seen, level, None, key, None, there)
        raw = denoiser.guide(raw, free, guidance)
    with exact(raw.device):
        logits = vmap(model.layout.logits)(raw) if model.network.outputs is None else raw
        return torch.log_softmax(logits[..., : fixed(model.corruption.classes)], -1)


def shown(model: "MaskedDiffusion", z: Tensor, mask: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Gives symbols, (B, *event_shape), and what exists of them, as the network takes them; 0 where nothing does."""
    if model.network.outputs is not None:
        return within(z.to(dtype), mask), mask
    layout, there = model.layout, None if mask is None else model.layout.mask(mask)
    seen = vmap(lambda z: layout.shown(is_class(z, layout.classes).to(dtype)))(z)
    return (seen if there is None else torch.where(there, seen, 0.0)), there


def bound(
    model: "MaskedDiffusion", params: Params, x: Tensor, noise: Noise, cond: Any = None, mask: Tensor | None = None
) -> NLLBound:
    """Computes the bound's terms for a batch, given its noise.

    Args:
        model: the model.
        params: its parameters, the whole tree.
        x: data, (B, *event_shape).
        noise: the batch's noise.
        cond: the batch's condition.
        mask: bool, which broadcasts to x: what exists.

    Returns:
        Each term (B,), nats.

    Raises:
        TypeError, ValueError: bad arguments, as for :func:`purevdm.bound.bound`; u outside of [0, 1), others that are no
            classes, or others with masks.
    """
    batch = parse(model, params, x, _checks.instance("noise", noise, Noise, "a purevdm.masked.Noise"), cond, mask=mask)
    wanted, uniform = "numbers in [0, 1)", isinstance(model.corruption, corruptions.Uniform)
    if (noise.others is not None) != uniform:
        raise ValueError(f"noise.others: expected {'classes' if uniform else 'None'} for {model.corruption!r}")
    if noise.others is not None:
        _checks.within("noise.others", noise.others, 0, model.corruption.classes - 1)
    if _facts.readable(noise.u):
        holds = (noise.u >= 0.0) & (noise.u < 1.0)
        _facts.verify([_facts.Fact(holds, lambda: _checks.outside(wanted, "noise.u", noise.u))])
    params = batch.params
    levels = schedules.levels(model.schedule, params["schedule"], noise.t, model.timesteps, cond)
    return summed(terms(model, params["network"], batch.x, noise, levels, cond, batch.mask))


def terms(
    model: "MaskedDiffusion",
    net_params: Params,
    x: Tensor,
    noise: Noise,
    levels: Levels,
    cond: Any = None,
    mask: Tensor | None = None,
) -> NLLBound:
    """Computes the bound's terms of each token, (B, *event_shape), behind the door."""
    corruption, x = model.corruption, x.to(torch.int64)
    gamma_0, gamma_1, gamma_t, weight = (align(level.expand_as(levels.gamma_t), x).expand(x.shape) for level in levels)
    z = corruption.noised(x, gamma_t.detach(), noise.u, noise.others)
    log_p = log_probs(model, net_params, z, levels.gamma_t, cond, noise.key, mask)
    with exact(x.device):
        diffusion = corruption.loss(log_p, x, z, corruptions.weighted(gamma_t, weight, fixed(model.timesteps)))
        score = within(corruption.log_q(x, z, gamma_t), mask).reshape(len(x), -1).sum(1)
        diffusion = within(diffusion, mask)
        diffusion = diffusion + diffusion.detach() * align(score - score.detach(), diffusion)
        recon, prior = corruption.reconstruction(gamma_0), corruption.prior(gamma_1)
    return NLLBound(within(recon, mask), within(prior, mask), diffusion)


def within(v: Tensor, mask: Tensor | None) -> Tensor:
    """Gives numbers of each token where it exists; elsewhere 0."""
    return v if mask is None else torch.where(mask, v, 0.0)
