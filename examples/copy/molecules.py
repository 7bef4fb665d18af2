"""Train a variational diffusion model on small molecules in a plain loop, bound their likelihood, and draw new ones.

    python molecules.py

The molecules are those of G2, which ASE ships (Curtiss et al. 1997), of 2 to 14 atoms of H, C, N, O, F, S and Cl: positions in
Angstrom with the centre at 0, types, and charges of the nuclei, padded to 14. Prints the test bound in nats a molecule, given
its size and with it, by terms, and how many samples are valid: two atoms are bound where they are nearer than 1.25 times the
sum of their covalent radii; a valid molecule hangs together, no atom has more neighbours than its valence, and no two atoms
are nearer than 0.7 times that sum. Writes molecules.png: real molecules above samples.
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
from purevdm import decoders, evaluation, networks, parts, random, schedules, solvers, training

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NUMBERS, VALENCES = torch.tensor([1, 6, 7, 8, 9, 16, 17]), torch.tensor([1, 4, 3, 2, 1, 2, 1])
COLOURS = ("white", "dimgray", "royalblue", "red", "palegreen", "gold", "limegreen")
RADII, ATOMS, TEST = torch.tensor(covalent_radii)[NUMBERS].float(), 14, 24
DECODER = decoders.product(
    positions=(decoders.gaussian(scale=1.2), 3),
    types=decoders.one_hot(len(NUMBERS), scale=2.0),
    charges=decoders.integers(0, loc=4.0, scale=8.0),
)


def data(key):
    """Splits the molecules by a key: those for training and for the test, (n, 14, 5), with charges of 0 in the padding."""
    molecules = [g2[name] for name in g2.names]
    molecules = [atoms for atoms in molecules if len(atoms) > 1 and set(atoms.numbers) <= set(NUMBERS.tolist())]
    x = torch.zeros(len(molecules), ATOMS, 5)
    for row, atoms in zip(x, molecules, strict=True):
        position, charge = torch.tensor(atoms.positions).float(), torch.tensor(atoms.numbers)
        kind = (charge[:, None] == NUMBERS).int().argmax(1)
        row[: len(atoms)] = DECODER.join(positions=position - position.mean(0), types=kind, charges=charge)
    order = random.permutation(key, len(x))
    return x[order[TEST:]], x[order[:TEST]]


def valid(position, kind):
    """Says whether atoms, at positions (n, 3) and of types (n,), are a molecule by the rule above."""
    apart = torch.cdist(position, position) / (RADII[kind][:, None] + RADII[kind]) + 9 * torch.eye(len(kind))
    bound = apart < 1.25
    reached = torch.linalg.matrix_power(bound.double() + torch.eye(len(kind)), len(kind))
    return bool((reached > 0).all() and (bound.sum(1) <= VALENCES[kind]).all() and apart.min() > 0.7)


def train(model, draw, k_init, k_train, steps, lr=2e-3, decay=0.01, compile=True):
    """Trains on the batches that ``draw(key)`` gives; returns the averaged parameters and the losses, bits/dim."""
    params = model.init(k_init)
    ema = optree.tree_map(torch.clone, params)
    leaves, average = optree.tree_leaves(params), optree.tree_leaves(ema)
    optimizer = torch.optim.AdamW(leaves, lr=lr, betas=(0.9, 0.99), weight_decay=decay, fused=True)
    # What torch.func.grad_and_value(model.loss_fn) computes; it compiles faster.
    gradients = training.gradients(model, compile=compile)
    losses = []
    for i in (bar := tqdm(range(steps), desc="train (the first step compiles)" if compile else "train")):
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


def atoms(x):
    """Gives the positions and types of the atoms that exist in each molecule."""
    each = [DECODER.split(row[row[:, -1] > 0]) for row in x]
    return [(of["positions"], of["types"]) for of in each]


def picture(path, rows):
    """Draws rows of molecules, each flattened along its narrowest direction."""
    figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=(1.5 * len(rows[0]), 1.6 * len(rows)), layout="constrained")
    for ax, (position, kind) in zip(axes.flat, (molecule for row in rows for molecule in row), strict=True):
        flat = (position - position.mean(0)) @ torch.linalg.svd(position - position.mean(0))[2][:2].T
        near = torch.cdist(position, position) < 1.25 * (RADII[kind][:, None] + RADII[kind])
        for i, j in near.triu(1).nonzero().tolist():
            ax.plot(*flat[[i, j]].T, color="gray", zorder=1)
        colours = [COLOURS[i] for i in kind]
        ax.scatter(*flat.T, s=400 * RADII[kind] ** 2, c=colours, edgecolors="black", linewidths=0.5, zorder=2)
        ax.set(aspect="equal", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
        ax.axis("off")
    figure.savefig(path, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="training steps (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=64, help="noises of each test molecule (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=200, help="how many to draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true", help="train without compiling")
    parser.add_argument("--out", type=Path, default=Path("runs/molecules"), help="where the picture goes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    k_data, k_init, k_train, k_bound, k_size, k_draw = random.split(random.key(args.seed), 6)
    x, test = data(k_data)
    network, schedule, subspace = networks.egnn(64, 4), schedules.fixed_linear(-8.0, 6.0), parts.zero_centre(columns=3)
    model = purevdm.vdm(network, schedule, (ATOMS, 5), decoder=DECODER, subspace=subspace)

    def draw(key):
        some = x[random.randint(key, (64,), 0, len(x))]
        return some, None, some[..., -1:] > 0  # without a condition, and the mask

    params, _ = train(model, draw, k_init, k_train, args.steps, compile=not args.eager)

    # The size of a molecule by how often training molecules have it, and once more each.
    sizes = (x[..., -1] > 0).sum(1).bincount(minlength=ATOMS + 1)[2:] + 1
    there = test[..., -1:] > 0
    found = evaluation.evaluate(model, params, [(test, None, there)], k_bound, passes=args.passes)
    log_p_n = (sizes / sizes.sum()).log()[there.sum((1, 2)) - 2]
    n = random.categorical(k_size, sizes.log(), shape=(args.samples,)) + 2
    mask = (torch.arange(ATOMS) < n[:, None])[..., None]
    drawn = model.sample(params, k_draw, args.samples, steps=250, solver=solvers.ancestral(), mask=mask)
    real, made = atoms(torch.cat([x, test])), atoms(drawn)
    picture(args.out / "molecules.png", [real[:10], made[:10], made[10:20]])
    print(f"test bound     {found.nll} nats ({args.steps} steps, {len(test)} molecules, given their sizes)")
    for name, term in found.terms.items():
        print(f"  {name:12} {term}")
    print(f"-log p(size)   {-log_p_n.mean():.3f} +- {log_p_n.std() / math.sqrt(len(test)):.3f} nats")
    for name, molecules in (("real", real), ("samples", made)):
        share = sum(valid(*molecule) for molecule in molecules) / len(molecules)
        error = math.sqrt(share * (1 - share) / len(molecules))
        print(f"valid {name:8} {share:.3f} +- {error:.3f} of {len(molecules)}")


if __name__ == "__main__":
    main()
