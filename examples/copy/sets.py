"""Train a variational diffusion model on sets of 5 to 40 points in a plain loop, and bound their log-density.

    python sets.py

The points of a set lie around the corners of a triangle, which each set turns by one of eight angles. So points tell of one
another, and the density is a sum over turns; training draws fresh sets. A whole set costs the bound on its points, given how
many, less the log-probability of their number. Prints it in nats a set beside the true entropy, the mean of minus the true
log density over the same test sets, and what they would cost point by point. Writes sets.png: test sets above samples.
"""

import argparse
import math
from pathlib import Path

import matplotlib
import numpy as np
import optree
import torch
from tqdm import tqdm

import purevdm
from purevdm import decoders, evaluation, networks, random, schedules, sizes, training

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FEWEST, MOST, STD, SHAPE = 5, 40, 0.15, (40, 2)
ANGLES = torch.arange(8)[:, None] * 2 * math.pi / 24 + torch.arange(3) * 2 * math.pi / 3
CORNERS = torch.stack([ANGLES.cos(), ANGLES.sin()], -1)  # (turns, corners, 2)


def draw_sets(key, n):
    """Draws n sets: points (n, 40, 2), zeros after the last, and how many there are, (n,)."""
    k_size, k_turn, k_corner, k_noise = random.split(key, 4)
    size = random.randint(k_size, (n,), FEWEST, MOST + 1)
    turn, corner = random.randint(k_turn, (n, 1), 0, 8), random.randint(k_corner, (n, MOST), 0, 3)
    x = CORNERS[turn, corner] + STD * random.normal(k_noise, (n, *SHAPE))
    return torch.where(sizes.mask(size, SHAPE), x, 0.0), size


def true_log_density(x, size):
    """Computes log p of sets with their sizes, float64 (n,): as they are, and as if each point had a turn of its own."""
    apart = (x.double()[:, :, None, None] - CORNERS.double()).square().sum(-1)  # (n, points, turns, corners)
    of_turn = torch.logsumexp(-0.5 * apart / STD**2, -1) - math.log(3 * 2 * math.pi * STD**2)
    there, of_size = sizes.mask(size, SHAPE), -math.log(MOST - FEWEST + 1)
    whole = torch.logsumexp(torch.where(there, of_turn, 0.0).sum(1), -1) - math.log(8)
    single = torch.where(there[..., 0], torch.logsumexp(of_turn, -1) - math.log(8), 0.0).sum(1)
    return whole + of_size, single + of_size


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


def picture(path, rows):
    figure, axes = plt.subplots(len(rows), 8, figsize=(12, 3.4), layout="constrained")
    for of_row, (name, (x, size)) in zip(axes, rows.items(), strict=True):
        for ax, points, n in zip(of_row, x, size, strict=False):
            ax.scatter(*points[:n].T, s=6)
            ax.set(aspect="equal", xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), xticks=[], yticks=[])
        of_row[0].set_ylabel(name)
    figure.savefig(path, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="training steps (default: %(default)s)")
    parser.add_argument("--test", type=int, default=1024, help="test sets (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=16, help="passes of times over them (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    compile = "whether to compile a step, which pays from some 3000 steps on (default: then)"
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help=compile)
    parser.add_argument("--out", type=Path, default=Path("runs/sets"), help="where the picture goes (default: %(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    k_size, k_init, k_train, k_test, k_bound, k_sample = random.split(random.key(args.seed), 6)
    network, schedule = networks.transformer(64, 3), schedules.learned_linear(-10.0, 5.0)
    model = purevdm.vdm(network, schedule, SHAPE, decoder=decoders.gaussian())

    def draw(key):
        x, size = draw_sets(key, 128)
        return x, None, sizes.mask(size, SHAPE)

    params, _ = train(model, draw, k_init, k_train, args.steps, compile=args.compile)
    known = sizes.counts(draw_sets(k_size, 10_000)[1], MOST)
    x, size = draw_sets(k_test, args.test)
    batches = [(part, None, sizes.mask(n, SHAPE)) for part, n in zip(x.split(128), size.split(128), strict=True)]
    each = evaluation.per_example(model, params, batches, k_bound, passes=args.passes).nll
    bound, (truth, single) = each - known.log_prob(size), (-log_p for log_p in true_log_density(x, size))
    drawn = known.sample(k_sample, 8)
    samples = model.sample(params, k_sample, 8, mask=sizes.mask(drawn, SHAPE))
    picture(args.out / "sets.png", {"source": (x, size), "samples": (samples, drawn)})
    rows = {"test bound": bound, "true entropy": truth, "bound less truth": bound - truth, "point by point": single}
    for name, nats in rows.items():
        print(f"{name:18}{nats.mean():.3f} +- {nats.std() / math.sqrt(len(nats)):.3f} nats a set")


if __name__ == "__main__":
    main()
