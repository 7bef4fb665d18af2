"""Draw rate against distortion: the bits that a model has spent after each latent, and how far its estimate of the image is
then from the image (codec.curve; Ho, Jain, Abbeel 2020, sec. 4.3).

    python examples/studies/progressive.py examples/app/fashion_mnist --path DATA --images 32 --steps 100

Below are estimates of a few images after 0.01, 0.03, 0.1, 0.3 and 1 bits/dim, and the images. Most bits tell of the last
grey levels: of the 3.16 bits/dim of Fashion-MNIST in 100 steps, 0.03 leave a root mean squared error of 37 grey levels,
0.3 one of 11, and 1 one of 2.8. It is a reading of the bound, not of a file: a file's latents come in that order only from
its end (codec.curve). Writes progressive.png, as beside this file, and prints the curve at those rates.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import common
import programs
import torch
import tyro
from pictures import plt, tiles
from runs import load
from torch import Tensor

from purevdm import VDM, codec, process, random
from purevdm.types import Key, Params

RATES = (0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass
class Arguments(common.OfRun):
    images: int = 64
    steps: int = 250
    shown: int = 8
    """How many images to show estimates of."""


def reached(curve: codec.Curve, rates: tuple[float, ...] = RATES) -> list[int]:
    """Finds at which latent of a curve each rate is spent."""
    return [int((curve.rate <= rate).sum().clamp(min=1)) - 1 for rate in rates]


@torch.no_grad()
def estimates(model: VDM, params: Params, x: Tensor, key: Key, steps: int, latents: list[int]) -> list[Tensor]:
    """Estimates images from their latents z_{T - i}, for each i: values of the data."""
    f = model.decoder.encode({}, x, dtype=model.dtype)
    noise, denoise = random.normal(key, f.shape, f.dtype), model.denoiser(params, n=len(x), clip=True)
    shown = []
    for i in latents:
        gamma = model.gamma(params, torch.tensor(max(steps - i, 0) / steps, dtype=model.dtype, device=f.device))
        z = process.diffuse(f, gamma, noise)
        shown.append(model.decoder.mode({}, denoise(z, gamma.expand(len(x))).x))
    return shown


def picture(path: Path, curve: codec.Curve, rows: list[Tensor], vocab_size: int) -> None:
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 8.5), layout="constrained", height_ratios=[1, 1.5])
    above.errorbar(curve.rate, curve.mse.sqrt(), curve.mse_error / (2.0 * curve.mse.sqrt().clamp(min=1e-9)))
    above.plot(curve.rate[reached(curve)], curve.mse[reached(curve)].sqrt(), "o", color="tab:blue")
    above.set(xscale="log", xlabel=f"spent, {curve.unit}", ylabel="root mean squared error, grey levels")
    above.grid(alpha=0.3)
    below.imshow(tiles(vocab_size - 1 - torch.cat(rows), vocab_size, side=len(rows[0])), interpolation="nearest")
    height = below.get_ylim()[0] / len(rows)
    names = [*(f"{rate:g}" for rate in RATES), "image"]
    below.set(xticks=[], yticks=[height * (i + 0.5) for i in range(len(rows))], yticklabels=names, ylabel=curve.unit)
    figure.savefig(path, dpi=80)
    plt.close(figure)


@programs.program
def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    programs.least(1, steps=args.steps, shown=args.shown)
    programs.least(2, images=args.images)
    run = load(args.checkpoint, programs.device(args.device), **{"data.path": args.path})
    shape, size = run.test.event_shape, run.test.vocab_size
    if len(shape) != 3 or size is None or run.config.model.labels:
        sys.exit(f"checkpoint: expected a model of images of integers without classes, got events {shape}")
    out = programs.fresh(args.out or programs.beside(args.checkpoint, "progressive"), args.overwrite, "progressive.png")
    k_data, k_curve, k_shown = random.split(random.key(args.seed, device=args.device), 3)
    x = common.some(run.test, args.images, k_data, args.device)
    curve = codec.curve(run.model, run.params, x.split(32), k_curve, timesteps=args.steps)
    for i in [*reached(curve), len(curve.rate) - 2, len(curve.rate) - 1]:
        root = curve.mse[i].sqrt()
        error = f"{root:8.2f} +- {curve.mse_error[i] / (2.0 * root.clamp(min=1e-9)):.2f} grey levels"
        after = "the image" if i > args.steps else f"z_{args.steps - i}"
        print(f"after {after:10}{curve.rate[i]:8.4f} +- {curve.rate_error[i]:.4f} {curve.unit}, error {error}")
    some = x[: args.shown]
    rows = estimates(run.model, run.params, some, k_shown, args.steps, reached(curve))
    picture(out / "progressive.png", curve, [*rows, some], size)


if __name__ == "__main__":
    main()
