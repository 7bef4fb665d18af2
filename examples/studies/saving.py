"""What a checkpoint costs, waited for or written while training goes on, and what a process holds of a state.

    python examples/studies/saving.py
    torchrun --nproc-per-node 4 examples/studies/saving.py

Trains a U-Net on noise, in turns without checkpoints, with one that is waited for after every so many steps, and with one
by ``checkpoint.Saver``. Prints the median time of a turn of each kind as a multiple of one without; the bytes of parameters,
averages and moments that a process holds, and by how much its memory grew from before the state to after a step.

On two AVX-512 cores, 166 MB of state, a checkpoint after every 8 steps: waited for, a turn takes 1.14 times as long (two
processes: 1.18 and 1.19), in the background 1.02 (two processes: 1.13 and 1.15), as a core that writes does not compute.
"""

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import optree
import torch

import purevdm
from purevdm import networks, parallel, random, schedules, training
from purevdm.training import checkpoint

KINDS = ("none", "waited for", "in the background")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embed", type=int, default=128, help="the U-Net's width (default: %(default)s)")
    parser.add_argument("--every", type=int, default=8, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each kind (default: %(default)s)")
    args = parser.parse_args()
    group = parallel.join("cpu")
    with tempfile.TemporaryDirectory() as folder:
        measure(args, group, parallel.gather(Path(folder))[0])
        parallel.barrier()
    parallel.leave()


def measure(args: argparse.Namespace, group: parallel.Group, folder: Path) -> None:
    network = networks.unet(args.embed, (1, 2), 1, groups=8)
    model = purevdm.vdm(network, schedules.learned_linear(), (3, 8, 8), 256)
    gradients, settings = training.gradients(model), training.AdamW()
    before = memory()
    state = training.init(model, random.key(0), parallel.mesh(group))
    x = random.randint(random.key(group.rank), (4, 3, 8, 8), 0, 256)

    def steps(n: int) -> None:
        nonlocal state
        for _ in range(n):
            seeds = model.seeds(random.fold_in(random.key(1), state.step), 4 * group.size)
            rows = slice(4 * group.rank, 4 * group.rank + 4)
            state, _ = training.train_step(settings, gradients, state, x, seeds.rows(rows))

    steps(1)
    grown, leaves = memory() - before, [leaf for leaf in optree.tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    held = sum(local(leaf).numel() * leaf.element_size() for leaf in leaves)
    whole = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(args.turns * len(KINDS)):
        kind = KINDS[turn % len(KINDS)]
        with checkpoint.Saver() as saver:
            parallel.barrier()
            started = time.perf_counter()
            if kind == "waited for":
                checkpoint.save(folder, state, keep=1)
            elif kind == "in the background":
                saver.save(folder, state, keep=1)
            steps(args.every)
            parallel.barrier()
            times[kind].append(time.perf_counter() - started)
    if group.rank:
        return
    medians = {kind: statistics.median(each) for kind, each in times.items()}
    print(f"{group.size} processes; the state is {whole / 1e6:.0f} MB, of which this one holds {held / whole:.3f}")
    print(f"its memory grew by {grown / 1e6:.0f} MB to the first step's end, at most")
    for kind in KINDS:
        print(f"{args.every} steps, checkpoint {kind + ':':20} {medians[kind] / medians['none']:.2f}")


def local(leaf: torch.Tensor) -> torch.Tensor:
    return leaf.to_local() if hasattr(leaf, "to_local") else leaf


def memory() -> int:
    """Returns the most memory that this process had so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
