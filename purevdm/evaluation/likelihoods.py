"""Each example's likelihood by any method of :mod:`purevdm.likelihood`, its figure, and the difference of two methods."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, likelihood, ode
from purevdm.bound import NLLBound
from purevdm.evaluation.bounds import draws
from purevdm.evaluation.figures import Figure, checked_model, checked_terms, figure, scale
from purevdm.likelihood import Estimate
from purevdm.training.parallel import Group
from purevdm.types import Key, Params
from purevdm.vdm import VDM

__all__ = ["Measurement", "difference", "likelihoods", "measurement"]


class Measurement(NamedTuple):
    """-log p(x) by one method.

    Attributes:
        total: the mean of -log p(x) and its standard error over examples. That error holds the noise of the weights, which
            is a part of what examples differ by.
        sampling: the part of that error that comes from the weights: what another key would change on the same examples.
            NaN for one sample, whose spread is unknown, and too small where a few weights dominate (see ``Estimate``).
        samples: K, how many weights each example has. With finite K the mean is on average too high.
        evaluations: how often the network was applied to an example, the mean.
        examples: how many the figures are of.
        unit: "bits/dim", or "nats" an example where data are real numbers and p is a density.
        left_out: how many examples more failed, and are in none of the figures, which so hold for the others alone.
    """

    total: Figure
    sampling: float
    samples: int
    evaluations: float
    examples: int
    unit: str
    left_out: int = 0


@torch.no_grad()
def likelihoods(
    model: VDM,
    params: Params,
    batches: Iterable[Any],
    key: Key,
    *,
    passes: int = 1,
    estimate: Callable[..., Estimate] | None = None,
    failures: str = "raise",
    group: Group | None = None,
    callback: Callable[[int], None] | None = None,
) -> Estimate:
    """log p(x) of each example of a data set by one method, in the order of the data: an
    :class:`~purevdm.likelihood.Estimate` of N examples, nats, float64, on the CPU.

    Args:
        model: the model.
        params: its parameters.
        batches: an iterable of x, (x,) or (x, cond); see :mod:`purevdm.evaluation`.
        key: a key.
        passes: how often the method is called on each batch, with fresh keys. The weights of all passes are combined:
            passes times K samples, in the memory of K.
        estimate: the method, ``estimate(params, x, key, cond) -> Estimate``, compiled or not: for instance
            ``partial(likelihood.log_prob, model, dequantisation="truncated", samples=8)``, or
            ``partial(likelihood.importance_bound, model, timesteps=100, samples=8)``. Left out, it is
            ``likelihood.log_prob`` of the model, in eager.
        failures: what becomes of an example whose integration fails: "raise" for an error, "nan" to keep NaN for it alone,
            which ``found.log_prob.isnan()`` shows and :func:`measurement` counts. A method of one's own in eager then needs
            an integrator that does not raise itself, as ``ode.dopri5(failures="nan")``.
        group, callback: as for :func:`bounds`.

    Raises:
        TypeError, ValueError: bad input, as the method says it; an item of another form, no batch, passes < 1; a method that
            returns something else; weights that are NaN, as those of a compiled integration that did not reach its end.

    >>> from functools import partial
    >>> import purevdm
    >>> from purevdm import evaluation, likelihood, networks, ode, random, schedules
    >>> model = purevdm.vdm(networks.mlp(16, fourier=()), schedules.fixed_linear(-6.0, 5.0), event_shape=(2,), vocab_size=16)
    >>> params, x = model.init(random.key(0)), random.randint(random.key(1), (64, 2), 0, 16)
    >>> flow = partial(likelihood.log_prob, model, samples=4, integrator=ode.rk4(20))
    >>> found = evaluation.likelihoods(model, params, x.split(32), random.key(2), estimate=flow)
    >>> found.log_prob.shape, found.log_weights.shape
    (torch.Size([64]), torch.Size([4, 64]))
    >>> measured = evaluation.measurement(model, found)
    >>> measured.samples, measured.evaluations, measured.unit, measured.sampling < measured.total.error
    (4, 320.0, 'bits/dim', True)
    >>> terms = evaluation.bounds(model, params, x.split(32), random.key(3), passes=8)
    >>> gap = evaluation.difference(model, terms, found)  # how far the flow is below the bound, paired
    """
    _checks.instance("model", model, VDM, "a purevdm VDM")
    own = partial(likelihood.log_prob, model, integrator=ode.dopri5(failures=failures))
    call = own if estimate is None else _checks.function("estimate", estimate)

    def terms(x: Tensor, cond: Any, key: Key) -> Tensor:
        found, n = call(params, x, key, cond), x.shape[0]
        if not isinstance(found, Estimate):
            raise TypeError(f"estimate: expected it to return a likelihood.Estimate, got {_checks.describe(found)}")
        _checks.shaped("estimate's log_weights", found.log_weights, (*found.log_weights.shape[:1], n))
        return torch.cat([found.log_weights.T.double(), found.evaluations[:, None].double()], 1)

    found = draws(terms, batches, key, passes, group, callback)
    log_weights = found[..., :-1].transpose(1, 2).flatten(0, 1)
    broken = log_weights == math.inf if failures == "nan" else ~(log_weights < math.inf)
    if broken.any():  # after all have gathered, so that no process is left waiting
        i = int(broken.any(0).nonzero()[0])
        raise ValueError(f"estimate: expected weights, got {log_weights[broken[:, i], i][0]} for example {i} of the data")
    return likelihood.combine(log_weights, found[..., -1].sum(0).long())


def measurement(model: VDM, found: Estimate) -> Measurement:
    """The figure of what :func:`likelihoods` returns for a model, in the unit of its data.

    Standard errors are over examples, as if these were independent, so they hold for fresh data.

    Args:
        model: the model.
        found: log p(x) of each example, nats.

    Raises:
        TypeError, ValueError: no model, no estimate, or one of no example, or of none that did not fail.
    """
    divisor, unit = scale(checked_model(model))
    rows = ~_nats("found", found, (Estimate,)).isnan()
    if not rows.any():
        raise ValueError(f"found: expected log p of at least one example, got NaN for all {len(rows)}")
    log_prob, error, log_weights, evaluations = (part[..., rows] for part in found)
    n = len(log_prob)
    total = figure(-log_prob / divisor)
    sampling = math.sqrt(error.square().sum().item()) / (n * divisor)
    mean = evaluations.double().mean().item()
    return Measurement(total, sampling, len(log_weights), mean, n, unit, len(rows) - n)


def difference(model: VDM, a: NLLBound | Estimate, b: NLLBound | Estimate) -> Figure:
    """-log p(x) by method a less that by method b, on the same examples: the mean and its standard error, paired, in the
    unit of the model's data.

    Most of each mean's error comes from which examples there are, easy ones or hard. It cancels in the difference.

    Args:
        model: the model.
        a, b: what :func:`bounds` or :func:`likelihoods` return for the same batches.

    Raises:
        TypeError, ValueError: something else, different numbers of examples, or some whose likelihood is NaN: leave them out
            of both first.
    """
    divisor, _ = scale(checked_model(model))
    of_a, of_b = (_nats(name, found, (NLLBound, Estimate)) for name, found in (("a", a), ("b", b)))
    if of_a.shape != of_b.shape:
        raise ValueError(f"b: expected the examples of a, {len(of_a)}, got {len(of_b)}")
    for name, each in (("a", of_a), ("b", of_b)):
        if each.isnan().any():
            i = int(each.isnan().nonzero()[0])
            wanted = "expected the likelihood of every example"
            raise ValueError(f"{name}: {wanted}, got NaN for example {i}; leave it out of both")
    return figure((of_a - of_b) / divisor)


def _nats(name: str, found: NLLBound | Estimate, kinds: tuple[type, ...]) -> Tensor:
    """-log p(x) of each example, or the bound on it."""
    _checks.instance(name, found, kinds, " or ".join(f"an {kind.__name__}" for kind in kinds))
    if isinstance(found, NLLBound):
        return checked_terms(name, found).total
    log_p = _checks.floating(f"{name}.log_prob", found.log_prob)
    if log_p.ndim != 1 or len(log_p) == 0:
        raise ValueError(f"{name}.log_prob: expected that of at least one example, (N,), got {_checks.describe(log_p)}")
    return -log_p
