"""Compare diffusion models with Bayesian Flow Networks: grey digits, black and white digits, and text, over seeds.

    python examples/families.py

Digits are scikit-learn's, text is Python's language reference (``characters.py``). On each a diffusion model and a Bayesian
Flow Network have the same network but for its inputs and outputs, the same steps, batches and seeds, and one split of the
data. A diffusion model takes black and white for two numbers, and a character for five such bits.

Writes a file for each run as it ends, so that a second call goes on where the first stopped, table.md, and bfn.png: samples
of the Bayesian flows of the first seed, and their input distributions on the way.

Digits after 400 steps of 64 images, text after 800 steps of 32 windows, means over three seeds with their standard errors;
then the standard error over test examples, the noise of times included. Text is that of Python 3.11.

    data                    model             test             over examples  train
    grey, bits/dim          diffusion         2.190 +- 0.007   0.023          2.165 +- 0.003
    grey, bits/dim          Bayesian flow     1.974 +- 0.003   0.016          1.955 +- 0.003
    grey, bits/dim          pixel histograms  2.427            0.012
    binary, bits/dim        diffusion         0.496 +- 0.004   0.009          0.488 +- 0.002
    binary, bits/dim        Bayesian flow     0.453 +- 0.002   0.007          0.450 +- 0.003
    binary, bits/dim        pixel histograms  0.545            0.005
    text, bits/character    diffusion         3.711 +- 0.007   0.066          3.688 +- 0.024
    text, bits/character    Bayesian flow     3.131 +- 0.007   0.024          3.146 +- 0.008
    text, bits/character    1-grams           4.101            0.007
    text, bits/character    2-grams           3.352            0.011
    text, bits/character    3-grams           2.511            0.015
    text, bits/character    4-grams           1.905            0.018
    text, bits/character    5-grams           1.707            0.021

Much of the gain is the output's: it says which values data take. The diffusion model of black and white gives a probability,
too; one that predicts the noise, as that of grey digits does, spends 0.774 (one seed), more than histograms. Training times
matter less: drawn by importance, they take the diffusion model of grey digits to 2.138 (``objectives.py``). On text the
Bayesian flow is ahead of bigrams, and far behind trigrams, though it sees the whole window. It has too few steps: it spends
as much on training windows as on new ones, and 2.999 bits after 1200 steps (one seed).
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import characters
import digits
import pictures
import programs
import torch
from pictures import plt
from results import ENDPOINTS, FOURIER, summary, train
from tqdm import tqdm

import purevdm
from purevdm import bfn, evaluation, interop, networks, random, schedules, training

KINDS = {"vdm": "diffusion", "bfn": "Bayesian flow"}
UNITS = {"grey": "bits/dim", "binary": "bits/dim", "text": "bits/character"}
TIMES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)  # when the picture shows the input distributions
SAMPLE_STEPS = 100
BINARY = (-5.0, 5.0)  # endpoints for two values: at -5 they are six deviations apart from where they meet
IMAGES = dict(steps=400, batch=64, lr=2e-3, passes=20)


class Task(NamedTuple):
    """A model and its data.

    Attributes:
        model: the model.
        train, test: integers, (n, *event_shape), in no order.
        settings: steps, batch and rate of the training, and passes over the test set, where the command line does not say.
        dimensions: how many of the model's dimensions make one of the table's.
    """

    model: purevdm.VDM | bfn.BFN
    train: torch.Tensor
    test: torch.Tensor
    settings: dict[str, float]
    dimensions: int = 1


def split() -> torch.Tensor:
    """The key that splits data, of all runs."""
    return random.split(random.key(0), 5)[0]


def network(**options) -> networks.Network:
    return networks.vdm_unet(32, 2, fourier=FOURIER, dropout=0.0, groups=8, **options)


def grey(kind: str) -> Task:
    if kind == "vdm":
        model = purevdm.vdm(network(), schedules.learned_linear(*ENDPOINTS), digits.SHAPE, vocab_size=digits.LEVELS)
    else:
        model = bfn.discretised(network(outputs=2), digits.SHAPE, bins=digits.LEVELS, sigma_1=0.03)
    return Task(model, *digits.data(split()), IMAGES)


def binary(kind: str) -> Task:
    """Both networks give the logit of white."""
    if kind == "vdm":
        logit = network(predicts="x", gamma_min=BINARY[0], gamma_max=BINARY[1])
        rounding = logit._replace(apply=partial(probable, logit.apply))
        model = purevdm.vdm(rounding, schedules.learned_linear(*BINARY), digits.SHAPE, vocab_size=2)
    else:
        model = bfn.discrete(network(predicts="x"), digits.SHAPE, classes=2, beta_1=9.0)
    return Task(model, *(x // 9 for x in digits.data(split())), IMAGES)


def probable(logit: Callable[..., torch.Tensor], *args, **options) -> torch.Tensor:
    """The mean of an x that is -1/2 or 1/2, as two values are encoded."""
    return torch.sigmoid(logit(*args, **options)) - 0.5


def text(kind: str) -> Task:
    parts, size = characters.split(split()), (characters.WIDTH, characters.BLOCKS)
    settings = dict(steps=characters.STEPS, batch=characters.BATCH, lr=characters.LR, passes=8)
    if kind == "bfn":
        return Task(characters.flow(*size), parts.train, parts.test, settings)
    x, test = (characters.as_bits(windows) for windows in (parts.train, parts.test))
    return Task(characters.diffusion(*size), x, test, settings, characters.BITS)


TASKS = {"grey": grey, "binary": binary, "text": text}


def baselines() -> dict[str, list[tuple[str, torch.Tensor]]]:
    """By data, what simpler models spend on each test example."""
    x, test = digits.data(split())
    parts = characters.split(split())
    return {
        "grey": [("pixel histograms", digits.histogram_bits(x, test))],
        "binary": [("pixel histograms", digits.histogram_bits(x // 9, test // 9, 2))],
        "text": [(f"{n}-grams", characters.ngram_bits(parts.pieces, parts.test, n)) for n in range(1, 6)],
    }


@torch.no_grad()
def assess(task: Task, params, key: torch.Tensor, passes: int) -> dict[str, float]:
    """The bound on the test examples, and on as many that the model has seen; bits in the table's unit."""
    k_test, k_train, _ = random.split(key, 3)
    bound = evaluation.evaluate(task.model, params, [task.test], k_test, passes=passes).nll
    seen = evaluation.evaluate(task.model, params, [task.train[: len(task.test)]], k_train, passes=passes).nll
    found = {"bits": bound.mean, "error": bound.error, "train": seen.mean}
    return {name: value * task.dimensions for name, value in found.items()}


def run(args) -> None:
    rows = [(name, kind) for name in TASKS for kind in KINDS if f"{name}/{kind}".startswith(args.rows)]
    for name, kind in tqdm(rows, desc="rows"):
        paths = [args.out / f"{name}-{kind}-{seed}.json" for seed in range(args.seeds)]
        if all(path.exists() for path in paths):
            continue
        task = TASKS[name](kind)
        torch._dynamo.reset()
        # as in the paper, training leaves the reconstruction out, and with it the second application of the network
        trained = task.model._replace(reconstruction=False) if kind == "bfn" else task.model
        grad_fn = training.gradients(trained, compile=not args.eager)
        given = {setting: value for setting in task.settings if (value := getattr(args, setting)) is not None}
        settings = SimpleNamespace(**(task.settings | given))
        for seed, path in enumerate(paths):
            if path.exists():
                continue
            k_init, k_train, k_test = random.split(random.key(seed + 1), 3)
            started = time.monotonic()
            params = train(task.model, grad_fn, task.train, k_init, k_train, settings)
            if (kind, seed) == ("bfn", 0):
                interop.save_params(args.out / f"{name}.safetensors", params)
            found = assess(task, params, k_test, settings.passes)
            programs.write(path, json.dumps(found))
            seconds = time.monotonic() - started
            tqdm.write(f"{name}, {kind}, {seed}: {found['bits']:.3f} {UNITS[name]}, {seconds:.0f} s")


def results(out: Path) -> dict[tuple[str, str], list[dict[str, float]]]:
    """What the runs so far have left, by row."""
    rows = [(name, kind) for name in TASKS for kind in KINDS]
    found = {row: [json.loads(p.read_text()) for p in sorted(out.glob(f"{'-'.join(row)}-*.json"))] for row in rows}
    return {row: runs for row, runs in found.items() if runs}


def table(found: dict[tuple[str, str], list[dict[str, float]]], simpler: dict[str, list[tuple[str, torch.Tensor]]]) -> str:
    """Means over seeds with their standard errors, and the standard error over test examples."""
    lines = ["| data | model | test | over examples | train |", "|---" * 5 + "|"]
    for name, unit in UNITS.items():
        for kind, title in KINDS.items():
            if runs := found.get((name, kind)):
                bits, seen = (summary([r[field] for r in runs]) for field in ("bits", "train"))
                error = sum(r["error"] for r in runs) / len(runs)
                lines.append(f"| {name}, {unit} | {title} | {bits} | ± {error:.3f} | {seen} |")
        if any(row == name for row, _ in found):
            for title, each in simpler[name]:
                error = each.std().item() / math.sqrt(len(each))
                lines.append(f"| {name}, {unit} | {title} | {each.mean():.3f} | ± {error:.3f} | |")
    return "\n".join(lines) + "\n"


def differences(found: dict[tuple[str, str], list[dict[str, float]]]) -> str:
    """The Bayesian flow's bound against the diffusion model's, seed by seed."""
    lines = []
    for name, unit in UNITS.items():
        a, b = (found.get((name, kind), []) for kind in ("bfn", "vdm"))
        if a and len(a) == len(b):
            gaps = [i["bits"] - j["bits"] for i, j in zip(a, b, strict=True)]
            lines.append(f"{name}: Bayesian flow - diffusion {summary(gaps)} {unit}")
    return "\n".join(lines)


def picture(out: Path) -> None:
    """Samples of the first seed's Bayesian flows, and their input distributions on the way, as far as there are runs."""
    names = [name for name in TASKS if (out / f"{name}.safetensors").exists()]
    if not names:
        return
    heights = [2.5 if name == "text" else 3.6 for name in names]
    figure = plt.figure(figsize=(11, sum(heights)), layout="constrained")
    rows = figure.subfigures(len(names), 1, height_ratios=heights, squeeze=False)[:, 0]
    steps = [round(t * SAMPLE_STEPS) for t in TIMES]
    for row, name in zip(rows, names, strict=True):
        model = TASKS[name]("bfn").model
        params = interop.load_params(out / f"{name}.safetensors", model.init(random.key(0)))
        found = model.sample(params, random.key(1), 1 if name == "text" else 32, steps=SAMPLE_STEPS, trajectory=True)
        if name == "text":
            ax = row.subplots()
            pictures.text_on_the_way(ax, found.theta[:, 0], steps, characters.ALPHABET)
            ax.set(title="text: the likeliest characters, the paler the less likely", ylabel="time")
            continue
        left, right = row.subplots(1, 2)
        levels = model.decoder.vocab_size
        left.imshow(pictures.tiles(levels - 1 - found.x, levels, side=8), interpolation="nearest")
        left.set(title=f"{name} digits: samples", xticks=[], yticks=[], frame_on=False)
        pictures.images_on_the_way(right, found.theta[:, :4], steps, levels)
        right.set(title="means of the input distributions", xlabel="time")
    figure.savefig(out / "bfn.png", dpi=90)
    plt.close(figure)


@programs.program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "default: each row's own"
    parser.add_argument("--steps", type=int, help=f"training steps of each run ({default})")
    parser.add_argument("--batch", type=int, help=default)
    parser.add_argument("--lr", type=float, help=default)
    parser.add_argument("--passes", type=int, help=f"passes of times over the test set ({default})")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row (default: %(default)s)")
    parser.add_argument("--rows", default="", help="only the rows that begin so, as grey or text/bfn")
    parser.add_argument("--out", type=Path, default=Path("runs/families"))
    parser.add_argument("--eager", action="store_true", help="do not compile")
    args = parser.parse_args()
    if min(args.seeds, *(1 if n is None else n for n in (args.steps, args.batch, args.passes))) < 1:
        parser.error("--steps, --seeds, --batch and --passes must be at least 1")
    args.out.mkdir(parents=True, exist_ok=True)
    run(args)
    found = results(args.out)
    if not found:
        parser.error(f"--rows: expected the beginning of a row, as grey or text/bfn, got {args.rows!r}")
    written = table(found, baselines())
    programs.write(args.out / "table.md", written)
    print(written)
    print(differences(found))
    picture(args.out)


if __name__ == "__main__":
    main()
