"""Map which pixels surprise a model: the bound on -log p(x), not summed, in bits for each pixel.

    python examples/studies/maps.py examples/app/fashion_mnist --path DATA   # without its images: on samples of the model

In each image a square is replaced by that of another image. The maps are means over times and noise, the same for all
images, and over the squares of so many pixels about each (--smooth). Prints how well a pixel's bits tell whether it was
changed, as means over images with standard errors: AUROC, 0.5 by chance, and the share of changed ones among as many of the
most surprising. Most bits come from little noise, and tell of texture; those from gamma above --level tell of shape, and
find more. Last is a pixel's distance from the mean of 3 x 3 pixels. Writes maps.png.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import common
import programs
import torch
import tyro
from outliers import auroc
from pictures import plt
from runs import load
from torch import Tensor
from tqdm import tqdm

from purevdm import VDM, random
from purevdm.types import Key, Params


@dataclass
class Arguments(common.OfRun):
    images: int = 64
    side: int = 6
    """Of the square that is changed."""
    draws: int = 64
    """Of times and noise, for each map."""
    level: float = -2.0
    """The gamma above which a map is given, too."""
    smooth: int = 5
    """The side of the squares over which maps are averaged, odd; 1 for none."""


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
def surprise(model: VDM, params: Params, x: Tensor, key: Key, draws: int, level: float) -> tuple[Tensor, Tensor]:
    """Maps images, (n, *event_shape): bits of each pixel, the mean over draws of times and noise, the same for all; and of
    them those of the diffusion at gamma above a level."""
    seeds, maps = model.seeds(key, draws), []
    noisy = (model.gamma(params, seeds.t) > level).reshape(-1, 1, 1, 1)
    for image in tqdm(x, desc="maps"):
        terms = model.terms(params, image.expand(draws, *image.shape), seeds)
        maps.append(torch.stack([terms.total.mean(0), (noisy * terms.diffusion).mean(0)]) / math.log(2))
    return torch.stack(maps, 1).unbind()


def smoothed(x: Tensor, side: int) -> Tensor:
    """Averages images over squares about each pixel, of fewer pixels at the edges."""
    return torch.nn.functional.avg_pool2d(x.double(), side, 1, side // 2, count_include_pad=False)


def contrast(x: Tensor) -> Tensor:
    """Measures each pixel's distance from the mean of its neighbourhood of 3 x 3."""
    return (x - smoothed(x, 3)).abs()


def scores(maps: Tensor, where: Tensor) -> Tensor:
    """Returns AUROC and the share of changed pixels among as many with the highest values, of each image, (n, 2)."""
    found = []
    for values, there in zip(maps.flatten(1), where.flatten(1), strict=True):
        top = there[values.argsort(descending=True)[: int(there.sum())]]
        found.append((auroc(values[~there], values[there], False)[0], top.double().mean().item()))
    return torch.tensor(found, dtype=torch.float64)


def picture(path: Path, rows: dict[str, Tensor], where: Tensor) -> None:
    """Draws of eight images, (n, 1, side, side), each row: grey images, then maps; with an outline of what changed."""
    figure, axes = plt.subplots(len(rows), 8, figsize=(12, 1.5 * len(rows)), layout="constrained")
    for row, (of_row, (name, images)) in enumerate(zip(axes, rows.items(), strict=True)):
        look = dict(cmap="gray_r", vmin=0) if row < 2 else dict(cmap="magma", vmin=0, vmax=images[:8].quantile(0.997).item())
        for ax, image, there in zip(of_row, images[:, 0].cpu(), where[:, 0].cpu(), strict=False):
            shown = ax.imshow(image.numpy(), **look)
            (top, left), (bottom, right) = there.nonzero().amin(0) - 0.5, there.nonzero().amax(0) + 0.5
            if row:
                ax.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="tab:cyan", linewidth=1)
        if row > 1:
            figure.colorbar(shown, ax=of_row, pad=0.01)
        of_row[0].set_ylabel(name)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=80)
    plt.close(figure)


@programs.program
def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    programs.least(1, side=args.side, draws=args.draws, smooth=args.smooth)
    programs.least(2, images=args.images)
    run = load(args.checkpoint, programs.device(args.device), dataless=args.path is None, **{"data.path": args.path})
    shape, k_data, k_sample, k_change, k_map = (
        run.test.event_shape,
        *random.split(random.key(args.seed, device=args.device), 4),
    )
    if len(shape) != 3 or shape[0] != 1 or args.side > min(shape[1:]) * 3 // 5 or run.config.model.labels:
        sys.exit(f"checkpoint: expected a model of grey images without classes, larger than the square, got events {shape}")
    out = programs.fresh(args.out or programs.beside(args.checkpoint, "maps"), args.overwrite, "maps.png")
    if run.test.size:
        x = common.some(run.test, args.images, k_data, args.device)
    else:
        tqdm.write(f"samples, as no data are there; {args.images} of the model", sys.stderr)
        x = run.model.sample(run.params, k_sample, args.images, steps=100).long()
    new, where = changed(x, args.side, k_change)
    kept = where.flatten(1).any(1)
    x, new, where = x[kept], new[kept], where[kept]
    bits, noisy = surprise(run.model, run.params, new, k_map, args.draws, args.level)
    maps = {"bits": bits, f"at gamma > {args.level:g}": noisy, "contrast": contrast(new)}
    count = where.flatten(1).sum(1).double().mean()
    print(f"{'':16}{'AUROC':>18}{'share found':>18}   ({len(x)} images, {count:.0f} pixels changed)")
    for name, values in maps.items():
        found = scores(smoothed(values, args.smooth), where)
        means, errors = found.mean(0), found.std(0) / math.sqrt(len(found))
        print(f"{name:16}" + "".join(f"{f'{m:.3f} +- {e:.3f}':>18}" for m, e in zip(means, errors, strict=True)))
    del maps["contrast"]
    shown = {name: smoothed(values, args.smooth) for name, values in maps.items()}
    picture(out / "maps.png", {"image": x, "changed": new, **shown}, where)


if __name__ == "__main__":
    main()
