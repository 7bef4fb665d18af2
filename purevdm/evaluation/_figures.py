"""What an evaluation gives: each example's -log p(x), its mean with a standard error, and the difference of two."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from purevdm import _checks
from purevdm.bound import NLLBound
from purevdm.likelihood import Estimate

__all__ = ["Comparison", "Evaluation", "Figure", "PerExample", "bits_per", "compare"]


class Figure(NamedTuple):
    """A mean over examples and its standard error, in the unit of the evaluation."""

    mean: float
    error: float

    def __str__(self) -> str:
        digits = _decimals(self.error)
        return f"{self.mean:.{digits}f} +- {self.error:.{digits}f}"


def _decimals(error: float) -> int:
    """Counts the decimals to show: four, and up to six where two digits of the error need them."""
    return min(max(1 - math.floor(math.log10(error)), 4), 6) if 0.0 < error < math.inf else 4


class Evaluation(NamedTuple):
    """-log p(x) of a data set by one method, or the bound on it.

    Standard errors are over examples, as if these were independent, so they hold for fresh data. They contain the noise of
    times and weights, which is a part of what examples differ by.

    Attributes:
        nll: the mean over examples.
        pooled: total nats over total dimensions, in bits/dim or, where the unit is nats, nats/dim: large examples count for
            more.
        terms: the bound's recon, prior and diffusion, and code where a model has one, whose sum ``nll`` is; empty for
            another method.
        sampling: the part of the error that comes from the weights: what another key would change on the same examples. NaN
            for a bound and for one sample, and too small where a few weights dominate (see
            :class:`~purevdm.likelihood.Estimate`).
        samples: K, how many weights each example has; 1 for a bound. With finite K the mean is on average too high.
        evaluations: how often the network was applied to an example, the mean; for a bound the number of passes.
        examples: how many the figures are of.
        passes: how often the method was called on each batch.
        unit: "bits/dim", or "nats" an example where data are real numbers and p is a density.
        left_out: how many more examples failed, and are in none of the figures.
    """

    nll: Figure
    pooled: Figure
    terms: dict[str, Figure]
    sampling: float
    samples: int
    evaluations: float
    examples: int
    passes: int
    unit: str
    left_out: int = 0


class PerExample(NamedTuple):
    """-log p(x) of each of N examples by one method, or the bound on it, in the order of the data, on the CPU.

    Attributes:
        result: the bound's terms, the mean over passes, or the estimate of the weights of all passes; nats, float64.
        dims: how many dimensions each example has, int64 (N,).
        checksum: a sum over each example's bytes, int64 (N,), by which :func:`compare` knows the data again.
        passes: how often the method was called on each batch.
        unit: "bits/dim" or "nats", that of the figures.
    """

    result: NLLBound | Estimate
    dims: Tensor
    checksum: Tensor
    passes: int
    unit: str

    @property
    def nll(self) -> Tensor:
        """-log p(x) or the bound on it, (N,), nats; NaN where an example failed."""
        return -self.result.log_prob if isinstance(self.result, Estimate) else self.result.total

    def rows(self, index: Tensor) -> "PerExample":
        """Returns those of some examples: indices, or a mask (N,)."""
        result = type(self.result)(*(part[..., index] for part in self.result))
        return self._replace(result=result, dims=self.dims[index], checksum=self.checksum[index])

    def summary(self) -> Evaluation:
        """Returns the means with standard errors.

        Raises:
            ValueError: no example that did not fail.
        """
        done = ~self.nll.isnan()
        if not done.any():
            raise ValueError(f"nll: expected that of at least one example, got NaN for all {len(done)}")
        of, unit = self.rows(done), per_unit(self.dims, self.unit)[done]
        result, n = of.result, len(of.nll)
        if not isinstance(result, Estimate):
            terms = {name: figure(term / unit) for name, term in result._asdict().items()}
            sampling, samples, evaluations = math.nan, 1, float(self.passes)
        else:
            terms, samples, evaluations = {}, len(result.log_weights), result.evaluations.double().mean().item()
            sampling = (result.error / unit).square().sum().sqrt().item() / n
        pooled = figure(of.nll, of.dims.double() * (1.0 if self.unit == "nats" else math.log(2.0)))
        figures = (figure(of.nll / unit), pooled, terms, sampling, samples, evaluations)
        return Evaluation(*figures, n, self.passes, self.unit, len(done) - n)


class Comparison(NamedTuple):
    """Two evaluations of the same examples. Printed, it is a table of three lines.

    Attributes:
        a, b: the figures of each, over the examples that failed in neither.
        difference: -log p(x) of a minus that of b, the mean and its standard error over examples, paired.
    """

    a: Evaluation
    b: Evaluation
    difference: Figure

    def __str__(self) -> str:
        unpaired = math.hypot(self.a.nll.error, self.b.nll.error)
        notes = f"unpaired +- {unpaired:.{_decimals(unpaired)}f}" + f", {self.a.left_out} left out" * (self.a.left_out > 0)
        unit, paired = self.a.unit, f"paired over {self.a.examples} examples ({notes})"
        return f"a      {self.a.nll} {unit}\nb      {self.b.nll} {unit}\na - b  {self.difference} {unit}, {paired}"


def compare(a: PerExample, b: PerExample) -> Comparison:
    """Compares two models, two methods, or one model under two conditions on the same examples: which has the lower
    -log p(x), and by how much.

    Most of an evaluation's error comes from which examples there are, easy ones or hard, and it cancels in each example's
    difference. The noise of the bound cancels, too, where two models had the same batches and key, but less so under two
    schedules, where one time is two noise levels. The error of the mean difference is often many times smaller than
    sqrt(error_a**2 + error_b**2), that of the difference of two evaluations.

    Args:
        a, b: of :func:`per_example`. An example that failed in either is left out of both.

    Raises:
        TypeError, ValueError: something else, other examples or another order, another unit, or no example left.
    """
    for name, each in (("a", a), ("b", b)):
        _checks.instance(name, each, PerExample, "what evaluation.per_example returns")
    if (a.unit, len(a.nll)) != (b.unit, len(b.nll)):
        raise ValueError(f"b: expected what a has, {len(a.nll)} examples in {a.unit}, got {len(b.nll)} in {b.unit}")
    if (other := (a.checksum != b.checksum) | (a.dims != b.dims)).any():
        raise ValueError(
            f"b: expected the examples of a in the same order, got another as example {int(other.nonzero()[0])}"
        )
    done = ~(a.nll.isnan() | b.nll.isnan())
    if not done.any():
        raise ValueError("b: expected an example that failed in neither, got none")
    of_a, of_b = a.rows(done), b.rows(done)
    first, second = (each.summary()._replace(left_out=len(done) - len(of_a.nll)) for each in (of_a, of_b))
    return Comparison(first, second, figure((of_a.nll - of_b.nll) / per_unit(of_a.dims, a.unit)))


def bits_per(each: PerExample, count: Tensor) -> Figure:
    """Computes total bits over a total count, with the standard error over examples: bits a byte, for the bytes that an
    example's tokens stand for, ``lengths[x].sum(1)``, or with padding ``(lengths[x] * mask).sum(1)``.

    Bits a token depend on the vocabulary, bits a byte do not: models of one text under two tokenizers compare by these. A
    marker of a text's beginning or end has no bytes, but costs bits.

    Args:
        each: of :func:`per_example`, of discrete data. Examples that failed are left out.
        count: of each example, (N,), in the order of the data, numbers of at least 0.

    Raises:
        TypeError, ValueError: something else, real data, another number of examples, or counts that add up to 0.
    """
    _checks.instance("each", each, PerExample, "what evaluation.per_example returns")
    if each.unit == "nats":
        raise ValueError("each: expected examples of discrete data, got a density's, whose nats are no bits of a code")
    done = ~each.nll.isnan()
    count = _checks.shaped("count", count, tuple(each.nll.shape)).to("cpu", torch.float64)
    if not (count.isfinite() & (count >= 0.0)).all() or not count[done].sum() > 0:
        raise _checks.outside("finite numbers of at least 0, not all 0", "count", count)
    return figure(each.nll[done], count[done] * math.log(2.0))


def per_unit(dims: Tensor, unit: str) -> Tensor:
    """Returns how many nats an example of so many dimensions has to one of the unit: float64, (N,)."""
    return torch.ones_like(dims, dtype=torch.float64) if unit == "nats" else dims.double() * math.log(2.0)


def figure(x: Tensor, weight: Tensor | None = None) -> Figure:
    """Returns the mean of independent examples, (N,), and its standard error, NaN for a single one; with weights, the ratio
    of their sums."""
    weight, n = torch.ones_like(x) if weight is None else weight, len(x)
    mean = x.sum() / weight.sum()
    spread = (x - mean * weight).square().sum().sqrt() / weight.sum()
    return Figure(mean.item(), spread.item() * math.sqrt(n / (n - 1)) if n > 1 else math.nan)
