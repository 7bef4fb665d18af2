"""What the studies share: the programs of ``app/``, the digits, and comparisons of models over seeds.

A comparison has rows, each a model. It trains each from several seeds and writes a file for each run as it ends, so that a
second call goes on where the first stopped.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, NamedTuple, NoReturn

import matplotlib
import numpy as np
import optree
import torch
import tyro
from tqdm import tqdm

import purevdm
from purevdm import process, random, training
from purevdm.likelihood import flow
from purevdm.model import Bounded
from purevdm.training.data import Dataset, batch

sys.path[1:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("app", "copy")]
matplotlib.use("Agg")

import digits
import programs
import runs
from digits import LEVELS, SHAPE, histogram_bits

__all__ = ["LEVELS", "SHAPE", "histogram_bits", "programs"]
ENDPOINTS, FOURIER = (-8.0, 4.0), (1, 2, 3)
KEY = random.key(0)
SPLIT = random.split(KEY, 5)[0]  # the key of the split of all runs, and of copy/digits.py
SETTINGS = dict(steps=400, batch=64, lr=2e-3, passes=20)
Figures = dict[tuple[str, ...], list[dict[str, float]]]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Splits the digits: images for training and for the test, integers (n, 1, 8, 8) in [0, 16]."""
    return digits.data(SPLIT)


def trained(
    folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[purevdm.VDM, dict[str, Any], torch.Tensor]:
    """Loads the model that ``copy/digits.py`` trained, its parameters, and the test images."""
    path = folder / "params.safetensors"
    if not path.exists():
        sys.exit(f"{path}: not there; python examples/copy/digits.py makes it")
    run = runs.load(path, device)
    test = batch(run.test, np.arange(run.test.size), device)[0].long()
    return run.model._replace(dtype=dtype), optree.tree_map(lambda leaf: leaf.to(dtype), run.params), test


def latents(
    folder: Path, images: int, n: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[purevdm.VDM, dict[str, Any], torch.Tensor, Any]:
    """Loads the same model and its parameters, and makes latents of test images at time 0, with n probes each for the
    divergence, or "exact" for none."""
    model, params, test = trained(folder, device, dtype)
    x = test[:images]
    k_eps, k_probes = random.split(random.key(0, device=device))
    gamma_0 = model.gamma(params, torch.zeros((), device=device, dtype=dtype))
    z = process.diffuse(model.decoder.encode({}, x, dtype=dtype), gamma_0, random.normal(k_eps, x.shape, dtype))
    return model, params, z, flow.draw_probes(random.split(k_probes, len(x)), n, SHAPE, dtype) if n else "exact"


@dataclass
class OfRun:
    """The arguments of a program that looks at a trained model."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run's folder, an exported model's, or digits.py's params.safetensors."""
    out: Path | None = None
    """The folder to write into; left out, one in the run's own, of the program's name."""
    overwrite: bool = False
    """Whether to write over what an earlier call left in --out."""
    path: str | None = None
    """Where the data are, if not where they were in training."""
    seed: int = 0
    device: str = "cpu"


def some(test: Dataset, n: int, key: torch.Tensor, device: str) -> torch.Tensor:
    """Takes n examples at random, (n, *event_shape), in the order of the data."""
    index = random.permutation(key.cpu(), test.size)[:n].numpy()
    return batch(test, np.sort(index), device)[0].long()


class Task(NamedTuple):
    """A row of a comparison.

    Attributes:
        model: the model that is trained.
        x: training examples, (n, *event_shape), in no order.
        assess: ``(params, key, passes) -> figures``, of which "bits" is the bound.
        variance: whether the schedule's interior follows the variance of the loss.
        settings: steps, batch and rate of the training, and passes of the evaluation, where the command line does not say.
    """

    model: Bounded
    x: torch.Tensor
    assess: Callable[[Any, torch.Tensor, int], dict[str, float]]
    variance: bool = False
    settings: dict[str, float] = SETTINGS


Rows = dict[tuple[str, ...], Callable[[], Task]]


def arguments(doc: str, out: str, example: str, path: str | None = None, **flags: str) -> argparse.Namespace:
    """Reads the command line of a comparison, whose results go into the folder ``out``; the help of an argument that says
    where its data are, if it needs any, and flags of its own with theirs."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "default: each row's own"
    parser.add_argument("--steps", type=int, help=f"training steps of each run ({default})")
    parser.add_argument("--batch", type=int, help=default)
    parser.add_argument("--lr", type=float, help=default)
    parser.add_argument("--passes", type=int, help=f"passes of times over the test set ({default})")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row (default: %(default)s)")
    parser.add_argument("--rows", default="", help=f"only the rows that begin so, as {example}")
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--eager", action="store_true", help="do not compile")
    if path is not None:
        parser.add_argument("path", type=Path, help=path)
    for name, help in flags.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=help)
    args = parser.parse_args()
    programs.least(1, steps=args.steps, batch=args.batch, passes=args.passes, seeds=args.seeds)
    if args.lr is not None and not 0 < args.lr < math.inf:
        raise ValueError(f"lr: expected a finite number above 0, got {args.lr}")
    programs.folder(args.out)
    return args


def run(rows: Rows, args: argparse.Namespace, keep: Callable | None = None) -> Figures:
    """Trains every row that is asked for from every seed, unless its file is there, and reads what all runs have left.

    Args:
        rows: the tasks, made when their turn comes.
        args: of :func:`arguments`.
        keep: called with the row, the seed and the averaged parameters of each run.
    """
    for row in tqdm(chosen(rows, args), desc="rows"):
        paths = [args.out / f"{'-'.join(row)}-{seed}.json" for seed in range(args.seeds)]
        if all(path.exists() for path in paths):
            continue
        task = rows[row]()
        torch._dynamo.reset()
        grad_fn = training.gradients(task.model, variance=task.variance, compile=not args.eager)
        given = {name: value for name in task.settings if (value := getattr(args, name)) is not None}
        settings = SimpleNamespace(**(task.settings | given))
        for seed, path in enumerate(paths):
            if path.exists():
                continue
            k_init, k_train, k_test = random.split(random.key(seed + 1), 3)
            started = time.monotonic()
            params = train(task, grad_fn, k_init, k_train, settings)
            if keep:
                keep(row, seed, params)
            figures = task.assess(params, k_test, settings.passes)
            programs.write(path, json.dumps(figures))
            tqdm.write(f"{', '.join(row)}, {seed}: {figures['bits']:.3f} bits, {time.monotonic() - started:.0f} s")
    return results(rows, args)


def train(task: Task, grad_fn: Callable, k_init: torch.Tensor, k_train: torch.Tensor, settings: SimpleNamespace) -> Any:
    """Trains a task; returns parameters averaged over the last part. The schedule learns faster than the network."""
    rate = dict(lr=settings.lr, warmup=settings.steps // 20, decay="cosine", steps=settings.steps, schedule_lr=5.0)
    optimizer = training.AdamW(**rate, weight_decay=0.0, clip_norm=1.0, ema_rate=0.99, ema_warmup=True)
    state = training.init(task.model, k_init)
    for i in tqdm(range(settings.steps), leave=False):
        k_batch, k_loss = random.split(random.fold_in(k_train, i))
        x = task.x[random.randint(k_batch, (settings.batch,), 0, len(task.x))]
        state, _ = training.train_step(optimizer, grad_fn, state, x, k_loss)
    return state.ema_params


def chosen(rows: Any, args: argparse.Namespace) -> list[tuple[str, ...]]:
    """Lists the rows that are asked for."""
    return [row for row in rows if "/".join(row).startswith(args.rows)]


def no_such(rows: Any, args: argparse.Namespace) -> NoReturn:
    sys.exit(f"rows: expected the beginning of {' or '.join('/'.join(row) for row in rows)}, got {args.rows!r}")


def in_equal_time(rows: Rows, times: dict[tuple[str, ...], float], args: argparse.Namespace) -> Rows:
    """Gives each task only as many steps as take the time of the steps that it has: ``times`` are those of a step, where
    they are not 1. Results go into a folder of their own, as files are named by rows."""
    args.out = programs.folder(args.out / "equal_time")

    def made(row: tuple[str, ...]) -> Task:
        task = rows[row]()
        return task._replace(settings={**task.settings, "steps": round(task.settings["steps"] / times.get(row, 1.0))})

    return {row: partial(made, row) for row in rows}


def step_times(rows: Rows, args: argparse.Namespace, turns: int = 11) -> dict[tuple[str, ...], float]:
    """Times a training step of each row that is asked for, in turn, in one process: medians, as multiples of the first's."""
    steps, seconds = {}, {row: [] for row in chosen(rows, args) or no_such(rows, args)}
    for row in seconds:
        task = rows[row]()
        grad_fn = training.gradients(task.model, variance=task.variance, compile=not args.eager)
        x = task.x[: int(task.settings["batch"])]
        steps[row] = partial(training.train_step, training.AdamW(), grad_fn, training.init(task.model, KEY), x, KEY)
        steps[row]()
    for _ in tqdm(range(turns), desc="turns"):
        for row, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[row].append(time.perf_counter() - started)
    medians = {row: float(np.median(each)) for row, each in seconds.items()}
    first = next(iter(medians.values()))
    return {row: median / first for row, median in medians.items()}


def print_step_times(rows: Rows, args: argparse.Namespace) -> None:
    for row, ratio in step_times(rows, args).items():
        print(f"{', '.join(row):16}{ratio:6.2f}")


def results(rows: Any, args: argparse.Namespace) -> Figures:
    """Reads what the runs so far have left, by row."""
    figures = {row: [json.loads(p.read_text()) for p in sorted(args.out.glob(f"{'-'.join(row)}-*.json"))] for row in rows}
    figures = {row: runs for row, runs in figures.items() if runs}
    return figures or no_such(rows, args)


def summary(values: list[float]) -> str:
    """Writes a mean over seeds and its standard error."""
    error = f" ± {np.std(values, ddof=1) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{error}"


def difference(figures: Figures, a: tuple[str, ...], b: tuple[str, ...]) -> str | None:
    """Writes the bound of row a minus that of row b, seed by seed, where both have as many."""
    runs, others = figures.get(a, []), figures.get(b, [])
    if not runs or len(runs) != len(others):
        return None
    return f"{', '.join(a)} - {', '.join(b)}: {summary([i['bits'] - j['bits'] for i, j in zip(runs, others, strict=True)])}"


def table(header: str, lines: list[str], out: Path) -> None:
    """Prints a Markdown table, and writes it into table.md."""
    text = "\n".join([header, "|---" * (header.count("|") - 1) + "|", *lines])
    programs.write(out / "table.md", text + "\n")
    print(text)
