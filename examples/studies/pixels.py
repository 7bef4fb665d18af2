"""Draw the schedule that MuLAN learned for each pixel: how much noise a pixel has when the image has half of its own.

    python examples/app/train.py mulan_digits
    python examples/studies/pixels.py runs/mulan_digits

Takes a run whose schedule has a gamma for each dimension. At each time a map shows gamma less its mean over pixels: red
pixels lose their signal sooner, blue ones later. Under a code the schedule is another for each image; the upper maps are
means over test images, and the lower ones are those of two images. Prints how far pixels are apart, how far images are, and
how gamma at time 1/2 goes with a pixel's standard deviation over the data (the correlation over pixels). Writes pixels.png.

Of the run above, at 2.063 +- 0.017 bits/dim (evaluate.py, 20 passes; the official k-hot code's count), on 256 test images:

        t    gamma   over pixels   over images
      0.1    -6.86         0.064         0.088
      0.3    -4.74         0.158         0.214
      0.5    -2.48         0.201         0.266
      0.7    -0.05         0.182         0.235
      0.9     2.59         0.084         0.106
    correlation of a pixel's gamma at t = 0.5 with its deviation over the data: 0.63

Pixels that differ much between images lose their signal sooner, those of the margin later. The code's term of the bound is
0.000003 bits/dim: so a code says nothing of its image here, and images have schedules as different as draws of the prior.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import common
import programs
import torch
import tyro
from pictures import plt
from runs import load
from torch import Tensor

from purevdm import VDM, coded, random
from purevdm.types import Key, Params

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass
class Arguments(common.OfRun):
    images: int = 256
    """The test images over which means are taken."""


@torch.no_grad()
def levels(model: VDM, params: Params, x: Tensor, key: Key, times: Tensor) -> Tensor:
    """Computes gamma of each image at each time: (n, len(times), *event_shape); images without a code have the same."""
    cond = None if model.code is None else coded.posterior(model, params, x, key)
    return torch.stack([model.gamma(params, t.expand(len(x)), cond).expand(x.shape) for t in times], 1)


def shares(gamma: Tensor) -> tuple[float, float]:
    """Measures spreads of gamma (n, *event_shape) at one time: the standard deviation over pixels of the mean over images,
    and that over images, the root of its mean square over pixels."""
    over_images = gamma.var(0).mean().sqrt() if len(gamma) > 1 else gamma.new_zeros(())
    return gamma.mean(0).std().item(), over_images.item()


def picture(path: Path, x: Tensor, gamma: Tensor) -> None:
    """Draws the mean of images x, (n, 1, *side), and two of them, each beside its maps."""
    rows = {"mean of all": (x.float().mean(0), gamma.mean(0))} | {f"image {i + 1}": (x[i], gamma[i]) for i in range(2)}
    figure, axes = plt.subplots(len(rows), 1 + len(TIMES), figsize=(11, 5.6), layout="constrained")
    centred = {name: g - g.mean((-3, -2, -1), keepdim=True) for name, (_, g) in rows.items()}
    most = max(g.abs().max().item() for g in centred.values()) or 1.0
    for of_row, (name, (image, _)) in zip(axes, rows.items(), strict=True):
        of_row[0].imshow(image[0].cpu(), cmap="gray_r")
        of_row[0].set_ylabel(name)
        for ax, map_ in zip(of_row[1:], centred[name][:, 0], strict=True):
            shown = ax.imshow(map_.cpu(), cmap="RdBu_r", vmin=-most, vmax=most)
    for ax, t in zip(axes[0, 1:], TIMES, strict=True):
        ax.set_title(f"t = {t:g}")
    axes[0, 0].set_title("pixels")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes, pad=0.01, label="gamma less its mean over pixels")
    figure.savefig(path, dpi=80)
    plt.close(figure)


@programs.program
def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    programs.least(2, images=args.images)
    run = load(args.checkpoint, programs.device(args.device), **{"data.path": args.path})
    schedule = getattr(run.model, "schedule", None)
    if getattr(schedule, "event_shape", None) is None or run.test.event_shape[:-2] != (1,) or run.config.model.labels:
        sys.exit(
            f"checkpoint: expected a model of grey images with a gamma for each pixel, without classes, got {schedule!r}"
        )
    out = programs.fresh(args.out or programs.beside(args.checkpoint, "pixels"), args.overwrite, "pixels.png")
    k_data, k_code = random.split(random.key(args.seed, device=args.device))
    x = common.some(run.test, args.images, k_data, args.device)
    times = torch.tensor(TIMES, device=args.device, dtype=run.model.dtype)
    gamma = levels(run.model, run.params, x, k_code, times)
    print(f"{'t':>5}{'gamma':>9}{'over pixels':>14}{'over images':>14}   (means and standard deviations, {len(x)} images)")
    for i, t in enumerate(TIMES):
        print(f"{t:5.1f}{gamma[:, i].mean():9.2f}" + "".join(f"{value:14.3f}" for value in shares(gamma[:, i])))
    deviations, half = x.float().std(0).flatten(), gamma[:, TIMES.index(0.5)].mean(0).flatten()
    together = torch.corrcoef(torch.stack([deviations, half.float()]))[0, 1]
    print(f"correlation of a pixel's gamma at t = 0.5 with its deviation over the data: {together:.2f}")
    picture(out / "pixels.png", x, gamma)


if __name__ == "__main__":
    main()
