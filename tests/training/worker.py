"""One process of a group: trains three steps on its part of each batch, and the first writes what comes out."""

import sys

import tiny
import torch
from optree import tree_leaves

from purevdm import random, training
from purevdm.training import parallel


def main(path: str) -> None:
    torch.set_num_threads(1)
    group = parallel.join("cpu")
    model, state = tiny.model(), tiny.state()
    grad_fn = training.gradients(model)
    size = 8 // group.size
    for step in range(3):
        rows = slice(group.rank * size, (group.rank + 1) * size)
        seeds = model.seeds(random.fold_in(random.key(3), step), 8)
        state, metrics = training.train_step(
            tiny.SETTINGS,
            grad_fn,
            state,
            tiny.data(seed=step)[rows],
            seeds.rows(rows),
            average=lambda tensors: parallel.average(tensors, bucket=100),
        )
    if group.rank == 0:
        torch.save([tree_leaves(state.params), metrics["loss"], group], path)
    parallel.leave()


if __name__ == "__main__":
    main(sys.argv[1])
