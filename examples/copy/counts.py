"""Train a latent diffusion with learned maps and a negative binomial decoder on counts, as of genes in single cells.

    python counts.py

Cells are simulated: of 12 types, which differ in the means of 60 genes, with negative binomial counts. So the mean of
-log p(cell) is known, which no bound can beat. Prints the test bound in nats a cell beside it, and beside independent
negative binomials. Writes counts.png: moments of samples' genes, and codes of test cells, by type.
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
from purevdm import decoders, evaluation, networks, random, schedules, training

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TYPES, GENES, LATENT = 12, 60, 8


def source(key):
    """Makes the types: their log-means, (types, genes), and theta of each gene, as PyTorch's own distributions."""
    k_gene, k_type, k_theta = random.split(key, 3)
    log_mean = 0.5 + random.normal(k_gene, (GENES,)) + random.normal(k_type, (TYPES, GENES))
    theta = torch.exp(1.0 + random.normal(k_theta, (GENES,)))
    return torch.distributions.NegativeBinomial(theta, logits=log_mean - theta.log())


def draw(types, n):
    """Draws n cells and their types."""
    kind = torch.randint(TYPES, (n,))
    return types.sample((n,))[torch.arange(n), kind].long(), kind


def build():
    """Makes the model; gamma_0 is learned, the noise that the encoder leaves in its codes."""
    maps = decoders.perceptron((GENES,), (128,), (LATENT,)), decoders.perceptron((LATENT,), (128,), (GENES,))
    counts = decoders.negative_binomial(dispersion=0.5)
    decoder = decoders.learned(counts, *maps, latent=(LATENT,), event_shape=(GENES,))
    network, schedule = networks.mlp(128, layers=3, fourier=(0, 1)), schedules.learned_linear(-5.0, 5.0)
    return purevdm.vdm(network, schedule, (GENES,), decoder=decoder)


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


def independent(x, test):
    """Returns nats of each test cell under negative binomials of each gene, by the moments of the training cells."""
    mean, var = x.float().mean(0), x.float().var(0)
    own = torch.distributions.NegativeBinomial(mean.square() / (var - mean), logits=(var / mean - 1.0).log())
    return -own.log_prob(test.float()).double().sum(1)


def picture(path, samples, test, codes, kind):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for x, label in ((test, "test cells"), (samples, "samples")):
        left.loglog(x.double().mean(0), x.double().var(0), ".", label=label)
    left.set(xlabel="mean of a gene", ylabel="variance of a gene")
    left.legend()
    axes = codes @ torch.linalg.svd(codes - codes.mean(0), full_matrices=False)[2][:2].T
    right.scatter(*axes.T, c=kind, s=6, cmap="tab20")
    right.set(xlabel="codes, first axis", ylabel="second axis", title="by type")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="training steps (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=32, help="passes of times over the test cells (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/counts"), help="where the picture goes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    k_source, k_init, k_train, k_test, k_sample = random.split(random.key(0), 5)
    torch.manual_seed(0)  # of PyTorch's distributions
    types, model = source(k_source), build()
    (x, _), (test, kind), n = draw(types, 20000), draw(types, 1000), 20000
    params, _ = train(model, lambda key: x[random.randint(key, (256,), 0, n)], k_init, k_train, args.steps, compile=False)
    bound = evaluation.evaluate(model, params, test.split(250), k_test, passes=args.passes)
    each = types.log_prob(test[:, None].float()).double().sum(-1)
    truth, baseline = math.log(TYPES) - torch.logsumexp(each, 1), independent(x, test)
    print(f"test bound    {bound.nll} nats a cell ({args.steps} steps, {len(test)} cells)")
    for name, value in (("known", truth), ("independent", baseline)):
        print(f"{name:13} {value.mean():.3f} +- {value.std() / math.sqrt(len(value)):.3f} nats a cell")
    samples = model.sample(params, k_sample, 1000, steps=100, decode="sample")
    picture(args.out / "counts.png", samples, test, model.decoder.encode(params["decoder"], test), kind)


if __name__ == "__main__":
    main()
