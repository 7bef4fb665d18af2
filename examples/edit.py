"""Edit test images with a trained model: complete their lower halves, go from one to another, change them a little.

    python examples/train.py digits
    python examples/edit.py runs/digits_train

Writes edit.png into --out, in three parts. Completions: an image, what is known of it, and draws of the rest, by a hook
between the steps, or nearer to exact ones with ``--repeats 10``. Interpolations: two images inverted to noise, and samples
from the noises on the great circle between them. Variations: images diffused to a time and sampled back from there, later
and later (SDEdit, Meng et al. 2022).
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import optree
import programs
import torch
import tyro
from pictures import tiles
from presets import condition
from runs import load
from torch import Tensor
from tqdm import tqdm

from purevdm import VDM, process, random, sampling, solvers
from purevdm.sampling import interpolate, invert
from purevdm.training.data import batch

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass
class Arguments:
    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or one of its checkpoints."""
    out: Path | None = None
    """The folder to write into; left out, edit/ in the run's own."""
    overwrite: bool = False
    """Whether to write over what an earlier call left in --out."""
    rows: int = 8
    """How many test images (and for interpolations, pairs)."""
    columns: int = 8
    first: int = 0
    """The first of the test images."""
    steps: int = 250
    """Ancestral steps, for completions and variations."""
    repeats: int = 1
    """How often each step of a completion is taken: with more, what is drawn fits better what is known (RePaint, Lugmayr et
    al. 2022). Replacement alone, 1, is biased; 10 is nearly exact, at ten times the cost (solvers.py measures both)."""
    flow_steps: int = 100
    """Steps of DPM-Solver++(2M), for interpolations: there and back."""
    path: str | None = None
    """Where the data are, if not where they were in training."""
    seed: int = 0
    device: str = "cpu"


def repeated(tree: Any, times: int) -> Any:
    """Each example several times, one after another."""
    return optree.tree_map(lambda leaf: leaf.repeat_interleave(times, 0), tree)


def completions(
    model: VDM, params: dict, key: Tensor, x: Tensor, known: Tensor, times: int, cond: Any, repeats: int = 1, **options
) -> Tensor:
    """Draws of what is not known of images x, (n, *event_shape), beside what is: (n, times, *event_shape)."""
    x, known = (repeated(part, times) for part in (x, known))
    f = model.decoder.encode({}, x, dtype=model.dtype)
    options |= dict(solver=solvers.ancestral(), project=sampling.inpaint(f, known), grid="time", cond=repeated(cond, times))
    if repeats > 1:
        options |= dict(solver=sampling.repaint(f, known, repeats), project=None)
    drawn = model.sample(params, key, len(x), **options)
    return torch.where(known, x, drawn).unflatten(0, (-1, times))


def interpolations(model: VDM, params: dict, key: Tensor, a: Tensor, b: Tensor, k: int, cond: Any, **options) -> Tensor:
    """From images a to images b, each (n, *event_shape), in k images: (n, k, *event_shape)."""
    z_a, z_b = (invert(model, params, x, cond, **options) for x in (a, b))
    weights = torch.linspace(0.0, 1.0, k, dtype=model.dtype, device=a.device)
    z = torch.cat([interpolate(*pair, weights) for pair in zip(z_a, z_b, strict=True)])
    return model.sample(params, key, len(z), z=z, cond=repeated(cond, k), **options).unflatten(0, (-1, k))


def variations(model: VDM, params: dict, key: Tensor, x: Tensor, start: float, cond: Any, steps: int) -> Tensor:
    """Images x, (n, *event_shape), diffused to the time start and sampled back from there, in that part of the steps."""
    k_diffuse, k_sample = random.split(key)
    f = model.decoder.encode({}, x, dtype=model.dtype)
    gamma = model.gamma(params, torch.tensor(start, dtype=model.dtype, device=x.device))
    z = process.diffuse(f, gamma, random.normal(k_diffuse, f.shape, model.dtype))
    options = dict(steps=math.ceil(start * steps), solver=solvers.ancestral(), grid="time")
    return model.sample(params, k_sample, len(x), z=z, start=start, cond=cond, **options)


def picture(parts: dict[str, Tensor], vocab_size: int, path: Path) -> None:
    """The parts side by side, each (rows, columns, channels, height, width)."""
    rows, columns = next(iter(parts.values())).shape[:2]
    size = (4.2 * len(parts), 4.2 * rows / columns + 0.3)
    figure, axes = plt.subplots(1, len(parts), figsize=size, layout="constrained")
    for ax, (title, x) in zip(axes, parts.items(), strict=True):
        shown = vocab_size - 1 - x if x.shape[2] == 1 else x  # ink on paper
        ax.imshow(tiles(shown.flatten(0, 1), vocab_size, side=columns), interpolation="nearest")
        ax.set_title(title)
        ax.axis("off")
    figure.savefig(path, dpi=96)
    plt.close(figure)


@programs.program
def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    programs.least(1, rows=args.rows, steps=args.steps, flow_steps=args.flow_steps, repeats=args.repeats)
    programs.least(3, columns=args.columns)
    programs.least(0, first=args.first)
    changes = {} if args.path is None else {"data.path": args.path}
    config, _, test, model, params = load(args.checkpoint, programs.device(args.device), **changes)
    if config.model.kind != "vdm":
        sys.exit(f"checkpoint: expected a diffusion model, got model.kind={config.model.kind}")
    if len(test.event_shape) != 3 or test.vocab_size is None:
        sys.exit(f"checkpoint: expected a model of images, got one of events of shape {test.event_shape}")
    if test.size < args.first + 2 * args.rows:
        sys.exit(f"rows: expected {2 * args.rows} test images from {args.first} on, found {test.size} in all")
    out = programs.fresh(args.out or programs.beside(args.checkpoint, "edit"), args.overwrite, "edit.png")
    x, labels = batch(test, np.arange(args.first, args.first + 2 * args.rows), args.device)
    x, y = x.long().chunk(2)
    labels = None if labels is None else labels[: args.rows]  # in interpolations, the first image's
    cond = condition(config, torch.zeros(args.rows, device=args.device), labels)
    k_complete, k_between, k_vary = random.split(random.key(args.seed, device=args.device), 3)
    known = torch.ones_like(x, dtype=torch.bool)
    known[..., x.shape[-2] // 2 :, :] = False
    flow = dict(steps=args.flow_steps)

    with tqdm(total=3, desc="edit") as bar:
        options = dict(repeats=args.repeats, steps=args.steps)
        completed = completions(model, params, k_complete, x, known, args.columns - 2, cond, **options)
        bar.update()
        between = interpolations(model, params, k_between, x, y, args.columns, cond, **flow)
        bar.update()
        starts = torch.linspace(0.3, 0.9, args.columns - 1).tolist()
        varied = [variations(model, params, k_vary, x, start, cond, args.steps) for start in starts]
        bar.update()
    masked = torch.where(known, x, 3 * test.vocab_size // 8)
    parts = {
        "real, known, completions": torch.cat([x[:, None], masked[:, None], completed], 1),
        "interpolations between inverted images": between,
        f"real, varied from times {starts[0]:.1f} to {starts[-1]:.1f}": torch.stack([x, *varied], 1),
    }
    picture(parts, test.vocab_size, out / "edit.png")
    back = (between[:, 0] == x).all() and (between[:, -1] == y).all()
    print(f"{out}/edit.png; inverted images {'came' if back else 'did not all come'} back exactly")


if __name__ == "__main__":
    main()
