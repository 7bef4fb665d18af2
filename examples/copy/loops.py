"""Train a ``torch.nn.Module`` of your own, on scikit-learn's digits, in a plain PyTorch loop, in Accelerate or in Lightning.

    python loops.py ddp
    torchrun --nproc-per-node 2 loops.py ddp    # or accelerate, lightning

Each loop takes the loss from a module that owns the parameters, and batches from a DataLoader. Each process draws the noise
of its own rows of the whole batch, and of each piece of them where gradients are accumulated. So any number of processes and
pieces computes what one would, to rounding, and all loops compute the same. Prints the bound on the test images.
"""

import argparse
import os
from itertools import count
from pathlib import Path

import optree
import torch
import torch.distributed.nn.functional  # before there is a group: its functions keep the group of that moment
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

import purevdm
from purevdm import evaluation, networks, random
from purevdm.module import Module

RANK, PROCESSES = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
K_DATA, K_INIT, K_TRAIN, K_TEST = random.split(random.key(0), 4)
DATA = torch.from_numpy(load_digits().images).long()[:, None][random.permutation(K_DATA, 1797)]
TEST, TRAIN = DATA[:297], DATA[297:]


class Net(nn.Module):
    """Takes latents (B, 1, 8, 8) and gamma (B,), and predicts their noise."""

    def __init__(self, width=64):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.into = nn.Conv2d(1, width, 3, padding=1)
        self.body = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1))
        self.out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, z, gamma):
        h = self.into(z) + self.time(gamma[:, None] / 8.0)[:, :, None, None]
        return self.out(h + self.body(h))


MODEL = purevdm.vdm(networks.from_module(Net), purevdm.schedules.learned_linear(-8.0, 4.0), (1, 8, 8), vocab_size=17)


def loader(size, processes=1, rank=0):
    """Makes batches of ``size`` for one process. Process r of N gets numbers r, r + N, r + 2 N, ... of the order."""
    return DataLoader(TRAIN, size, sampler=DistributedSampler(TRAIN, processes, rank, drop_last=True), drop_last=True)


def seeds(step, args, rows, device):
    """Makes the seeds of some rows of a step's whole batch, by the key and the step, which every process knows."""
    return MODEL.seeds(random.fold_in(K_TRAIN.to(device), step), args.batch).rows(rows)


def adamw(module):
    return torch.optim.AdamW(module.parameters(), 2e-3, betas=(0.9, 0.99), weight_decay=0.01)


def loop(args, loss_fn, optimizer, backward, batches, sampler, rows, device):
    """Trains on a process's rows of each batch, in pieces, each with the noise of its own rows."""
    step = 0
    for epoch in count():
        sampler.set_epoch(epoch)  # each in an order of its own
        for x in batches:
            if step == args.steps:
                return
            noise = seeds(step, args, rows, device)
            optimizer.zero_grad()
            for piece in torch.arange(len(x), device=device).chunk(args.accumulate):
                backward(loss_fn(x.to(device)[piece], noise.rows(piece)) / args.accumulate)
            optimizer.step()
            step += 1


def ddp(args):
    """Trains in plain PyTorch."""
    if PROCESSES > 1:
        torch.distributed.init_process_group("nccl" if args.device == "cuda" else "gloo")
    device = torch.device(args.device, int(os.environ.get("LOCAL_RANK", "0")) if args.device == "cuda" else None)
    owner = Module(MODEL.loss_fn, MODEL.init(K_INIT)).to(device)
    loss_fn = nn.parallel.DistributedDataParallel(owner) if PROCESSES > 1 else owner
    batches, rows = loader(args.batch // PROCESSES, PROCESSES, RANK), slice(RANK, None, PROCESSES)
    loop(args, loss_fn, adamw(owner), torch.Tensor.backward, batches, batches.sampler, rows, device)
    return owner.tree()


def accelerate(args):
    """Trains in Hugging Face Accelerate. With ``split_batches`` it cuts each whole batch into one run of rows a process."""
    from accelerate import Accelerator, DataLoaderConfiguration

    whole = DataLoaderConfiguration(split_batches=True)
    accelerator = Accelerator(cpu=args.device == "cpu", dataloader_config=whole)
    owner, batches = Module(MODEL.loss_fn, MODEL.init(K_INIT)), loader(args.batch)
    sampler, size = batches.sampler, args.batch // PROCESSES
    loss_fn, optimizer, batches = accelerator.prepare(owner, adamw(owner), batches)
    rows = slice(RANK * size, (RANK + 1) * size)
    loop(args, loss_fn, optimizer, accelerator.backward, batches, sampler, rows, accelerator.device)
    return accelerator.unwrap_model(loss_fn).tree()


def lightning(args):
    """Trains in Lightning, which steps the optimiser itself: its batches are the pieces of steps."""
    from lightning import LightningModule, Trainer

    class Digits(LightningModule):
        def __init__(self):
            super().__init__()
            self.loss_fn = Module(MODEL.loss_fn, MODEL.init(K_INIT))

        def training_step(self, x, number):
            size = args.batch // args.accumulate
            start = number % args.accumulate * size
            rows = slice(start + self.global_rank, start + size, PROCESSES)
            return self.loss_fn(x, seeds(self.global_step, args, rows, self.device))

        def configure_optimizers(self):
            return adamw(self)

        def train_dataloader(self):
            return loader(args.batch // PROCESSES // args.accumulate, PROCESSES, self.global_rank)

    options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options |= dict(use_distributed_sampler=False)  # the loader brings its own
    options |= dict(limit_train_batches=1500 // args.batch * args.accumulate)  # whole steps in each epoch
    options |= dict(max_steps=args.steps, accumulate_grad_batches=args.accumulate, devices=PROCESSES)
    digits = Digits()
    Trainer(accelerator=args.device, strategy="ddp" if PROCESSES > 1 else "auto", **options).fit(digits)
    return digits.loss_fn.tree()


LOOPS = {"ddp": ddp, "accelerate": accelerate, "lightning": lightning}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--steps", type=int, default=200, help="training steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=60, help="of all processes together (default: %(default)s)")
    parser.add_argument("--accumulate", type=int, default=1, help="pieces of a process's batch (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="where to save the parameters (torch.save)")
    args = parser.parse_args()
    if not 1 <= args.batch <= 1500 or args.batch % (PROCESSES * args.accumulate):
        parser.error(f"--batch: expected a multiple of {PROCESSES} processes x {args.accumulate} pieces, at most 1500")
    params = LOOPS[args.loop](args)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # before the program ends, as gloo's threads would outlive it
    if RANK == 0:
        params = optree.tree_map(lambda leaf: leaf.detach().cpu(), params)
        if args.out:
            torch.save(params, args.out)
        bound = evaluation.evaluate(MODEL, params, [TEST], K_TEST, passes=4).nll
        print(f"{args.loop}: test bound {bound} bits/dim ({args.steps} steps)")


if __name__ == "__main__":
    main()
