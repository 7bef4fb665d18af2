"""Train on scikit-learn's digits in several processes, which hold parameters, averages and the optimiser's moments in parts.

    torchrun --nproc-per-node 2 sharded.py
    torchrun --nproc-per-node 4 sharded.py --shards 2    # two sets of two processes
    python sharded.py                                    # one process: the same, and nothing is spread

Each process trains on its own rows of every batch, and any number of processes computes what one would, to rounding. Writes
a checkpoint into --out, which any number of processes reads; prints the bound on the test images.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from tqdm import tqdm

import purevdm
from purevdm import evaluation, networks, parallel, random, schedules, training
from purevdm.training import checkpoint

TEST = 297


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, help="in how many parts the state is held (default: one a process)")
    parser.add_argument("--steps", type=int, default=200, help="training steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="of all processes together (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/sharded"), help="a folder for checkpoints (default: %(default)s)"
    )
    args = parser.parse_args()
    group = parallel.join(args.device)
    if args.batch % group.size:
        parser.error(f"--batch: expected a multiple of {group.size} processes, got {args.batch}")
    with parallel.answering(group):
        run(args, group)
    parallel.leave()


def run(args, group):
    k_data, k_init, k_batch, k_loss, k_test = random.split(random.key(0, device=group.device), 5)
    x = torch.from_numpy(load_digits().images).long()[:, None].to(group.device)
    x = x[random.permutation(k_data, len(x))]
    network = networks.unet(32, (1, 2), 1, groups=8, fourier=(1, 2, 3))
    model = purevdm.vdm(network, schedules.learned_linear(-8.0, 4.0), event_shape=(1, 8, 8), vocab_size=17)

    state = training.init(model, k_init, parallel.mesh(group, args.shards))
    settings = training.AdamW(lr=1e-3, warmup=20, ema_rate=0.99, ema_warmup=True)
    gradients = training.gradients(model)
    size = args.batch // group.size
    mine = slice(group.rank * size, (group.rank + 1) * size)
    bar = tqdm(range(args.steps), disable=group.rank > 0)
    with checkpoint.Saver() as saver:
        for i in bar:
            rows = random.randint(random.fold_in(k_batch, i), (args.batch,), TEST, len(x))[mine]
            seeds = model.seeds(random.fold_in(k_loss, i), args.batch).rows(mine)
            state, metrics = training.train_step(settings, gradients, state, x[rows], seeds)
            bar.set_postfix_str(f"{metrics['loss']:.3f} bits/dim", refresh=False)
        saver.save(args.out, state)
    bound = evaluation.evaluate(model, state.ema_params, x[:TEST].split(99), k_test, passes=4, group=group).nll
    if group.rank == 0:
        print(f"test bound {bound} bits/dim ({args.steps} steps, {group.size} processes)")


if __name__ == "__main__":
    main()
