"""Train a Bayesian Flow Network in a plain custom loop, and bound the likelihood of held-out data.

    python examples/bfn.py digits     # scikit-learn's 8x8 images of 17 grey levels, as bins
    python examples/bfn.py binary     # the same, black and white: two classes
    python examples/bfn.py text       # the characters of this repository's licence, windows of 32

Prints the test bound in bits per dimension (of text: per character) beside baselines, and samples. Writes samples.png (of
digits: with the input distributions' means on the way) and params.safetensors, the averaged parameters.
"""

import argparse
import math
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import digits
import numpy as np
import optree
import programs
import torch
from pictures import tiles
from tqdm import tqdm

from purevdm import bfn, interop, networks, random
from purevdm.evaluation import Figure, evaluate

ALPHABET = " abcdefghijklmnopqrstuvwxyz"
LENGTH, HELD_OUT = 32, 60


class Task(NamedTuple):
    """A model, its data, (n, *event_shape), and what simpler models spend on the test set, bits/dim."""

    model: bfn.BFN
    train: torch.Tensor
    test: torch.Tensor
    baselines: dict[str, Figure]


def over_examples(bits: torch.Tensor) -> Figure:
    return Figure(bits.mean().item(), bits.std().item() / math.sqrt(len(bits)))


def images(name: str, key: torch.Tensor, embed: int) -> Task:
    train, test = digits.data(key)
    if name == "binary":
        train, test = (x // 9 for x in (train, test))
        levels, options = 2, dict(predicts="x")
    else:
        levels, options = digits.LEVELS, dict(outputs=2)
    network = networks.vdm_unet(embed=embed, layers=2, fourier=(1, 2, 3), dropout=0.0, groups=16, **options)
    if name == "binary":
        model = bfn.discrete(network, digits.SHAPE, classes=2, beta_1=9.0)
    else:
        model = bfn.discretised(network, digits.SHAPE, bins=levels, sigma_1=0.03)
    histograms = digits.histogram_bits(train, test, levels)
    uniform = torch.full((2,), math.log2(levels))
    return Task(model, train, test, {"pixel histograms": over_examples(histograms), "uniform": over_examples(uniform)})


def text(key: torch.Tensor, embed: int) -> Task:
    """Letters and spaces of the licence: windows of the training part at every character, of the test part side by side."""
    whole = (Path(__file__).parents[1] / "LICENSE").read_text()
    codes = torch.tensor([ALPHABET.index(c) for c in re.sub("[^a-z]+", " ", whole.lower()).strip()])
    # a stretch of the text is held out, its place drawn by the key
    start = int(random.randint(key, (), 0, len(codes) - HELD_OUT * LENGTH))
    test = codes[start : start + HELD_OUT * LENGTH].reshape(HELD_OUT, 1, LENGTH)
    parts = [codes[:start], codes[start + HELD_OUT * LENGTH :]]
    train = torch.cat([part.unfold(0, LENGTH, 1) for part in parts if len(part) >= LENGTH])[:, None]
    network = networks.unet(embed, (1, 2), 2, adapter="c l -> l c", attention=(0, 1), dropout=0.1)
    model = bfn.discrete(network, (1, LENGTH), classes=len(ALPHABET), beta_1=0.75**2)
    baselines = {f"{n}-grams": over_examples(ngram_bits(parts, test, n)) for n in (1, 2, 3, 4)}
    return Task(model, train, test, baselines)


def ngram_bits(parts: list[torch.Tensor], test: torch.Tensor, order: int) -> torch.Tensor:
    """Bits per character of each window under n-grams interpolated with the shorter ones (Witten & Bell 1991), down to the
    uniform distribution. A window's first characters have as much of a past as the window shows."""
    counts: Counter = Counter()
    for part in (part.tolist() for part in parts):
        counts.update(tuple(part[i : i + n]) for n in range(1, order + 1) for i in range(len(part) - n + 1))
    followers = Counter(gram[:-1] for gram in counts)
    totals = Counter()
    for gram, count in counts.items():
        totals[gram[:-1]] += count

    def p(past: tuple, character: int) -> float:
        shorter = p(past[1:], character) if past else 1.0 / len(ALPHABET)
        if past not in totals:
            return shorter
        return (counts[(*past, character)] + followers[past] * shorter) / (totals[past] + followers[past])

    bits = [
        [-math.log2(p(tuple(row[max(0, i - order + 1) : i]), c)) for i, c in enumerate(row)]
        for row in test.flatten(1).tolist()
    ]
    return torch.tensor(bits).mean(1)


def pictures(path: Path, levels: int, real: torch.Tensor, found: bfn.Sample) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 5.3), layout="constrained")
    means = found.theta[..., 1] * 2 - 1 if levels == 2 else found.theta
    steps = [round(i * (len(means) - 1) / 7) for i in range(8)]
    way = ((means[steps, :8].transpose(0, 1).flatten(0, 1).clamp(-1, 1) + 1) / 2 * (levels - 1)).round().long()
    titles = ("real", "samples", "input distributions on the way")
    for ax, x, title in zip(axes, (real[:64], found.x[:64], way), titles, strict=True):
        ax.imshow(tiles(levels - 1 - x, levels, side=8), interpolation="nearest")
        ax.set_title(title)
        ax.axis("off")
    figure.savefig(path, dpi=120)
    plt.close("all")


@programs.program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("digits", "binary", "text"), nargs="?", default="digits")
    parser.add_argument("--steps", type=int, default=550, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="where the files go (default: runs/bfn_TASK)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--embed", type=int, default=64, help="the network's width (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--passes", type=int, default=20, help="passes of times over the test set")
    parser.add_argument("--sample-steps", type=int, default=100)
    parser.add_argument("--eager", action="store_true", help="train without compiling")
    args = parser.parse_args()
    if min(args.steps, args.batch, args.passes, args.sample_steps) < 1:
        parser.error("--steps, --batch, --passes and --sample-steps must be at least 1")
    out = args.out or Path("runs") / f"bfn_{args.task}"
    programs.positive(lr=args.lr)
    programs.device(args.device)
    programs.folder(out)

    k_data, k_init, k_train, k_test, k_sample = random.split(random.key(args.seed, device=args.device), 5)
    task = text(k_data, args.embed) if args.task == "text" else images(args.task, k_data, args.embed)
    model, train, test = task.model, task.train.to(args.device), task.test.to(args.device)
    params = model.init(k_init)
    ema = optree.tree_map(torch.clone, params)
    leaves, average = optree.tree_leaves(params), optree.tree_leaves(ema)
    optimizer = torch.optim.AdamW(leaves, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    # as in the paper, training leaves the reconstruction out, and with it the second application of the network
    step = torch.func.grad_and_value(model._replace(reconstruction=False).loss_fn)
    step = step if args.eager else torch.compile(step, fullgraph=True)

    losses = []
    for i in (bar := tqdm(range(args.steps), desc="train" if args.eager else "train (the first step compiles)")):
        k_batch, k_loss = random.split(random.fold_in(k_train, i))
        grads, loss = step(params, train[random.randint(k_batch, (args.batch,), 0, len(train))], k_loss)
        for leaf, grad in zip(leaves, optree.tree_leaves(grads), strict=True):
            leaf.grad = grad
        # a warm-up, then a cosine down to a hundredth
        rate = min((i + 1) / max(1, args.steps // 20), 0.505 + 0.495 * math.cos(math.pi * i / args.steps))
        optimizer.param_groups[0]["lr"] = args.lr * rate
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, leaves, max(0.01, 1 / (i + 1)))
        losses.append(loss.item())
        bar.set_postfix_str(f"{np.mean(losses[-50:]):.3f} bits/dim")

    interop.save_params(out / "params.safetensors", ema)
    with tqdm(total=len(test), desc="test bound") as bar:
        bound = evaluate(model, ema, [test], k_test, passes=args.passes, callback=bar.update)
    with tqdm(total=args.sample_steps, desc="sample") as bar:
        options = dict(steps=args.sample_steps, trajectory=True, callback=lambda i, w: bar.update())
        found = model.sample(ema, k_sample, 64, **options)
    if args.task == "text":
        print("\n".join("".join(ALPHABET[c] for c in row) for row in found.x[:8, 0].tolist()))
    else:
        pictures(out / "samples.png", model.decoder.vocab_size, test, found)
    unit = "bits/character" if args.task == "text" else "bits/dim"
    print(f"{'test bound':<18}{bound.total} {unit} ({args.steps} steps, {len(test)} examples)")
    print(f"{'  of it messages':<18}{bound.diffusion}")
    for name, figure in task.baselines.items():
        print(f"{name:<18}{figure}")


if __name__ == "__main__":
    main()
