"""The probability flow: the deterministic map between data and noise with the diffusion's marginals, and its divergence.

In gamma it is dz / dgamma = sigma (eps_hat - sigma z) / 2, whatever the schedule's interior (Song et al. 2021, arXiv
2011.13456, eq. 13, in terms of gamma), and log p(z) changes along it by minus its divergence. Under a schedule of the
event's shape it is taken in t, and each dimension moves at its own gamma'(t).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, ode, process, random, schedules
from purevdm._compile import refuse_zero_derivatives
from purevdm._door import latents, parse
from purevdm._masks import inside
from purevdm._vdm import VDM
from purevdm.denoiser import of_model
from purevdm.model import Model, direct, latent_shape
from purevdm.ode import Integrator
from purevdm.sampling.trajectory import level
from purevdm.types import Params, Shape

__all__ = ["divergence", "draw_probes", "integrate", "velocity"]


def velocity(model: Model, params: Params, z: Tensor, gamma: Tensor, cond: Any = None, mask: Tensor | None = None) -> Tensor:
    """Gives dz / dgamma = sigma (eps_hat - sigma z) / 2, elementwise, of z's shape.

    In a model's subspace it is that of the projected latents, and its divergence is the subspace's.

    Args:
        model, params, cond: the model, its parameters, the batch's condition.
        z: latents, (B, *event_shape).
        gamma: (B,) or (B, *event_shape).
        mask: bool, which broadcasts to z: what exists. Elsewhere the velocity is 0.
    """
    denoise = of_model(model, params, cond, mask=mask)
    z, sigma = denoise.within(z), process.sigma(process.align(gamma, z))
    return denoise.within(0.5 * sigma * (denoise.eps(z, gamma, detach=False) - sigma * z))


# The divergence


def divergence(
    field: Callable[[Tensor], Tensor], z: Tensor, probe_noise: Tensor | str, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Gives a field and its divergence, by vector-Jacobian products.

    Its derivative is right, too. By Jacobian-vector products it would not be: the derivative of ``torch.func.jvp`` silently
    lacks terms (PyTorch 2.11 to 2.13) for ``layer_norm``, ``instance_norm`` and ``batch_norm`` in training,
    ``linalg.solve``, ``det``, ``slogdet``, ``logdet``, ``tensorsolve``, ``householder_product``.
    :func:`purevdm.testing.check_network` holds both derivatives against differences.

    Args:
        field: ``field(z)``, of z's shape; example i of it depends only on example i of z.
        z: (B, *event_shape).
        probe_noise: probes, (n, B, *event_shape), of mean 0 and covariance the identity: the divergence is estimated by the
            mean of probe . J probe (Hutchinson 1989). One costs about two applications of the field. Or "exact": a product
            for each dimension.
        chunk: how many products at once; all where left out. Fewer need less memory.

    Returns:
        field(z), and the divergence, (B,).

    >>> import torch
    >>> from purevdm.likelihood import flow
    >>> value, div = flow.divergence(lambda z: z**3, torch.tensor([[1.0, 2.0], [0.0, 3.0]]), "exact")
    >>> div
    tensor([15., 27.])
    """
    refuse_zero_derivatives()
    probes, dims = checked_probes(probe_noise, z), z[0].numel()
    n = dims if probes is None else len(probes)
    chunk = n if chunk is None else min(_checks.integer("chunk", chunk, 1), n)

    def product(v: Tensor) -> tuple[Tensor, Tensor]:
        value, pull = torch.func.vjp(field, z)  # type: ignore[misc]
        return value, (v * pull(v)[0]).reshape(z.shape[0], -1).sum(1)

    if probes is not None and n == 1:
        return product(probes[0])

    def some(start: Tensor) -> tuple[Tensor, Tensor]:
        index = start + torch.arange(chunk, device=z.device)
        if probes is None:
            v = (index[:, None] == torch.arange(dims, device=z.device)).to(z.dtype)
            v = v.reshape(chunk, 1, *z.shape[1:]).expand(chunk, *z.shape)
        else:
            inside = (index < n).to(z.dtype).reshape(-1, *(1 for _ in z.shape))
            v = probes.index_select(0, index.clamp(max=n - 1)) * inside
        value, products = torch.func.vmap(product)(v)
        return value[0], products.sum(0)

    start = torch.zeros((), dtype=torch.int64, device=z.device)
    value, total = some(start)
    for i in range(chunk, n, chunk):
        total = total + some(start + i)[1]
    return value, total if probes is None else total / n


def checked_probes(probe_noise: Tensor | str, z: Tensor) -> Tensor | None:
    """Gives the probes for latents z, or None for "exact"."""
    if isinstance(probe_noise, str):
        _checks.choice("probe_noise", probe_noise, ("exact",))
        return None
    n = _checks.tensor("probe_noise", probe_noise).shape[:1]
    if len(_checks.alike("probe_noise", probe_noise, (*n, *z.shape), z.dtype)) == 0:
        raise ValueError(f"probe_noise: expected at least one probe, got {_checks.describe(probe_noise)}")
    return probe_noise


def draw_probes(keys: Tensor, n: int, event_shape: Shape, dtype: torch.dtype) -> Tensor:
    """Draws Rademacher probes for :func:`divergence`, (n, B, *event_shape), which give the least variance of all with
    independent components.

    Args:
        keys: a key for each example, (B, 2).
        n: how many for each example, at least 1.
        event_shape, dtype: of one example's latent.
    """
    n = _checks.integer("probes", n, 1)
    return torch.func.vmap(lambda k: random.rademacher(k, (n, *event_shape), dtype), out_dims=1)(keys)


def probes_of(keys: Tensor, probes: int | str, model: Model) -> Tensor | str:
    """Gives the probes of a model's latents that a number of them, or "exact", asks for."""
    if isinstance(probes, str) and probes == "exact":
        return probes
    return draw_probes(keys, probes, latent_shape(model), model.dtype)  # type: ignore[arg-type]


# Along the flow


def along(
    model: Model, params: Params, z: Tensor, cond: Any = None, mask: Tensor | None = None
) -> tuple[Callable[[Tensor], Callable[[Tensor], Tensor]], Tensor, Tensor]:
    """Gives the field at times (B,), as a function of the latents, and the times at its ends: gamma, or t under a schedule
    of the event's shape. Arguments as for :func:`velocity`."""
    gamma_0, gamma_1 = (level(model, params, z.new_full((), t), len(z), cond) for t in (0.0, 1.0))
    if gamma_0[0].numel() == 1:
        return (lambda t: lambda z: velocity(model, params, z, t, cond, mask)), gamma_0.reshape(-1), gamma_1.reshape(-1)

    def at(t: Tensor) -> Callable[[Tensor], Tensor]:
        gamma, slope = schedules.gamma_and_slope(model.schedule, params["schedule"], t, cond)
        return lambda z: slope * velocity(model, params, z, gamma, cond, mask)

    return at, z.new_zeros(len(z)), z.new_ones(len(z))


def integrate(
    model: Model,
    params: Params,
    z: Tensor,
    cond: Any = None,
    *,
    mask: Tensor | None = None,
    integrator: Integrator | None = None,
    backward: bool = False,
    probe_noise: Tensor | str | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Takes latents along the flow, from time 0 to time 1 or backward.

    Args:
        model, params, z, cond, mask: as for :func:`velocity`; z is 0 where nothing exists, and stays so.
        integrator: of :mod:`purevdm.ode`; ``ode.dopri5()`` where left out.
        backward: whether from time 1 to time 0.
        probe_noise, chunk: of :func:`divergence`; None for no divergence.

    Returns:
        The latents at the other end, the integral of the divergence (B,), zero without one, and the number of evaluations of
        the field, int64 (B,).
    """
    integrator = ode.dopri5() if integrator is None else integrator
    _checks.instance("integrator", integrator, Integrator, "an Integrator such as purevdm.ode.dopri5()")
    at, start, stop = along(model, params, z, cond, mask)
    start, stop = (stop, start) if backward else (start, stop)

    def field(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (at(t)(state[0]),)

    def rated(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return divergence(at(t), state[0], probe_noise, chunk)  # type: ignore[arg-type]

    if probe_noise is None:
        done = integrator(field, (z,), start, stop)
        return done.state[0], z.new_zeros(len(z)), done.evaluations
    done, change = integrator.along(field, rated, (z,), start, stop)
    return done.state[0], change, done.evaluations


def to_noise(
    model: VDM,
    params: Params,
    z_0: Tensor,
    cond: Any = None,
    *,
    mask: Tensor | None = None,
    integrator: Integrator | None = None,
) -> Tensor:
    """Takes latents z_0 along the flow to z_1: both (B, *latent_shape), at least one, and 0 where nothing exists. ``mask``
    is that of the latents, ``integrator`` as for :func:`purevdm.likelihood.log_prob`."""
    return _mapped("z_0", model, params, z_0, cond, mask, integrator, backward=False)


def to_data(
    model: VDM,
    params: Params,
    z_1: Tensor,
    cond: Any = None,
    *,
    mask: Tensor | None = None,
    integrator: Integrator | None = None,
) -> Tensor:
    """Takes latents z_1 along the flow back to z_0: the inverse of :func:`to_noise`."""
    return _mapped("z_1", model, params, z_1, cond, mask, integrator, backward=True)


def _mapped(
    name: str, model: VDM, params: Params, z: Tensor, cond: Any, mask: Tensor | None, how: Integrator | None, backward: bool
) -> Tensor:
    direct(_checks.instance("model", model, VDM, "a model of purevdm.vdm"), "the probability flow", flow=True)
    given: Any = {name: z}
    params = parse(model, params, cond=cond, n=len(latents(name, z, model)), mask=mask, **given).params
    z = inside(name, z, of_model(model, params, mask=mask).within(z))
    return integrate(model, params, z, cond, mask=mask, integrator=how, backward=backward)[0]
