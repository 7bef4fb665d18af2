"""Ways to measure -log p(x) of a data set, beside each other as one table: the bound, the probability flow by several
dequantisations, importance-weighted trajectories."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from purevdm import VDM, evaluation, likelihood, ode
from purevdm.evaluation import PerExample
from purevdm.likelihood import Estimate

Told = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Flow:
    """How the probability flow is integrated."""

    rtol: float = 1e-5
    atol: float = 1e-5
    """The integrator's tolerances; 1e-3 costs a fraction of the evaluations."""
    probes: int = 1
    """How many probes estimate the divergence, each unbiased; 0 computes it exactly, by as many products as dimensions."""
    chunk: int | None = None
    """How many probes or products at once; fewer need less memory."""
    quadrature: int | None = None
    """How many points of a step see the divergence, 2, 3 or 4; all stages where left out. Fewer are cheaper."""


class Method(NamedTuple):
    """A line of the table; what does not apply is 0 or empty."""

    kind: str
    dequantisation: str = ""
    samples: int = 1
    steps: int = 0

    @property
    def name(self) -> str:
        if self.kind == "bound":
            return "bound"
        form = self.dequantisation if self.kind == "flow" else f"T{self.steps}"
        return f"{self.kind}_{form}_K{self.samples}"


class Measured(NamedTuple):
    """What a method found: of each example, and in how many seconds."""

    method: Method
    found: PerExample
    seconds: float


def chosen(
    model: VDM, kinds: tuple[str, ...], dequantisations: tuple[str, ...], samples: tuple[int, ...], steps: int | None
) -> list[Method]:
    """The lines that some options ask for, each once.

    Raises:
        ValueError: a dequantisation that does not fit the data.
    """
    real = model.decoder.log_probs is None
    fitting = likelihood.REAL if real else likelihood.DISCRETE
    for entry in dequantisations:
        if entry not in fitting:
            data = "real" if real else "discrete"
            raise ValueError(f"dequantisation: expected {' or '.join(fitting)} for {data} data, got {entry}")
    found = []
    for kind in kinds:
        if kind == "bound":
            found.append(Method("bound", steps=model.timesteps))
        elif kind == "flow":
            for entry in dequantisations or fitting[:1]:
                # Without dequantisation all samples are the same.
                found += [Method("flow", entry, k) for k in ((1,) if entry == "none" else samples or (1,))]
        else:
            found += [Method("iwae", samples=k, steps=steps or model.timesteps or 100) for k in samples or (1,)]
    return list(dict.fromkeys(found))


def measure(
    method: Method,
    model: VDM,
    params: dict,
    flow: Flow,
    told: Told,
    compile: bool,
    passes: int,
    batches: Any,
    **options: Any,
) -> Measured:
    """One method over a data set. ``told`` makes of a function of (params, x, key, cond) one of what batches hold, and
    ``options`` are those of :func:`purevdm.evaluation.per_example`. Seconds include compilation."""
    started = time.perf_counter()
    if method.kind == "bound":
        call: Callable[..., Any] = model.nll_bound
    elif method.kind == "flow":
        call = partial(
            likelihood.log_prob,
            model,
            dequantisation=method.dequantisation,
            samples=method.samples,
            integrator=ode.dopri5(flow.rtol, flow.atol, quadrature=flow.quadrature, failures="nan"),
            probes=flow.probes or "exact",
            chunk=flow.chunk,
        )
    else:
        call = partial(likelihood.importance_bound, model, timesteps=method.steps, samples=method.samples)
    call = told(torch.compile(call, fullgraph=True) if compile else call)
    options |= dict(passes=passes) if method.kind == "bound" else dict(failures="nan")
    found = evaluation.per_example(model, params, batches, method=call, **options)
    return Measured(method, found, time.perf_counter() - started)


HEADS = (
    "method",
    "dequantisation",
    "K",
    "T",
    "-log p, {unit}",
    "sampling",
    "minus {first}",
    "evaluations",
    "a second",
    "s",
    "failed",
)


def table(measured: list[Measured]) -> str:
    """The lines beside each other: -log p with its standard error over examples, the part of that error that comes from
    sampling the weights (too small where a few of them dominate), the paired difference from the first line, how often the
    network was applied to an example, how often a second to any, seconds, and how many examples failed, which are in none of
    their method's figures, nor in its difference."""
    rows: list[tuple[str, ...]] = []
    for row in measured:
        method, figures = row.method, row.found.summary()
        gap = "" if row is measured[0] else str(evaluation.compare(row.found, measured[0].found).difference)
        rows.append(
            (
                method.kind,
                method.dequantisation,
                "" if method.kind == "bound" else str(method.samples),
                str(method.steps) if method.steps else "",
                str(figures.nll),
                "" if math.isnan(figures.sampling) else f"{figures.sampling:.4f}",
                gap,
                f"{figures.evaluations:.0f}",
                f"{figures.evaluations * len(row.found.nll) / row.seconds:.0f}",
                f"{row.seconds:.1f}",
                str(figures.left_out or ""),
            )
        )
    heads = tuple(head.format(unit=figures.unit, first=measured[0].method.name) for head in HEADS)
    filled = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    widths = [max(len(line[i]) for line in (heads, *rows)) for i in range(len(heads))]
    lines = ["  ".join(f"{line[i]:{'<' if i < 2 else '>'}{widths[i]}}" for i in filled).rstrip() for line in (heads, *rows)]
    return "\n".join(lines)


def values(measured: list[Measured]) -> dict[str, np.ndarray]:
    """-log p(x) of each example by each method, nats, and its standard error where there are several samples."""
    found = {}
    for row in measured:
        found[row.method.name] = row.found.nll.numpy()
        if isinstance(row.found.result, Estimate) and row.method.samples > 1:
            found[f"{row.method.name}_error"] = row.found.result.error.numpy()
    return found
