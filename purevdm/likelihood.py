"""The likelihood of data: exactly by the probability flow, and bounds tighter than the NLLBound by importance weights.

The flow gives log p(z_0) of a latent exactly: log p(z_0) = log N(z_1; 0, I) + the integral of the divergence on the way.
Data are not latents, so a distribution q(z_0 given x) stands between, with weights w whose mean is p(x) or less:

| dequantisation | q(z_0 given x) | log w = log p(z_0) + |
|---|---|---|
| "variational" | N(alpha_0 f, sigma_0**2), as in the bound | log p(x given z_0) - log q(z_0 given x) |
| "truncated" | the same, truncated to x's bin (Zheng et al. 2023, arXiv 2305.03935) | -log q(z_0 given x) |
| "uniform" | uniform over x's bin (Theis et al. 2016, arXiv 1511.01844) | the log volume of the bin |
| "none" | z_0 = alpha_0 f, for real-valued data | the log Jacobian of x to z_0 |

In the first, the model is that of the bound: a latent and the decoder. In the next two it is a latent rounded to the nearest
value. E log w bounds log p(x) from below. The logarithm of the mean of K weights is a tighter bound, which rises with K and
tends to log p(x) (Burda et al. 2016, arXiv 1509.00519).
"""

import math
from functools import partial
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, denoiser, flow, ode, process, random, sampling, schedules
from purevdm.model import checked, latents
from purevdm.ode import Integrator
from purevdm.types import Key, Params
from purevdm.vdm import VDM

__all__ = ["Estimate", "combine", "decode", "encode", "importance_bound", "log_prob", "log_prob_latent", "log_weight"]

DISCRETE, REAL = ("variational", "truncated", "uniform"), ("none", "variational")


class Estimate(NamedTuple):
    """The log-likelihood of a batch.

    Attributes:
        log_prob: the logarithm of the mean of the weights, (B,), nats.
        error: its standard error, (B,), nats, from the spread of the weights; NaN for one sample. It leaves out the error of
            the integration. It is too small where a few weights dominate, which an :attr:`ess` near 1 shows: near 1, and
            where q(z_0 given x) is much narrower than x's bin (sigma_0 far below the distance of values), for which
            "uniform" serves better.
        log_weights: the weights' logarithms, (K, B), nats.
        evaluations: how often the network was applied to each example, int64 (B,).
    """

    log_prob: Tensor
    error: Tensor
    log_weights: Tensor
    evaluations: Tensor

    @property
    def ess(self) -> Tensor:
        """The effective sample size (sum w)**2 / sum w**2 (Kong, Liu, Wong 1994), (B,): K where all weights are equal, and 1
        where one outweighs the rest; then neither the estimate nor its error can be trusted.

        >>> import torch
        >>> from purevdm import likelihood
        >>> likelihood.combine(torch.tensor([[1.0, 1.0], [1.0, 1e-9]]).log(), torch.tensor([2, 2])).ess
        tensor([2., 1.])
        """
        return torch.exp(2.0 * torch.logsumexp(self.log_weights, 0) - torch.logsumexp(2.0 * self.log_weights, 0))


def combine(log_weights: Tensor, evaluations: Tensor) -> Estimate:
    """The estimate of K weights, (K, B): logsumexp minus log K, and its standard error by the delta method. To combine the
    weights of several calls, concatenate them. ``evaluations`` is (B,).

    Raises:
        TypeError, ValueError: tensors of another form.

    >>> import torch
    >>> from purevdm import likelihood
    >>> likelihood.combine(torch.tensor([[1.0], [3.0]]).log(), torch.tensor([2])).log_prob.exp()
    tensor([2.])
    """
    if _checks.floating("log_weights", log_weights).ndim != 2 or 0 in log_weights.shape:
        raise ValueError(
            f"log_weights: expected those of at least one sample and example, (K, B), got {_checks.describe(log_weights)}"
        )
    _checks.shaped("evaluations", evaluations, log_weights.shape[1:])
    k = log_weights.shape[0]
    log_prob = torch.logsumexp(log_weights, 0) - math.log(k)
    error = (log_weights - log_prob).exp().std(0) / math.sqrt(k) if k > 1 else torch.full_like(log_prob, math.nan)
    return Estimate(log_prob, error, log_weights, evaluations)


# The flow's ends


def encode(model: VDM, params: Params, z_0: Tensor, cond: Any = None, *, integrator: Integrator | None = None) -> Tensor:
    """z_1, where the flow takes z_0: both (B, *event_shape), at least one. ``integrator`` as in :func:`log_prob`."""
    return _along(model, params, z_0, cond, integrator, backward=False)


def decode(model: VDM, params: Params, z_1: Tensor, cond: Any = None, *, integrator: Integrator | None = None) -> Tensor:
    """z_0, where the flow backward takes z_1: the inverse of :func:`encode`."""
    return _along(model, params, z_1, cond, integrator, backward=True)


def _along(model: VDM, params: Params, z: Tensor, cond: Any, integrator: Integrator | None, backward: bool) -> Tensor:
    name = "z_1" if backward else "z_0"
    _checks.instance("model", model, VDM, "a model of purevdm.vdm")
    n = len(latents(name, z, model))
    checked(model, params, cond=cond, n=n, **{name: z})
    return flow.integrate(model, params, z, _integrator(integrator), cond, backward=backward)[0]


def _integrator(integrator: Integrator | None) -> Integrator:
    wanted = "an Integrator such as purevdm.ode.dopri5()"
    return ode.dopri5() if integrator is None else _checks.instance("integrator", integrator, Integrator, wanted)


# log p(x)


def log_prob(
    model: VDM,
    params: Params,
    x: Tensor,
    key: Key,
    cond: Any = None,
    *,
    dequantisation: str | None = None,
    samples: int = 1,
    integrator: Integrator | None = None,
    probes: int | None = None,
    probe: str = "rademacher",
    chunk: int | None = None,
) -> Estimate:
    """log p(x) by the probability flow, for each example.

    Example i draws from ``split(key, B)[i]``, and its sample k from ``fold_in`` of that and k. So more examples or samples
    leave the first ones as they are.

    A compiled call passes no derivatives, and refuses tensors that require a gradient. Make it under ``torch.no_grad()``:
    networks of modules compile in no other way.

    Args:
        model: the model, of discrete or real-valued data.
        params: its parameters.
        x: data, (B, *event_shape).
        key: a key.
        cond: a condition for each example, as the network takes it.
        dequantisation: how data become latents, as the table in :mod:`purevdm.likelihood` says; where left out
            "variational" for discrete data and "none" for real-valued.
        samples: K, how many latents for each example. All K B are integrated at once.
        integrator: of :mod:`purevdm.ode`; ``ode.dopri5(1e-5, 1e-5)`` where left out. A tolerance is that of one step, in
            latents and in the divergence's integral relative to its size: log p may be off by far more. The flow is as rough
            in time as its network, and the paper's networks see sinusoids of 1000 times the normalised gamma, the fastest
            with 159 periods on the way. Check what is left against a smaller tolerance, and a fixed grid against
            ``dopri5``; ``examples/studies/integrators.py`` does it for digits.
        probes: how many probes estimate the divergence (Hutchinson). It is exact where left out, at the cost of one
            product for each dimension; ``ode.dopri5(quadrature=2)`` evaluates either less often. The estimate of each log
            w is unbiased, but not that of the log of their mean.
        probe: "rademacher" or "gaussian".
        chunk: how many products of the divergence to compute at once; fewer need less memory.

    Raises:
        TypeError, ValueError: bad input, as for ``model.nll_bound``; a dequantisation that does not fit the data; samples,
            probes or chunk below 1; an integration that did not reach its end (see :mod:`purevdm.ode`).
    """
    _checks.instance("model", model, VDM, "a model of purevdm.vdm")
    n = checked(model, params, x, _checks.key("key", key), cond)
    samples = _checks.integer("samples", samples, 1)
    if dequantisation is None:
        dequantisation = "none" if model.decoder.log_probs is None else "variational"
    _fitting(model, dequantisation)
    if dequantisation == "none" and samples != 1:
        raise ValueError(f"samples: expected 1 without dequantisation, as all would be the same, got {samples}")
    x, cond = _repeated(x, samples), _repeated(cond, samples)
    keys = _sample_keys(key, n, samples)
    k_noise, k_probe = torch.func.vmap(random.split)(keys).unbind(1)
    eps = _draw(model, params, x, k_noise, cond, dequantisation)
    given = None if probes is None else flow.draw_probes(k_probe, probes, model.event_shape, model.dtype, probe)
    options: Any = dict(dequantisation=dequantisation, integrator=integrator, probes=given, chunk=chunk)
    log_w, evaluations = log_weight(model, params, x, eps, cond, **options)
    return combine(log_w.reshape(samples, n), evaluations.reshape(samples, n).sum(0))


def log_weight(
    model: VDM,
    params: Params,
    x: Tensor,
    eps: Tensor,
    cond: Any = None,
    *,
    dequantisation: str = "variational",
    integrator: Integrator | None = None,
    probes: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """log w of the table above with all noise explicit: (B,), nats, and the number of evaluations, int64 (B,).

    Args:
        model, params, x, cond, integrator, chunk: as in :func:`log_prob`.
        eps: what the latent is made of, (B, *event_shape), of the model's dtype: standard normal; for "truncated" within
            +-tau, where sigma_0 tau reaches the end of x's bin; for "uniform" in (-1, 1); unused for "none".
        dequantisation: as in the table.
        probes: (n, B, *event_shape), of the model's dtype, or None for the exact divergence.
    """
    _checks.instance("model", model, VDM, "a model of purevdm.vdm")
    _checks.alike("eps", eps, (*_checks.tensor("x", x).shape[:1], *model.event_shape), model.dtype)
    checked(model, params, x, cond=cond, eps=eps)
    _refuse_recording(params, (x, eps), cond)
    _fitting(model, dequantisation)
    facts: list[_checks.Fact] = []
    gamma_0 = flow.ends(model, params, eps, cond).gamma_0
    alpha, sigma = process.alpha(gamma_0), process.sigma(gamma_0)
    f = model.decoder.encode({}, x, cond, eps.dtype)
    if _checks.readable(eps) and dequantisation in ("truncated", "uniform"):
        end = torch.ones_like(f) if dequantisation == "uniform" else _reach(model, f, gamma_0) * (1.0 + 1e-5)
        wanted = f"noise within +-{'1' if dequantisation == 'uniform' else 'tau'} for {dequantisation!r}"
        facts.append(_checks.Fact(eps.abs() <= end, lambda: _checks.outside(wanted, "eps", eps)))
    _checks.verify(facts)

    def total(each: Tensor) -> Tensor:
        return each.expand_as(f).reshape(len(f), -1).sum(1)

    if dequantisation == "none":
        # log p(x) = log p(z_0) + log |dz_0 / dx|, and the decoder's density at its own mean holds df / dx.
        peak = -model.decoder.reconstruction({}, x, torch.zeros_like(eps), gamma_0)
        z_0, extra = alpha * f, total(torch.log(alpha) + peak + 0.5 * (math.log(2.0 * math.pi) + gamma_0))
    elif dequantisation == "uniform":
        half = 0.5 * _spacing(model, f)
        z_0, extra = alpha * (f + half * eps), total(torch.log(2.0 * half * alpha))
    else:
        z_0 = alpha * f + sigma * eps
        log_q = -0.5 * (eps.square() + math.log(2.0 * math.pi)) - torch.log(sigma)
        if dequantisation == "truncated":
            extra = total(torch.log(torch.erf(_reach(model, f, gamma_0) / math.sqrt(2.0))) - log_q)
        else:
            extra = total(-model.decoder.reconstruction({}, x, eps, gamma_0) - log_q)
    options: Any = dict(integrator=integrator, probes=probes, chunk=chunk)
    log_p, evaluations = log_prob_latent(model, params, z_0, cond, **options)
    return extra + log_p, evaluations


def log_prob_latent(
    model: VDM,
    params: Params,
    z_0: Tensor,
    cond: Any = None,
    *,
    integrator: Integrator | None = None,
    probes: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """log p(z_0), the flow's density of latents at time 0: (B,), nats, and the number of evaluations, int64 (B,).

    Args:
        z_0: latents, (B, *event_shape), of the model's dtype.
        model, params, cond, integrator, probes, chunk: as in :func:`log_weight`.
    """
    _checks.instance("model", model, VDM, "a model of purevdm.vdm")
    n = len(latents("z_0", z_0, model))
    _refuse_recording(params, z_0, cond)
    if probes is not None:
        _checks.alike("probes", probes, (*_checks.tensor("probes", probes).shape[:1], *z_0.shape), model.dtype)
        if len(probes) == 0:
            raise ValueError(f"probes: expected at least one, got {_checks.describe(probes)}")
    checked(model, params, cond=cond, n=n, z_0=z_0, probes=probes)
    divergence_of = partial(flow.divergence, probes=probes, chunk=chunk)
    integrator = _integrator(integrator)
    z_1, change, evaluations = flow.integrate(model, params, z_0, integrator, cond, divergence_of=divergence_of)
    return _standard_normal(z_1) + change, evaluations


def _refuse_recording(*trees: Any) -> None:
    """Refuses, in a compiled graph, tensors that ``torch.autograd`` would find a part of the derivatives of."""
    if not torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    leaves = [leaf for tree in trees for leaf in _checks.leaves(tree).values()]
    if any(leaf.requires_grad for leaf in leaves):
        wanted = "expected tensors that require no gradient, as a compiled likelihood passes none, got some that do"
        raise RuntimeError(f"params, x, cond: {wanted}; call it under torch.no_grad(), or in eager")


def _fitting(model: VDM, dequantisation: str) -> None:
    """Refuses a dequantisation that does not fit the data."""
    kind, allowed = ("real-valued", REAL) if model.decoder.log_probs is None else ("discrete", DISCRETE)
    _checks.choice(f"dequantisation of {kind} data", dequantisation, allowed)


def _standard_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + math.log(2.0 * math.pi)).reshape(len(z), -1).sum(1)


def _spacing(model: VDM, f: Tensor) -> Tensor:
    """The distance between neighbouring values, one for each dimension or for all."""
    low, high = model.decoder.bounds(f[:1])  # type: ignore[misc]
    return (high - low) / (model.decoder.vocab_size - 1)  # type: ignore[operator]


def _reach(model: VDM, f: Tensor, gamma_0: Tensor) -> Tensor:
    """tau: half a bin of z_0 in units of its noise."""
    return 0.5 * _spacing(model, f) * torch.exp(-0.5 * gamma_0)


def _sample_keys(key: Key, n: int, samples: int) -> Tensor:
    """A key for each example and sample, (samples * n, 2), samples first."""
    keys = random.split(_checks.key("key", key), n)
    index = torch.arange(samples, device=key.device)
    return torch.func.vmap(lambda k: torch.func.vmap(lambda i: random.fold_in(k, i))(index), out_dims=1)(keys).reshape(-1, 2)


def _repeated(tree: Any, samples: int) -> Any:
    """Every tensor's rows repeated, samples first."""

    def repeat(leaf: Tensor | None) -> Tensor | None:
        return None if leaf is None else leaf.expand(samples, *leaf.shape).reshape(-1, *leaf.shape[1:])

    return None if tree is None else optree.tree_map(repeat, tree, none_is_leaf=True)


def _draw(model: VDM, params: Params, x: Tensor, keys: Tensor, cond: Any, dequantisation: str) -> Tensor:
    shape, dtype = model.event_shape, model.dtype
    if dequantisation == "uniform":
        return torch.func.vmap(lambda k: random.uniform(k, shape, dtype, -1.0, 1.0))(keys)
    if dequantisation == "truncated":
        f = model.decoder.encode({}, x, cond, dtype)
        tau = _reach(model, f, flow.ends(model, params, f, cond).gamma_0).expand_as(f)
        return torch.func.vmap(lambda k, tau: random.truncated_normal(k, -tau, tau, shape, dtype))(keys, tau)
    return torch.func.vmap(lambda k: random.normal(k, shape, dtype))(keys)


# Importance-weighted trajectories


def importance_bound(
    model: VDM,
    params: Params,
    x: Tensor,
    key: Key,
    cond: Any = None,
    *,
    timesteps: int | Tensor | None = None,
    samples: int = 1,
) -> Estimate:
    """A lower bound on log p(x) of the model in T steps, by K whole trajectories from q(z_0, ..., z_1 given x).

    With K = 1 its mean is that of the discrete-time bound (eq. 13, without its shortcut of one random step). With more it
    rises to log p(x) (Burda et al. 2016, arXiv 1509.00519, over the chain of all latents). Keys as in :func:`log_prob`.

    Args:
        model, params, x, key, cond: as in :func:`log_prob`.
        timesteps: T; the model's where left out. In an integer tensor of shape (), one compiled graph serves every number.
        samples: K. All K B trajectories run at once.

    Raises:
        TypeError, ValueError: bad input, as ``model.nll_bound`` says it; no number of steps; samples below 1.
    """
    _checks.instance("model", model, VDM, "a model of purevdm.vdm")
    n = checked(model, params, x, _checks.key("key", key), cond)
    samples = _checks.integer("samples", samples, 1)
    timesteps = model.timesteps if timesteps is None else timesteps
    if isinstance(timesteps, Tensor):
        _checks.count("timesteps", timesteps)
        _checks.within("timesteps", timesteps, 1, _checks.most_steps(model.dtype))
    elif _checks.timesteps(timesteps, model.dtype) == 0:
        raise ValueError("timesteps: expected at least 1, as trajectories have steps, got 0, continuous time")
    x, cond = _repeated(x, samples), _repeated(cond, samples)
    k_start, k_steps = torch.func.vmap(random.split)(_sample_keys(key, n, samples)).unbind(1)
    f = model.decoder.encode({}, x, cond, model.dtype)

    def noise(keys: Tensor) -> Tensor:
        return torch.func.vmap(lambda k: random.normal(k, model.event_shape, model.dtype))(keys)

    def gamma(t: Tensor) -> Tensor:
        return process.align(schedules.gamma(model.schedule, params["schedule"], t.expand(len(f)), cond), f)

    total = torch.as_tensor(timesteps, device=f.device).to(model.dtype)
    one = torch.ones((), dtype=model.dtype, device=f.device)
    gamma_1 = gamma(one)
    univariate = gamma_1[0].numel() == 1

    def step(i: Tensor, eps: Tensor, log_w: Tensor) -> tuple[Tensor, Tensor]:
        gamma_t, gamma_s = gamma((total - i) / total), gamma((total - i - 1) / total)
        at = gamma_t.reshape(-1) if univariate else gamma_t
        z_t = process.diffuse(f, gamma_t, eps)
        eps_hat = denoiser.in_bound(model.network, model.decoder, params["network"], z_t, at, cond)
        # In units of q(z_s given z_t, x)'s deviation, p(z_s given z_t)'s mean is off by delta, and z_s by e.
        rise = gamma_t - gamma_s
        delta = torch.sqrt(torch.expm1(rise)) * (eps_hat - eps)
        e = noise(torch.func.vmap(lambda k: random.fold_in(k, i))(k_steps))
        log_w = log_w - (delta * e + 0.5 * delta.square()).reshape(len(f), -1).sum(1)
        # The noise in z_s, as z_s = alpha_s f + sigma_s eps.
        return torch.exp(-0.5 * rise) * eps + torch.sqrt(-torch.expm1(-rise)) * e, log_w

    eps = noise(k_start)
    z_1 = process.diffuse(f, gamma_1, eps)
    log_q = (-0.5 * (eps.square() + math.log(2.0 * math.pi)) - torch.log(process.sigma(gamma_1))).reshape(len(f), -1).sum(1)
    eps, log_w = sampling.loop(step, (eps, _standard_normal(z_1) - log_q), timesteps)
    gamma_0 = gamma(0.0 * one)
    log_w = log_w - model.decoder.reconstruction({}, x, eps, gamma_0).reshape(len(f), -1).sum(1)
    evaluations = (total.to(torch.int64) * samples).expand(n).clone()
    return combine(log_w.reshape(samples, n), evaluations)
