"""One process of a group: trains three steps on its part of each batch, evaluates, and the first writes what comes out."""

import sys
from functools import partial
from pathlib import Path

import tiny
import torch
from optree import tree_leaves

from purevdm import evaluation, likelihood, parallel, random, training


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
    evaluate(model, state.params, group)
    if group.rank == 0:
        torch.save([tree_leaves(state.params), metrics["loss"], group], path)
    parallel.barrier()
    if not Path(path).exists():
        sys.exit(f"rank {group.rank}: passed the barrier before the first has written")
    parallel.leave()
    left = [thread for thread in threads() if "gloo" in thread]
    if left:
        sys.exit(f"rank {group.rank}: threads that outlive the group may abort the exit: {left}")


def evaluate(model, params, group) -> None:
    """Together, with fewer batches than processes and with more, they find exactly what each finds alone."""
    lengths = [len(part) for part in parallel.gather(torch.arange(group.rank))]
    if lengths != list(range(group.size)):
        sys.exit(f"rank {group.rank}: gathered tensors of lengths {lengths}")
    x, key, weighted = (
        tiny.data(50, seed=5),
        random.key(6),
        partial(likelihood.importance_bound, model, timesteps=3, samples=2),
    )
    for size, passes in ((50, 1), (50, 3), (9, 2)):
        shared, alone = (
            (
                evaluation.evaluate(model, params, x.split(size), key, passes=passes, group=g),
                evaluation.evaluate(model, params, x.split(size), key, passes=passes, method=weighted, group=g),
                evaluation.profile(model, params, x.split(size), key, passes=passes, bins=2, group=g).t.mean.tolist(),
            )
            for g in (group, None)
        )
        if shared != alone:
            sys.exit(f"rank {group.rank}: found {shared} together and {alone} alone")
    try:
        evaluation.evaluate(model, params, [tiny.data(8, seed=group.rank)], key, group=group)
    except ValueError as error:
        if "the same data in the same order" not in str(error):
            raise
    else:
        if group.size > 1:
            sys.exit(f"rank {group.rank}: evaluated other data than the rest, unnoticed")


def threads() -> list[str]:
    """The names of this process's threads, where Linux tells them."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    main(sys.argv[1])
