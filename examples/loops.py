"""Train in other people's loops: plain DistributedDataParallel, Hugging Face Accelerate, Lightning; and in purevdm's own.

    python examples/loops.py ddp
    torchrun --nproc-per-node 2 examples/loops.py ddp          # or accelerate, lightning, purevdm

Each takes scikit-learn's digits from a plain DataLoader, and the loss from a module that owns the parameters. Each process
draws the noise of its own rows of the whole batch, and of each piece of them where gradients are accumulated. So any number
of processes and pieces computes what one would, to rounding, and here all four loops compute the same. Prints the bound on
the test images.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optree
import programs
import readers
import torch
import torch.distributed.nn.functional  # before there is a group: see purevdm.parallel.join
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import purevdm
from purevdm import evaluation, parallel, random, training
from purevdm.module import Module
from purevdm.training.data import batch, split
from purevdm.types import Params

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
K_DATA, K_INIT, K_TRAIN, K_TEST = random.split(random.key(0), 4)
TRAIN, TEST = (batch(part, np.arange(part.size))[0] for part in split(readers.digits(), K_DATA, 297))  # uint8 (n, 1, 8, 8)
MODEL = purevdm.vdm(purevdm.networks.mlp(256), purevdm.schedules.learned_linear(-8.0, 4.0), (1, 8, 8), vocab_size=17)


class Settings(NamedTuple):
    """What every loop is told; the batch is that of a step: of all processes, and of all pieces, together."""

    steps: int = 200
    batch: int = 60
    lr: float = 2e-3
    device: str = "cpu"
    accumulate: int = 1


# What the loops share


def module() -> Module:
    return Module(MODEL.loss_fn, MODEL.init(K_INIT))


def adamw(module: torch.nn.Module, settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), settings.lr, betas=(0.9, 0.99), weight_decay=0.01)


def loader(size: int, processes: int = 1, rank: int = 0) -> DataLoader:
    """Batches of ``size`` for one process. The sampler deals the images out one by one: process r of N gets numbers r,
    r + N, r + 2 N, ... of the order, which are the rows ``slice(r, None, N)`` of the whole batch."""
    images = TensorDataset(TRAIN)
    return DataLoader(images, size, sampler=DistributedSampler(images, processes, rank, drop_last=True), drop_last=True)


def endless(batches: DataLoader, sampler: DistributedSampler) -> Iterator[torch.Tensor]:
    """Epoch after epoch, each in an order of its own."""
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        for (x,) in batches:
            yield x
        epoch += 1


def noise(step: int, settings: Settings, rows: slice, device: torch.device) -> purevdm.Seeds:
    """The seeds of some rows of a step's whole batch: a function of the key and the step, which every process knows."""
    return MODEL.seeds(random.fold_in(K_TRAIN.to(device), step), settings.batch).rows(rows)


def pieces(x: torch.Tensor, seeds: purevdm.Seeds, settings: Settings) -> Iterator[tuple[torch.Tensor, purevdm.Seeds]]:
    """A process's rows in as many pieces as gradients are accumulated over, each with the noise of its own rows."""
    size = len(x) // settings.accumulate
    for start in range(0, len(x), size):
        yield x[start : start + size], seeds.rows(slice(start, start + size))


# The loops


def ddp(settings: Settings) -> Params:
    """Plain PyTorch."""
    group = parallel.join(settings.device)
    owner = module().to(group.device)
    loss_fn = DistributedDataParallel(owner) if group.size > 1 else owner
    optimizer = adamw(owner, settings)
    batches = loader(settings.batch // group.size, group.size, group.rank)
    mine = slice(group.rank, None, group.size)
    for step, x in zip(range(settings.steps), endless(batches, batches.sampler), strict=False):
        optimizer.zero_grad()
        for part, seeds in pieces(x.to(group.device), noise(step, settings, mine, group.device), settings):
            (loss_fn(part, seeds) / settings.accumulate).backward()
        optimizer.step()
    return owner.tree()


def accelerate(settings: Settings) -> Params:
    """Hugging Face Accelerate. With ``split_batches`` it cuts each whole batch into one run of rows a process."""
    from accelerate import Accelerator, DataLoaderConfiguration

    whole = DataLoaderConfiguration(split_batches=True)
    accelerator = Accelerator(cpu=settings.device == "cpu", dataloader_config=whole)
    owner, batches = module(), loader(settings.batch)
    sampler = batches.sampler
    loss_fn, optimizer, batches = accelerator.prepare(owner, adamw(owner, settings), batches)
    size = settings.batch // accelerator.num_processes
    mine = slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)
    for step, x in zip(range(settings.steps), endless(batches, sampler), strict=False):
        optimizer.zero_grad()
        for part, seeds in pieces(x, noise(step, settings, mine, accelerator.device), settings):
            accelerator.backward(loss_fn(part, seeds) / settings.accumulate)
        optimizer.step()
    return accelerator.unwrap_model(loss_fn).tree()


def lightning(settings: Settings) -> Params:
    """Lightning, which makes the group, moves the batches, starts the epochs and steps the optimiser itself. Its batches are
    the pieces of a step, and ``global_step`` counts steps: the number of the batch says which piece it is."""
    from lightning import LightningModule, Trainer

    class Digits(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.loss_fn = module()

        def training_step(self, images: list[torch.Tensor], number: int) -> torch.Tensor:
            size = settings.batch // self.trainer.accumulate_grad_batches
            start = number % self.trainer.accumulate_grad_batches * size
            mine = slice(start + self.global_rank, start + size, PROCESSES)
            return self.loss_fn(images[0], noise(self.global_step, settings, mine, self.device))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self, settings)

        def train_dataloader(self) -> DataLoader:
            return loader(settings.batch // PROCESSES // settings.accumulate, PROCESSES, self.global_rank)

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(
        accelerator=settings.device,
        devices=PROCESSES,
        strategy="ddp" if PROCESSES > 1 else "auto",
        max_steps=settings.steps,
        accumulate_grad_batches=settings.accumulate,
        limit_train_batches=len(TRAIN) // settings.batch * settings.accumulate,  # whole steps in each epoch
        use_distributed_sampler=False,  # the loader brings its own
        **dict.fromkeys(quiet, False),
    )
    digits = Digits()
    trainer.fit(digits)
    return digits.loss_fn.tree()


def own(settings: Settings) -> Params:
    """purevdm's, without a module: the step is a pure function from one state to the next."""
    group = parallel.join(settings.device)
    state, grad_fn = training.init(MODEL, K_INIT.to(group.device)), training.gradients(MODEL, accumulate=settings.accumulate)
    optimizer = training.AdamW(lr=settings.lr, warmup=0)
    batches = loader(settings.batch // group.size, group.size, group.rank)
    mine = slice(group.rank, None, group.size)
    for step, x in zip(range(settings.steps), endless(batches, batches.sampler), strict=False):
        seeds = noise(step, settings, mine, group.device)
        x = x.to(group.device)
        state, _ = training.train_step(optimizer, grad_fn, state, x, seeds, average=parallel.average)
    return state.params


LOOPS = {"ddp": ddp, "accelerate": accelerate, "lightning": lightning, "purevdm": own}


@programs.program
def main() -> None:
    default = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--steps", type=int, default=default.steps, help="training steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=default.batch, help="of all processes together (default: %(default)s)")
    parser.add_argument("--accumulate", type=int, default=1, help="pieces of a process's batch (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=default.lr)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default.device)
    parser.add_argument("--out", type=Path, help="where to save the parameters (torch.save)")
    args = parser.parse_args()
    if args.accumulate < 1:
        parser.error(f"--accumulate: at least 1, got {args.accumulate}")
    if args.steps < 1 or not 1 <= args.batch <= len(TRAIN) or args.batch % (PROCESSES * args.accumulate):
        pieces = f" and {args.accumulate} pieces" if args.accumulate > 1 else ""
        parser.error(f"--steps: at least 1; --batch: at most {len(TRAIN)}, a multiple of the {PROCESSES} processes{pieces}")
    programs.positive(lr=args.lr)
    programs.file(args.out)
    try:
        params = LOOPS[args.loop](Settings(args.steps, args.batch, args.lr, args.device, args.accumulate))
    finally:
        parallel.leave()
    if os.environ.get("RANK", "0") != "0":
        return
    params = optree.tree_map(lambda leaf: leaf.detach().cpu(), params)
    if args.out:
        torch.save(params, args.out)
    bound = evaluation.evaluate(MODEL, params, [(TEST, None)], K_TEST, passes=4).nll
    print(f"{args.loop}: test bound {bound} bits/dim ({args.steps} steps)")


if __name__ == "__main__":
    sys.exit(main())
