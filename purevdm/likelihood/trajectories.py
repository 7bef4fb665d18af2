"""Bounds on log p(x) by whole trajectories of latents, weighted by importance."""

from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, coded, process, random
from purevdm._door import parse
from purevdm._stable import expm1
from purevdm._vdm import VDM
from purevdm.denoiser import last_step, of_model
from purevdm.likelihood._estimate import Estimate, combine, log_normal, repeated, sample_keys, summed
from purevdm.model import direct
from purevdm.sampling import loop
from purevdm.sampling.trajectory import level
from purevdm.types import Key, Params

__all__ = ["importance_bound"]


def importance_bound(
    model: VDM,
    params: Params,
    x: Tensor,
    key: Key,
    cond: Any = None,
    *,
    mask: Tensor | None = None,
    timesteps: int | Tensor | None = None,
    samples: int = 1,
) -> Estimate:
    """Computes a lower bound on log p(x) of the model in T steps, by K whole trajectories from q(z_0, ..., z_1 given x).

    With K = 1 its mean is that of the discrete-time bound (eq. 13, over all steps). With more it rises to log p(x) (Burda et
    al. 2016, arXiv 1509.00519, over the chain of all latents). Keys as in :func:`log_prob`.

    Args:
        model, params, x, key, cond, mask: as in :func:`log_prob`.
        timesteps: T; the model's where left out. In an integer tensor of shape (), one compiled graph serves every number.
        samples: K. All K B trajectories run at once.

    Raises:
        RuntimeError: in a compiled graph, tensors whose gradients are recorded; nothing under ``torch.no_grad()``.
        TypeError, ValueError: bad input, as ``model.nll_bound`` says it; no number of steps; samples below 1.
    """
    direct(_checks.instance("model", model, VDM, "a model of purevdm.vdm"), "bounds by trajectories", coded=True)
    batch = parse(model, params, x, _checks.key("key", key), cond, mask=mask)
    samples = _checks.integer("samples", samples, 1)
    timesteps = model.timesteps if timesteps is None else timesteps
    if isinstance(timesteps, Tensor):
        _checks.count("timesteps", timesteps)
        _checks.within("timesteps", timesteps, 1, _checks.most_steps(model.dtype))
    elif _checks.timesteps(timesteps, model.dtype) == 0:
        raise ValueError("timesteps: expected at least 1, as trajectories have steps, got 0, continuous time")
    params, n, x, cond, mask = batch.params, batch.n, *(repeated(part, samples) for part in (batch.x, cond, batch.mask))
    keys = sample_keys(key, n, samples)
    k_start, k_steps = torch.func.vmap(random.split)(keys).unbind(1)
    cond, of_code = coded.weighted(model, params, x, keys, cond)
    denoise = of_model(model, params, cond, mask=mask)
    f = denoise.within(model.decoder.encode({}, x, cond, model.dtype))

    def noise(keys: Tensor) -> Tensor:
        return denoise.within(torch.func.vmap(lambda k: random.normal(k, model.event_shape, model.dtype))(keys))

    def gamma(t: Tensor) -> Tensor:
        return level(model, params, t, len(f), cond)

    total = torch.as_tensor(timesteps, device=f.device).to(model.dtype)
    one = torch.ones((), dtype=model.dtype, device=f.device)
    gamma_1 = gamma(one)
    univariate = gamma_1[0].numel() == 1

    def step(i: Tensor, eps: Tensor, log_w: Tensor) -> tuple[Tensor, Tensor]:
        gamma_t, gamma_s = gamma((total - i) / total), gamma((total - i - 1) / total)
        at = gamma_t.reshape(-1) if univariate else gamma_t
        z_t = process.diffuse(f, gamma_t, eps)
        eps_hat, v = denoise.eps_and_range(z_t, at)
        # In units of q(z_s given z_t, x)'s deviation, p(z_s given z_t)'s mean is off by delta, and z_s by e.
        rise = gamma_t - gamma_s
        delta = torch.sqrt(expm1(rise)) * (eps_hat - eps)
        e = noise(torch.func.vmap(lambda k: random.fold_in(k, i))(k_steps))
        log_ratio = model.reverse.log_ratio(gamma_t, gamma_s, v)
        if log_ratio is None:
            log_w = log_w - summed(delta * e + 0.5 * delta.square())
        else:  # log p - log q, with p's variance exp(log_ratio) times q's
            off = torch.exp(-log_ratio) * (e + delta).square() - e.square() + log_ratio
            log_w = log_w - 0.5 * summed(off.expand_as(e))
        # The noise in z_s, as z_s = alpha_s f + sigma_s eps.
        return torch.exp(-0.5 * rise) * eps + torch.sqrt(-expm1(-rise)) * e, log_w

    eps = noise(k_start)
    log_q = summed(log_normal(eps) - torch.log(process.sigma(gamma_1)), mask)
    log_p = summed(log_normal(process.diffuse(f, gamma_1, eps)), mask)
    eps, log_w = loop(step, (eps, log_p - log_q + of_code), timesteps)
    gamma_0, estimate, decoder = gamma(0.0 * one), None, model.decoder
    if decoder.takes_estimate:
        gamma_0, estimate = last_step(model, denoise, process.diffuse(f, gamma_0, eps), gamma_0)
    log_w = log_w - summed(decoder.reconstruction({}, x, eps, gamma_0, cond, estimate), mask)
    evaluations = ((total.to(torch.int64) + int(decoder.takes_estimate)) * samples).expand(n).clone()
    return combine(log_w.reshape(samples, n), evaluations)
