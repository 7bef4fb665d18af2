"""The rulers of a model: each a row of referee.py's table."""

import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import conventions
import numpy as np
import torch
from compress import of_rounds
from methods import Flow, Method, measure

from purevdm import VDM, NLLBound, codec, evaluation, interop, ode, random
from purevdm.evaluation import Figure, PerExample
from purevdm.noise import discretise, draw_times


@dataclass(frozen=True)
class Settings:
    """How the rulers are laid on."""

    steps: tuple[int, ...] = ()
    """Bounds in other numbers of steps: of a DDPM, so many of its times."""
    chain: int | None = None
    """Steps of the importance weights and of the file; where left out the model's own, or 100 in continuous time."""
    samples: int = 8
    """K of the importance weights; 1 for none."""
    times: int = 1000
    """At how many times, evenly spread, each example is bounded; at every step once where there are no more."""


class Subject(NamedTuple):
    """What is measured: a model, the same with clamped estimates if it is another program's, and data.

    Attributes:
        batches: gives the examples in batches of a size, with their conditions.
    """

    model: VDM
    clamped: VDM | None
    params: Any
    name: str
    batches: Callable[[int], list[Any]]


class Found(NamedTuple):
    """What a ruler says: the mean with its standard error, a bound's terms, the evaluations of the network for an example,
    and each example's figures where they are known."""

    figure: Figure
    unit: str
    terms: dict[str, Figure]
    evaluations: float
    each: PerExample | None = None
    note: str = ""


class Row(NamedTuple):
    """A line of the table: its ruler, and what to know about it."""

    name: str
    measure: Callable[[], Found]
    note: str = ""


FLOWS = {
    "variational": "Of the bound's own model, latents and p(x given z_0): a bound on its log p.",
    "truncated": "Of another model, latents rounded to the nearest value; noise in z_0 that is wide beside a bin costs.",
    "uniform": "Of latents rounded, too, drawn evenly from the bin; noise in z_0 that is narrow beside a bin costs.",
    "none": "",
}


def rows(subject: Subject, batch: int, key: torch.Tensor, args: Settings, how: Flow) -> Iterator[Row]:
    """Gives the lines of the table, the bound of the model as it is first."""
    model, clamped, params, values = subject.model, subject.clamped, subject.params, subject.model.decoder.vocab_size
    options = dict(batches=subject.batches(batch), key=key)

    def bound(model: VDM, of_seeds: Callable[..., NLLBound] | None = None) -> Found:
        n = min(args.times, model.timesteps or args.times)
        method = partial(spread, model, of_seeds or model.nll_bound, n)
        # How often one bound applies the network.
        applied = (1 + model.decoder.takes_estimate) * (1 + model.network.self_condition)
        return found(evaluation.per_example(model, params, method=method, **options))._replace(evaluations=n * applied)

    def by(method: Method, model: VDM = model) -> Found:
        return found(measure(method, model, params, how, False, 1, **options).each)

    def density(noise: bool) -> Found:
        integrator = ode.dopri5(how.rtol, how.atol, quadrature=how.quadrature, failures="nan")
        method = partial(conventions.density, model, noise=noise, integrator=integrator)
        return found(evaluation.per_example(model, params, method=method, failures="nan", **options))

    chain = in_steps(subject, args.chain)
    yield Row(f"bound, {f'{steps_of(model)} steps' if model.timesteps else 'continuous time'}", lambda: bound(model))
    if clamped is not None:
        yield Row("bound, clamped", lambda: bound(clamped), "The same with estimates of the data clamped to [-1, 1].")
    for n in dict.fromkeys((*args.steps, *(() if args.chain is None else (args.chain,)))):
        yield Row(f"bound, {n} steps", lambda n=n: bound(in_steps(subject, n)))
    if model.timesteps:
        yield Row("bound, continuous time", lambda: bound(model._replace(timesteps=0)))
    for kind in ("none", "variational") if values is None else ("variational", "truncated", "uniform"):
        yield Row(f"flow, {kind}", partial(by, Method("flow", kind)), FLOWS[kind])
    if args.samples > 1:
        weights = f"{args.samples} weights"
        yield Row(f"flow, variational, {weights}", partial(by, Method("flow", "variational", args.samples)))
        method = Method("iwae", samples=args.samples, steps=chain.timesteps)
        yield Row(f"bound, {steps_of(chain)} steps, {weights}", partial(by, method, chain))
    if values is None:
        return
    yield Row(f"file, {steps_of(chain)} steps", lambda: written(subject, chain))
    yield Row("score_sde's", lambda: density(noise=True), conventions.SCORE_SDE)
    yield Row("density", lambda: density(noise=False), conventions.DENSITY)
    if model.decoder.takes_estimate:
        yield Row("z_0 only", lambda: bound(conventions.sees_z_0(model)), conventions.SEES_Z_0)
    if clamped is not None:
        method = partial(conventions.improved_diffusion, clamped)
        yield Row("improved-diffusion's", lambda: bound(clamped, method), conventions.IMPROVED_DIFFUSION)


def spread(
    model: VDM, bound: Callable[..., NLLBound], n: int, params: Any, x: torch.Tensor, key: torch.Tensor, cond: Any = None
) -> NLLBound:
    """Gives the mean of n bounds of each example, at times spread evenly: as few of a DDPM's first steps hold most of its
    bound, random times would leave it a heavy tail."""
    k_start, key = random.split(key)
    start, totals = draw_times(k_start, len(x), dtype=model.dtype), [0.0, 0.0, 0.0]
    for i in range(n):
        t = discretise(((start + i) / n).clamp(max=1.0 - 2.0**-24), model.timesteps)
        seeds = model.seeds(random.fold_in(key, i), len(x))._replace(t=t)
        totals = [total + term.double() / n for total, term in zip(totals, bound(params, x, seeds, cond), strict=True)]
    return NLLBound(*totals)


def found(each: PerExample) -> Found:
    result = each.summary()
    note = f"{result.left_out} examples failed, and are not in it." if result.left_out else ""
    return Found(result.nll, result.unit, result.terms, result.evaluations, each, note)


def written(subject: Subject, model: VDM) -> Found:
    """Writes the examples into one block of a file, and says what it takes."""
    costs: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        # Networks of other programs compute in float32 here and there, and their files are for one machine.
        options = dict(timesteps=model.timesteps, portable=subject.clamped is None)
        given = (Path(folder) / "x.pvdm", model, subject.params, subject.batches(sys.maxsize))
        file = codec.write(*given, **options, callback=lambda *cost: costs.append(cost))
    counts, bits = map(np.array, zip(*costs, strict=True))
    error = of_rounds(bits / math.prod(model.event_shape), counts)[1]
    note = (
        f"{file.net:.4f} without the container and the bits that a block begins with, once for all of its examples. Where p "
        "is more than 5.6 deviations off it costs less than the bound: no number of a latent costs more than some 24 bits."
    )
    return Found(Figure(file.rate, error), "bits/dim", {}, float(steps_of(model)), note=note)


def in_steps(subject: Subject, n: int | None) -> VDM:
    """Gives the model in n steps: a DDPM at n of its times, of which the last step is p(x given z_0)."""
    model = subject.model
    if n is None or n == steps_of(model):
        return model if model.timesteps else model._replace(timesteps=100)
    if subject.clamped is not None and model.timesteps:
        return interop.respaced(model, interop.spaced(steps_of(model), n))
    return model._replace(timesteps=n - model.decoder.takes_estimate)


def steps_of(model: VDM) -> int:
    return model.timesteps + model.decoder.takes_estimate
