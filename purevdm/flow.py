"""The probability flow: the deterministic way between data and noise with the diffusion's marginals, and its divergence.

In gamma it is dz / dgamma = sigma (eps_hat - sigma z) / 2, whatever the schedule's interior (Song et al. 2021, arXiv
2011.13456, eq. 13, in terms of gamma), and log p(z) changes along it by minus its divergence. Under a schedule of the
event's shape the way is in t, and each dimension moves at its own gamma'(t).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, denoiser, process, random, schedules
from purevdm.model import Model, batch_axes
from purevdm.ode import Integrator
from purevdm.types import Params, Shape

__all__ = ["Ends", "divergence", "draw_probes", "ends", "integrate", "velocity"]


def velocity(model: Model, params: Params, z: Tensor, gamma: Tensor, cond: Any = None) -> Tensor:
    """dz / dgamma = sigma (eps_hat - sigma z) / 2, elementwise.

    Args:
        model: the model.
        params: ``{"network": ..., "schedule": ...}``.
        z: latents, (B, *event_shape).
        gamma: (B,) or (B, *event_shape).
        cond: the batch's condition.

    Returns:
        Of z's shape.
    """
    eps_hat = denoiser.in_bound(model.network, model.decoder, params["network"], z, gamma, cond, detach=False)
    sigma = process.sigma(process.align(gamma, z))
    return 0.5 * sigma * (eps_hat - sigma * z)


# The divergence


def divergence(
    field: Callable[[Tensor], Tensor], z: Tensor, probes: Tensor | None = None, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """A field and its divergence, by vector-Jacobian products.

    Its derivative is right, too, as long as PyTorch's second derivative in reverse mode is. By Jacobian-vector products it
    would not be: the derivative of ``torch.func.jvp`` silently lacks terms (PyTorch 2.11 to 2.13) for ``layer_norm``,
    ``instance_norm`` and ``batch_norm`` in training, ``linalg.solve``, ``det``, ``slogdet``, ``logdet``, ``tensorsolve``,
    ``householder_product``. :func:`purevdm.testing.check_network` holds both derivatives against differences.

    Args:
        field: ``field(z)``, of z's shape; example i of it depends on example i of z alone.
        z: (B, *event_shape).
        probes: (n, B, *event_shape), of mean 0 and covariance the identity: the divergence is estimated by the mean of
            probe . J probe (Hutchinson 1989). One costs about two applications of the field. None computes the divergence
            exactly, from a product for each dimension.
        chunk: how many products at once; all where left out. Fewer need less memory.

    Returns:
        field(z), and the divergence, (B,).

    >>> import torch
    >>> from purevdm import flow
    >>> value, div = flow.divergence(lambda z: z**3, torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
    >>> div
    tensor([15., 27.])
    """
    if probes is not None and not len(_checks.alike("probes", probes, (*probes.shape[:1], *z.shape), z.dtype)):
        raise ValueError(f"probes: expected at least one, got {_checks.describe(probes)}")
    dims = z[0].numel()
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


def draw_probes(keys: Tensor, n: int, event_shape: Shape, dtype: torch.dtype, kind: str = "rademacher") -> Tensor:
    """Probes for :func:`divergence`, (n, B, *event_shape).

    Args:
        keys: a key for each example, (B, 2).
        n: how many for each example.
        event_shape, dtype: of one example's latent.
        kind: "rademacher", which gives the least variance of all with independent components, or "gaussian".

    Raises:
        TypeError, ValueError: n < 1, or an unknown kind.
    """
    n = _checks.integer("probes", n, 1)
    _checks.choice("probe", kind, ("rademacher", "gaussian"))
    draw = random.rademacher if kind == "rademacher" else random.normal
    return torch.func.vmap(lambda k: draw(k, (n, *event_shape), dtype), out_dims=1)(keys)


# The way


class Ends(NamedTuple):
    """Where the flow of a batch begins and ends.

    Attributes:
        gamma_0, gamma_1: gamma at the times 0 and 1, shaped to broadcast against the latents.
        univariate: whether it is one number an example; the flow then goes in gamma, or else in t.
    """

    gamma_0: Tensor
    gamma_1: Tensor
    univariate: bool


def ends(model: Model, params: Params, z: Tensor, cond: Any = None) -> Ends:
    """The ends of the flow for latents z, (B, *event_shape)."""
    if model.schedule.contextual:
        batch_axes(cond, len(z))

    def gamma(t: float) -> Tensor:
        times = torch.full((len(z),), t, dtype=z.dtype, device=z.device)
        return process.align(schedules.gamma(model.schedule, params["schedule"], times, cond), z)

    gamma_0, gamma_1 = gamma(0.0), gamma(1.0)
    return Ends(gamma_0, gamma_1, gamma_0[0].numel() == 1)


def integrate(
    model: Model,
    params: Params,
    z: Tensor,
    integrator: Integrator,
    cond: Any = None,
    *,
    backward: bool = False,
    divergence_of: Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Takes latents along the flow, from time 0 to time 1 or backward.

    Args:
        model, params, cond: the model, its parameters, the batch's condition.
        z: latents, (B, *event_shape).
        integrator: of :mod:`purevdm.ode`.
        backward: whether from time 1 to time 0.
        divergence_of: ``divergence_of(field, z) -> (field(z), divergence)``, as :func:`divergence`; None for none.

    Returns:
        The latents at the other end, the integral of the divergence (B,), zero without one, and the number of evaluations of
        the field, int64 (B,).
    """
    if not isinstance(integrator, Integrator):
        wanted = "expected an Integrator such as purevdm.ode.dopri5()"
        raise TypeError(f"integrator: {wanted}, got {_checks.describe(integrator)}")
    gamma_0, gamma_1, univariate = ends(model, params, z, cond)

    def at(t: Tensor) -> Callable[[Tensor], Tensor]:
        """The field at times t, as a function of the latents."""
        if univariate:
            return lambda z: velocity(model, params, z, t, cond)
        gamma, slope = schedules.gamma_and_slope(model.schedule, params["schedule"], t, cond)
        return lambda z: slope * velocity(model, params, z, gamma, cond)

    def field(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (at(t)(state[0]),)

    if univariate:
        start, stop = gamma_0.reshape(-1), gamma_1.reshape(-1)
    else:
        start, stop = z.new_zeros(len(z)), z.new_ones(len(z))
    start, stop = (stop, start) if backward else (start, stop)
    if divergence_of is None:
        done = integrator(field, (z,), start, stop)
        return done.state[0], z.new_zeros(len(z)), done.evaluations

    def rated(t: Tensor, state: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        slope, rate = divergence_of(at(t), state[0])
        return (slope,), rate

    done, change = integrator.along(field, rated, (z,), start, stop)
    return done.state[0], change, done.evaluations
