"""Laws of whole models."""

import math
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, likelihood, ode, process, random
from purevdm._vdm import VDM
from purevdm.model import bounded
from purevdm.ode import Integrator
from purevdm.testing._law import compiled, floats, off, repeated, require, rows, trying
from purevdm.types import Key, Params

__all__ = ["check_density", "check_model"]


def check_model(
    model: Any,
    params: Params,
    x: Tensor,
    cond: Any = None,
    *,
    entropy: float | None = None,
    passes: int = 16,
    key: Key | None = None,
    compile: bool = False,
) -> None:
    """Checks a model against the laws of a bound.

    Its terms are finite, and none is negative where data are discrete. Each example's bound depends only on that example and
    its noise, so a permuted batch has permuted bounds. Evenly spread times and independent ones give the same bound in
    expectation. It lies above the entropy of the source of the data, if that is known. Gradients are finite. Samples are
    data.

    Args:
        model: a VDM, a BFN or a MaskedDiffusion.
        params: its parameters.
        x: data, (B, *event_shape), at least 2; for ``entropy``, draws of the source.
        cond: their conditions.
        entropy: of the source, nats an example.
        passes: over how many draws of times and noise to average.
        key: a key.
        compile: whether the compiled bound must give the same, too.

    Raises:
        LawError: a law does not hold; the message says which, by how much, and how to see it.
    """
    bounded(model)
    passes = _checks.integer("passes", passes, 2)
    k_noise, k_times, k_sample = random.split(random.key(0) if key is None else key, 3).unbind(0)
    see = "model.nll_bound(params, x, key, cond)"
    terms = trying("the bound must run", see, lambda: model.nll_bound(params, x, k_noise, cond))
    for name, term in terms._asdict().items():
        low = -math.inf if name == "recon" and model.decoder.log_probs is None else 0.0
        text = f"{int((~term.isfinite()).sum())} of {len(x)} are not finite, the least is {term.min():.4g}"
        holds = term.isfinite().all() and (term >= low - 1e-4).all()
        require(holds, f"{name} must be finite" + (f" and at least {low:g}" if low == 0 else ""), text, f"{see}.{name}")
    _independent(model, params, x, cond, k_noise)

    def bounds(antithetic: bool) -> Tensor:
        """Estimates the bound of each pass and example."""
        varied = model._replace(antithetic=antithetic)
        return torch.stack([varied.nll_bound(params, x, k, cond).total.double() for k in random.split(k_times, passes)])

    even, independent = bounds(True).mean(1), bounds(False).mean(1)
    error = math.hypot(*((part.std() / math.sqrt(passes)).item() for part in (even, independent)))
    gap = (even.mean() - independent.mean()).item()
    law = "evenly spread times must give the bound that independent ones give"
    text = f"{even.mean():.6g} and {independent.mean():.6g} nats, {abs(gap) / error:.1f} standard errors apart"
    require(abs(gap) <= 7 * error + 1e-4 * abs(even.mean()), law, text, "model._replace(antithetic=False).nll_bound(...)")
    if entropy is not None:
        each = bounds(model.antithetic).mean(0)
        error = (each.std() / math.sqrt(len(x))).item()
        text = f"{each.mean():.6g} +- {error:.2g} nats, below {entropy:.6g}"
        require(each.mean() >= entropy - 5 * error, "the bound must lie above the entropy", text, f"{see}.total.mean()")

    grads = floats(torch.func.grad(model.loss_fn)(params, x, k_noise, cond))[0]
    bad = ", ".join([name for name, grad in grads.items() if not grad.isfinite().all()][:3])
    see_grads = "torch.func.grad(model.loss_fn)(params, x, key, cond)"
    require(not bad, "gradients must be finite", f"NaN or infinity in {bad}", see_grads)
    see_draws, some = "model.sample(params, key, 2, steps=5, cond=cond)", rows(cond, slice(2))
    drawn = trying("sampling must run", see_draws, lambda: model.sample(params, k_sample, 2, steps=5, cond=some))
    data = model.decoder.check(drawn)
    require(data.all(), "samples must be data", f"{int((~data).sum())} numbers are not {model.decoder.support}", see_draws)
    if compile:
        compiled("bound", lambda: model.nll_bound(params, x, k_noise, cond).total, terms.total, see)


def _independent(model: Any, params: Params, x: Tensor, cond: Any, key: Key) -> None:
    """Checks a permuted batch with its seeds, and a part of it, against the batch."""
    seeds = model.seeds(key, len(x))

    def at(index: Tensor) -> Tensor:
        return model.nll_bound(params, x[index], seeds.rows(index), rows(cond, index)).total

    whole, backward = at(torch.arange(len(x))), torch.arange(len(x) - 1, -1, -1)
    for index, text in ((backward, "the reversed batch"), (backward[:1], "the last example by itself")):
        missed = off(at(index), whole[index])
        law = "an example's bound must depend on that example and its noise only"
        see = "model.nll_bound(params, x[index], model.seeds(key, len(x)).rows(index), cond[index])"
        require(missed <= 1e-4, law, f"{text} differs by {missed:.2g} of its norm", see)


def check_density(
    model: VDM,
    params: Params,
    cond: Any = None,
    *,
    integrator: Integrator | None = None,
    points: int | None = None,
    tolerance: float = 0.01,
    key: Key | None = None,
) -> None:
    """Checks that the flow's density integrates to one: of real data ``likelihood.log_prob``, of discrete data
    ``likelihood.log_prob_latent``, the density of their latents at time 0 (:func:`check_decoder` has the rest).

    The grid is the box around where the flow takes the circle of radius 6 (in one dimension the points -6 and 6), which
    holds all but 2e-8 of the mass.

    Args:
        model, params: the model, of any network, over events of one or two numbers.
        cond: one example's condition.
        integrator: of :mod:`purevdm.ode`; ``ode.dopri5(1e-4, 1e-4)`` where left out.
        points: of the grid, along each dimension; 801 in one dimension, 101 in two.
        tolerance: how far from 1 the integral may be: what the grid and the integrator leave.
        key: a key.

    Raises:
        LawError: the integral is off; the message says by how much, and how to see it.
        ValueError: events of more numbers.

    >>> import purevdm
    >>> from purevdm import decoders, networks, random, schedules, testing
    >>> decoder, schedule = decoders.gaussian(loc=3.0, scale=2.0), schedules.fixed_linear(-3.0, 3.0)
    >>> model = purevdm.vdm(networks.mlp(16, fourier=()), schedule, event_shape=(1,), decoder=decoder)
    >>> testing.check_density(model, model.init(random.key(0)), points=101)
    """
    _checks.instance("model", model, VDM, "a model of purevdm.vdm")
    key = random.key(0) if key is None else key
    integrator = ode.dopri5(1e-4, 1e-4) if integrator is None else integrator
    dims = math.prod(model.event_shape)
    if dims > 2:
        raise ValueError(f"model: expected events of one or two numbers, got event_shape={model.event_shape}")
    z = _box(model, params, cond, integrator, points or (801 if dims == 1 else 101))
    if model.decoder.log_probs is None:
        t = torch.zeros((), dtype=model.dtype)
        gamma_0 = model.gamma(params, t, repeated(cond, 1) if model.schedule.contextual else None)
        z = model.decoder.mode({}, z / process.alpha(gamma_0))
        options: Any = dict(probes="exact", integrator=integrator)
        log_p = likelihood.log_prob(model, params, z, key, repeated(cond, len(z)), **options).log_prob
        see = "likelihood.log_prob(model, params, x, key, cond, probes='exact').log_prob.exp().sum() * cell"
    else:
        options = dict(probe_noise="exact", integrator=integrator)
        log_p = likelihood.log_prob_latent(model, params, z, repeated(cond, len(z)), **options).log_prob
        see = "likelihood.log_prob_latent(model, params, z, cond, probe_noise='exact').log_prob.exp().sum() * cell"
    total = log_p.double().exp().sum().item()
    for column in z.reshape(len(z), -1).double().unbind(1):  # times the volume of a cell
        values = column.unique()
        total *= ((values[-1] - values[0]) / (len(values) - 1)).item()
    text = f"{total:.6g}, where an error of {tolerance:g} is tolerated, on {len(z)} points"
    require(abs(total - 1) <= tolerance, "the density must integrate to one", text, see)


def _box(model: VDM, params: Params, cond: Any, integrator: Integrator, points: int) -> Tensor:
    """Makes a grid of latents at time 0 over the box that holds the model's mass, (n, *event_shape)."""
    dims = math.prod(model.event_shape)
    angle = torch.linspace(0.0, 2.0 * math.pi, 65, dtype=model.dtype)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], 1) if dims == 2 else torch.tensor([[-1.0], [1.0]], dtype=model.dtype)
    z_1 = 6.0 * circle.reshape(-1, *model.event_shape)
    z_0 = likelihood.to_data(model, params, z_1, repeated(cond, len(z_1)), integrator=integrator).reshape(len(z_1), dims)
    ends = zip(z_0.amin(0).tolist(), z_0.amax(0).tolist(), strict=True)
    axes = [torch.linspace(low, high, points, dtype=model.dtype) for low, high in ends]
    return torch.cartesian_prod(*axes).reshape(-1, *model.event_shape)
