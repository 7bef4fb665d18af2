"""Train a Bayesian Flow Network in a plain custom loop, and bound the likelihood of held-out data.

    python examples/bfn.py digits     # scikit-learn's 8x8 images of 17 grey levels, as bins
    python examples/bfn.py binary     # the same, black and white: two classes
    python examples/bfn.py text       # the characters of Python's language reference, windows of 64

Prints the test bound in bits per dimension (of text: per character) beside baselines. Writes samples.png, which shows the
input distributions on the way, too, and params.safetensors, the averaged parameters. ``families.py`` compares with diffusion
models, over seeds.
"""

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import characters
import digits
import numpy as np
import optree
import pictures
import programs
import torch
from pictures import plt
from tqdm import tqdm

from purevdm import bfn, interop, networks, random
from purevdm.evaluation import Figure, evaluate

HELP = dict(steps="training steps", batch="examples a step", embed="the network's width", lr="the highest learning rate")
TIMES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)  # when the picture shows the input distributions
# by task, where the command line does not say: training steps, the batch, the network's width, the rate
DEFAULTS = {
    "digits": dict(steps=550, batch=64, embed=64, lr=2e-3),
    "binary": dict(steps=550, batch=64, embed=64, lr=2e-3),
    "text": dict(steps=characters.STEPS, batch=characters.BATCH, embed=characters.WIDTH, lr=characters.LR),
}


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
    """Windows of the training text at every character, of the held-out text side by side."""
    parts = characters.split(key)
    baselines = {f"{n}-grams": over_examples(characters.ngram_bits(parts.pieces, parts.test, n)) for n in range(1, 7)}
    return Task(characters.flow(embed, characters.BLOCKS), parts.train, parts.test, baselines)


def picture(path: Path, task: str, levels: int, real: torch.Tensor, found: bfn.Sample) -> None:
    steps = [round(fraction * (len(found.theta) - 1)) for fraction in TIMES]
    if task == "text":
        figure, axes = plt.subplots(3, 1, figsize=(9, 6), layout="constrained")
        for ax, theta in zip(axes, found.theta[:, :3].unbind(1), strict=True):
            pictures.text_on_the_way(ax, theta, steps, characters.ALPHABET)
        axes[0].set_title("the likeliest characters under the input distributions, by time")
    else:
        figure, axes = plt.subplots(1, 3, figsize=(15, 5.3), layout="constrained")
        for ax, x, title in zip(axes, (real[:64], found.x[:64]), ("real", "samples"), strict=False):
            ax.imshow(pictures.tiles(levels - 1 - x, levels, side=8), interpolation="nearest")
            ax.set_title(title)
            ax.axis("off")
        pictures.images_on_the_way(axes[2], found.theta[:, :8], steps, levels)
        axes[2].set_title("means of the input distributions, by time")
    figure.savefig(path, dpi=120)
    plt.close(figure)


@programs.program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("digits", "binary", "text"), nargs="?", default="digits")
    for name, default in DEFAULTS["digits"].items():
        values = ", ".join(f"{DEFAULTS[task][name]} for {task}" for task in DEFAULTS)
        parser.add_argument(f"--{name}", type=type(default), help=f"{HELP[name]} (default: {values})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="where the files go (default: runs/bfn_TASK)")
    parser.add_argument("--overwrite", action="store_true", help="write over what an earlier call left in --out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--passes", type=int, default=20, help="passes of times over the test set")
    parser.add_argument("--sample-steps", type=int, default=100)
    parser.add_argument("--eager", action="store_true", help="train without compiling")
    args = parser.parse_args()
    for name, default in DEFAULTS[args.task].items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if min(args.steps, args.batch, args.passes, args.sample_steps) < 1:
        parser.error("--steps, --batch, --passes and --sample-steps must be at least 1")
    out = args.out or Path("runs") / f"bfn_{args.task}"
    programs.positive(lr=args.lr)
    programs.device(args.device)
    programs.fresh(out, args.overwrite, "params.safetensors")

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
    picture(out / "samples.png", args.task, model.decoder.vocab_size, test, found)
    if args.task == "text":
        print("\n".join(characters.texts(found.x[:8])))
    unit = "bits/character" if args.task == "text" else "bits/dim"
    print(f"{'test bound':<18}{bound.nll} {unit} ({args.steps} steps, {len(test)} examples)")
    print(f"{'  of it messages':<18}{bound.terms['diffusion']}")
    for name, figure in task.baselines.items():
        print(f"{name:<18}{figure}")


if __name__ == "__main__":
    main()
