"""What sharding costs on paper: bytes that a GPU sends in a step of the paper's models, and how long they take.

    python examples/studies/sharding.py

A step is simulated block by block, as :mod:`purevdm.parallel` does it in eager mode. Parameters of a block are gathered in
one message before it runs and again before its backward pass, and nothing else goes on meanwhile. Gradients are reduced leaf
by leaf while the backward pass goes on. A GPU computes 400 TFLOP/s in bfloat16 (an H100 at 40 %), sends 450 GB/s to the 7
others of its machine and 50 GB/s beyond it (NVLink, and one 400 Gbit/s port each), and a message takes 20 us besides.
Parameters and gradients travel as float32. Each GPU has 16 examples. FLOPs are counted by PyTorch on the meta device.

"efficiency" is the time of the computation by that of the step; "state" the bytes of parameters, averages, moments and
gradients on each GPU. No GPU has run it.

CIFAR-10: 122 MB of parameters in 689 leaves, 6 ms of computation a step

======  ======  =========  =========  =========  ========  ==========
GPUs    shards  MB within  MB beyond  state, MB  step, ms  efficiency
======  ======  =========  =========  =========  ========  ==========
8       1       214        0          612        16        0.39
8       8       321        0          76         18        0.36
64      1       0          241        612        21        0.31
64      8       321        27         76         32        0.20
64      64      0          361        10         22        0.29
512     1       0          244        612        21        0.31
512     8       321        30         76         32        0.20
512     512     0          366        1          22        0.29
======  ======  =========  =========  =========  ========  ==========

ImageNet 64x64: 950 MB of parameters in 1329 leaves, 200 ms of computation a step

======  ======  =========  =========  =========  ========  ==========
GPUs    shards  MB within  MB beyond  state, MB  step, ms  efficiency
======  ======  =========  =========  =========  ========  ==========
8       1       1663       0          4752       201       1.00
8       8       2495       0          594        210       0.96
64      1       0          1871       4752       201       1.00
64      8       2495       208        594        210       0.95
64      64      0          2807       74         243       0.82
512     1       0          1897       4752       201       1.00
512     8       2495       234        594        210       0.95
512     512     0          2846       9          244       0.82
======  ======  =========  =========  =========  ========  ==========

The small model is bound by the number of messages: 689 gradients of 20 us take longer than its 6 ms of computation. Larger
batches a GPU, or pieces of them, hide that. The large one hides all but its gathers, which sharding within a machine keeps
cheap.
"""

from dataclasses import dataclass

import optree
import torch
from torch.utils.flop_counter import FlopCounterMode

import purevdm
from purevdm import networks, random, schedules

MODELS = {
    "CIFAR-10": (networks.vdm_unet(128, 32, dropout=0.0), (3, 32, 32)),
    "ImageNet 64x64": (networks.vdm_unet(256, 64, dropout=0.0), (3, 64, 64)),
}
BATCH, SPEED, LATENCY = 16, 400e12, 20e-6
WITHIN, BEYOND, MACHINE = 450e9, 50e9, 8


@dataclass
class Network:
    """What the simulation asks of a network: the bytes of each block's leaves, in the order in which they run, and the
    seconds of a forward pass over a GPU's batch."""

    blocks: list[list[int]]
    forward: float

    @property
    def bytes(self) -> int:
        return sum(map(sum, self.blocks))


def network(own: networks.Network, shape: tuple[int, ...]) -> Network:
    """Counts a network's bytes and FLOPs, in no memory."""
    model = purevdm.vdm(own, schedules.fixed_linear(), shape, 256)
    params = model.init(random.key(0, device="meta"))["network"]
    z, gamma = torch.empty(1, *shape, device="meta"), torch.empty(1, device="meta")
    with FlopCounterMode(display=False) as counter:
        model.network.apply_to_batch(params, z, gamma)
    parts: dict[tuple, list[int]] = {}
    for path, leaf in zip(optree.tree_paths(params), optree.tree_leaves(params), strict=True):
        parts.setdefault(path[:3] if path[0] in ("down", "up", "mid") else ("ends",), []).append(4 * leaf.numel())
    return Network(list(parts.values()), BATCH * counter.get_total_flops() / SPEED)


@dataclass
class Step:
    """A simulated step: bytes that a GPU sends within its machine and beyond it, and seconds."""

    within: float
    beyond: float
    seconds: float
    alone: float
    state: float


def step(net: Network, gpus: int, shards: int) -> Step:
    """Simulates one step; blocks take time by their bytes, the backward pass twice as long as the forward pass."""
    sent = {True: 0.0, False: 0.0}
    replicas = gpus // shards

    def message(size: float, members: int, inside: bool, times: int) -> float:
        """A ring's message: each member sends its share of ``size`` to the next, members - 1 times, ``times`` rounds."""
        if members == 1:
            return 0.0
        moved = times * size * (members - 1) / members
        sent[inside] += moved
        return LATENCY + moved / (WITHIN if inside else BEYOND)

    inside, across = shards <= MACHINE, gpus <= MACHINE

    def gather(leaves: list[int]) -> float:
        return message(sum(leaves), shards, inside, 1)

    def reduce(leaves: list[int]) -> float:
        scattered = sum(message(size, shards, inside, 1) for size in leaves)
        return scattered + sum(message(size / shards, replicas, across, 2) for size in leaves)

    clock, free = 0.0, 0.0
    shares = [net.forward * sum(leaves) / net.bytes for leaves in net.blocks]
    for leaves, seconds in zip(net.blocks, shares, strict=True):
        clock += gather(leaves) + seconds
    for leaves, seconds in reversed(list(zip(net.blocks, shares, strict=True))):
        clock += gather(leaves) + 2 * seconds
        free = max(free, clock) + reduce(leaves)  # messages wait for one another, and not the computation for them
    state = net.bytes * 5 / shards
    return Step(sent[True], sent[False], max(clock, free), 3 * net.forward, state)


def main() -> None:
    for name, made in MODELS.items():
        net = network(*made)
        size, messages = net.bytes / 1e6, sum(map(len, net.blocks))
        print(f"{name}: {size:.0f} MB of parameters in {messages} leaves, {3e3 * net.forward:.0f} ms of computation a step")
        print(
            f"{'GPUs':>6}{'shards':>8}{'MB within':>11}{'MB beyond':>11}{'state, MB':>11}{'step, ms':>10}{'efficiency':>12}"
        )
        for gpus in (8, 64, 512):
            for shards in dict.fromkeys((1, 8, gpus)):
                found = step(net, gpus, shards)
                sizes = f"{found.within / 1e6:12.0f}{found.beyond / 1e6:12.0f}{found.state / 1e6:12.0f}"
                print(f"{gpus:6}{shards:8}{sizes}{1e3 * found.seconds:12.0f}{found.alone / found.seconds:12.2f}")


if __name__ == "__main__":
    main()
