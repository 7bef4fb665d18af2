"""Train a variational diffusion model on real-valued points in a plain loop, and draw their density.

    python density.py

Points lie on a noisy spiral, whose density is known as an integral along the curve; training draws fresh ones. Prints the
test bound in nats beside log p by the probability flow and the true entropy. Writes density.png: maps of exp(-bound), of the
density by the flow, and of the true one, above latents on their way from noise to points. exp(-bound) integrates to at most
1, but for the error of a mean over noises, which exp makes a little larger.

The network takes the points without Fourier features. With six of them the bound comes nearer to the truth, 0.04 nats above
it, and the flow falls behind by 2.5 nats: its density follows the network's derivatives, which high frequencies spoil.
"""

import argparse
import math
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import optree
import torch
from tqdm import tqdm

import purevdm
from purevdm import evaluation, likelihood, ode, random, training

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EXTENT = 24.0  # the map's half width


def curve(angle):
    """Places points on the spiral, (n, 2), at angles from 0 to 3 pi."""
    radius = 2 * angle + math.pi
    return torch.stack([angle.cos() * radius, angle.sin() * radius], dim=-1)


def spiral(key, n):
    """Draws n points around it, real numbers (n, 2)."""
    k_angle, k_noise = random.split(key)
    x = curve(random.uniform(k_angle, (n,)).sqrt() * 3 * math.pi)
    return x + 0.25 * random.normal(k_noise, x.shape)


def true_log_density(x, pieces=4096):
    """Computes log p of points (n, 2), float64: a mean of Gaussians along the curve, each by its share of the points."""
    angle = (torch.arange(pieces, dtype=torch.float64) + 0.5) / pieces * 3 * math.pi
    weight = (angle / angle.sum()).log()  # the square root of a uniform number has a linear density
    distance = torch.cat([torch.cdist(part, curve(angle)) for part in x.double().split(4096)])
    return torch.logsumexp(weight - 0.5 * (distance / 0.25) ** 2, -1) - math.log(2 * math.pi * 0.25**2)


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


@torch.no_grad()
def minus_bound(model, params, x, key, noises, size=64):
    """Bounds log p of each point, (n, 2): a mean over times and noises, the times even over a batch, and so over a point's
    copies in it."""
    batches = enumerate(tqdm(x.split(size), desc=f"bound, {noises} noises"))
    totals = [model.nll_bound(params, part.repeat(noises, 1), random.fold_in(key, i)).total for i, part in batches]
    return -torch.cat([total.unflatten(0, (noises, -1)).double().mean(0) for total in totals]).cpu()


def by_flow(model, params, x, key, tolerance):
    """Computes log p of each point, (n, 2), by the probability flow with the exact divergence."""
    flow = partial(likelihood.log_prob, model, integrator=ode.dopri5(tolerance, tolerance), probes="exact")
    return evaluation.per_example(model, params, x.split(4096), key, method=flow)


def picture(path, maps, z):
    """Draws maps of log densities by name, (rows, columns), and latents, (steps + 1, n, 2)."""
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 7.3), layout="constrained")
    for ax, (name, log_p) in zip(axes[0], maps.items(), strict=True):
        highest = maps["true density"].max().exp()
        ax.imshow(log_p.exp(), vmin=0, vmax=highest, origin="lower", extent=2 * (-EXTENT, EXTENT), cmap="magma")
        ax.set(title=name, xticks=[], yticks=[])
    for ax, t in zip(axes[1], (0.6, 0.4, 0.0), strict=True):
        ax.scatter(*z[round((1 - t) * (len(z) - 1))].cpu().T, s=4, alpha=0.35, linewidths=0)
        ax.set(title=f"z at t = {t:g}", aspect="equal", xlim=(-2.7, 2.7), ylim=(-2.7, 2.7), xticks=[], yticks=[])
    figure.savefig(path, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="training steps (default: %(default)s)")
    parser.add_argument("--test", type=int, default=4096, help="test points (default: %(default)s)")
    parser.add_argument("--grid", type=int, default=128, help="the map's cells along each axis (default: %(default)s)")
    parser.add_argument("--noises", type=int, default=256, help="times and noises of each cell (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    compile = "whether to compile a step, which pays from some 3000 steps on (default: then)"
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help=compile)
    parser.add_argument("--out", type=Path, default=Path("runs/density"), help="where the map goes (default: %(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    k_scale, k_init, k_train, k_test, k_bound, k_map = random.split(random.key(args.seed), 6)
    x, test = spiral(k_scale, 8192), spiral(k_test, args.test)
    decoder = purevdm.decoders.gaussian(loc=x.mean(0).tolist(), scale=x.std(0).tolist())
    network, schedule = purevdm.networks.mlp(256, 3, fourier=()), purevdm.schedules.learned_linear(-12.0, 5.0)
    model = purevdm.vdm(network, schedule, event_shape=(2,), decoder=decoder)
    draw = partial(spiral, n=512)
    params, _ = train(model, draw, k_init, k_train, args.steps, decay=1e-4, compile=args.compile)

    bound = evaluation.evaluate(model, params, [test], k_bound, passes=16).nll
    flow = by_flow(model, params, test, k_bound, 1e-4).summary()
    entropy = -true_log_density(test)
    centres = ((torch.arange(args.grid) + 0.5) / args.grid * 2 - 1) * EXTENT
    cells = torch.cartesian_prod(centres, centres).flip(1)  # rows of the map run along the second coordinate
    maps = {
        "exp(-bound)": minus_bound(model, params, cells, k_map, args.noises),
        "by the flow": -by_flow(model, params, cells, k_map, 1e-3).nll,
        "true density": true_log_density(cells),
    }
    z = model.sample(params, k_scale, 1024, steps=200, trajectory=True).z
    picture(args.out / "density.png", {name: log_p.reshape(args.grid, -1) for name, log_p in maps.items()}, z)
    area = (2 * EXTENT / args.grid) ** 2
    print(f"test bound       {bound} nats ({args.steps} steps, {args.test} points)")
    print(f"by the flow      {flow.nll} nats ({flow.evaluations:.0f} evaluations a point)")
    print(f"true density     {entropy.mean():.4f} +- {entropy.std() / math.sqrt(len(entropy)):.4f} nats")
    print(f"mass on the map  {', '.join(f'{log_p.exp().sum() * area:.4f} {name}' for name, log_p in maps.items())}")


if __name__ == "__main__":
    main()
