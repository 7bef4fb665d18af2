"""One process of a group that trains and saves until it is killed: prints its number, and each step once it is saved. With
"hang" or "die" the second process does so before the third step."""

import os
import sys
import time
from pathlib import Path

import tiny
import torch

from purevdm import parallel, random, training
from purevdm.training import checkpoint


def main(path: Path, steps: int, fate: str = "") -> None:
    torch.set_num_threads(1)
    group = parallel.join("cpu", timeout=15.0 if fate else 300.0)
    with parallel.answering(group, seconds=8.0):
        train(path, steps, fate, group)
    parallel.leave()


def train(path: Path, steps: int, fate: str, group: parallel.Group) -> None:
    model, latest = tiny.model(), checkpoint.latest(path)
    state = parallel.shard(tiny.state(), parallel.mesh(group))
    latest = parallel.gather(latest)[0]
    state = state if latest is None else checkpoint.load(latest, state)
    grad_fn, size = training.gradients(model), 8 // group.size
    mine = slice(group.rank * size, (group.rank + 1) * size)
    say("process", group.rank, os.getpid())
    with checkpoint.Saver() as saver:
        while state.step < steps:
            if fate and group.rank == 1 and state.step == 2:
                time.sleep(86400.0) if fate == "hang" else os._exit(7)
            x, seeds = tiny.data(seed=state.step), model.seeds(random.fold_in(random.key(3), state.step), 8)
            state, _ = training.train_step(tiny.SETTINGS, grad_fn, state, x[mine], seeds.rows(mine))
            saved = saver.wait()
            if saved is not None and group.rank == 0:
                say("saved", int(saved.name))
            saver.save(path, state, keep=2)


def say(*words) -> None:
    """Prints a line at once, and whole: the processes share the output."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
