"""Compare diffusion models with Bayesian Flow Networks: grey digits, black and white digits, and text, over seeds; on text
masked diffusion, uniform noise, and diffusion of embeddings, too.

    python examples/studies/families.py

Digits are scikit-learn's, text is Python's language reference (``characters.py``). On each a diffusion model and a Bayesian
Flow Network have the same network but for its inputs and outputs, the same steps, batches and seeds, and one split of the
data. A diffusion model takes black and white for two numbers, and a character for five such bits; that of embeddings takes
it for 16 fixed numbers, and masked diffusion and uniform noise as it is.

Grey digits have rows for binned estimates, for a prediction of v, for DiffEnc, and for MuLAN with two kinds of code, too.
--equal-time gives DiffEnc and MuLAN only as many steps as take the time of the diffusion model's, which all others take
anyway; its files are in --out/equal_time.

Writes a file for each run as it ends, so that a second call goes on where the first stopped, table.md, and bfn.png: samples
of the Bayesian flows of the first seed, and their input distributions on the way.

Digits after 400 steps of 64 images, text after 800 steps of 32 windows, means over three seeds with their standard errors;
then the standard error over test examples, the noise of times included. Text is that of Python 3.11.

    data                    model                test             over examples  train
    grey, bits/dim          diffusion            2.190 +- 0.007   0.023          2.165 +- 0.003
    grey, bits/dim          Bayesian flow        1.974 +- 0.003   0.016          1.955 +- 0.003
    grey, bits/dim          diffusion, binned    2.024 +- 0.003   0.022          2.005 +- 0.006
    grey, bits/dim          diffusion, v         2.177 +- 0.005   0.023          2.155 +- 0.005
    grey, bits/dim          DiffEnc, v           2.197 +- 0.005   0.023          2.177 +- 0.002
    grey, bits/dim          MuLAN, Gaussian code 2.618 +- 0.071   0.022          2.592 +- 0.076
    grey, bits/dim          MuLAN, one-hot code  2.447 +- 0.010   0.024          2.422 +- 0.012
    grey, bits/dim          pixel histograms     2.427            0.012
    binary, bits/dim        diffusion            0.496 +- 0.004   0.009          0.488 +- 0.002
    binary, bits/dim        Bayesian flow        0.453 +- 0.002   0.007          0.450 +- 0.003
    binary, bits/dim        pixel histograms     0.545            0.005
    text, bits/character    diffusion            3.711 +- 0.007   0.066          3.688 +- 0.024
    text, bits/character    Bayesian flow        3.131 +- 0.007   0.024          3.146 +- 0.008
    text, bits/character    embeddings           3.769 +- 0.010   0.076          3.786 +- 0.020
    text, bits/character    masked diffusion     2.864 +- 0.021   0.029          2.847 +- 0.010
    text, bits/character    uniform noise        2.986 +- 0.015   0.041          2.948 +- 0.031
    text, bits/character    1-grams              4.101            0.007
    text, bits/character    2-grams              3.352            0.011
    text, bits/character    3-grams              2.511            0.015
    text, bits/character    4-grams              1.905            0.018
    text, bits/character    5-grams              1.707            0.021

In the time of the diffusion model's 400 steps, by a step's time on two AVX-512 cores (medians, in turn, in eager mode):

    grey, bits/dim          a step, of diffusion's  steps  test
    DiffEnc, v              3.2                     125    2.855 +- 0.007
    MuLAN, Gaussian code    1.55                    258    2.945 +- 0.051
    MuLAN, one-hot code     1.5                     267    2.690 +- 0.034

Much of the gain is the output's: it says which values data take. A diffusion model whose estimates are binned has three
quarters of it. That of black and white gives a probability, too; one that predicts the noise, as that of grey digits does,
spends 0.774 (one seed), more than histograms. After so few steps neither DiffEnc nor a code pays (wider, and with other
rates, the preset mulan_digits comes as far as copy/digits.py: ``pixels.py``). Training times matter less: drawn by
importance, they take the diffusion model of grey digits to 2.138 (``objectives.py``). On text the Bayesian flow is ahead of
bigrams, and far behind trigrams, though it sees the whole window. It has too few steps: it spends as much on training
windows as on new ones, and 2.999 bits after 1200 steps (one seed). Masked diffusion is 0.27 bits ahead of it after the same
steps. What shows in it is certain; under uniform noise, 0.12 bits behind, it must be told from noise. Embeddings, whose
estimates are means over characters as those of the Bayesian flow are, are no better than bits.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import characters
import common
import members
import numpy as np
import pictures
import programs
import torch
from common import ENDPOINTS, FOURIER, LEVELS, SHAPE, SPLIT, Task
from members import FAMILIES, MEMBERS
from pictures import plt

import purevdm
from purevdm import bfn, interop, networks, random, schedules
from purevdm.model import Bounded
from purevdm.networks import Wrapped

OF_TEXT = FAMILIES | {
    "embeddings": "embeddings",
    "masked": "masked diffusion",
    "uniform": "uniform noise",
}
OF = {"grey": MEMBERS, "text": OF_TEXT}
UNITS = {"grey": "bits/dim", "binary": "bits/dim", "text": "bits/character"}
TIMES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)  # when the picture shows the input distributions
SAMPLE_STEPS = 100
STEP_TIMES = {("grey", "diffenc"): 3.2, ("grey", "mulan"): 1.55, ("grey", "one_hot"): 1.5}  # by --step-times --eager; else 1
BINARY = (-5.0, 5.0)  # endpoints for two values: at -5 they are six deviations apart from where they meet
TEXT = dict(steps=characters.STEPS, batch=characters.BATCH, lr=characters.LR, passes=8)


def network(**options) -> networks.Network:
    return networks.vdm_unet(32, 2, fourier=FOURIER, dropout=0.0, groups=8, **options)


@dataclass(frozen=True)
class Probable(Wrapped):
    """The mean of an x that is -1/2 or 1/2, as two values are encoded, of a network that gives a logit."""

    def around(self, apply, *args, **options) -> torch.Tensor:
        return torch.sigmoid(apply(*args, **options)) - 0.5


GREY = members.Images(
    **dict(shape=SHAPE, levels=LEVELS, ends=ENDPOINTS, sigma_1=0.03, network=network),
    mover=lambda: networks.vdm_unet(16, 1, fourier=FOURIER, dropout=0.0, groups=8),
    coder=lambda outputs: networks.unet_encoder(SHAPE, outputs, 32, 1, groups=8, dropout=0.0),
)


def model(data: str, kind: str) -> Bounded:
    """Makes a model of a kind for some data. Both networks of black and white give the logit of white."""
    match data, kind:
        case "grey", _:
            return members.model(GREY, kind)
        case "binary", "vdm":
            return purevdm.vdm(Probable(network(predicts="x")), schedules.learned_linear(*BINARY), SHAPE, vocab_size=2)
        case "binary", "bfn":
            return bfn.discrete(network(predicts="x"), SHAPE, classes=2, beta_1=9.0)
    make = {"vdm": characters.diffusion, "bfn": characters.flow, "embeddings": characters.embeddings}
    make |= {"masked": partial(characters.tokens, corruption="masking")}
    make |= {"uniform": partial(characters.tokens, corruption="uniform")}
    return make[kind](characters.WIDTH, characters.BLOCKS)


def examples(data: str, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits the data: training and test examples, integers (n, *event_shape). A diffusion model takes bits of text."""
    if data != "text":
        return tuple(x // (9 if data == "binary" else 1) for x in common.data())
    parts = characters.split(SPLIT)
    return tuple(characters.as_bits(x) if kind == "vdm" else x for x in (parts.train, parts.test))


def task(data: str, kind: str) -> Task:
    dimensions = characters.BITS if (data, kind) == ("text", "vdm") else 1
    row = members.task(model(data, kind), *examples(data, kind), dimensions)
    return row._replace(settings=TEXT) if data == "text" else row


ROWS = {(data, kind): partial(task, data, kind) for data in UNITS for kind in OF.get(data, FAMILIES)}


def baselines(data: str) -> dict[str, torch.Tensor]:
    """Measures what simpler models spend on each test example."""
    if data == "text":
        parts = characters.split(SPLIT)
        return {f"{n}-grams": characters.ngram_bits(parts.pieces, parts.test, n) for n in range(1, 6)}
    return {"pixel histograms": common.histogram_bits(*examples(data, "bfn"), 2 if data == "binary" else LEVELS)}


def keep(out: Path, row: tuple[str, ...], seed: int, params: Any) -> None:
    """Saves the Bayesian flows of the first seed for the picture."""
    if row[1] == "bfn" and seed == 0:
        interop.save_params(out / f"{row[0]}.safetensors", params)


def images_on_the_way(ax, theta: torch.Tensor, steps: Sequence[int], levels: int) -> None:
    """Draws the input distributions of a Bayesian flow at some of its steps: images of their means, a sample a row."""
    means = 2.0 * theta[..., 1] - 1.0 if levels == 2 else theta
    shown = (1.0 - means[steps].transpose(0, 1).flatten(0, 1).clamp(-1.0, 1.0)) / 2.0 * 255.0
    ax.imshow(pictures.tiles(shown, 256, side=len(steps)), interpolation="nearest")
    pitch = shown.shape[-1] + 2
    times = [f"{step / (len(theta) - 1):.2g}" for step in steps]
    ax.set_xticks(np.arange(len(steps)) * pitch + (pitch - 1) / 2, times)
    ax.tick_params(length=0)
    ax.set(yticks=[], frame_on=False)


def text_on_the_way(ax, theta: torch.Tensor, steps: Sequence[int], alphabet: str) -> None:
    """Draws one text as it becomes: at some steps the likeliest characters, each the darker the likelier."""
    p, likeliest = theta[steps].max(-1)
    darkness = ((p - 1.0 / len(alphabet)) / (1.0 - 1.0 / len(alphabet))).clamp(0.08, 1.0)
    for i, row in enumerate(likeliest.tolist()):
        for j, character in enumerate(row):
            grey = str(1.0 - darkness[i, j].item())
            ax.text(j, i, alphabet[character], family="monospace", size=12, color=grey, ha="center", va="center")
    times = [f"{step / (len(theta) - 1):.2g}" for step in steps]
    ax.set(xlim=(-1, theta.shape[1]), ylim=(len(steps) - 0.5, -0.5), xticks=[], frame_on=False)
    ax.set_yticks(range(len(steps)), times)
    ax.tick_params(length=0)


def picture(out: Path) -> None:
    """Draws samples of the first seed's Bayesian flows, and their input distributions on the way."""
    names = [name for name in UNITS if (out / f"{name}.safetensors").exists()]
    if not names:
        return
    heights = [2.5 if name == "text" else 3.6 for name in names]
    figure = plt.figure(figsize=(11, sum(heights)), layout="constrained")
    rows = figure.subfigures(len(names), 1, height_ratios=heights, squeeze=False)[:, 0]
    steps = [round(t * SAMPLE_STEPS) for t in TIMES]
    for row, name in zip(rows, names, strict=True):
        flow = model(name, "bfn")
        params = interop.load_params(out / f"{name}.safetensors", flow.init(random.key(0)))
        samples = flow.sample(params, random.key(1), 1 if name == "text" else 32, steps=SAMPLE_STEPS, trajectory=True)
        if name == "text":
            ax = row.subplots()
            text_on_the_way(ax, samples.theta[:, 0], steps, characters.ALPHABET)
            ax.set(title="text: the likeliest characters, the paler the less likely", ylabel="time")
            continue
        left, right = row.subplots(1, 2)
        levels = flow.decoder.vocab_size
        left.imshow(pictures.tiles(levels - 1 - samples.x, levels, side=8), interpolation="nearest")
        left.set(title=f"{name} digits: samples", xticks=[], yticks=[], frame_on=False)
        images_on_the_way(right, samples.theta[:, :4], steps, levels)
        right.set(title="means of the input distributions", xlabel="time")
    figure.savefig(out / "bfn.png", dpi=90)
    plt.close(figure)


@programs.program
def main() -> None:
    args = common.arguments(__doc__, "runs/families", "grey or text/bfn", **members.FLAGS)
    if args.step_times:
        common.print_step_times(ROWS, args)
        return
    rows = common.in_equal_time(ROWS, STEP_TIMES, args) if args.equal_time else ROWS
    figures = common.run(rows, args, partial(keep, args.out))
    lines = []
    for data, unit in UNITS.items():
        simpler = baselines(data) if any(row[0] == data for row in figures) else {}
        lines += members.lines(figures, data, unit, OF.get(data, FAMILIES), simpler)
    common.table(members.HEADER, lines, args.out)
    print("\n".join(filter(None, (common.difference(figures, (data, "bfn"), (data, "vdm")) for data in UNITS))))
    picture(args.out)


if __name__ == "__main__":
    sys.exit(main())
