"""Train a variational diffusion model on real-valued data of several shapes in a plain loop, and bound their log-density.

    python real.py table     # scikit-learn's breast cancer data: 24 columns of 569 rows
    python real.py series    # a first-order autoregressive series of 64 numbers
    python real.py field     # a Gaussian random field of 16 x 16

Prints the test bound in nats an example beside what is known. Of series and fields the entropy is known: along each axis,
neighbours have the correlation 0.9, and every number is standard normal. So a number has the entropy log(2 pi e) / 2, of
which neighbours tell -log(1 - 0.9**2) / 2 along each axis (but for the first number). Training draws fresh ones.

The table holds the columns in which few values repeat, as logarithms, whitened by the training rows: densities are those of
the whitened numbers. The network predicts v: with an output of 0 it is the single Gaussian.
"""

import argparse
import math

import numpy as np
import optree
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.mixture import GaussianMixture
from tqdm import tqdm

import purevdm
from purevdm import evaluation, networks, random, schedules, training

RHO = 0.9


def table(key):
    """Splits the rows by key, a quarter for the test, (n, 24), whitened: of covariance 1 over the training rows."""
    x = load_breast_cancer().data
    kept = [column for column in x.T if np.unique(column, return_counts=True)[1].max() < 0.01 * len(x)]
    x = torch.from_numpy(np.log(np.stack(kept, axis=1)))[random.permutation(key, len(x))]
    train = x[len(x) // 4 :]
    factor = torch.linalg.cholesky(train.T.cov(correction=0))
    x = torch.linalg.solve_triangular(factor, (x - train.mean(0)).T, upper=False).T.float()
    return x[len(x) // 4 :], x[: len(x) // 4]


def correlated(key, n, shape):
    """Draws n examples, (n, 1, *shape): along each axis x_i = rho x_{i-1} + sqrt(1 - rho**2) times fresh noise."""
    x = random.normal(key, (n, 1, *shape))
    for axis in range(2, x.ndim):
        lag = torch.arange(x.shape[axis])
        lag = lag[:, None] - lag
        factor = torch.where(lag >= 0, RHO ** lag.clamp(min=0), 0.0)  # the recursion as a matrix
        factor[:, 1:] *= math.sqrt(1 - RHO**2)
        x = (x.movedim(axis, -1) @ factor.T).movedim(-1, axis)
    return x


def entropy(shape, rho=RHO):
    """Returns nats an example. The covariance is the Kronecker product of the axes', whose determinants are known."""
    shared = sum(0.5 * (1 - 1 / size) * math.log(1 - rho**2) for size in shape)
    return math.prod(shape) * (0.5 * math.log(2 * math.pi * math.e) + shared)


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("table", "series", "field"))
    parser.add_argument("--steps", type=int, help="training steps (default: 400 on the table, 1000 on others)")
    parser.add_argument("--passes", type=int, default=64, help="passes of times over the test set (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    compile = "whether to compile a step, which pays from some 3000 steps on (default: then)"
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help=compile)
    args = parser.parse_args()

    k_data, k_init, k_train, k_test = random.split(random.key(args.seed), 4)
    if args.data == "table":
        x, test = table(k_data)
        mixtures = [GaussianMixture(k, covariance_type="tied", random_state=0).fit(x.numpy()) for k in (1, 4)]
        known = {f"{m.n_components} Gaussians": -m.score(test.numpy()) for m in mixtures}
        network = networks.mlp(hidden=128, layers=3, fourier=(), predicts="v")
        # Endpoints are fixed: on few rows a learned gamma_0 would fall without end, to put a spike on each.
        schedule, settings = schedules.fixed_linear(-6.0, 6.0), dict(lr=1e-3, decay=0.1, steps=args.steps or 400)

        def draw(key):
            return x[random.randint(key, (512,), 0, len(x))]

    else:
        shape, adapter = {"series": ((64,), "c l -> l c"), "field": ((16, 16), "c h w -> (h w) c")}[args.data]
        test = correlated(k_data, 512, shape)
        known = {"entropy": entropy(shape), "independent": entropy(shape, 0.0)}
        network = networks.unet(16, (1, 2), 1, adapter=adapter, groups=4, predicts="v")
        schedule, settings = schedules.learned_linear(-8.0, 5.0), dict(steps=args.steps or 1000)

        def draw(key):
            return correlated(key, 64, shape)

    model = purevdm.vdm(network, schedule, event_shape=test.shape[1:], decoder=purevdm.decoders.gaussian())
    params, _ = train(model, draw, k_init, k_train, compile=args.compile, **settings)
    bound = evaluation.evaluate(model, params, test.split(64), k_test, passes=args.passes).nll
    print(f"{'test bound':14}{bound} nats ({settings['steps']} steps, {len(test)} examples of {test[0].numel()} numbers)")
    for name, nats in known.items():
        print(f"{name:14}{nats:.4f} nats")


if __name__ == "__main__":
    main()
