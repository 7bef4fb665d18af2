"""log p by the probability flow: of data, and of latents."""

from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, coded, random
from purevdm._door import latents, parse
from purevdm._masks import inside, share
from purevdm._vdm import VDM
from purevdm.denoiser import of_model
from purevdm.likelihood import flow
from purevdm.likelihood._dequantise import dequantised, fitting
from purevdm.likelihood._estimate import Estimate, combine, log_normal, repeated, sample_keys, summed
from purevdm.model import direct
from purevdm.ode import Integrator
from purevdm.types import Key, Params

__all__ = ["log_prob", "log_prob_latent"]


def log_prob(
    model: VDM,
    params: Params,
    x: Tensor,
    key: Key,
    cond: Any = None,
    *,
    mask: Tensor | None = None,
    dequantisation: str | None = None,
    samples: int = 1,
    integrator: Integrator | None = None,
    probes: int | str = 1,
    chunk: int | None = None,
) -> Estimate:
    """Computes log p(x) by the probability flow, for each example.

    Example i draws from ``split(key, B)[i]``, and its sample k from ``fold_in`` of that and k. So more examples or samples
    leave the first ones as they are. A compiled call passes no derivatives, and refuses tensors that require a gradient:
    make it under ``torch.no_grad()``.

    Args:
        model: the model, of discrete or real-valued data.
        params: its parameters.
        x: data, (B, *event_shape).
        key: a key.
        cond: a condition for each example, as the network takes it.
        mask: bool, which broadcasts to x: what exists, of padded data. Nothing else has a density, nor a weight in the
            integrator's tolerances.
        dequantisation: how data become latents, as the table in :mod:`purevdm.likelihood` says; where left out
            "variational" for discrete data and "none" for real-valued.
        samples: K, how many latents for each example, each with a code of its own where the model has one, whose p(c) /
            q(c given x) is in its weight. All K B are integrated at once.
        integrator: of :mod:`purevdm.ode`; ``ode.dopri5(1e-5, 1e-5)`` where left out. A tolerance is that of one step: log p
            may be off by far more. The flow is as rough in time as its network, and the paper's networks take sinusoids of
            up to 159 periods from time 0 to 1. Check what is left against a smaller tolerance, and a fixed grid against
            ``dopri5``; ``examples/studies/integrators.py`` does it for digits.
        probes: how many Rademacher probes estimate the divergence, or "exact", at the cost of one product for each
            dimension; ``ode.dopri5(quadrature=2)`` evaluates either less often. The estimate of each log w is unbiased, but
            not that of the log of their mean.
        chunk: how many products of the divergence to compute at once; fewer need less memory.

    Raises:
        TypeError, ValueError: bad input, as for ``model.nll_bound``; a dequantisation that does not fit the data; samples,
            probes or chunk below 1; an integration that did not reach its end (see :mod:`purevdm.ode`).
    """
    direct(_checks.instance("model", model, VDM, "a model of purevdm.vdm"), "likelihoods by the flow", flow=True, coded=True)
    batch = parse(model, params, x, _checks.key("key", key), cond, mask=mask)
    n, params, x, mask = batch.n, batch.params, batch.x, batch.mask
    samples = _checks.integer("samples", samples, 1)
    kind = fitting(model.decoder, dequantisation)
    if kind == "none" and samples != 1 and model.code is None:
        raise ValueError(f"samples: expected 1 without dequantisation, as all would be the same, got {samples}")
    _refuse_recording(params, x, cond)
    x, cond, mask = (repeated(part, samples) for part in (x, cond, mask))
    keys = sample_keys(key, n, samples)
    k_noise, k_probe = torch.func.vmap(random.split)(keys).unbind(1)
    cond, of_code = coded.weighted(model, params, x, keys, cond)
    model, params = coded.given_codes(model, params)
    q = dequantised(kind, model, params, x, cond, mask)
    z_0, extra = q.latents(q.draw(k_noise))
    probe_noise = flow.probes_of(k_probe, probes, model)
    how: Any = dict(mask=q.denoise.mask, integrator=integrator, probe_noise=probe_noise, chunk=chunk)
    log_p, evaluations, _ = log_density(model, params, z_0, cond, **how)
    return combine((extra + log_p + of_code).reshape(samples, n), evaluations.reshape(samples, n).sum(0))


def log_prob_latent(
    model: VDM,
    params: Params,
    z_0: Tensor,
    cond: Any = None,
    *,
    mask: Tensor | None = None,
    probe_noise: Tensor | str,
    integrator: Integrator | None = None,
    chunk: int | None = None,
) -> Estimate:
    """Computes log p(z_0), the flow's density of latents at time 0, with all noise explicit: the estimate of one sample.

    Args:
        model, params, cond, integrator, chunk: as in :func:`log_prob`.
        z_0: latents, (B, *latent_shape), of the model's dtype, 0 where nothing exists.
        mask: as there, of the latents.
        probe_noise: the probes of the divergence, (n, B, *latent_shape), of the model's dtype, of mean 0 and covariance the
            identity (:func:`purevdm.likelihood.flow.draw_probes`); or "exact".
    """
    direct(_checks.instance("model", model, VDM, "a model of purevdm.vdm"), "likelihoods by the flow", flow=True)
    n = len(latents("z_0", z_0, model))
    probes = flow.checked_probes(probe_noise, z_0)
    params = parse(model, params, cond=cond, n=n, mask=mask, z_0=z_0, probe_noise=probes).params
    z_0 = inside("z_0", z_0, of_model(model, params, mask=mask).within(z_0))
    _refuse_recording(params, z_0, cond)
    how: Any = dict(mask=mask, integrator=integrator, probe_noise=probe_noise, chunk=chunk)
    log_p, evaluations, _ = log_density(model, params, z_0, cond, **how)
    return combine(log_p[None], evaluations)


def log_density(model: VDM, *given: Any, mask: Tensor | None, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gives log p(z_0), (B,), the number of evaluations, and z_1, from what :func:`flow.integrate` takes."""
    z_1, change, evaluations = flow.integrate(model, *given, mask=mask, **options)
    return summed(log_normal(z_1, share(model, z_1, mask, z_1.dtype)), mask) + change, evaluations, z_1


def _refuse_recording(*trees: Any) -> None:
    """Refuses, in a compiled graph, tensors whose derivatives ``torch.autograd`` would give in part."""
    if not torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    leaves = [leaf for tree in trees for leaf in _checks.leaves(tree).values()]
    if any(leaf.requires_grad for leaf in leaves):
        wanted = "expected tensors that require no gradient, as a compiled likelihood passes none, got some that do"
        raise RuntimeError(f"params, x, cond: {wanted}; call it under torch.no_grad(), or in eager mode")
