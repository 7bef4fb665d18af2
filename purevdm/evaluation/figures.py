"""Figures to publish: the mean bound of a data set with its standard error, and the difference between two models."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks
from purevdm.bfn import BFN
from purevdm.bound import NLLBound
from purevdm.evaluation.bounds import bounds, draws, mean, numbers, stacked, stepped, within
from purevdm.training.parallel import Group
from purevdm.types import Key, Params
from purevdm.vdm import VDM

__all__ = ["Comparison", "Evaluation", "Figure", "compare", "evaluate", "summary"]


class Figure(NamedTuple):
    """A mean over examples and its standard error, in the unit of the evaluation."""

    mean: float
    error: float

    def __str__(self) -> str:
        digits = _decimals(self.error)
        return f"{self.mean:.{digits}f} +- {self.error:.{digits}f}"


class Evaluation(NamedTuple):
    """The bound on -log p(x), and the parts that it is the sum of.

    Attributes:
        total: the bound.
        diffusion, prior, recon: its parts; the prior is also called the latent loss.
        examples: how many.
        passes: over how many passes of times each example's bound is the mean.
        unit: "bits/dim", bits per dimension, or "nats" an example where data are real numbers and p is a density.
    """

    total: Figure
    diffusion: Figure
    prior: Figure
    recon: Figure
    examples: int
    passes: int
    unit: str


class Comparison(NamedTuple):
    """Two models on the same data and noise. Printed, it is a table of three lines.

    Attributes:
        a, b: each alone.
        difference: the bound of a less that of b, the mean and its standard error over examples, paired.
    """

    a: Evaluation
    b: Evaluation
    difference: Figure

    def __str__(self) -> str:
        unpaired = math.hypot(self.a.total.error, self.b.total.error)
        alone = f"unpaired +- {unpaired:.{_decimals(unpaired)}f}"
        return (
            f"a      {self.a.total} {self.a.unit}\n"
            f"b      {self.b.total} {self.b.unit}\n"
            f"a - b  {self.difference} {self.a.unit}, paired over {self.a.examples} examples ({alone})"
        )


def _decimals(error: float) -> int:
    """Four, and up to six where two digits of the error need them."""
    return min(max(1 - math.floor(math.log10(error)), 4), 6) if 0.0 < error < math.inf else 4


def checked_model(model: Any) -> VDM | BFN:
    kinds: tuple[type[Any], ...] = (VDM, BFN)
    return _checks.instance("model", model, kinds, "a purevdm VDM or BFN")


def checked_terms(name: str, terms: Any) -> NLLBound:
    """The bound's terms of at least one example."""
    terms = _checks.instance(name, terms, NLLBound, "a purevdm.NLLBound, as evaluation.bounds returns")
    shape = _checks.floating(f"{name}.recon", terms.recon).shape[:1]
    for field, term in terms._asdict().items():
        _checks.shaped(f"{name}.{field}", _checks.floating(f"{name}.{field}", term), shape or (1,))
    if shape == (0,):
        raise ValueError(f"{name}: expected those of at least one example, got none")
    return terms


def scale(model: VDM | BFN) -> tuple[float, str]:
    """By what to divide nats an example, and the unit that they then have."""
    unit = _checks.choice("model.decoder.unit", model.decoder.unit, ("bits/dim", "nats"))
    return 1.0 if unit == "nats" else math.prod(model.event_shape) * math.log(2.0), unit


def figure(x: Tensor) -> Figure:
    """The mean of independent examples, (N,), and its standard error, NaN for a single one."""
    return Figure(x.mean().item(), x.std().item() / math.sqrt(len(x)) if len(x) > 1 else math.nan)


def summary(model: VDM | BFN, terms: NLLBound, passes: int = 1) -> Evaluation:
    """The figures of what :func:`bounds` returns for a model: means over examples, with standard errors, in
    the unit of its data.

    Args:
        model: the model.
        terms: of each example, each (N,), nats.
        passes: for the record.

    Raises:
        TypeError, ValueError: no model, no terms, or none of any example.
    """
    divisor, unit = scale(checked_model(model))
    terms = checked_terms("terms", terms)
    passes = _checks.integer("passes", passes, 1)
    each = torch.stack(list(terms), 1) / divisor
    recon, prior, diffusion = (figure(column) for column in each.unbind(1))
    return Evaluation(figure(each.sum(1)), diffusion, prior, recon, len(each), passes, unit)


def evaluate(
    model: VDM | BFN,
    params: Params,
    batches: Iterable[Any],
    key: Key,
    *,
    passes: int = 1,
    timesteps: int | None = None,
    elbo: Callable[..., NLLBound] | None = None,
    group: Group | None = None,
    callback: Callable[[int], None] | None = None,
) -> Evaluation:
    """The model's bound on a data set, in continuous time or in T steps: the :func:`summary` of :func:`bounds`.

    Standard errors are over examples, as if these were independent, so they hold for fresh data. A batch's evenly spread
    times leave the means less noise than that, so errors are on the safe side, the more so the fewer the passes. Arguments
    and errors raised are those of :func:`bounds`.

    >>> import purevdm
    >>> from purevdm import evaluation, networks, random, schedules
    >>> model = purevdm.vdm(networks.mlp(16), schedules.fixed_linear(), event_shape=(2,))
    >>> x = random.randint(random.key(0), (64, 2), 0, 256)
    >>> found = evaluation.evaluate(model, model.init(random.key(1)), x.split(32), random.key(2), passes=2)
    >>> found.total.error > 0, found.examples, found.unit
    (True, 64, 'bits/dim')
    """
    options = dict(passes=passes, timesteps=timesteps, elbo=elbo, group=group, callback=callback)
    return summary(model, bounds(model, params, batches, key, **options), passes)  # type: ignore[arg-type]


@torch.no_grad()
def compare(
    a: tuple[VDM | BFN, Params],
    b: tuple[VDM | BFN, Params],
    batches: Iterable[Any],
    key: Key,
    *,
    passes: int = 1,
    timesteps: int | None = None,
    elbos: tuple[Callable[..., NLLBound], Callable[..., NLLBound]] | None = None,
    group: Group | None = None,
    callback: Callable[[int], None] | None = None,
) -> Comparison:
    """Two models on the same data with the same times and noise: which has the lower bound, and by how much.

    Why paired: most of an evaluation's error comes from which examples there are, easy ones or hard, and at what times they
    are bounded. Both models see the same, so it cancels in each example's difference. The error of the mean difference is
    then often many times smaller than sqrt(error_a**2 + error_b**2), that of the difference of two evaluations. Under two
    schedules one time is two noise levels, and less cancels, so use more passes.

    Args:
        a, b: pairs (model, params). Networks, schedules, decoders and numbers of steps may differ (times are then drawn
            alike, and rounded up to each model's steps), and one may be a BFN.
        batches, key, passes, group, callback: as for :func:`bounds`.
        timesteps: in how many steps to bound both, 0 for continuous time; each in its own number where left out.
        elbos: the two models' ``elbo`` compiled, or functions of the same arguments, for instance to give each model the
            part of the condition that it takes. Not with ``timesteps``.

    Raises:
        TypeError, ValueError: as :func:`bounds`, and two models of different event shapes, supports of data, units, dtypes
            or ways to draw times.

    >>> import purevdm
    >>> from purevdm import evaluation, networks, random, schedules
    >>> model = purevdm.vdm(networks.mlp(16), schedules.fixed_linear(), event_shape=(2,))
    >>> x = random.randint(random.key(0), (64, 2), 0, 256)
    >>> a, b = ((model, model.init(key)) for key in random.split(random.key(1)))
    >>> found = evaluation.compare(a, b, [x], random.key(2))
    >>> abs(found.a.total.mean - found.b.total.mean - found.difference.mean) < 1e-9
    True
    """
    for name, pair in (("a", a), ("b", b)):
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], (VDM, BFN))):
            raise TypeError(f"{name}: expected a pair (model, params), got {type(pair).__name__}")
    _comparable(a[0], b[0])
    given = (None, None) if elbos is None else elbos
    both = [(params, stepped(model, timesteps, e, "elbos")[1]) for (model, params), e in zip((a, b), given, strict=True)]

    def terms(x: Tensor, cond: Any, key: Key) -> Tensor:
        found = []
        for name, (params, elbo) in zip("ab", both, strict=True):
            with within(name):
                found.append(stacked("elbos", elbo(params, x, key, cond), len(x)))
        return torch.cat(found, 1)

    found = mean(draws(terms, batches, key, passes, group, callback)).split(3, 1)
    of_a, of_b = (NLLBound(*numbers(f"{name}: elbos", part).unbind(1)) for name, part in zip("ab", found, strict=True))
    difference = figure((of_a.total - of_b.total) / scale(a[0])[0])
    return Comparison(summary(a[0], of_a, passes), summary(b[0], of_b, passes), difference)


def _comparable(a: VDM | BFN, b: VDM | BFN) -> None:
    """Two models that one draw of data and noise serves."""
    for name, wanted, found in (
        ("event_shape", a.event_shape, b.event_shape),
        ("support of data", a.decoder.support, b.decoder.support),
        ("unit", scale(a)[1], scale(b)[1]),
        ("dtype", a.dtype, b.dtype),
        ("antithetic", a.antithetic, b.antithetic),
    ):
        if found != wanted:
            raise ValueError(f"b: expected a model with the {name} of a, {wanted}, got {found}")
