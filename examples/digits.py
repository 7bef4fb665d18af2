"""Train a variational diffusion model on scikit-learn's digits in a plain custom loop, and bound their likelihood.

    python examples/digits.py

1797 real 8x8 images of 17 grey levels, embedded in scikit-learn. Prints the test bound in bits per dimension beside two
baselines, and writes samples.png, loss.png and params.safetensors, the averaged parameters.
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
import readers
import torch
from pictures import tiles
from tqdm import tqdm

import purevdm
from purevdm import interop, random, solvers, training
from purevdm.evaluation import evaluate
from purevdm.training.data import batch, split

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LEVELS, SHAPE, TEST = 17, (1, 8, 8), 297
GAMMA = dict(gamma_min=-8.0, gamma_max=4.0)


def data(key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Train and test images, integers (n, 1, 8, 8) in [0, 16], split by a key."""
    parts = split(readers.digits(), key.cpu(), TEST)
    train, test = (batch(part, np.arange(part.size))[0].long() for part in parts)
    return train, test


def histogram_bits(train: torch.Tensor, test: torch.Tensor, levels: int = LEVELS) -> torch.Tensor:
    """Bits per dimension of each test image under independent per-pixel histograms with add-one smoothing."""
    counts = torch.nn.functional.one_hot(train.flatten(1), levels).sum(0) + 1.0
    log_p = (counts / counts.sum(-1, keepdim=True)).log2()
    return -torch.gather(log_p.expand(len(test), -1, -1), 2, test.flatten(1)[..., None]).mean((1, 2))


def build(dtype: torch.dtype = torch.float32) -> purevdm.VDM:
    """The model, whose parameters :func:`main` trains."""
    # Fourier features of periods down to 1/8, about the spacing of 17 levels in [-1, 1], show the grid that data lie on.
    network = purevdm.networks.vdm_unet(embed=64, layers=2, fourier=(1, 2, 3), dropout=0.0, groups=16)
    schedule = purevdm.schedules.learned_linear(**GAMMA)
    return purevdm.vdm(network, schedule, event_shape=SHAPE, vocab_size=LEVELS, dtype=dtype)


def pictures(out: Path, real: torch.Tensor, samples: torch.Tensor, losses: list[float]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.3), layout="constrained")
    for ax, images, title in zip(axes, (real, samples), ("real", "samples"), strict=True):
        ax.imshow(tiles(LEVELS - 1 - images[:64], LEVELS, side=8), interpolation="nearest")
        ax.set_title(title)
        ax.axis("off")
    figure.savefig(out / "samples.png", dpi=120)
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    ax.plot(losses, linewidth=0.8)
    ax.set(xlabel="step", ylabel="training loss, bits/dim", yscale="log")
    ax.grid(alpha=0.3)
    figure.savefig(out / "loss.png", dpi=120)
    plt.close("all")


@programs.program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=550, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="where the files go (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="write over what an earlier call left in --out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--passes", type=int, default=20, help="passes of times over the test set")
    args = parser.parse_args()
    if min(args.steps, args.batch, args.passes) < 1:
        parser.error("--steps, --batch and --passes must be at least 1")
    programs.positive(lr=args.lr)
    programs.device(args.device)
    programs.fresh(args.out, args.overwrite, "params.safetensors")
    started = time.monotonic()

    k_data, k_init, k_train, k_test, k_sample = random.split(random.key(args.seed, device=args.device), 5)
    train, test = (x.to(args.device) for x in data(k_data))

    model = build()
    params = model.init(k_init)
    ema = optree.tree_map(torch.clone, params)
    leaves, average = optree.tree_leaves(params), optree.tree_leaves(ema)
    optimizer = torch.optim.AdamW(leaves, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    warmup = max(1, args.steps // 20)
    # What torch.compile(torch.func.grad_and_value(model.loss_fn)) computes; it compiles faster.
    gradients = training.gradients(model, compile=True)

    losses = []
    for i in (bar := tqdm(range(args.steps), desc="train (the first step compiles)")):
        k_batch, k_loss = random.split(random.fold_in(k_train, i))
        x = train[random.randint(k_batch, (args.batch,), 0, len(train))]
        grads, (loss, _) = gradients(params, x, k_loss)
        for leaf, grad in zip(leaves, optree.tree_leaves(grads), strict=True):
            leaf.grad = grad
        # a warm-up, then a cosine down to a hundredth
        rate = min((i + 1) / warmup, 0.505 + 0.495 * math.cos(math.pi * i / args.steps))
        optimizer.param_groups[0]["lr"] = args.lr * rate
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, leaves, max(0.01, 1 / (i + 1)))
        losses.append(loss.item())
        bar.set_postfix_str(f"{np.mean(losses[-50:]):.3f} bits/dim")

    interop.save_params(args.out / "params.safetensors", ema)
    with tqdm(total=len(test), desc="test bound") as bar:
        bound = evaluate(model, ema, [(test, None)], k_test, passes=args.passes, callback=bar.update).total
    baseline = histogram_bits(train, test)
    with tqdm(total=250, desc="sample") as bar:
        options = dict(steps=250, solver=solvers.ancestral(), grid="time", callback=lambda i, z: bar.update())
        samples = model.sample(ema, k_sample, 64, **options)
    pictures(args.out, test, samples, losses)
    print(f"test bound          {bound} bits/dim ({args.steps} steps, {len(test)} images)")
    print(f"pixel histograms    {baseline.mean():.4f} +- {baseline.std() / math.sqrt(len(baseline)):.4f} bits/dim")
    print(f"uniform             {math.log2(LEVELS):.4f} bits/dim")
    tqdm.write(f"pictures in {args.out}, after {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
