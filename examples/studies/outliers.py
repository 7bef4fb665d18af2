"""Rank digits and images that are none by their likelihood, log p(x) by the probability flow: does it tell them apart?

    python examples/copy/digits.py
    python examples/studies/outliers.py runs/digits/params.safetensors     # or a run of train.py: runs/digits_train

Odd images are made of the test digits, by a change that keeps as many pixels as it can: inverted, turned by 90 degrees,
shifted by two pixels, shuffled, blurred. Others are letters, drawn as the digits were, by counting ink in blocks of 4 x 4 of
a bitmap; and images of one grey. For each kind it prints the mean of -log p(x) in bits per dimension, and AUROC: how often
an odd image is less likely than a digit, beside the same of independent pixel histograms. 0.5 is chance, and below it the
odd ones are called the likelier. That happens to simple images, which likelihoods like (Nalisnick et al. 2019, arXiv
1810.09136). Writes outliers.png: each kind's values, and the most and the least likely of all.
"""

import math
import string
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import common
import matplotlib
import numpy as np
import programs
import torch
import tyro
from matplotlib import font_manager
from pictures import plt
from PIL import Image, ImageDraw, ImageFont
from presets import condition
from runs import load
from torch import Tensor
from tqdm import tqdm

from purevdm import evaluation, likelihood, ode, random
from purevdm.training.data import batch

OF_EACH = ("shuffled", "inverted", "turned", "shifted", "blurred")  # made of each digit


@dataclass
class Arguments:
    checkpoint: Annotated[Path, tyro.conf.Positional]
    """digits.py's params.safetensors, a run's folder, or one of its checkpoints."""
    out: Path | None = None
    """The folder to write into; left out, outliers/ in the run's own."""
    overwrite: bool = False
    """Whether to write over what an earlier call left in --out."""
    images: int = 297
    """How many test images, and of each kind that is made of them."""
    dequantisation: Literal["variational", "truncated", "uniform"] = "variational"
    samples: int = 1
    tolerance: float = 1e-3
    """Of the flow, absolute and relative."""
    probes: int = 1
    """Of the divergence; 0 computes it exactly."""
    batch: int = 128
    seed: int = 0
    device: str = "cpu"


def letters(side: int, vocab_size: int) -> Tensor:
    """Draws capital letters but I and O, which are digits too, (24, 1, side, side): the ink in each pixel's 4 x 4 blocks."""
    path, n = font_manager.findfont("DejaVu Sans:bold"), 4 * side
    images = []
    for letter in string.ascii_uppercase.replace("I", "").replace("O", ""):
        bitmap = Image.new("1", (n, n))
        font = ImageFont.truetype(path, round(n / 0.73))  # a capital's height is 0.73 of the font's size
        ImageDraw.Draw(bitmap).text((n / 2, n), letter, fill=1, font=font, anchor="ms")
        images.append(torch.from_numpy(np.array(bitmap)).reshape(side, 4, side, 4).double().mean((1, 3)))
    return (torch.stack(images)[:, None] * (vocab_size - 1)).round().long()


def odd(x: Tensor, vocab_size: int, key: Tensor) -> dict[str, Tensor]:
    """Makes kinds of images that are not those of x, integers (n, 1, side, side); those of OF_EACH are made of each of x."""
    side = x.shape[-1]
    order = random.permutation(key.cpu(), side * side).to(x.device)
    shifted = torch.zeros_like(x)
    shifted[..., 2:] = x[..., :-2]
    blurred = torch.nn.functional.avg_pool2d(x.double(), 3, 1, 1, count_include_pad=False).round().long()
    levels = torch.arange(vocab_size, device=x.device).reshape(-1, 1, 1, 1)
    return {
        "shuffled": x.flatten(1)[:, order].reshape(x.shape),
        "inverted": vocab_size - 1 - x,
        "turned": x.rot90(1, (2, 3)),
        "shifted": shifted,
        "blurred": blurred,
        "letters": letters(side, vocab_size).to(x.device),
        "one grey": levels.expand(-1, 1, side, side).contiguous(),
    }


def auroc(usual: Tensor, odd: Tensor, paired: bool) -> tuple[float, float]:
    """Measures how often an odd value is above a usual one, and its standard error (DeLong et al. 1988); where value i of
    both belongs to one image (paired), that of clusters of two (Obuchowski 1997)."""
    above = (odd > usual[:, None]).double() + 0.5 * (odd == usual[:, None])
    of_usual, of_odd = above.mean(1), above.mean(0)
    if paired:
        return above.mean().item(), ((of_usual + of_odd).std() / math.sqrt(len(odd))).item()
    return above.mean().item(), (of_usual.var() / len(usual) + of_odd.var() / len(odd)).sqrt().item()


def framed(x: Tensor, colours: list[tuple[float, float, float]], vocab_size: int, columns: int) -> np.ndarray:
    """Draws images as ink on paper, (n, 1, side, side), each in a frame of its colour, in rows of so many."""
    side = x.shape[-1] + 4
    sheet = np.ones((math.ceil(len(x) / columns) * side, columns * side, 3))
    for i, (image, colour) in enumerate(zip(x, colours, strict=True)):
        top, left = i // columns * side, i % columns * side
        sheet[top + 1 : top + side, left + 1 : left + side] = colour
        sheet[top + 2 : top + side - 1, left + 2 : left + side - 1] = 1
        ink = 1 - image[0].double().cpu().numpy() / (vocab_size - 1)
        sheet[top + 2 : top + side - 2, left + 2 : left + side - 2] = ink[..., None]
    return sheet


def picture(path: Path, kinds: dict[str, Tensor], bits: dict[str, Tensor], scores: dict[str, str], vocab_size: int) -> None:
    """Draws each kind's values, a dot an image, with its AUROC; the most and the least likely of all, framed by kind."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained", width_ratios=(1.7, 1, 1))
    colours = {name: matplotlib.colormaps["tab10"](i)[:3] for i, name in enumerate(kinds)}
    for row, (name, values) in enumerate(bits.items()):
        jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(values))
        axes[0].scatter(values, row + jitter, s=7 if len(values) > 50 else 14, color=colours[name], linewidths=0, alpha=0.6)
    names = [f"{name}\n{scores[name]}" if name in scores else name for name in bits]
    axes[0].set_yticks(range(len(bits)), names, fontsize=8)
    axes[0].set(xlabel="-log p(x), bits/dim", title="each kind of image, with its AUROC")
    axes[0].invert_yaxis()
    axes[0].grid(alpha=0.3, axis="x")
    x, values = torch.cat(list(kinds.values())), torch.cat(list(bits.values()))
    of = [colours[name] for name, images in kinds.items() for _ in images]
    for ax, title, order in zip(axes[1:], ("the most likely", "the least likely"), (1, -1), strict=True):
        shown = (order * values).argsort()[:64].tolist()
        ax.imshow(framed(x[shown], [of[i] for i in shown], vocab_size, 8), interpolation="nearest")
        ax.set_title(title)
        ax.axis("off")
    figure.savefig(path, dpi=90)
    plt.close(figure)


@programs.program
def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    if min(args.images - 1, args.samples, args.batch) < 1 or args.probes < 0 or not 0 < args.tolerance < 1:
        sys.exit("samples, batch: expected at least 1; images: 2; probes: 0; tolerance: between 0 and 1")
    config, train, test, model, params = load(args.checkpoint, programs.device(args.device))
    out = programs.fresh(args.out or programs.beside(args.checkpoint, "outliers"), args.overwrite, "outliers.png")
    shape, vocab = test.event_shape, test.vocab_size
    if vocab is None or shape[0] != 1 or len(shape) != 3 or shape[1] != shape[2] or config.model.labels:
        sys.exit(f"checkpoint: expected a model of square grey images without classes, got one of events of shape {shape}")
    x = batch(test, np.arange(min(args.images, test.size)), args.device)[0].long()
    k_odd, k_flow = random.split(random.key(args.seed, device=args.device))
    kinds = {"digits": x, **odd(x, vocab, k_odd)}
    options = dict(dequantisation=args.dequantisation, samples=args.samples, probes=args.probes or "exact")
    flow = partial(likelihood.log_prob, model, integrator=ode.dopri5(args.tolerance, args.tolerance), **options)
    every = torch.cat(list(kinds.values()))
    flags = torch.zeros(len(every), device=args.device)
    batches = [
        (part, condition(config, own, None))
        for part, own in zip(every.split(args.batch), flags.split(args.batch), strict=True)
    ]
    with tqdm(total=len(every), desc="log p") as bar:
        each = evaluation.per_example(model, params, batches, k_flow, method=flow, callback=bar.update)
    sizes = [len(part) for part in kinds.values()]
    bits = dict(zip(kinds, (each.nll / math.prod(shape) / math.log(2)).split(sizes), strict=True))
    seen = batch(train, np.arange(train.size))[0].long()
    simple = {name: common.histogram_bits(seen, images.cpu(), vocab) for name, images in kinds.items()}

    print(f"{'':9}{'images':>7}{'-log p, bits/dim':>20}{'AUROC':>18}{'of histograms':>18}")
    scores = {}
    for name, values in bits.items():
        line = f"{name:9}{len(values):7}{f'{values.mean():.3f} +- {values.std() / math.sqrt(len(values)):.3f}':>20}"
        if name != "digits":
            for of in (bits, simple):
                value, error = auroc(of["digits"], of[name], name in OF_EACH)
                line += f"{f'{value:.3f} +- {error:.3f}':>18}"
                scores.setdefault(name, f"{value:.3f}")
        print(line)
    picture(out / "outliers.png", kinds, bits, scores, vocab)
    tqdm.write(f"the picture is {out}/outliers.png; {each.summary().evaluations:.0f} evaluations an image", sys.stderr)


if __name__ == "__main__":
    main()
