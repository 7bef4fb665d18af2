"""Compare the members of the family on Fashion-MNIST, over seeds: diffusion, binned estimates, a prediction of v, DiffEnc,
MuLAN with two kinds of code, and a Bayesian flow, around one small U-Net.

    python examples/studies/fashion.py DATA --eager
    python examples/studies/fashion.py DATA --eager --equal-time

DATA is the folder of the four IDX files. All have the same steps, batches and seeds; by --equal-time all have the time of
the diffusion model's steps in eager mode, and files in --out/equal_time. Bounds are of 1000 of the 10,000 test images, the
same for all.

Writes a file for each run as it ends, so that a second call goes on where the first stopped, and table.md.

Means over three seeds with their standard errors; then the standard error over test images; a step's time is in multiples of
the diffusion model's, on two AVX-512 cores (medians, in turn); last, the bound in equal time:

    model                  test             over images  train             a step  equal time
    diffusion              4.179 +- 0.027   0.116        4.054 +- 0.055    1
    Bayesian flow          3.732 +- 0.018   0.065        3.626 +- 0.016    1.05    3.738 +- 0.022
    diffusion, binned      3.657 +- 0.028   0.099        3.534 +- 0.013    1.08
    diffusion, v           4.048 +- 0.007   0.112        3.926 +- 0.038    0.98
    DiffEnc, v             4.051 +- 0.011   0.112        3.933 +- 0.025    3.94    5.623 +- 0.045
    MuLAN, Gaussian code   6.022 +- 0.070   0.156        5.960 +- 0.074    2.06    7.394 +- 0.059
    pixel histograms       4.621            0.036

Binned estimates are 0.076 +- 0.012 ahead of the Bayesian flow, and DiffEnc 0.004 +- 0.015 behind diffusion that predicts v,
seed by seed. After 300 steps of 32 images the diffusion model was still above the histograms.
"""

import sys
from functools import cache, partial
from pathlib import Path

import common
import members
import numpy as np
import presets
import programs
import torch
from common import Task

from purevdm import networks, random
from purevdm.training.data import batch

LEVELS, SHAPE, TEST = 256, (1, 28, 28), 1000
SETTINGS = dict(steps=800, batch=16, lr=2e-3, passes=1)
EAGER = {"bfn": 1.05, "binned": 1.08, "diffenc": 3.94, "mulan": 2.06, "one_hot": 2.02}  # by --step-times --eager
UNET = dict(multipliers=(1, 2, 2), blocks=1, attention=(2,), fourier=(6, 7), groups=8)
IMAGES = members.Images(
    **dict(shape=SHAPE, levels=LEVELS, ends=(-13.3, 5.0), sigma_1=0.001),
    network=partial(networks.unet, 16, **UNET),
    mover=partial(networks.unet, 8, **UNET),
    coder=lambda outputs: networks.unet_encoder(SHAPE, outputs, 16, 1, groups=8, dropout=0.0),
)


@cache
def examples(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads the training images, and the test images that are bounded."""
    train, test = presets.datasets(presets.Data(source="idx", path=str(path)), random.key(0))
    if (train.event_shape, train.vocab_size) != (SHAPE, LEVELS):
        raise ValueError(f"path: expected images of {SHAPE} with {LEVELS} levels, got {train.event_shape}")
    return batch(train, np.arange(train.size))[0].long(), common.some(test, TEST, common.SPLIT, "cpu")


def task(path: Path, kind: str) -> Task:
    return members.task(members.model(IMAGES, kind), *examples(path))._replace(settings=SETTINGS)


@programs.program
def main() -> None:
    args = common.arguments(
        __doc__, "runs/fashion", "fashion/mulan", "the folder of Fashion-MNIST's IDX files", **members.FLAGS
    )
    rows = {("fashion", kind): partial(task, args.path, kind) for kind in members.MEMBERS}
    if args.step_times:
        common.print_step_times(rows, args)
        return
    times = {("fashion", kind): time for kind, time in EAGER.items()}
    rows = common.in_equal_time(rows, times, args) if args.equal_time else rows
    figures = common.run(rows, args)
    histograms = {"pixel histograms": common.histogram_bits(*examples(args.path), LEVELS)}
    lines = members.lines(figures, "fashion", "bits/dim", members.MEMBERS, histograms)
    common.table(members.HEADER, lines, args.out)


if __name__ == "__main__":
    sys.exit(main())
