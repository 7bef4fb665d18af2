"""Train a variational diffusion model on scikit-learn's digits in a plain loop, and edit test images with it.

    python editing.py

Writes editing.png, in three parts. Completions: an image, what is known of it, and draws of the rest; each step is taken
--repeats times, as replacement by itself, 1, is biased (RePaint, Lugmayr et al. 2022). Interpolations: two images inverted
to noise, and samples from the noises on the great circle between them. Variations: images diffused to a time and sampled
back from there, later and later (SDEdit, Meng et al. 2022).
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
from purevdm import process, random, sampling, solvers, training

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LEVELS, SHAPE, TEST = 17, (1, 8, 8), 297


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


def completions(model, params, key, x, known, times, repeats, steps):
    """Draws what is not known of images x, (n, *event_shape), beside what is: (n, times, *event_shape)."""
    x, known = (part.repeat_interleave(times, 0) for part in (x, known))
    z_0 = model.decoder.encode({}, x, dtype=model.dtype)
    solver = sampling.repaint(z_0, known, repeats)
    drawn = model.sample(params, key, len(x), solver=solver, steps=steps)
    return torch.where(known, x, drawn).unflatten(0, (-1, times))


def interpolations(model, params, key, a, b, n, steps):
    """Goes from images a to images b, each (rows, *event_shape), in n images: (rows, n, *event_shape)."""
    options = dict(steps=steps, solver=solvers.dpmpp_2m(), grid="gamma")
    z_a, z_b = (sampling.invert(model, params, x, **options) for x in (a, b))
    weights = torch.linspace(0.0, 1.0, n, device=z_a.device)
    z = torch.cat([sampling.interpolate(*pair, weights) for pair in zip(z_a, z_b, strict=True)])
    return model.sample(params, key, len(z), z=z, **options).unflatten(0, (-1, n))


def variations(model, params, key, x, start, steps):
    """Diffuses images x, (n, *event_shape), to the time start, and samples back from there, in that part of the steps."""
    k_diffuse, k_sample = random.split(key)
    z_0 = model.decoder.encode({}, x, dtype=model.dtype)
    z = process.diffuse(z_0, model.gamma(params, torch.tensor(start, device=x.device)), random.normal(k_diffuse, z_0.shape))
    return model.sample(params, k_sample, len(x), z=z, start=start, steps=math.ceil(start * steps))


def tiles(x, columns=8):
    """Sets images (n, 1, height, width) side by side, as ``imshow`` takes them."""
    x = torch.nn.functional.pad(x, (1, 1, 1, 1)).squeeze(1).unflatten(0, (-1, columns))
    return x.transpose(1, 2).flatten(2).flatten(0, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=550, help="training steps (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="how many test images (default: %(default)s)")
    parser.add_argument("--sample-steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5, help="of each step of a completion (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    compile = "whether to compile a step, which pays from some 3000 steps on (default: then)"
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help=compile)
    parser.add_argument("--out", type=Path, default=Path("runs/editing"), help="for the picture (default: %(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    k_data, k_init, k_train, k_complete, k_vary = random.split(random.key(args.seed, device=args.device), 5)
    x, test = (part.to(args.device) for part in data(k_data))
    network = purevdm.networks.vdm_unet(embed=64, layers=2, fourier=(1, 2, 3), dropout=0.0, groups=16)
    model = purevdm.vdm(network, purevdm.schedules.learned_linear(-8.0, 4.0), event_shape=SHAPE, vocab_size=LEVELS)
    draw = lambda key: x[random.randint(key, (64,), 0, len(x))]  # noqa: E731
    params, _ = train(model, draw, k_init, k_train, args.steps, compile=args.compile)

    a, b = test[: args.rows], test[args.rows : 2 * args.rows]
    known = torch.ones_like(a, dtype=torch.bool)
    known[:, :, 4:] = False
    completed = completions(model, params, k_complete, a, known, 6, args.repeats, args.sample_steps)
    between = interpolations(model, params, k_vary, a, b, 8, args.sample_steps)
    varied = [variations(model, params, k_vary, a, start / 10, args.sample_steps) for start in range(3, 10)]
    parts = {
        "real, known, completions": torch.cat([a[:, None], torch.where(known, a, 6)[:, None], completed], 1),
        "interpolations between inverted images": between,
        "real, varied from times 0.3 to 0.9": torch.stack([a, *varied], 1),
    }
    figure, axes = plt.subplots(1, 3, figsize=(12.6, 4.5), layout="constrained")
    for ax, (title, images) in zip(axes, parts.items(), strict=True):
        ax.imshow(tiles(images.flatten(0, 1).cpu()), cmap="gray_r", vmin=0, vmax=LEVELS - 1)
        ax.set_title(title)
        ax.axis("off")
    figure.savefig(args.out / "editing.png", dpi=96)
    back = (between[:, 0] == a).all() and (between[:, -1] == b).all()
    print(f"{args.out}/editing.png; inverted images {'came' if back else 'did not all come'} back exactly")


if __name__ == "__main__":
    main()
