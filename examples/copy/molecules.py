"""Train a variational diffusion model on small molecules in a plain loop, bound their likelihood, and draw new ones.

    python molecules.py

ASE ships the molecules, G2 (Curtiss et al. 1997); those of 2 to 14 atoms of H, C, N, O, F, S and Cl are taken, as positions
in Angstrom, their mean at 0, types, and charges of nuclei. Prints the bound in nats by terms, and the part of samples that
are valid: within 1.25 times the sum of their covalent radii two atoms are bound; bonds join all atoms, none has more than
its valence, and no two are within 0.7 times that sum. Writes molecules.png: real molecules above samples.
"""

import argparse
import math
from pathlib import Path

import matplotlib
import numpy as np
import optree
import torch
from ase.collections import g2
from ase.data import covalent_radii
from tqdm import tqdm

import purevdm
from purevdm import decoders, evaluation, networks, parts, random, schedules, sizes, solvers, training

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NUMBERS, VALENCES = torch.tensor([1, 6, 7, 8, 9, 16, 17]), torch.tensor([1, 4, 3, 2, 1, 2, 1])
COLOURS = ("white", "dimgray", "royalblue", "red", "palegreen", "gold", "limegreen")
RADII, SHAPE, TEST = torch.tensor(covalent_radii)[NUMBERS].float(), (14, 5), 24
POSITIONS, TYPES, CHARGES = decoders.gaussian(scale=1.2), decoders.one_hot(7, scale=4.0), decoders.integers(0, scale=10.0)
DECODER = decoders.product(positions=(POSITIONS, 3), types=TYPES, charges=CHARGES)


def data(key):
    """Splits the molecules by a key: those for training and for the test, (n, 14, 5), with charges of 0 in the padding."""
    found = [g2[name] for name in g2.names if set(g2[name].numbers) <= set(NUMBERS.tolist()) and len(g2[name]) > 1]
    x = torch.zeros(len(found), *SHAPE)
    for row, atoms in zip(x, found, strict=True):
        at, charges = (torch.tensor(part) for part in (atoms.positions - atoms.positions.mean(0), atoms.numbers))
        row[: len(atoms)] = DECODER.join(positions=at, types=torch.searchsorted(NUMBERS, charges), charges=charges)
    order = random.permutation(key, len(x))
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


def bonds(position, types):
    """Says which atoms, (n, 3) of types (n,), are bound, (n, n), and whether they are a molecule by the rule above."""
    apart = torch.cdist(position, position) / (RADII[types][:, None] + RADII[types]) + 9 * torch.eye(len(types))
    bound, each = apart < 1.25, torch.eye(len(types), dtype=torch.float64)
    joined = (torch.linalg.matrix_power(bound + each, len(types)) > 0).all()
    return bound, bool(joined and (bound.sum(1) <= VALENCES[types]).all() and apart.min() > 0.7)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500, help="training steps (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=200, help="how many to draw, at least 20 (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/molecules"), help="where the picture goes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    k_data, k_init, k_train, k_bound, k_size, k_draw = random.split(random.key(0), 6)
    network, schedule, subspace = networks.egnn(64, 4), schedules.fixed_linear(-8.0, 6.0), parts.zero_centre(columns=3)
    model = purevdm.vdm(network, schedule, SHAPE, decoder=DECODER, subspace=subspace)
    (x, there), (test, test_there) = ((part, part[..., 4:] > 0) for part in data(k_data))

    def draw(key):
        rows = random.randint(key, (64,), 0, len(x))
        return x[rows], None, there[rows]  # data, condition, mask

    params, _ = train(model, draw, k_init, k_train, args.steps, compile=False)
    found = evaluation.evaluate(model, params, [(test, None, test_there)], k_bound, passes=64)
    known = sizes.counts(there.sum((1, 2)), most=SHAPE[0])
    mask = sizes.mask(known.sample(k_size, args.samples), SHAPE)
    drawn = model.sample(params, k_draw, args.samples, steps=250, solver=solvers.ancestral(), mask=mask)
    pairs = (zip(*each, strict=True) for each in ((test, test_there), (drawn, mask)))
    real, made = ([tuple(DECODER.split(row[here[:, 0]]).values())[:2] for row, here in each] for each in pairs)
    of_size = -known.log_prob(test_there.sum((1, 2))).mean()
    print(f"test bound  {found.nll} nats ({args.steps} steps, {TEST} molecules), with their sizes {of_size:.3f} more")
    print("by terms    " + ", ".join(f"{name} {term}" for name, term in found.terms.items()))
    for name, each in (("test", real), ("samples", made)):
        share, n = np.mean([bonds(*molecule)[1] for molecule in each]), len(each)
        print(f"valid       {share:.3f} +- {math.sqrt(share * (1 - share) / n):.3f} of {n} {name}")
    figure, axes = plt.subplots(3, 10, figsize=(12, 4), layout="constrained")
    for ax, (position, types) in zip(axes.flat, real[:10] + made[:20], strict=True):
        flat = position @ torch.linalg.svd(position)[2][:2].T  # along its narrowest direction
        for pair in bonds(position, types)[0].nonzero():
            ax.plot(*flat[pair].T, color="gray", zorder=1)
        ax.scatter(*flat.T, s=300 * RADII[types] ** 2, c=[COLOURS[i] for i in types], edgecolors="black", zorder=2)
        ax.set(aspect="equal", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), frame_on=False, xticks=[], yticks=[])
    figure.savefig(args.out / "molecules.png", dpi=80)


if __name__ == "__main__":
    main()
