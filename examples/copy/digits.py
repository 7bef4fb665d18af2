"""Train a variational diffusion model on scikit-learn's digits in a plain loop, and bound their likelihood.

    python digits.py

The data are 1797 real 8x8 images of 17 grey levels, embedded in scikit-learn. Prints the test bound in bits per dimension
beside two baselines. Writes samples.png, loss.png and params.safetensors, the averaged parameters.
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

import purevdm
from purevdm import evaluation, interop, random, training

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LEVELS, SHAPE, TEST = 17, (1, 8, 8), 297


def data(key):
    """Splits the images by a key: those for training and for the test, integers (n, 1, 8, 8) in [0, 16]."""
    x = torch.from_numpy(load_digits().images).long()[:, None]
    order = random.permutation(key.cpu(), len(x))
    return x[order[TEST:]], x[order[:TEST]]


def build():
    """Makes the model."""
    # Fourier features of periods down to 1/8, about the spacing of 17 levels in [-1, 1], show the grid that data lie on.
    network = purevdm.networks.vdm_unet(embed=64, layers=2, fourier=(1, 2, 3), dropout=0.0, groups=16)
    schedule = purevdm.schedules.learned_linear(gamma_min=-8.0, gamma_max=4.0)
    return purevdm.vdm(network, schedule, event_shape=SHAPE, vocab_size=LEVELS)


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


def histogram_bits(train, test, levels=LEVELS):
    """Returns bits per dimension of each test image under independent per-pixel histograms with add-one smoothing."""
    pixels = torch.arange(test[0].numel())
    cells = train.flatten(1) + levels * pixels  # of a level of a pixel, numbered
    counts = torch.bincount(cells.flatten(), minlength=levels * len(pixels)).unflatten(0, (-1, levels)) + 1.0
    log_p = (counts / counts.sum(-1, keepdim=True)).log2()
    return -torch.gather(log_p.expand(len(test), -1, -1), 2, test.flatten(1)[..., None]).mean((1, 2))


def tiles(x, columns=8):
    """Sets images (n, 1, height, width) side by side, as ``imshow`` takes them."""
    x = torch.nn.functional.pad(x, (1, 1, 1, 1)).squeeze(1).unflatten(0, (-1, columns))
    return x.transpose(1, 2).flatten(2).flatten(0, 1)


def pictures(out, real, samples, losses):
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.3), layout="constrained")
    for ax, images, title in zip(axes, (real[:64], samples), ("real", "samples"), strict=True):
        ax.imshow(tiles(images.cpu()), cmap="gray_r", vmin=0, vmax=LEVELS - 1)
        ax.set_title(title)
        ax.axis("off")
    figure.savefig(out / "samples.png", dpi=120)
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    ax.plot(losses, linewidth=0.8)
    ax.set(xlabel="step", ylabel="training loss, bits/dim", yscale="log")
    figure.savefig(out / "loss.png", dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=550, help="training steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64)
    compile = "whether to compile a step, which pays from some 3000 steps on (default: then)"
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help=compile)
    parser.add_argument("--passes", type=int, default=20, help="passes of times over the test set (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="where the files go (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="write over what an earlier call left in --out")
    args = parser.parse_args()
    if (args.out / "params.safetensors").exists() and not args.overwrite:
        parser.error(f"--out: expected a folder without params.safetensors, got {args.out}; give another, or --overwrite")
    args.out.mkdir(parents=True, exist_ok=True)

    k_data, k_init, k_train, k_test, k_sample = random.split(random.key(args.seed, device=args.device), 5)
    x, test = (part.to(args.device) for part in data(k_data))
    model = build()

    def draw(key):
        return x[random.randint(key, (args.batch,), 0, len(x))]

    params, losses = train(model, draw, k_init, k_train, args.steps, compile=args.compile)
    interop.save_params(args.out / "params.safetensors", params)
    bound = evaluation.evaluate(model, params, [test], k_test, passes=args.passes).nll
    samples = model.sample(params, k_sample, 64, steps=250)
    pictures(args.out, test, samples, losses)
    baseline = histogram_bits(x, test)
    print(f"test bound          {bound} bits/dim ({args.steps} steps, {len(test)} images)")
    print(f"pixel histograms    {baseline.mean():.4f} +- {baseline.std() / math.sqrt(len(baseline)):.4f} bits/dim")
    print(f"uniform             {math.log2(LEVELS):.4f} bits/dim")


if __name__ == "__main__":
    main()
