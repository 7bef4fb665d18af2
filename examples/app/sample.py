"""Draw from a checkpoint: a grid as PNG, and the numbers as .npy.

    python examples/app/sample.py runs/digits_train --n 64 --steps 250
    python examples/app/sample.py runs/mine --label 3 --guidance 2.0
    torchrun --nproc-per-node 4 -- examples/app/sample.py runs/mine --n 10000    # by turns, the same samples

Writes samples.png and samples.npy, (n, *event), into --out: uint8 (uint16 and int32 for more values), or float32 where data
are real, which make a picture if they are images. The same seed gives the same samples.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import programs
import torch
import tyro
from pictures import drawable, grid
from presets import condition, stream
from runs import load
from tqdm import tqdm

from purevdm import _files, bfn, parallel, random, solvers


@dataclass
class Arguments:
    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or one of its checkpoints."""
    out: Path | None = None
    """The folder to write into; left out, samples/ in the run's own."""
    overwrite: bool = False
    """Whether to write over what an earlier call left in --out."""
    n: int = 64
    batch: int = 64
    """How many at once."""
    steps: int = 250
    solver: Literal["ancestral", "ddim", "dpmpp_2m", "bayesian", "sde_1", "sde_2", "ode_1", "ode_2", "ode_2s"] | None = None
    """The first three are a diffusion model's (dpmpp_2m where left out), the others a Bayesian flow's (bayesian).
    ddim, dpmpp_2m and the ode solvers are deterministic, and need few steps."""
    grid: Literal["time", "gamma", "root"] | None = None
    """In what the steps are even: time, gamma for a diffusion model (where left out), the root of the time for a Bayesian
    flow."""
    label: int | None = None
    """The class of all; each in turn where left out, for a model that takes classes."""
    guidance: float = 1.0
    decode: Literal["argmax", "sample"] = "argmax"
    clip: bool = False
    """Whether to clamp every estimate to the data's range."""
    path: str | None = None
    """Where the data are, if not where they were in training: their shape is read there."""
    seed: int = 0
    device: str = "cpu"


@programs.program
def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    programs.least(1, n=args.n, batch=args.batch, steps=args.steps)
    programs.device(args.device)
    group = parallel.join(args.device)
    try:
        sample(args, group)
    finally:
        parallel.leave()


def sample(args: Arguments, group: parallel.Group) -> None:
    device = str(group.device)
    config, train, _, model, params = load(args.checkpoint, device, dataless=True, **{"data.path": args.path})
    out = args.out or programs.beside(args.checkpoint, "samples")
    written = ["samples.png"] * drawable(train.event_shape, train.vocab_size) + ["samples.npy"]
    programs.fresh(out, args.overwrite, *written)
    if args.label is not None and not (config.model.labels and 0 <= args.label < train.classes):
        sys.exit(f"label: expected a class of the model ({train.classes if config.model.labels else 'it takes none'})")
    diffusion = config.model.kind == "vdm"
    if args.clip and not (diffusion and train.vocab_size):
        sys.exit("clip: expected no, as real data have no bounds, and a Bayesian flow clamps where it says so itself")
    own = ("ancestral", "ddim", "dpmpp_2m") if diffusion else ("bayesian", "sde_1", "sde_2", "ode_1", "ode_2", "ode_2s")
    for name, fitting in (("solver", own), ("grid", ("time", "gamma" if diffusion else "root"))):
        if getattr(args, name) not in (None, *fitting):
            sys.exit(f"{name}: expected one of {', '.join(fitting)} for this model")
    options = dict(clip=args.clip) if diffusion else {}
    options |= {} if args.grid is None else dict(grid=args.grid)
    if args.solver is not None:
        options |= dict(solver=getattr(solvers if diffusion else bfn.solvers, args.solver)())
    drawn = {}
    batches = range(0, args.n, args.batch)
    with tqdm(total=len(batches) * args.steps, desc="sample", disable=group.rank > 0) as bar:
        update = parallel.counted(bar.update)
        for j, start in list(enumerate(batches))[group.rank :: group.size]:
            size = min(args.batch, args.n - start)
            labels = torch.arange(start, start + size, device=device) % max(train.classes, 1)
            labels = labels if args.label is None else torch.full_like(labels, args.label)
            key = random.fold_in(stream("sample", args.seed, device), j)
            options |= dict(cond=condition(config, torch.zeros(size, device=device), labels))
            options |= dict(guidance=args.guidance, decode=args.decode, callback=lambda i, z: update(1))
            drawn[j] = model.sample(params, key, size, steps=args.steps, **options).cpu()
        parts = programs.in_order(drawn)
        update(0)
    if group.rank > 0:
        return
    x = torch.cat(parts)
    if train.vocab_size is not None:
        kinds = {torch.uint8: 2**8, torch.uint16: 2**16, torch.int32: 2**31}
        x = x.to(next(dtype for dtype, most in kinds.items() if train.vocab_size <= most))
    with _files.replaced(out / "samples.npy") as draft:
        np.save(draft, x.numpy())
    if "samples.png" in written:
        grid(x, train.vocab_size, out / "samples.png")
    print(f"{len(x)} samples in {out}/{' and '.join(written)}")


if __name__ == "__main__":
    main()
