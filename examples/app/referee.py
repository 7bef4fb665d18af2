"""Measure one model by every ruler that there is, in one table: bounds, likelihoods by the flow, importance weights, a real
file, and the numbers that other repositories would print for it (conventions.py).

    python examples/app/referee.py runs/ddpm_digits digits                   # a pipeline that diffusers saved
    python examples/app/referee.py google-ddpm cifar10:data --images 256     # SOURCE:PATH, train.py's data.source and .path
    python examples/app/referee.py runs/fashion_mnist                        # a run of train.py, on its own test set
    python examples/app/referee.py runs/ddpm_digits digits --steps 100 250 --samples 32

**How one model reads 3.5, 4.1, 8.3 or -3.3.** A small DDPM that diffusers' own code trained for 2000 steps on Fashion-MNIST
(studies/ddpm.py), on 16 test images, in bits/dim (--images 16 --times 250 --chain 100 --samples 2 --rtol 1e-4 --atol 1e-4
--quadrature 2). Errors are over images; the difference from the first row is paired.

                                  -log p            minus the first
    bound, 1000 steps              3.78 +- 0.31                         recon 1.50, diffusion 2.28
    bound, clamped                 3.67 +- 0.29      -0.12 +- 0.04      recon 1.57, diffusion 2.09
    bound, 100 steps               8.25 +- 0.73       4.47 +- 0.50      recon 1.45, diffusion 6.80
    bound, continuous time         3.51 +- 0.27      -0.27 +- 0.06      recon 1.50, diffusion 2.01
    flow, variational              3.51 +- 0.22      -0.27 +- 0.18
    flow, truncated                3.80 +- 0.20       0.01 +- 0.18
    flow, uniform                  3.79 +- 0.20       0.01 +- 0.18
    flow, variational, 2 weights   3.49 +- 0.21      -0.29 +- 0.18
    bound, 100 steps, 2 weights    8.07 +- 0.68       4.28 +- 0.45
    file, 100 steps                7.08 +- 0.69       3.30              6.61 without its initial bits
    score_sde's                    3.84 +- 0.20       0.05 +- 0.19
    density                       -3.32 +- 0.22      -7.10 +- 0.18      -2.30 nats
    z_0 only                       4.09 +- 0.28       0.30 +- 0.04      recon 1.80
    improved-diffusion's           3.67 +- 0.29      -0.11 +- 0.04      recon 1.58

- *Steps.* A bound is that of a chain. The first of few steps is long, and costs most: 5.7 of the 8.3 bits in 100 steps.
- *Dequantisation.* Only the variational one keeps the bound's model, a latent and p(x given z_0). The others round the
  latent, whose noise is 1.3 bins wide at the first time: 0.3 bits here. Where it is narrow, 1/12 of a bin for the digits,
  they gain: 2.12 +- 0.05 uniform, 2.92 +- 0.06 variational, as that network knows no detail that is so fine.
- *Offset.* A density of data in [-1, 1] is of numbers, not of bins of width 2 / V. Noise within the bin makes it a bound,
  and log2(V / 2) bits are added, 7 for V = 256: score_sde's, of rounded latents, too.
- *The first time.* A decoder that sees z_0 only costs 0.3 bits here, where half of the pixels are black, and 2.4 where
  values are even. The normal distribution by tanh costs 0.002 more than the true one.
- *Clamping* estimates to [-1, 1] is another model, most often a better one.
- *A file* holds initial bits, once a block. No number of a latent costs more than some 24 bits there, where a normal's
  tail would from 5.6 deviations on: of a chain that is often so far off it takes less than the bound.
"""

import json
import math
import sys
import textwrap
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import optree
import programs
import torch
import tyro
from methods import Flow, aligned
from presets import Config, Data, Model, batches, datasets, keys, stream
from readers import DataError
from rulers import Found, Settings, Subject, rows
from runs import load

from purevdm import VDM, decoders, evaluation, interop
from purevdm.evaluation import Figure
from purevdm.training.data import Dataset


@dataclass
class Arguments:
    model: Annotated[Path, tyro.conf.Positional]
    """The folder of a pipeline that diffusers saved, or a run, a checkpoint or an exported model of train.py."""
    data: Annotated[str | None, tyro.conf.Positional] = None
    """"digits", or SOURCE:PATH, of which the test set is taken; a run's own where left out."""
    images: int = 64
    """How many, from the first."""
    rulers: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)
    flow: tyro.conf.OmitArgPrefixes[Flow] = field(default_factory=Flow)
    out: Path | None = None
    """The JSON file; referee.json in the model's folder where left out."""
    batch: int = 64
    seed: int = 0
    device: str = "cpu"


@programs.program
def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    rulers = args.rulers
    counts = dict(images=args.images, chain=rulers.chain, samples=rulers.samples, times=rulers.times, batch=args.batch)
    programs.least(1, **counts, steps=min(rulers.steps, default=None))
    programs.device(args.device)
    if not args.model.exists():
        raise DataError(f"model: expected a pipeline's folder or a run, got {args.model}, which is not there")
    out = args.out or programs.beside(args.model, "referee.json")
    programs.file(out)
    subject = subject_of(args)
    data, n = math.prod(subject.model.event_shape), sum(len(x) for x, _ in subject.batches(args.batch))
    print(f"{args.model}: {n} examples of {subject.name}, {data} dimensions each", flush=True)
    entries, first = [], None
    for row in rows(subject, args.batch, key_of(args), rulers, args.flow):
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
        report = dict(settings=settings, data=subject.name, examples=n, rows=entries)
        programs.write(out, json.dumps(report, indent=1) + "\n")
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
        data, config = read(args.data)[1], Config(model=Model(flag=False))
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
        gap = Figure(**entry["gap"])
        gap = "" if entry is entries[0] else f"{gap.mean:.4f}" if math.isnan(gap.error) else str(gap)
        figure, rest = Figure(entry["mean"], entry["error"]), (f"{entry['evaluations']:.0f}", f"{entry['seconds']:.1f}")
        lines.append([entry["name"], str(figure), gap, *terms, *rest])
    head = ["", f"-log p, {unit}", "minus the first", "recon", "prior", "diffusion", "evaluations", "s"]
    return aligned([head, *lines], ("",))


if __name__ == "__main__":
    main()
