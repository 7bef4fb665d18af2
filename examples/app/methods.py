"""Ways to measure -log p(x) of a data set, beside each other as one table: the bound, the probability flow by several
dequantisations, importance-weighted trajectories."""

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from purevdm import VDM, evaluation, likelihood, ode
from purevdm.evaluation import PerExample
from purevdm.likelihood import Estimate


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
    """What a method says of each example, and in how many seconds."""

    method: Method
    each: PerExample
    seconds: float


def chosen(
    model: VDM, kinds: tuple[str, ...], dequantisations: tuple[str, ...], samples: tuple[int, ...], steps: int | None
) -> list[Method]:
    """Lists the lines that some options ask for, each once.

    Raises:
        ValueError: a dequantisation that does not fit the data.
    """
    real = model.decoder.log_probs is None
    fitting = ("none", "variational") if real else ("variational", "truncated", "uniform")
    for entry in dequantisations:
        if entry not in fitting:
            data = "real" if real else "discrete"
            raise ValueError(f"dequantisation: expected {' or '.join(fitting)} for {data} data, got {entry}")
    methods = []
    for kind in kinds:
        if kind == "bound":
            methods.append(Method("bound", steps=model.timesteps))
        elif kind == "flow":
            for entry in dequantisations or fitting[:1]:
                # Without dequantisation all samples are the same.
                methods += [Method("flow", entry, k) for k in ((1,) if entry == "none" else samples or (1,))]
        else:
            methods += [Method("iwae", samples=k, steps=steps or model.timesteps or 100) for k in samples or (1,)]
    return list(dict.fromkeys(methods))


def measure(
    method: Method, model: VDM, params: dict, flow: Flow, compile: bool, passes: int, batches: Any, **options: Any
) -> Measured:
    """Measures a data set by one method; ``options`` are those of :func:`purevdm.evaluation.per_example`. Seconds include
    compilation."""
    started = time.perf_counter()
    call: Any = model.nll_bound
    if method.kind == "flow":
        call = partial(
            likelihood.log_prob,
            model,
            dequantisation=method.dequantisation,
            samples=method.samples,
            integrator=ode.dopri5(flow.rtol, flow.atol, quadrature=flow.quadrature, failures="nan"),
            probes=flow.probes or "exact",
            chunk=flow.chunk,
        )
    elif method.kind == "iwae":
        call = partial(likelihood.importance_bound, model, timesteps=method.steps, samples=method.samples)
    call = torch.compile(call, fullgraph=True) if compile else call
    options |= dict(passes=passes) if method.kind == "bound" else dict(failures="nan")
    each = evaluation.per_example(model, params, batches, method=call, **options)
    return Measured(method, each, time.perf_counter() - started)


def table(measured: list[Measured]) -> str:
    """Writes the lines beside each other: -log p with its standard error over examples, the part of that error that comes
    from sampling the weights (too small where a few of them dominate), the paired difference from the first line, how often
    the network was applied to an example, how often a second to any, seconds, and how many examples failed, which are in
    none of their method's figures, nor in its difference."""
    first, rows = measured[0], []
    for row in measured:
        method, figures = row.method, row.each.summary()
        entries = {
            "method": method.kind,
            "dequantisation": method.dequantisation,
            "K": "" if method.kind == "bound" else method.samples,
            "T": method.steps or "",
            f"-log p, {figures.unit}": figures.nll,
            "sampling": "" if math.isnan(figures.sampling) else f"{figures.sampling:.4f}",
            f"minus {first.method.name}": "" if row is first else evaluation.compare(row.each, first.each).difference,
            "evaluations": f"{figures.evaluations:.0f}",
            "a second": f"{figures.evaluations * len(row.each.nll) / row.seconds:.0f}",
            "s": f"{row.seconds:.1f}",
            "failed": figures.left_out or "",
        }
        rows.append([str(entry) for entry in entries.values()])
    return aligned([[*entries], *rows], ("method", "dequantisation"))


def aligned(lines: list[list[str]], texts: tuple[str, ...]) -> str:
    """Writes a head and lines in columns, those of texts to the left; empty columns are left out."""
    columns = [column for column in zip(*lines, strict=True) if any(column[1:])]
    padded = [
        [f"{entry:{'<' if column[0] in texts else '>'}{max(map(len, column))}}" for entry in column] for column in columns
    ]
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def values(measured: list[Measured]) -> dict[str, np.ndarray]:
    """Returns -log p(x) of each example by each method, nats, and its standard error where there are several samples."""
    arrays = {}
    for row in measured:
        arrays[row.method.name] = row.each.nll.numpy()
        if isinstance(row.each.result, Estimate) and row.method.samples > 1:
            arrays[f"{row.method.name}_error"] = row.each.result.error.numpy()
    return arrays
