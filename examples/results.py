"""Compare networks and schedules on scikit-learn's digits: the test bound, and the variance of the loss, over seeds.

    python examples/results.py

Every network is trained under every schedule from several seeds. Writes results.json (each run as it ends; a second call
goes on where the first stopped), results.md (the table), best.png (samples of the best), and variance.png: the learned
schedules, how the diffusion loss is spread over time under each, and its variance. --plot draws the table and the last
from results.json alone.

The variance of one image's diffusion loss over time and noise, (bits/dim)**2, after 400 steps of 64 images, three seeds
(the bounds are in the README):

    schedule                                  unet            vdm_unet        mlp
    fixed_linear                              3.460 +- 0.018  3.102 +- 0.020  6.402 +- 0.024
    learned_linear                            3.393 +- 0.048  3.091 +- 0.006  5.224 +- 0.063
    monotone_mlp                              3.194 +- 0.024  3.043 +- 0.026  5.246 +- 0.032
    monotone_mlp, pinned, by variance         2.617 +- 0.076  2.452 +- 0.036  4.306 +- 0.049
    constrained_monotone, by variance         0.385 +- 0.010  0.379 +- 0.011  0.647 +- 0.032

Where the interior follows the variance, the schedule spends its time where the loss is, until every time costs about the
same. The official network (monotone_mlp) starts so close to a line that 400 steps bend it little. The bound does not depend
on the interior, but learning does, and gains. Pixel histograms give 2.427 bits/dim, a uniform distribution 4.087. The
networks have 0.70, 0.22 and 0.79 million parameters. (Measured with version 0.1, whose ``vdm_unet`` drew its initial
parameters from other keys.)
"""

import argparse
import json
import math
import time
from pathlib import Path

import matplotlib
import numpy as np
import optree
import programs
import torch
from digits import GAMMA, LEVELS, SHAPE, data, histogram_bits
from pictures import grid
from tqdm import tqdm

import purevdm
from purevdm import networks, random, schedules, solvers, training

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOURIER = (1, 2, 3)
NETWORKS = {
    "unet": lambda: networks.unet(32, (1, 2), 1, attention=(1,), fourier=FOURIER),
    "vdm_unet": lambda: networks.vdm_unet(32, 2, fourier=FOURIER, dropout=0.0, groups=8),
    "mlp": lambda: networks.mlp(512, 3, fourier=FOURIER),
}
ENDPOINTS = (GAMMA["gamma_min"], GAMMA["gamma_max"])
# name: the schedule, and whether its interior follows the variance (App. I.2) or, like all else, the bound
SCHEDULES = {
    "fixed_linear": (lambda: schedules.fixed_linear(*ENDPOINTS), False),
    "learned_linear": (lambda: schedules.learned_linear(*ENDPOINTS), False),
    "monotone_mlp": (lambda: schedules.monotone_mlp(*ENDPOINTS), False),
    "monotone_mlp, pinned": (lambda: schedules.monotone_mlp(*ENDPOINTS, pin_endpoints=True), True),
    "constrained_monotone": (lambda: schedules.constrained_monotone(*ENDPOINTS), True),
}
TIMES = 101


def train(model, grad_fn, x, k_init, k_train, args):
    """Parameters averaged over the last part of training; the schedule learns faster than the network."""
    settings = training.AdamW(
        lr=args.lr,
        weight_decay=0.0,
        warmup=args.steps // 20,
        decay="cosine",
        steps=args.steps,
        clip_norm=1.0,
        ema_rate=0.99,
        ema_warmup=True,
        schedule_lr=5.0,
    )
    state = training.init(model, k_init)
    for i in tqdm(range(args.steps), leave=False):
        k_batch, k_loss = random.split(random.fold_in(k_train, i))
        batch = x[random.randint(k_batch, (args.batch,), 0, len(x))]
        state, _ = training.train_step(settings, grad_fn, state, batch, k_loss)
    return state.ema_params


@torch.no_grad()
def evaluate(model, params, x, key, passes) -> dict:
    """The bound of each image over evenly spread times; the variance of its diffusion loss at independent ones."""
    k_bound, k_times = random.split(key)
    bits = 1.0 / (math.prod(SHAPE) * math.log(2.0))
    bound = torch.stack([model.nll_bound(params, x, k).total for k in random.split(k_bound, passes)]).double() * bits
    single = []
    for k in random.split(k_times, passes):
        single.append(model._replace(antithetic=False).nll_bound(params, x, k).diffusion.double() * bits)
    # within images, over time and noise
    variance = torch.stack(single).var(0).mean()
    t = torch.linspace(0, 1, TIMES)
    gamma, slope = schedules.gamma_and_slope(model.schedule, params["schedule"], t)
    sweep = torch.stack([time_loss(model, params, x[:64], random.fold_in(key, i), at) for i, at in enumerate(t)]) * bits
    return {
        "bits": bound.mean().item(),
        "error": bound.mean(0).std().item() / math.sqrt(len(x)),
        "variance": variance.item(),
        "t": t.tolist(),
        "gamma": gamma.tolist(),
        "slope": slope.tolist(),
        "loss_at_t": sweep.tolist(),
    }


def time_loss(model, params, x, key, t):
    """The mean diffusion loss of some images at one time, nats."""
    seeds = purevdm.Seeds(t.expand(len(x)), random.split(key, len(x)))
    return model.nll_bound(params, x, seeds).diffusion.mean()


def run(found: dict, args) -> None:
    todo = [(n, s) for n in NETWORKS for s in SCHEDULES]
    for network, schedule in tqdm(todo, desc="networks and schedules"):
        seeds = [seed for seed in range(args.seeds) if f"{network}/{schedule}/{seed}" not in found]
        if not seeds:
            continue
        make, follows = SCHEDULES[schedule]
        model = purevdm.vdm(NETWORKS[network](), make(), event_shape=SHAPE, vocab_size=LEVELS)
        torch._dynamo.reset()
        grad_fn = training.gradients(model, variance=follows, compile=True)
        for seed in seeds:
            # the split of the data is one for all, all else is the seed's
            x, test = data(random.split(random.key(0), 5)[0])
            k_init, k_train, k_test = random.split(random.key(seed + 1), 3)
            started = time.monotonic()
            params = train(model, grad_fn, x, k_init, k_train, args)
            result = evaluate(model, params, test, k_test, args.passes)
            result["parameters"] = sum(leaf.numel() for leaf in optree.tree_leaves(params["network"]))
            if result["bits"] < min((r["bits"] for r in found.values()), default=math.inf):
                drawn = model.sample(
                    params, random.fold_in(k_test, 1), 64, steps=250, solver=solvers.ancestral(), grid="time"
                )
                grid(drawn, LEVELS, args.out / "best.png")
            found[f"{network}/{schedule}/{seed}"] = result
            programs.write(args.out / "results.json", json.dumps(found))
            seconds = time.monotonic() - started
            tqdm.write(f"{network}, {schedule}, {seed}: {result['bits']:.3f} bits/dim, {seconds:.0f} s")


def summary(values: list[float]) -> str:
    """A mean over seeds and its standard error."""
    return (
        f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.3f}"
        if len(values) > 1
        else f"{values[0]:.3f}"
    )


def table(found: dict) -> str:
    lines = ["| schedule | " + " | ".join(f"`{n}`" for n in NETWORKS) + " |", "|---" * (len(NETWORKS) + 1) + "|"]
    for title, field in (("bits/dim", "bits"), ("variance of the loss", "variance")):
        for schedule, (_, follows) in SCHEDULES.items():
            label = f"`{schedule}`" + (", interior by variance" if follows else "")
            cells = []
            for network in NETWORKS:
                values = [r[field] for name, r in found.items() if name.startswith(f"{network}/{schedule}/")]
                cells.append(summary(values) if values else "")
            lines.append(f"| {title}: {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(found: dict, out: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    network = "vdm_unet"
    names = [name for name in SCHEDULES if f"{network}/{name}/0" in found and name != "fixed_linear"]
    for name in names:
        r = found[f"{network}/{name}/0"]
        axes[0].plot(r["t"], r["gamma"], label=name)
        axes[1].plot(r["t"], r["loss_at_t"], label=name)
    axes[0].set(xlabel="t", ylabel="gamma", title="learned schedules (vdm_unet)")
    axes[1].set(xlabel="t", ylabel="diffusion loss at t, bits/dim", title="what the loss averages over")
    axes[0].legend(fontsize=8)
    width = 0.8 / len(NETWORKS)
    for i, net in enumerate(NETWORKS):
        values = [[r["variance"] for key, r in found.items() if key.startswith(f"{net}/{name}/")] for name in SCHEDULES]
        heights = [np.mean(v) if v else 0.0 for v in values]
        errors = [np.std(v, ddof=1) / math.sqrt(len(v)) if len(v) > 1 else 0.0 for v in values]
        axes[2].bar(np.arange(len(SCHEDULES)) + i * width, heights, width, yerr=errors, label=net)
    labels = [name.replace("_", "\n").replace(", ", "\n") for name in SCHEDULES]
    axes[2].set_xticks(np.arange(len(SCHEDULES)) + width, labels, fontsize=8)
    axes[2].set(ylabel="(bits/dim)²", title="variance of one image's loss")
    axes[2].legend(fontsize=8)
    for ax in axes:
        ax.grid(alpha=0.3)
    figure.savefig(out / "variance.png", dpi=110)
    plt.close("all")


@programs.program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="training steps of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each pair (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--passes", type=int, default=20, help="passes of times over the test set")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--plot", action="store_true", help="draw from results.json, train nothing")
    args = parser.parse_args()
    if min(args.steps, args.seeds, args.batch, args.passes) < 1:
        parser.error("--steps, --seeds, --batch and --passes must be at least 1")
    programs.positive(lr=args.lr)
    path = programs.folder(args.out) / "results.json"
    found = programs.saved(path) if path.exists() else {}
    if not args.plot:
        run(found, args)
    if not found:
        parser.error(f"--plot: expected results in {path}, found none")
    x, test = data(random.split(random.key(0), 5)[0])
    programs.write(args.out / "results.md", table(found))
    plot(found, args.out)
    print(table(found))
    print(f"pixel histograms {histogram_bits(x, test).mean():.3f}, uniform {math.log2(LEVELS):.3f} bits/dim")


if __name__ == "__main__":
    main()
