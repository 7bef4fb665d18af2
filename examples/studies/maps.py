"""Map which pixels surprise a model: the bound on -log p(x), not summed, in bits for each pixel.

    python examples/studies/maps.py examples/app/fashion_mnist --path DATA   # without its images: on samples of the model

In each image a square is replaced by that of another image. The maps are means over times and noise, the same for all
images. Prints how well a pixel's bits tell whether it was changed, as means over images with standard errors: AUROC, 0.5 by
chance, and the share of changed ones among as many of the most surprising; beside the same of a pixel's distance from the
mean of its eight neighbours. Writes maps.png.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import common  # noqa: F401
import numpy as np
import programs
import torch
import tyro
from outliers import auroc
from pictures import plt
from runs import load
from torch import Tensor
from tqdm import tqdm

from purevdm import VDM, random
from purevdm.training.data import batch
from purevdm.types import Key, Params


@dataclass
class Arguments:
    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run's folder, an exported model's, or digits.py's params.safetensors."""
    out: Path | None = None
    """The folder to write into; left out, maps/ in the run's own."""
    overwrite: bool = False
    """Whether to write over what an earlier call left in --out."""
    path: str | None = None
    """Where the data are, if not where they were in training."""
    images: int = 64
    side: int = 6
    """Of the square that is changed."""
    draws: int = 64
    """Of times and noise, for each map."""
    seed: int = 0
    device: str = "cpu"


def changed(x: Tensor, side: int, key: Key) -> tuple[Tensor, Tensor]:
    """Replaces in each image a square, at random but away from the edges, by that of the image before it; returns the images
    and which pixels are not what they were, bool."""
    edge = x.shape[-1] // 5
    tops, lefts = (random.randint(k, (len(x),), edge, x.shape[-1] - side - edge + 1) for k in random.split(key))
    new = x.clone()
    for i, (top, left) in enumerate(zip(tops.tolist(), lefts.tolist(), strict=True)):
        square = (..., slice(top, top + side), slice(left, left + side))
        new[i][square] = x[i - 1][square]
    return new, new != x


@torch.no_grad()
def surprise(model: VDM, params: Params, x: Tensor, key: Key, draws: int) -> Tensor:
    """Maps images, (n, *event_shape): bits of each pixel, the mean over draws of times and noise, the same for all."""
    seeds, maps = model.seeds(key, draws), []
    for image in tqdm(x, desc="maps"):
        terms = model.terms(params, image.expand(draws, *image.shape), seeds)
        maps.append(terms.total.mean(0) / math.log(2))
    return torch.stack(maps)


def contrast(x: Tensor) -> Tensor:
    """Measures each pixel's distance from the mean of its eight neighbours, fewer at the edges."""
    mean = torch.nn.functional.avg_pool2d(x.double(), 3, 1, 1, count_include_pad=False)
    return 9 / 8 * (x - mean).abs()


def scores(maps: Tensor, where: Tensor) -> Tensor:
    """Returns AUROC and the share of changed pixels among as many with the highest values, of each image, (n, 2)."""
    found = []
    for values, there in zip(maps.flatten(1), where.flatten(1), strict=True):
        top = there[values.argsort(descending=True)[: int(there.sum())]]
        found.append((auroc(values[~there], values[there], False)[0], top.double().mean().item()))
    return torch.tensor(found, dtype=torch.float64)


def picture(path: Path, x: Tensor, new: Tensor, where: Tensor, maps: Tensor) -> None:
    """Draws eight images, as they were and changed, and their maps, with an outline of what changed."""
    figure, axes = plt.subplots(3, 8, figsize=(12, 4.7), layout="constrained")
    top = maps[:8].quantile(0.995).item()
    for i, column in enumerate(axes.T[: len(x)]):
        for ax, image in zip(column, (x[i, 0], new[i, 0]), strict=False):
            ax.imshow(image.cpu(), cmap="gray_r")
        shown = column[2].imshow(maps[i, 0].cpu(), cmap="magma", vmin=0, vmax=top)
        rows, columns = where[i, 0].cpu().nonzero(as_tuple=True)
        box = (columns.min() - 0.5, rows.min() - 0.5), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1
        for ax in column[1:]:
            ax.add_patch(plt.Rectangle(*box, fill=False, edgecolor="tab:cyan"))
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for ax, name in zip(axes[:, 0], ("image", "a square changed", "bits of each pixel"), strict=True):
        ax.set_ylabel(name)
    figure.colorbar(shown, ax=axes[2], pad=0.01)
    figure.savefig(path, dpi=80)
    plt.close(figure)


@programs.program
def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    programs.least(1, side=args.side, draws=args.draws)
    programs.least(2, images=args.images)
    given = {} if args.path is None else {"data.path": args.path}
    run = load(args.checkpoint, programs.device(args.device), dataless=args.path is None, **given)
    shape, k_data, k_sample, k_change, k_map = (
        run.test.event_shape,
        *random.split(random.key(args.seed, device=args.device), 4),
    )
    if len(shape) != 3 or shape[0] != 1 or args.side > min(shape[1:]) * 3 // 5 or run.config.model.labels:
        sys.exit(f"checkpoint: expected a model of grey images without classes, larger than the square, got events {shape}")
    out = programs.fresh(args.out or programs.beside(args.checkpoint, "maps"), args.overwrite, "maps.png")
    if run.test.size:
        index = random.permutation(k_data.cpu(), run.test.size)[: args.images].numpy()
        x = batch(run.test, np.sort(index), args.device)[0].long()
    else:
        tqdm.write(f"samples, as no data are there; {args.images} of the model", sys.stderr)
        x = run.model.sample(run.params, k_sample, args.images, steps=100).long()
    new, where = changed(x, args.side, k_change)
    kept = where.flatten(1).any(1)
    x, new, where = x[kept], new[kept], where[kept]
    maps = surprise(run.model, run.params, new, k_map, args.draws)
    print(
        f"{'':22}{'AUROC':>18}{'share found':>18}   ({len(x)} images, {where.flatten(1).sum(1).double().mean():.0f} pixels)"
    )
    for name, values in (("bits of the bound", maps), ("contrast", contrast(new))):
        found = scores(values, where)
        means, errors = found.mean(0), found.std(0) / math.sqrt(len(found))
        print(f"{name:22}" + "".join(f"{f'{m:.3f} +- {e:.3f}':>18}" for m, e in zip(means, errors, strict=True)))
    picture(out / "maps.png", x, new, where, maps)


if __name__ == "__main__":
    main()
