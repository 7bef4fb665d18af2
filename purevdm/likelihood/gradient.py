"""The gradient of log p(x) by an adjoint, at memory that does not grow with steps: log p as a prior."""

from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, _facts, ode, random
from purevdm._door import parse
from purevdm._vdm import VDM
from purevdm.likelihood import flow
from purevdm.likelihood._dequantise import dequantised, fitting
from purevdm.likelihood._estimate import Estimate, combine, sample_keys
from purevdm.likelihood.density import log_density
from purevdm.model import Model, direct
from purevdm.ode import Integrator
from purevdm.types import Key, Params

__all__ = ["log_prob_and_grad"]


@torch.no_grad()
def log_prob_and_grad(
    model: VDM,
    params: Params,
    x: Tensor,
    key: Key,
    cond: Any = None,
    *,
    mask: Tensor | None = None,
    integrator: Integrator | None = None,
    probes: int | str = 1,
    chunk: int | None = None,
) -> tuple[Estimate, Tensor]:
    """Computes log p(x) of real-valued data by the probability flow, and its gradient with respect to x.

    The estimate is that of :func:`purevdm.likelihood.log_prob` with this key. Its gradient follows an equation of its own
    (Chen et al. 2018, arXiv 1806.07366): along the flow dz / dgamma = v, a = d log p / dz has

        da / dgamma = -(dv / dz)^T a - grad_z div v,    a(gamma_1) = d log N(z_1) / dz_1 = -z_1,

    and is integrated backward together with z, by the same integrator. Nothing is saved, however many steps that takes.
    ``backward()`` through :func:`purevdm.likelihood.log_prob` saves every step, and gives the gradient of what it computed;
    this one is off it by the errors of both integrations. With probes it is unbiased. No derivative passes through it.

    Args:
        model, params, x, key, cond, mask, integrator, probes: as in :func:`purevdm.likelihood.log_prob`, for real-valued
            data.
        chunk: how many products of the divergence to compute, and to differentiate, at once; fewer need less memory.

    Returns:
        The estimate, whose ``evaluations`` count those of both integrations, and the gradient of ``log_prob``, of x's shape.

    Raises:
        TypeError, ValueError: as :func:`purevdm.likelihood.log_prob`; discrete data; arguments that ``torch.func``
            differentiates with respect to.

    The likeliest x behind a noisy y, by the gradient of log p(x) + log p(y given x). The prior here is N(0, 1) and the noise
    has a variance of 1 / 4, so that x is 0.8 y:

    >>> import purevdm, torch
    >>> from purevdm import decoders, likelihood, ode, random, schedules
    >>> from purevdm.testing import sources
    >>> schedule, decoder = schedules.fixed_linear(-8.0, 8.0), decoders.gaussian()
    >>> model = purevdm.vdm(sources.gaussian(1.0), schedule, event_shape=(2,), decoder=decoder)
    >>> params, y = model.init(random.key(0)), torch.tensor([[1.0, -2.0]])
    >>> x = y
    >>> for _ in range(10):
    ...     _, prior = likelihood.log_prob_and_grad(model, params, x, random.key(1), integrator=ode.rk4(10))
    ...     x = x + 0.15 * (prior + (y - x) / 0.25)
    >>> torch.allclose(x, 0.8 * y, atol=1e-3)
    True
    """
    direct(_checks.instance("model", model, VDM, "a model of purevdm.vdm"), "likelihoods by the flow", flow=True)
    batch = parse(model, params, x, _checks.key("key", key), cond, mask=mask)
    n, params, there = batch.n, batch.params, batch.there
    kind = fitting(model.decoder, "none")
    if not torch.compiler.is_compiling() and any(map(_facts.differentiated, _checks.leaves((params, x, cond)).values())):
        wanted = "expected tensors that torch.func takes no derivatives of, as none pass here, got some"
        raise ValueError(f"params, x, cond: {wanted}; differentiate likelihood.log_prob")
    k_probe = torch.func.vmap(random.split)(sample_keys(key, n, 1))[:, 1]
    probe_noise = flow.probes_of(k_probe, probes, model)
    integrator = ode.dopri5() if integrator is None else integrator
    how: Any = dict(mask=there, integrator=integrator, probe_noise=probe_noise, chunk=chunk)

    def latents(x: Tensor) -> tuple[Tensor, Tensor]:
        q = dequantised(kind, model, params, x, cond, batch.mask)
        return q.latents(q.f)

    (z_0, extra), pull = torch.func.vjp(latents, batch.x)  # type: ignore[misc]
    log_p, evaluations, z_1 = log_density(model, params, z_0, cond, **how)
    a, more = adjoint(model, params, z_1, cond, **how)
    return combine((extra + log_p)[None], evaluations + more), pull((a, torch.ones_like(extra)))[0]


def adjoint(
    model: Model,
    params: Params,
    z_1: Tensor,
    cond: Any,
    *,
    mask: Tensor | None,
    integrator: Integrator,
    probe_noise: Any,
    chunk: int | None,
) -> tuple[Tensor, Tensor]:
    """Takes a = d log p / dz from z_1 back to z_0: gives it there, (B, *event_shape), and the number of evaluations."""
    at, start, stop = flow.along(model, params, z_1, cond, mask)
    probes, dims = flow.checked_probes(probe_noise, z_1), torch.arange(z_1[0].numel(), device=z_1.device)
    n = len(dims) if probes is None else len(probes)
    chunk = n if chunk is None else min(_checks.integer("chunk", chunk, 1), n)

    def back(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (z, a), slope = state, torch.zeros_like(state[1])
        for i in range(0, n, chunk):
            some = dims[i : i + chunk, None] == dims if probes is None else probes[i : i + chunk]
            v = some.to(z.dtype).reshape(len(some), -1, *z.shape[1:]).expand(-1, *z.shape)
            (value, div), pull = torch.func.vjp(lambda z, v=v: flow.divergence(at(t), z, v), z)  # type: ignore[misc]
            share = torch.full_like(div, len(v) / (1 if probes is None else n))  # as divergence gives a mean
            slope = slope + pull((a if i == 0 else torch.zeros_like(a), share))[0]
        return value, -slope

    done = integrator(back, (z_1, -z_1), stop, start)
    return done.state[1], done.evaluations
