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
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import optree
import torch
from tqdm import tqdm

import purevdm
from purevdm import bfn, random, training
from purevdm.training.data import batch, split

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "app"))
matplotlib.use("Agg")

import programs
import readers
import runs

LEVELS, SHAPE = 17, (1, 8, 8)
ENDPOINTS, FOURIER = (-8.0, 4.0), (1, 2, 3)
SPLIT = random.split(random.key(0), 5)[0]  # the key of the split of all runs, and of copy/digits.py
SETTINGS = dict(steps=400, batch=64, lr=2e-3, passes=20)
Found = dict[tuple[str, ...], list[dict[str, float]]]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Splits the digits: images for training and for the test, integers (n, 1, 8, 8) in [0, 16]."""
    train, test = (batch(part, np.arange(part.size))[0].long() for part in split(readers.digits(), SPLIT, 297))
    return train, test


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


def histogram_bits(train: torch.Tensor, test: torch.Tensor, levels: int = LEVELS) -> torch.Tensor:
    """Returns bits per dimension of each test image under independent per-pixel histograms with add-one smoothing."""
    counts = torch.nn.functional.one_hot(train.flatten(1), levels).sum(0) + 1.0
    log_p = (counts / counts.sum(-1, keepdim=True)).log2()
    return -torch.gather(log_p.expand(len(test), -1, -1), 2, test.flatten(1)[..., None]).mean((1, 2))


class Task(NamedTuple):
    """A row of a comparison.

    Attributes:
        model: the model that is trained.
        x: training examples, (n, *event_shape), in no order.
        assess: ``(params, key, passes) -> figures``, of which "bits" is the bound.
        variance: whether the schedule's interior follows the variance of the loss.
        settings: steps, batch and rate of the training, and passes of the evaluation, where the command line does not say.
    """

    model: purevdm.VDM | bfn.BFN
    x: torch.Tensor
    assess: Callable[[Any, torch.Tensor, int], dict[str, float]]
    variance: bool = False
    settings: dict[str, float] = SETTINGS


def arguments(doc: str, out: str, example: str) -> argparse.Namespace:
    """Reads the command line of a comparison, whose results go into the folder ``out``."""
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
    args = parser.parse_args()
    programs.least(1, steps=args.steps, batch=args.batch, passes=args.passes, seeds=args.seeds)
    programs.positive(lr=SETTINGS["lr"] if args.lr is None else args.lr)
    programs.folder(args.out)
    return args


def run(rows: dict[tuple[str, ...], Callable[[], Task]], args: argparse.Namespace, keep: Callable | None = None) -> Found:
    """Trains every row that is asked for from every seed, unless its file is there, and reads what all runs have left.

    Args:
        rows: the tasks, made when their turn comes.
        args: of :func:`arguments`.
        keep: called with the row, the seed and the averaged parameters of each run.
    """
    for row in tqdm([row for row in rows if "/".join(row).startswith(args.rows)], desc="rows"):
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
    optimizer = training.AdamW(
        lr=settings.lr,
        weight_decay=0.0,
        warmup=settings.steps // 20,
        decay="cosine",
        steps=settings.steps,
        clip_norm=1.0,
        ema_rate=0.99,
        ema_warmup=True,
        schedule_lr=5.0,
    )
    state = training.init(task.model, k_init)
    for i in tqdm(range(settings.steps), leave=False):
        k_batch, k_loss = random.split(random.fold_in(k_train, i))
        x = task.x[random.randint(k_batch, (settings.batch,), 0, len(task.x))]
        state, _ = training.train_step(optimizer, grad_fn, state, x, k_loss)
    return state.ema_params


def results(rows: Any, args: argparse.Namespace) -> Found:
    """Reads what the runs so far have left, by row."""
    found = {row: [json.loads(p.read_text()) for p in sorted(args.out.glob(f"{'-'.join(row)}-*.json"))] for row in rows}
    found = {row: runs for row, runs in found.items() if runs}
    if not found:
        sys.exit(f"rows: expected the beginning of {' or '.join('/'.join(row) for row in rows)}, got {args.rows!r}")
    return found


def summary(values: list[float]) -> str:
    """Writes a mean over seeds and its standard error."""
    error = f" ± {np.std(values, ddof=1) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{error}"


def difference(found: Found, a: tuple[str, ...], b: tuple[str, ...]) -> str | None:
    """Writes the bound of row a minus that of row b, seed by seed, where both have as many."""
    runs, others = found.get(a, []), found.get(b, [])
    if not runs or len(runs) != len(others):
        return None
    return f"{', '.join(a)} - {', '.join(b)}: {summary([i['bits'] - j['bits'] for i, j in zip(runs, others, strict=True)])}"


def table(header: str, lines: list[str], out: Path) -> None:
    """Prints a Markdown table, and writes it into table.md."""
    text = "\n".join([header, "|---" * (header.count("|") - 1) + "|", *lines])
    programs.write(out / "table.md", text + "\n")
    print(text)
