"""Series and fields of real numbers: a U-Net's bound beside the entropy that is known in closed form.

    python examples/fields.py            # a first-order autoregressive series of 64 numbers
    python examples/fields.py --field    # a Gaussian random field of 16 x 16

Along each axis, neighbours have the correlation rho, and every number is standard normal. So a number has the entropy
log(2 pi e) / 2 alone, and what it shares with its neighbours is log(1 - rho**2) / 2 for each axis (but at the first one).
Training draws fresh data in every step. Prints the test bound in nats a number beside both.
"""

import argparse
import math
import sys
import time

import numpy as np
import optree
import programs
import torch
from tables import log_density
from tqdm import tqdm

import purevdm
from purevdm import networks, random, schedules


def correlated(key: torch.Tensor, n: int, shape: tuple[int, ...], rho: float) -> torch.Tensor:
    """n draws, (n, 1, *shape): along each axis x_i = rho x_{i-1} + sqrt(1 - rho**2) times fresh noise."""
    x = random.normal(key, (n, 1, *shape))
    for axis in range(2, x.ndim):
        lag = torch.arange(x.shape[axis], device=x.device)
        lag = lag[:, None] - lag
        factor = torch.where(lag >= 0, rho ** lag.clamp(min=0), 0.0)  # the recursion as a matrix
        factor[:, 1:] *= math.sqrt(1 - rho**2)
        x = (x.movedim(axis, -1) @ factor.T).movedim(-1, axis)
    return x


def entropy(shape: tuple[int, ...], rho: float) -> float:
    """Nats a number. The covariance is the Kronecker product of the axes', of determinants (1 - rho**2)**(size - 1)."""
    return 0.5 * math.log(2 * math.pi * math.e) + sum(0.5 * (1 - 1 / size) * math.log(1 - rho**2) for size in shape)


@programs.program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--field", action="store_true", help="a field in place of a series")
    parser.add_argument("--size", type=int, help="numbers along an axis (default: 64 of a series, 16 of a field)")
    parser.add_argument("--rho", type=float, default=0.9, help="the correlation of neighbours (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--test", type=int, default=512, help="test examples (default: %(default)s)")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    args = parser.parse_args()
    size = (16 if args.field else 64) if args.size is None else args.size
    if min(args.steps, args.batch, args.test) < 1 or size < 2 or not 0 <= args.rho < 1:
        parser.error("--steps, --batch and --test must be at least 1, --size at least 2, --rho in [0, 1)")
    programs.positive(lr=args.lr)
    programs.device(args.device)
    started = time.monotonic()

    k_init, k_train, k_test, k_bound = random.split(random.key(args.seed, device=args.device), 4)
    shape = (size, size) if args.field else (size,)
    adapter = "c h w -> (h w) c" if args.field else "c l -> l c"
    # From v, a network that has learned nothing yet already has the entropy of independent numbers.
    network = networks.unet(16, (1, 2), 1, adapter=adapter, groups=4, predicts="v")
    schedule = schedules.learned_linear(-8.0, 5.0)
    model = purevdm.vdm(network, schedule, event_shape=(1, *shape), decoder=purevdm.decoders.gaussian())
    params = model.init(k_init)
    ema = optree.tree_map(torch.clone, params)
    leaves, average = optree.tree_leaves(params), optree.tree_leaves(ema)
    optimizer = torch.optim.AdamW(leaves, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    step = torch.func.grad_and_value(model.loss_fn)
    step = step if args.eager else torch.compile(step, fullgraph=True)

    losses = []
    for i in (bar := tqdm(range(args.steps), desc="train")):
        k_x, k_loss = random.split(random.fold_in(k_train, i))
        grads, loss = step(params, correlated(k_x, args.batch, shape, args.rho), k_loss)
        for leaf, grad in zip(leaves, optree.tree_leaves(grads), strict=True):
            leaf.grad = grad
        rate = min((i + 1) / 50, 0.505 + 0.495 * math.cos(math.pi * i / args.steps))
        optimizer.param_groups[0]["lr"] = args.lr * rate
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, leaves, max(0.01, 1 / (i + 1)))
        losses.append(loss.item() * math.log(2))
        if i % 20 == 0:
            bar.set_postfix_str(f"{np.mean(losses[-50:]):.3f} nats a number")

    test = correlated(k_test, args.test, shape, args.rho)
    parts = enumerate(tqdm(test.split(64), desc="test bound"))
    bound = -torch.cat([log_density(model, ema, part, random.fold_in(k_bound, j), 16) for j, part in parts])
    numbers = math.prod(shape)
    mean, error = bound.mean() / numbers, bound.std() / math.sqrt(len(bound)) / numbers
    what = f"{args.test} {'fields' if args.field else 'series'} of {numbers} numbers"
    print(f"test bound           {mean:.4f} +- {error:.4f} nats a number ({what})")
    print(f"entropy              {entropy(shape, args.rho):.4f} nats a number")
    print(f"independent numbers  {0.5 * math.log(2 * math.pi * math.e):.4f} nats a number")
    tqdm.write(f"{args.steps} steps, after {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
