"""Print the bound of a checkpoint on a data set, in bits per dimension (of real data in nats an example), as its parts with
standard errors.

    python examples/evaluate.py runs/digits_train                                # a run: its best checkpoint
    python examples/evaluate.py runs/digits_train --timesteps 1000 --passes 4    # in 1000 discrete steps
    python examples/evaluate.py checkpoint.flax --data.path data                 # an official checkpoint, on CIFAR-10

The form of an official model is read off its parameters. Errors are over examples; each example's bound is the mean over
the passes.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import optree
import torch
import tyro
from presets import Config, Data, Model, build, datasets, keys, load, test_batches
from readers import DataError
from tqdm import tqdm

from purevdm import evaluation, interop, random
from purevdm.training.checkpoint import CheckpointError


@dataclass
class Arguments:
    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run's folder, one of its checkpoints, or an official .flax file."""
    path: str | None = None
    """Where a run's data are, if not where they were in training."""
    data: Data = field(default_factory=lambda: Data(source="cifar10", path="data"))
    """For an official checkpoint."""
    gamma: tuple[float, float] = (-13.3, 5.0)
    """For an official checkpoint: the endpoints between which its network normalises gamma."""
    split: Literal["train", "test"] = "test"
    passes: int = 1
    """Passes of times over the data."""
    timesteps: int | None = None
    """T discrete steps, 0 for continuous time; as in training where left out."""
    examples: int | None = None
    """How many examples, from the first; all where left out."""
    batch: int = 128
    seed: int = 0
    device: str = "cpu"
    compile: bool = False
    """Worth it for large sets."""


def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    if min(args.passes, args.batch, args.examples or 1) < 1:
        sys.exit("passes, batch, examples: expected at least 1")
    changes = {} if args.path is None else {"data.path": args.path}
    if args.timesteps is not None:
        changes["model.timesteps"] = args.timesteps
    try:
        if args.checkpoint.suffix == ".flax":
            config, train, test, model, params = official(args)
        else:
            config, train, test, model, params = load(args.checkpoint, args.device, **changes)
    except (CheckpointError, DataError) as error:
        sys.exit(str(error))
    data = test if args.split == "test" else train
    n = min(data.size, args.examples or data.size)
    config = replace(config, eval_batch=args.batch)
    elbo = torch.compile(model.elbo, fullgraph=True) if args.compile else None
    with tqdm(total=n, desc="bound") as bar:
        batches = test_batches(config, data, n, torch.device(args.device))
        key = random.key(args.seed, device=args.device)
        found = evaluation.evaluate(model, params, batches, key, passes=args.passes, elbo=elbo, callback=bar.update)
    time = f"{model.timesteps} steps" if model.timesteps else "continuous time"
    print(f"{data.name}: {found.examples} examples, {found.passes} passes, {time}")
    for name, figure in zip(("diffusion", "latent", "reconstruction", "total"), (*found[1:4], found[0]), strict=True):
        print(f"{name:15} {figure} {found.unit}")


def official(args: Arguments):
    """An official checkpoint: its averaged parameters, and the model that they fit."""
    params = interop.load_flax(args.checkpoint).ema_params
    network, schedule = params["network"], params.get("schedule", {})
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
    params = optree.tree_map(lambda leaf: leaf.to(args.device), {"network": network, "schedule": schedule})
    return config, train, test, build(config, train.event_shape, train.vocab_size), params


if __name__ == "__main__":
    main()
