"""Train a Bayesian Flow Network (Graves et al. 2023) on scikit-learn's digits in a plain loop, and bound their likelihood.

    python flows.py

The data are those of digits.py: 1797 real 8x8 images, of which each pixel is one of 17 bins. Prints the test bound in bits
per dimension. Writes params.safetensors, the averaged parameters, and samples.png: samples, and the means of the input
distributions that led to them.
"""

import argparse
import math
from pathlib import Path

import matplotlib
import numpy as np
import optree
import torch
from sklearn.datasets import load_digits
from tqdm import tqdm

from purevdm import bfn, evaluation, interop, networks, random, training

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LEVELS, SHAPE, TEST = 17, (1, 8, 8), 297
TIMES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)  # when the picture shows the input distributions


def data(key):
    """Splits the images by a key: those for training and for the test, integers (n, 1, 8, 8) in [0, 16]."""
    x = torch.from_numpy(load_digits().images).long()[:, None]
    order = random.permutation(key.cpu(), len(x))
    return x[order[TEST:]], x[order[:TEST]]


def train(model, draw, k_init, k_train, steps, lr=2e-3, decay=0.01, compile=None):
    """Trains on the batches that ``draw(key)`` gives; returns the averaged parameters and the losses, bits/dim."""
    params = model.init(k_init)
    ema = optree.tree_map(torch.clone, params)
    leaves, average = optree.tree_leaves(params), optree.tree_leaves(ema)
    optimizer = torch.optim.AdamW(leaves, lr=lr, betas=(0.9, 0.99), weight_decay=decay, fused=True)
    # A compiler takes as long as it saves in some 3000 steps, whatever the machine.
    compile = steps >= 3000 if compile is None else compile
    # What torch.func.grad_and_value(model.loss_fn) computes; it compiles sooner, and is faster in eager mode.
    gradients = training.gradients(model, compile=compile)
    losses = []
    for i in (bar := tqdm(range(steps), desc="train (the first step compiles)" if compile else "train (not compiled)")):
        k_batch, k_loss = random.split(random.fold_in(k_train, i))
        grads, (loss, _) = gradients(params, draw(k_batch), k_loss)
        for leaf, grad in zip(leaves, optree.tree_leaves(grads), strict=True):
            leaf.grad = grad
        # a warm-up, then a cosine down to a hundredth
        rate = min((i + 1) / max(1, steps // 20), 0.505 + 0.495 * math.cos(math.pi * i / steps))
        optimizer.param_groups[0]["lr"] = lr * rate
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, leaves, max(0.01, 1 / (i + 1)))
        losses.append(loss.item())
        bar.set_postfix_str(f"{np.mean(losses[-50:]):.3f} bits/dim", refresh=False)
    return ema, losses


def tiles(x, columns=8):
    """Sets images (n, 1, height, width) side by side, as ``imshow`` takes them."""
    x = torch.nn.functional.pad(x, (1, 1, 1, 1)).squeeze(1).unflatten(0, (-1, columns))
    return x.transpose(1, 2).flatten(2).flatten(0, 1)


def picture(path, samples):
    steps = [round(t * (len(samples.theta) - 1)) for t in TIMES]
    means = samples.theta[steps][:, :8].transpose(0, 1).flatten(0, 1)
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.3), layout="constrained")
    axes[0].imshow(tiles(samples.x.cpu()), cmap="gray_r", vmin=0, vmax=LEVELS - 1)
    axes[0].set_title("samples")
    axes[1].imshow(tiles((means.cpu().clamp(-1, 1) + 1) / 2), cmap="gray_r", vmin=0, vmax=1)
    axes[1].set_title("means of the input distributions at times\n" + ", ".join(f"{t:g}" for t in TIMES))
    for ax in axes:
        ax.axis("off")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=550, help="training steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--passes", type=int, default=20, help="passes of times over the test set (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    compile = "whether to compile a step, which pays from some 3000 steps on (default: then)"
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help=compile)
    parser.add_argument("--out", type=Path, default=Path("runs/flows"), help="where the files go (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="write over what an earlier call left in --out")
    args = parser.parse_args()
    if (args.out / "params.safetensors").exists() and not args.overwrite:
        parser.error(f"--out: expected a folder without params.safetensors, got {args.out}; give another, or --overwrite")
    args.out.mkdir(parents=True, exist_ok=True)

    k_data, k_init, k_train, k_test, k_sample = random.split(random.key(args.seed, device=args.device), 5)
    x, test = (part.to(args.device) for part in data(k_data))
    network = networks.vdm_unet(embed=64, layers=2, fourier=(1, 2, 3), dropout=0.0, groups=16, outputs=2)
    model = bfn.discretised(network, SHAPE, bins=LEVELS, sigma_1=0.03)
    draw = lambda key: x[random.randint(key, (args.batch,), 0, len(x))]  # noqa: E731
    # As in the paper, training leaves the reconstruction out, and with it the second application of the network.
    trained = model._replace(reconstruction=False)
    params, _ = train(trained, draw, k_init, k_train, args.steps, compile=args.compile)
    interop.save_params(args.out / "params.safetensors", params)
    bound = evaluation.evaluate(model, params, [test], k_test, passes=args.passes)
    picture(args.out / "samples.png", model.sample(params, k_sample, 64, steps=100, trajectory=True))
    print(f"test bound    {bound.nll} bits/dim ({args.steps} steps, {len(test)} images)")
    print(f"  messages    {bound.terms['diffusion']}")
    print(f"uniform       {math.log2(LEVELS):.4f} bits/dim")


if __name__ == "__main__":
    main()
