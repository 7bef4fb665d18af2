"""The official 2D example: a variational diffusion model of an 8-bit swirl, with pictures of how it denoises.

    python examples/swirl.py

Writes samples.png (samples beside data), trajectory.png (latents on their way from noise to data) and loss.png.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import optree
import programs
import torch
from tqdm import tqdm

import purevdm
from purevdm import random, solvers

matplotlib.use("Agg")
import matplotlib.pyplot as plt

POINTS, VALUES = 1024, 256


def spiral(key: torch.Tensor, n: int) -> torch.Tensor:
    """n points around a spiral, real numbers (n, 2)."""
    k_angle, k_noise = random.split(key)
    angle = random.uniform(k_angle, (n,)).sqrt() * 3 * math.pi
    radius = 2 * angle + math.pi
    x = torch.stack([angle.cos() * radius, angle.sin() * radius], dim=-1)
    return x + 0.25 * random.normal(k_noise, x.shape)


def swirl(key: torch.Tensor) -> torch.Tensor:
    """1024 of them on the 256 x 256 grid, integers (1024, 2)."""
    return (4 * (spiral(key, POINTS) + 30)).to(torch.int64)


def scatter(ax, points: torch.Tensor, title: str, colour: str) -> None:
    ax.scatter(*points.cpu().numpy().T, s=4, alpha=0.35, color=colour, linewidths=0)
    ax.set_title(title)
    ax.set_aspect("equal")
    ax.set(xticks=[], yticks=[])


def pictures(out: Path, x: torch.Tensor, sample: purevdm.Sample, losses: list[float]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
    for ax, points, title, colour in zip(axes, (x, sample.x), ("data", "samples"), ("C0", "C3"), strict=True):
        scatter(ax, points, title, colour)
        ax.set(xlim=(0, VALUES), ylim=(0, VALUES))
    figure.savefig(out / "samples.png", dpi=120)

    steps = len(sample.z) - 1
    figure, axes = plt.subplots(1, 6, figsize=(15, 2.9), layout="constrained")
    for ax, t in zip(axes, (1.0, 0.6, 0.5, 0.4, 0.3, 0.0), strict=True):
        scatter(ax, sample.z[round((1 - t) * steps)], f"z at t = {t:g}", "C3")
        ax.set(xlim=(-2.7, 2.7), ylim=(-2.7, 2.7))
    figure.savefig(out / "trajectory.png", dpi=120)

    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    window = max(1, len(losses) // 200)
    ax.plot(np.convolve(losses, np.ones(window) / window, "valid"), linewidth=0.8)
    ax.set(xlabel="step", ylabel=f"training loss, bits/dim (mean of {window})")
    ax.grid(alpha=0.3)
    figure.savefig(out / "loss.png", dpi=120)
    plt.close("all")


@programs.program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/swirl"), help="where the pictures go (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--sampling-steps", type=int, default=200)
    args = parser.parse_args()
    if min(args.steps, args.sampling_steps) < 1:
        parser.error("--steps and --sampling-steps must be at least 1")
    programs.positive(lr=args.lr)
    programs.device(args.device)
    programs.folder(args.out)
    started = time.monotonic()

    k_data, k_init, k_train, k_sample, k_test = random.split(random.key(args.seed, device=args.device), 5)
    x = swirl(k_data)
    # The example standardises its data: mean 0 and variance 1 in each dimension.
    u = (2 * x + 1) / VALUES - 1
    decoder = purevdm.decoders.discrete(VALUES, loc=u.mean(0).tolist(), scale=u.std(0).tolist())
    model = purevdm.vdm(
        purevdm.networks.mlp(hidden=512), purevdm.schedules.learned_linear(), event_shape=(2,), decoder=decoder
    )
    params = model.init(k_init)
    ema = optree.tree_map(torch.clone, params)
    leaves, average = optree.tree_leaves(params), optree.tree_leaves(ema)
    optimizer = torch.optim.AdamW(leaves, lr=args.lr, weight_decay=1e-4, fused=True)
    step = torch.compile(torch.func.grad_and_value(model.loss_fn), fullgraph=True)

    losses = []
    for i in (bar := tqdm(range(args.steps), desc="train (the first step compiles)")):
        grads, loss = step(params, x, random.fold_in(k_train, i))
        for leaf, grad in zip(leaves, optree.tree_leaves(grads), strict=True):
            leaf.grad = grad
        optimizer.param_groups[0]["lr"] = args.lr * (0.505 + 0.495 * math.cos(math.pi * i / args.steps))
        optimizer.step()
        torch._foreach_lerp_(average, leaves, max(0.005, 1 / (i + 1)))
        losses.append(loss.item())
        if i % 20 == 0:
            bar.set_postfix_str(f"{np.mean(losses[-100:]):.3f} bits/dim")

    with torch.no_grad():
        bits = torch.stack([model.loss_fn(ema, x, k, train=False) for k in random.split(k_test, 50)]).double()
    options = dict(steps=args.sampling_steps, solver=solvers.ancestral(), grid="time", trajectory=True)
    sample = model.sample(ema, k_sample, POINTS, **options)
    pictures(args.out, x, sample, losses)
    distance = torch.cdist(sample.x.float(), x.float()).amin(1)
    print(f"bound on the data   {bits.mean():.4f} +- {bits.std() / math.sqrt(len(bits)):.4f} bits/dim ({args.steps} steps)")
    print(f"uniform             {math.log2(VALUES):.4f} bits/dim")
    print(f"samples lie {distance.median():.2f} grid steps from the nearest of the {POINTS} points (median)")
    tqdm.write(f"pictures in {args.out}, after {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
