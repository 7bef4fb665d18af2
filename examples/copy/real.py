"""A table of real numbers: the test log-density of a variational diffusion model beside those of Gaussian mixtures.

    python examples/tables.py

The table is scikit-learn's breast cancer data: 569 rows of measurements, embedded in scikit-learn. A density asks for
numbers that do not repeat, so the six columns with many zeros are left out. In the other 24 no value is found more than 5
times. All are positive measurements with long tails, so their logarithms are taken. Rows are split by key: 342 for training,
85 to choose by, 142 for the test. All densities are those of the logarithms standardised by the training rows.

The diffusion model works in coordinates whitened by the training rows, which costs a log-determinant, and predicts v. With
an output of 0 it is then the single Gaussian, from where training starts. It stops where the validation rows say so; the
mixture's number of components and kind of covariance are chosen by the same rows.
"""

import argparse
import math
import sys
import time
import warnings
from typing import NamedTuple

import numpy as np
import optree
import programs
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from tqdm import tqdm

import purevdm
from purevdm import random


class Rows(NamedTuple):
    """The table's parts, float64 (n, columns)."""

    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor


def table() -> np.ndarray:
    """The columns in which no value makes up a hundredth of the rows, as logarithms."""
    x = load_breast_cancer().data
    kept = [column for column in x.T if np.unique(column, return_counts=True)[1].max() < 0.01 * len(x)]
    return np.log(np.stack(kept, axis=1))


def split(x: torch.Tensor, key: torch.Tensor) -> Rows:
    """A quarter for the test and 85 rows to choose by, by key; standardised by the training rows."""
    order = random.permutation(key, len(x))
    n = len(x) // 4
    test, validation, train = x[order[:n]], x[order[n : n + 85]], x[order[n + 85 :]]
    return Rows(*((part - train.mean(0)) / train.std(0) for part in (train, validation, test)))


def mixture(rows: Rows, components: range, kinds: tuple[str, ...]) -> tuple[GaussianMixture, np.ndarray]:
    """The mixture that the validation rows like best, and its log-density of the test rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = [
            GaussianMixture(k, covariance_type=kind, n_init=5, random_state=0).fit(rows.train.numpy())
            for kind in kinds
            for k in components
        ]
    best = max(fitted, key=lambda found: found.score(rows.validation.numpy()))
    return best, best.score_samples(rows.test.numpy())


def whitened(rows: Rows) -> tuple[Rows, float]:
    """The rows with mean 0 and covariance 1 over the training rows, float32, and the log-density that this gains."""
    factor = torch.linalg.cholesky(rows.train.T.cov(correction=0))
    parts = (torch.linalg.solve_triangular(factor, (part - rows.train.mean(0)).T, upper=False).T for part in rows)
    return Rows(*(part.float() for part in parts)), factor.diagonal().log().sum().item()


@torch.no_grad()
def log_density(model: purevdm.VDM, params, x: torch.Tensor, key: torch.Tensor, passes: int) -> torch.Tensor:
    """The bound on log p of each example, the mean over passes. One batch holds them all, so that its times, which are even
    over the batch, are even over each example's copies."""
    total = model.nll_bound(params, torch.cat([x] * passes), key).total
    return -total.unflatten(0, (passes, len(x))).double().mean(0)


@programs.program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="training steps at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--every", type=int, default=25, help="steps between looks at the validation rows")
    parser.add_argument("--passes", type=int, default=256, help="passes of times over the test rows (default: %(default)s)")
    parser.add_argument("--components", type=int, default=8, help="of the largest mixture (default: %(default)s)")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    args = parser.parse_args()
    if min(args.steps, args.batch, args.every, args.passes, args.components) < 1:
        parser.error("--steps, --batch, --every, --passes and --components must be at least 1")
    programs.positive(lr=args.lr)
    started = time.monotonic()

    k_split, k_init, k_train, k_validate, k_test = random.split(random.key(args.seed), 5)
    rows = split(torch.from_numpy(table()), k_split)
    white, gained = whitened(rows)
    columns = rows.train.shape[1]
    _, single = mixture(rows, range(1, 2), ("full",))
    chosen, several = mixture(rows, range(1, args.components + 1), ("full", "tied", "diag"))

    # Endpoints are fixed: on few rows a learned gamma_0 would fall without end, to put a spike on each.
    schedule = purevdm.schedules.fixed_linear(-6.0, 6.0)
    network = purevdm.networks.mlp(hidden=128, layers=3, fourier=(), predicts="v")
    model = purevdm.vdm(network, schedule, event_shape=(columns,), decoder=purevdm.decoders.gaussian())
    params = model.init(k_init)
    params["network"]["dense4"]["kernel"].zero_()
    ema = optree.tree_map(torch.clone, params)
    leaves, average = optree.tree_leaves(params), optree.tree_leaves(ema)
    optimizer = torch.optim.AdamW(leaves, lr=args.lr, weight_decay=0.1)
    step = torch.func.grad_and_value(model.loss_fn)
    step = step if args.eager else torch.compile(step, fullgraph=True)

    best, best_step, best_params = -math.inf, 0, ema
    for i in (bar := tqdm(range(1, args.steps + 1), desc="train")):
        k_batch, k_loss = random.split(random.fold_in(k_train, i))
        x = white.train[random.randint(k_batch, (args.batch,), 0, len(white.train))]
        grads, _ = step(params, x, k_loss)
        for leaf, grad in zip(leaves, optree.tree_leaves(grads), strict=True):
            leaf.grad = grad
        optimizer.step()
        torch._foreach_lerp_(average, leaves, max(0.01, 1 / (i + 1)))
        if i % args.every == 0 or i == args.steps:
            found = log_density(model, ema, white.validation, k_validate, 128).mean().item() - gained
            bar.set_postfix_str(f"validation {found:.3f} nats")
            if found > best:
                best, best_step, best_params = found, i, optree.tree_map(torch.clone, ema)
    diffusion = log_density(model, best_params, white.test, k_test, args.passes).numpy() - gained

    print(f"test log-density of {len(rows.test)} rows of {columns} numbers, nats a row")
    for name, found, note in (
        ("one Gaussian", single, ""),
        ("Gaussian mixture", several, f" ({chosen.n_components} components, {chosen.covariance_type} covariance)"),
        ("diffusion, at least", diffusion, f" ({best_step} steps)"),
        ("diffusion - Gaussian", diffusion - single, " (row by row)"),
        ("diffusion - mixture", diffusion - several, " (row by row)"),
    ):
        print(f"{name:21}{found.mean():8.3f} +- {found.std(ddof=1) / math.sqrt(len(found)):.3f}{note}")
    tqdm.write(f"after {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
