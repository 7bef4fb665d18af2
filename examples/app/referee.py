"""Measure one model by every ruler that there is, in one table: bounds, likelihoods by the flow, importance weights, a real
file, and the numbers that other repositories would print for it (conventions.py).

    python examples/app/referee.py runs/ddpm_digits digits                   # a pipeline that diffusers saved
    python examples/app/referee.py google-ddpm cifar10:data --images 256     # SOURCE:PATH, train.py's data.source and .path
    python examples/app/referee.py runs/fashion_mnist                        # a run of train.py, on its own test set
    python examples/app/referee.py runs/ddpm_digits digits --steps 100 250 --samples 32
"""

import json
import math
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import conventions
import numpy as np
import optree
import programs
import torch
import tyro
from compress import of_rounds
from methods import Flow, Method, aligned, measure
from presets import Config, Data, Model, batches, datasets, keys, stream
from readers import DataError
from runs import load

from purevdm import VDM, NLLBound, codec, decoders, evaluation, interop, ode, random
from purevdm.evaluation import Figure, PerExample
from purevdm.noise import discretise, draw_times
from purevdm.training.data import Dataset


@dataclass
class Arguments:
    model: Annotated[Path, tyro.conf.Positional]
    """The folder of a pipeline that diffusers saved, or a run, a checkpoint or an exported model of train.py."""
    data: Annotated[str | None, tyro.conf.Positional] = None
    """"digits", or SOURCE:PATH, of which the test set is taken; a run's own where left out."""
    images: int = 64
    """How many, from the first."""
    steps: tuple[int, ...] = ()
    """Bounds in other numbers of steps: of a DDPM, so many of its times."""
    chain: int | None = None
    """Steps of the importance weights and of the file; where left out the model's own, or 100 in continuous time."""
    samples: int = 8
    """K of the importance weights; 1 for none."""
    times: int = 1000
    """At how many times, evenly spread, each example is bounded; at every step once where there are no more."""
    flow: tyro.conf.OmitArgPrefixes[Flow] = field(default_factory=Flow)
    out: Path | None = None
    """The JSON file; referee.json in the model's folder where left out."""
    batch: int = 64
    seed: int = 0
    device: str = "cpu"


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


@programs.program
def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    counts = dict(images=args.images, chain=args.chain, samples=args.samples, times=args.times, batch=args.batch)
    programs.least(1, **counts, steps=min(args.steps, default=None))
    programs.device(args.device)
    if not args.model.exists():
        raise DataError(f"model: expected a pipeline's folder or a run, got {args.model}, which is not there")
    out = args.out or programs.beside(args.model, "referee.json")
    programs.file(out)
    subject = subject_of(args)
    data, n = math.prod(subject.model.event_shape), sum(len(x) for x, _ in subject.batches(args.batch))
    print(f"{args.model}: {n} examples of {subject.name}, {data} dimensions each", flush=True)
    entries, first = [], None
    for row in rows(subject, args):
        started = time.perf_counter()
        print(f"{row.name} ...", file=sys.stderr, flush=True)
        try:
            found = row.measure()
        except (TypeError, ValueError, ImportError) as error:
            if first is None or not programs.expected(error):
                raise
            entries.append(dict(name=row.name, failed=programs.message(error), note=row.note))
        else:
            first = first or found
            seconds = time.perf_counter() - started
            entries.append(dict(name=row.name, **as_json(found, first), seconds=seconds, note=found.note or row.note))
        settings = {name: str(value) for name, value in vars(args).items()}
        programs.write(
            out, json.dumps(dict(settings=settings, data=subject.name, examples=n, rows=entries), indent=1) + "\n"
        )
    print(table(entries))
    for entry in entries:
        if note := entry.get("failed") or entry["note"]:
            print(*textwrap.wrap(f"{entry['name']}: {note}", 120, subsequent_indent="    "), sep="\n")


# What is measured


def read(data: str) -> tuple[Dataset, Dataset]:
    """Reads the training and the test set of "digits" or SOURCE:PATH."""
    source, _, path = data.partition(":")
    return datasets(Data(source=source, path=path), keys(0)["split"])


def subject_of(args: Arguments) -> Subject:
    """Loads the model and the data, and holds them against each other."""
    if (args.model / "model_index.json").is_file():
        if args.data is None:
            raise ValueError('data: expected "digits" or SOURCE:PATH, as a pipeline has no data of its own, got none')
        data, config, clamped = read(args.data)[1], Config(model=Model(flag=False)), None
        if data.vocab_size is None:
            raise DataError(f"data: expected integers, which pipelines of images are for, got real numbers in {data.name}")
        load_model = partial(interop.from_diffusers, args.model, decoder=decoders.discretised_gaussian(data.vocab_size))
        (model, params), (clamped, _) = load_model(), load_model(clip=True)
    else:
        config, _, data, model, params = load(args.model, args.device, dataless=args.data is not None)
        data, clamped = data if args.data is None else read(args.data)[1], None
        if not isinstance(model, VDM):
            raise ValueError(f"model: expected a diffusion model, got a Bayesian flow in {args.model}")
    given, taken = (data.event_shape, data.vocab_size), (model.event_shape, model.decoder.vocab_size)
    if given != taken:
        raise DataError(f"data: expected the network's {form(*taken)}, got {form(*given)} in {data.name}")
    n = min(args.images, data.size)
    params = optree.tree_map(lambda leaf: leaf.to(args.device), params)

    def batches_of(size: int) -> list[Any]:
        return list(batches(config, data, n, size, args.device))

    if model.decoder.vocab_size is not None:
        x, cond = batches_of(args.batch)[0]
        interop.warn_of_range(model, params, x, key_of(args), cond)
    return Subject(model, clamped, params, data.name, batches_of)


def form(event_shape: tuple[int, ...], vocab_size: int | None) -> str:
    return f"{vocab_size or 'real'} values in shape {event_shape}"


def key_of(args: Arguments) -> torch.Tensor:
    return stream("referee", args.seed, args.device)


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


# Rulers

FLOWS = {
    "variational": "Of the bound's own model, latents and p(x given z_0): a bound on its log p.",
    "truncated": "Of another model, latents rounded to the nearest value; noise in z_0 that is wide beside a bin costs.",
    "uniform": "Of latents rounded, too, drawn evenly from the bin; noise in z_0 that is narrow beside a bin costs.",
    "none": "",
}


def rows(subject: Subject, args: Arguments) -> Iterator[Row]:
    """Gives the lines of the table, the bound of the model as it is first."""
    model, clamped, params, values = subject.model, subject.clamped, subject.params, subject.model.decoder.vocab_size
    options = dict(batches=subject.batches(args.batch), key=key_of(args))

    def bound(model: VDM, of_seeds: Callable[..., NLLBound] | None = None) -> Found:
        n = min(args.times, model.timesteps or args.times)
        each = evaluation.per_example(
            model, params, method=partial(spread, model, of_seeds or model.nll_bound, n), **options
        )
        times = (1 + model.decoder.takes_estimate) * (
            1 + model.network.self_condition
        )  # how often a bound applies the network
        return found(each)._replace(evaluations=n * times)

    def by(method: Method, model: VDM = model) -> Found:
        return found(measure(method, model, params, args.flow, False, 1, **options).each)

    def density(noise: bool) -> Found:
        integrator = ode.dopri5(args.flow.rtol, args.flow.atol, quadrature=args.flow.quadrature, failures="nan")
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
        totals = [total + term / n for total, term in zip(totals, bound(params, x, seeds, cond), strict=True)]
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
    note = f"{file.net:.4f} without the bits that a block begins with, once for all of its examples, and the container."
    return Found(Figure(file.rate, error), "bits/dim", {}, float(steps_of(model)), note=note)


# The table


def as_json(found: Found, first: Found) -> dict[str, Any]:
    """Gives a row's figures as plain values; ``gap`` is what it has more than the first row, paired where possible."""
    gap = Figure(found.figure.mean - first.figure.mean, math.nan)
    if found.each is not None:
        gap = evaluation.compare(found.each, first.each).difference
    terms = {name: term._asdict() for name, term in found.terms.items()}
    return dict(**found.figure._asdict(), unit=found.unit, gap=gap._asdict(), terms=terms, evaluations=found.evaluations)


def table(entries: list[dict[str, Any]]) -> str:
    """Writes the rows beside each other."""
    unit, lines = entries[0]["unit"], []
    for entry in entries:
        if "failed" in entry:
            lines.append([entry["name"], "failed", *[""] * 6])
            continue
        terms = [f"{term['mean']:.4f}" for term in entry["terms"].values()] or [""] * 3
        gap = Figure(**entry["gap"]) if entry is not entries[0] else ""
        figure, rest = Figure(entry["mean"], entry["error"]), (f"{entry['evaluations']:.0f}", f"{entry['seconds']:.1f}")
        lines.append([entry["name"], str(figure), str(gap), *terms, *rest])
    head = ["", f"-log p, {unit}", "minus the first", "recon", "prior", "diffusion", "evaluations", "s"]
    return aligned([head, *lines], ("",))


if __name__ == "__main__":
    main()
