"""Print the bound of a checkpoint on a data set, in bits per dimension (of real data in nats an example), as its parts with
standard errors.

    python examples/app/evaluate.py runs/digits_train                                # a run: its best checkpoint
    python examples/app/evaluate.py runs/digits_train --timesteps 1000 --passes 4    # in 1000 discrete steps
    python examples/app/evaluate.py runs/a --compare runs/b                          # paired: the error of the difference
    python examples/app/evaluate.py runs/a --save bounds.npz --profile profile.png   # each image; where the loss is
    python examples/app/evaluate.py runs/a --method bound flow iwae --samples 8      # the bound, and log p(x), in one table
    python examples/app/evaluate.py checkpoint.flax --data.path data                 # an official checkpoint, on CIFAR-10
    torchrun --nproc-per-node 4 examples/app/evaluate.py runs/a                      # the same figures, sooner

The form of an official model is read off its parameters. Errors are over examples; each example's bound is the mean over
the passes. The table of methods says more of what it holds in methods.py.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import optree
import programs
import torch
import tyro
from methods import Flow, chosen, measure, table, values
from pictures import profiles
from presets import Config, Data, Model, batches, build, datasets, keys, stream
from readers import DataError
from runs import Run, load
from tqdm import tqdm

from purevdm import evaluation, interop, parallel
from purevdm.training.data import Dataset, batch


@dataclass
class Arguments:
    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run's folder, one of its checkpoints, digits.py's params.safetensors, or an official .flax file."""
    path: str | None = None
    """Where a run's data are, if not where they were in training."""
    data: Data = field(default_factory=lambda: Data(source="cifar10", path="data"))
    """For an official checkpoint."""
    gamma: tuple[float, float] = (-13.3, 5.0)
    """For an official checkpoint: the endpoints between which its network normalises gamma."""
    split: Literal["train", "test"] = "test"
    method: tuple[Literal["bound", "flow", "iwae"], ...] = ("bound",)
    """One or several: the bound, log p(x) by the probability flow, bounds by importance-weighted trajectories. With more
    than the bound, a table of them all."""
    dequantisation: tuple[Literal["variational", "truncated", "uniform", "none"], ...] = ()
    """Of the flow, one or several; left out, variational for discrete data and none for real."""
    samples: tuple[int, ...] = ()
    """K of the flow and of iwae, one or several; 1 where left out."""
    steps: int | None = None
    """T of iwae's trajectories; left out, the model's own number, or 100 in continuous time."""
    flow: tyro.conf.OmitArgPrefixes[Flow] = field(default_factory=Flow)
    compare: Path | None = None
    """Another run, checkpoint or official file, on the same data and noise."""
    save: Path | None = None
    """An .npz file for the terms of each example: recon, prior, diffusion and nll, nats; of several methods -log p(x) by
    each."""
    profile: Path | None = None
    """A PNG file for the diffusion loss against time and against gamma; of both models with compare."""
    passes: int = 1
    """Passes of the bound's times over the data."""
    timesteps: int | None = None
    """T discrete steps, 0 for continuous time; as in training where left out."""
    examples: int | None = None
    """How many examples, from the first; all where left out."""
    batch: int = 128
    seed: int = 0
    device: str = "cpu"
    compile: bool = False
    """Worth it for large sets."""


@programs.program
def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    programs.least(1, passes=args.passes, batch=args.batch, examples=args.examples)
    programs.device(args.device)
    if args.compare and args.save:
        sys.exit("save: expected no compare with it; save the bounds of each")
    check_methods(args)
    for name in ("save", "profile"):
        programs.file(getattr(args, name), name)
    group = parallel.join(args.device)
    try:
        evaluate(args, group)
    finally:
        parallel.leave()


def check_methods(args: Arguments) -> None:
    """Refuses options of methods that do not go together."""
    flow, several = args.flow, args.method != ("bound",)
    counts = [*args.samples, *(n for n in (args.steps, flow.chunk) if n is not None)]
    for wrong, message in (
        (not args.method, "method: expected at least one"),
        (several and args.compare, "compare: expected method bound only; measure each model, and save"),
        (several and args.profile, "profile: expected method bound only, as it is of the bound"),
        (args.dequantisation and "flow" not in args.method, "dequantisation: expected method flow"),
        (args.samples and not {"flow", "iwae"} & {*args.method}, "samples: expected method flow or iwae"),
        (args.steps is not None and "iwae" not in args.method, "steps: expected method iwae"),
        (min(counts, default=1) < 1, "samples, steps, chunk: expected at least 1"),
        (flow.probes < 0, "probes: expected at least 0"),
        (flow.quadrature not in (None, 2, 3, 4), "quadrature: expected 2, 3 or 4"),
        (not (0 < flow.rtol < 1 and 0 < flow.atol < 1), "rtol, atol: expected between 0 and 1"),
    ):
        if wrong:
            sys.exit(message)


def evaluate(args: Arguments, group: parallel.Group) -> None:
    paths = [path for path in (args.checkpoint, args.compare) if path]
    runs = [restored(path, args, group.device) for path in paths]
    if args.profile and any(run.config.model.kind != "vdm" for run in runs):
        sys.exit("profile: expected a diffusion model, as a Bayesian flow has no gamma")
    data, *others = [run.test if args.split == "test" else run.train for run in runs]
    n = min(data.size, args.examples or data.size)
    for other in others:
        if not torch.equal(beginning(data), beginning(other)):
            sys.exit(f"compare: expected a model of the same data, {data.name}, got one of {other.name}")

    def over_batches(call: Callable[..., Any], run: Run, desc: str, **options: Any) -> Any:
        """Calls a function of the library on a model and the examples, with a progress bar."""
        of_all = batches(run.config, data, n, args.batch, group.device)
        options |= dict(key=stream("evaluate", args.seed, group.device), group=group)
        with tqdm(total=n, desc=desc, disable=group.rank > 0) as bar:
            update = parallel.counted(bar.update)
            found = call(run.model, run.params, batches=of_all, callback=update, **options)
            update(0)
            return found

    if args.method != ("bound",):
        return by_methods(runs[0], data, n, args, over_batches, group.rank == 0)
    compiled = [torch.compile(run.model.nll_bound, fullgraph=True) if args.compile else None for run in runs]
    each = [
        over_batches(evaluation.per_example, run, "bound", method=bound, passes=args.passes)
        for run, bound in zip(runs, compiled, strict=True)
    ]
    curves = {
        str(path): over_batches(evaluation.profile, run, "profile", bound=bound, passes=args.passes)
        for path, run, bound in zip(paths, runs, compiled, strict=True)
        if args.profile
    }
    if group.rank > 0:
        return None
    times = [f"{run.model.timesteps} steps" if run.model.timesteps else "continuous time" for run in runs]
    if args.compare:
        print(f"{data.name}: {n} examples, {args.passes} passes")
        for name, path, time in zip("ab", paths, times, strict=True):
            print(f"{name}      {path}, {time}")
        print(evaluation.compare(*each))
    else:
        print(f"{data.name}: {n} examples, {args.passes} passes, {times[0]}")
        figures = each[0].summary()
        for name, figure in (figures.terms | {"nll": figures.nll}).items():
            print(f"{name:10} {figure} {figures.unit}")
    if args.save:
        np.savez(args.save, **each[0].result._asdict(), nll=each[0].nll)
    if args.profile:
        profiles(curves, args.profile)
    return None


def by_methods(run: Run, data: Dataset, n: int, args: Arguments, over_batches: Callable[..., Any], first: bool) -> None:
    """Prints the table of several methods, and saves what each says of every example."""
    measured = []
    try:
        for method in chosen(run.model, args.method, args.dequantisation, args.samples, args.steps):
            call = partial(measure, method, flow=args.flow, compile=args.compile, passes=args.passes)
            measured.append(over_batches(call, run, method.name))
    except ValueError as error:
        sys.exit(str(error))
    if not first:
        return
    flow = f", flow at rtol {args.flow.rtol:g}, atol {args.flow.atol:g}, {args.flow.probes or 'no'} probes"
    print(f"{data.name}: {n} examples{flow if 'flow' in args.method else ''}")
    print(table(measured))
    if args.save:
        np.savez(args.save, **values(measured))


def restored(path: Path, args: Arguments, device: torch.device) -> Run:
    """Loads a checkpoint with what the arguments change."""
    if path.suffix == ".flax":
        return official(path, args, device)
    return load(path, str(device), **{"data.path": args.path, "model.timesteps": args.timesteps})


def beginning(data: Dataset) -> torch.Tensor:
    """Takes a few examples, by which data sets are distinguished."""
    return batch(data, np.arange(min(data.size, 8)))[0]


def official(path: Path, args: Arguments, device: torch.device) -> Run:
    """Loads an official checkpoint: its averaged parameters, and the model that they fit."""
    params = interop.load_flax(path).ema_params
    network, schedule = params["network"], params.get("schedule", {})
    parts = ("conv_in", "conv_out", "dense0", "down")
    if not all(part in network for part in parts) or not {"kernel"} <= network["conv_in"].keys() & network["dense0"].keys():
        raise DataError(f"{path}: expected the official model of images, with {', '.join(parts)}, got {sorted(network)}")
    embed = network["conv_in"]["kernel"].shape[0]
    model = Model(
        embed=embed,
        layers=len(network["down"]["0"]),
        attention=(0,) if "attn" in network["down"]["0"]["0"] else (),
        fourier=(6, 7) if network["conv_in"]["kernel"].shape[1] > network["conv_out"]["kernel"].shape[0] else (),
        flag=network["dense0"]["kernel"].shape[0] > embed,
        schedule="learned_linear" if "w" in schedule else "monotone_mlp" if "l1" in schedule else "fixed_linear",
        gamma_min=args.gamma[0],
        gamma_max=args.gamma[1],
        timesteps=args.timesteps or 0,
    )
    config = Config(data=args.data, model=model)
    train, test = datasets(config.data, keys(config.seed)["split"])
    if train.vocab_size is None:
        raise DataError(f"{train.name}: expected integers, which official checkpoints model, found real numbers")
    params = optree.tree_map(lambda leaf: leaf.to(device), {"network": network, "schedule": schedule})
    return Run(config, train, test, build(config, train.event_shape, train.vocab_size), params)


if __name__ == "__main__":
    main()
