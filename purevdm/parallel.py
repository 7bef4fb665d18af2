"""Work shared by several processes: rows of a batch, parts of the state, turns.

    group = parallel.join("cuda")                        # the processes that torchrun started, one for each GPU
    mesh = parallel.mesh(group, shards=group.size)
    state = training.init(model, k_init, mesh)
    state, metrics = training.train_step(settings, grad_fn, state, x[mine], seeds.rows(mine))

In training each process takes a part of every batch, and draws the noise of its own rows. So N processes compute what one
computes with the whole batch, but for the order of sums. Parameters, their averages and the optimiser's moments are leaves
that are spread over the processes of a mesh (``torch.distributed.tensor.DTensor``), in ``shards`` parts:

| ``shards`` | of the state, each process holds | each sends in a step, of P bytes of parameters |
|---|---|---|
| 1 | all | 2 P (N - 1) / N: gradients, by all-reduce |
| N | 1 / N | 3 P (N - 1) / N: parameters twice, by all-gather; gradients, by reduce-scatter |
| S between | 1 / S | 3 P (S - 1) / S within S processes, 2 (P / S) (N - S) / N across |

The paper's networks on GPUs that send 450 GB/s within a machine of 8 and 50 GB/s beyond it, 16 examples each, simulated by
``examples/studies/sharding.py`` (no GPU has run it): megabytes that a GPU sends in a step within its machine and beyond it,
and the computation's share of the step's time.

| GPUs | shards | CIFAR-10 (P = 122 MB, 6 ms of computing) | ImageNet 64x64 (P = 950 MB, 200 ms of computing) |
|---|---|---|---|
| 8 | 1 | 214, 0: 0.39 | 1663, 0: 1.00 |
| 8 | 8 | 321, 0: 0.36 | 2495, 0: 0.96 |
| 64 | 1 | 0, 241: 0.31 | 0, 1871: 1.00 |
| 64 | 8 | 321, 27: 0.20 | 2495, 208: 0.95 |
| 64 | 64 | 0, 361: 0.29 | 0, 2807: 0.82 |
| 512 | 1 | 0, 244: 0.31 | 0, 1897: 1.00 |
| 512 | 8 | 321, 30: 0.20 | 2495, 234: 0.95 |
| 512 | 512 | 0, 366: 0.29 | 0, 2846: 0.82 |

U-Nets make the parameters of a block whole, by one message, when it runs, and again in its backward pass; other networks
make theirs whole for a call. Gradients are reduced leaf by leaf while the backward pass goes on. Compiled gradients, and
``torch.func.grad`` of a model's loss, take sharded parameters, too. Functions that draw samples, solve the flow, evaluate or
code, and ``model.denoiser``, make all parameters whole at their start: they need no moments and no averages beside them. All
processes of the mesh must call them together. Not possible with sharded parameters are gradients of each example (``vmap``
of ``grad``), second derivatives in the parameters, ``torch.func.grad`` within a compiled function, and the variance's
gradients compiled. :func:`whole` makes a tree that can.

A process that fails ends the others: torchrun names it. One that hangs is named by :func:`answering`.
"""

import gc
import importlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import optree
import torch
import torch.distributed as dist
from torch import Tensor

from purevdm import _checks, _sharding, _spread

__all__ = ["Group", "ProcessError", "answering", "anywhere", "barrier", "counted", "gather", "join", "leave", "mesh"]
__all__ += ["shard", "whole"]

T = TypeVar("T")


class Group(NamedTuple):
    """This process's rank among the ``size`` processes of a group, and the device on which it computes."""

    rank: int
    size: int
    device: torch.device


class ProcessError(RuntimeError):
    """A process that did not answer; the message names its rank."""


_STORE: list[Any] = []  # of the group: counters that all its processes see
_MESHES: list[Any] = []  # those that a state was spread over
_WORK = itertools.count()  # the pieces of work that were counted, which all processes begin in the same order


def join(device: str = "cpu", *, timeout: float = 600.0) -> Group:
    """Joins the processes that ``torchrun`` started, by gloo on CPUs, by nccl on GPUs, one each; or only this one.

    Args:
        device: "cpu" or "cuda".
        timeout: for how many seconds a process waits for the others' messages before it fails.
    """
    here, size, seconds = torch.device(device), int(os.environ.get("WORLD_SIZE", "1")), _checks.positive("timeout", timeout)
    if size == 1:
        return Group(0, 1, here)
    if here.type == "cuda":
        here = torch.device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(here)
    # Ten functions in there have the group of the moment as a default argument. torch.func imports the module; were that to
    # happen after the next line, the group, and with it gloo's threads, would outlive `leave` and could abort the exit.
    importlib.import_module("torch.distributed.nn.functional")
    wait = timedelta(seconds=seconds)
    store, rank, size = next(dist.rendezvous("env://", timeout=wait))
    backend = "cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo"  # what is no tensor goes by the CPU
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size, timeout=wait)
    _STORE[:] = [dist.PrefixStore("purevdm", store)]
    return Group(rank, size, here)


def leave() -> None:
    """Leaves the group, if there is one, and waits until the threads that served it have ended.

    Call it before the program ends. A gloo thread that releases a tensor while Python shuts down aborts the process.
    """
    _STORE.clear()
    while _MESHES:  # which DTensor's caches hold, and with them the groups
        getattr(_MESHES.pop(), "_pg_registry", {}).clear()
    gc.collect()  # groups that only cycles hold
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


# State


def mesh(group: Group, shards: int | None = None) -> Any:
    """Makes the mesh that a state is spread over: ``shards`` processes hold it together, and every further such set holds it
    again.

    Args:
        group: of :func:`join`.
        shards: a divisor of the group's size; 1 for plain data parallelism; all processes where left out.

    Returns:
        A ``torch.distributed.device_mesh.DeviceMesh`` with the axes "replicas" and "shards", those of more than one process;
        None for a group of one, whose state is whole.

    Raises:
        ValueError: a number of shards that does not divide the group.
    """
    _checks.instance("group", group, Group, "a purevdm.parallel.Group")
    shards = group.size if shards is None else _checks.integer("shards", shards, 1)
    if group.size % shards:
        raise ValueError(f"shards: expected a divisor of the group's {group.size} processes, got {shards}")
    if group.size == 1:
        return None
    axes = {name: n for name, n in (("replicas", group.size // shards), ("shards", shards)) if n > 1}
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(group.device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))


def shard(tree: Any, mesh: Any) -> Any:
    """Spreads the tensors of a tree over the processes of a mesh. All of them call it; the first one's numbers count.

    Each tensor is cut along its first axis that the number of shards divides, or else along its longest, unevenly. What is
    no tensor stays. Gradients that a model's losses give such a tree are spread alike, and are the mean over all processes.

    Args:
        tree: parameters, or a whole :class:`purevdm.training.TrainState`.
        mesh: of :func:`mesh`; or a DeviceMesh of one's own, of all processes, of one axis (shards) or of two (replicas,
            shards). None leaves the tree whole.

    Raises:
        ValueError: a mesh of other processes than the group's, or of more axes; a tree that is sharded already.

    >>> from purevdm import parallel
    >>> group = parallel.join("cpu")
    >>> parallel.shard({"w": torch.ones(2)}, parallel.mesh(group))  # a group of one
    {'w': tensor([1., 1.])}
    """
    if mesh is None:
        return tree
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh, size = _checks.instance("mesh", mesh, DeviceMesh, "a DeviceMesh, as purevdm.parallel.mesh makes it"), _size()
    if mesh.ndim > 2 or mesh.size() != size:
        got = f"one of {mesh.size()} processes in {mesh.ndim} axes"
        raise ValueError(f"mesh: expected one of all {size} processes, in one axis or two, got {got}")
    if _spread.sharded(tree):
        raise ValueError("tree: expected whole leaves, got sharded ones; parallel.whole makes them whole")
    _MESHES.append(mesh)
    last = None if mesh.mesh_dim_names == ("replicas",) else mesh.ndim - 1
    shards = 1 if last is None else mesh.size(last)

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        sizes: Any = leaf.shape
        cut: list[Any] = [Replicate()] * mesh.ndim
        if last is not None and shards > 1 and any(n > 1 for n in sizes):
            even = [i for i, n in enumerate(sizes) if n and n % shards == 0]
            cut[last] = Shard(even[0] if even else max(range(len(sizes)), key=sizes.__getitem__))
        return distribute_tensor(leaf.detach(), mesh, cut).requires_grad_(leaf.requires_grad)

    return optree.tree_map(one, tree)


def whole(tree: Any) -> Any:
    """Makes every sharded tensor of a tree whole in every process; all processes of the mesh call it. Derivatives pass, and
    are the mean over the processes."""
    return _sharding.whole(tree)


# Turns


def _size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def barrier() -> None:
    """Waits until every process of the group has come here."""
    if _size() > 1:
        dist.barrier()


def gather(value: T) -> list[T]:
    """Returns every process's value, by rank, in every process: anything that pickles, with its tensors on the CPU."""
    values: list[T] = [value] * _size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def place(group: Group | None) -> tuple[int, int]:
    """Returns this process's rank and the number of those that take turns: a group's, or, without one, itself."""
    return (0, 1) if group is None else _checks.instance("group", group, Group, "a purevdm.parallel.Group")[:2]


def of_all(group: Group | None, value: T) -> list[T]:
    """Returns the values of those that take turns: :func:`gather` in a group, or, without one, its own."""
    return [value] if group is None else gather(value)


def anywhere(flag: bool) -> bool:
    """Says whether a flag is set in any process of the group."""
    if _size() == 1:
        return flag
    flags = torch.tensor([int(flag)])
    dist.all_reduce(flags)
    return bool(flags.item())


def counted(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a callback of integers for every process of a group. In the first, ``callback`` gets what all of them have added
    since its last call, so that a progress bar shows the whole; in others it is never called. All must make it together."""
    if _size() == 1:
        return callback
    store, work, first, before = _STORE[0], next(_WORK), dist.get_rank() == 0, [0] * 16

    def add(*amounts: int) -> None:
        totals = [store.add(f"{work}/{i}", int(amount)) for i, amount in enumerate(amounts)]
        if first:
            callback(*(total - seen for total, seen in zip(totals, before, strict=False)))
            before[: len(totals)] = totals

    return add


@contextmanager
def answering(group: Group, seconds: float = 30.0) -> Iterator[None]:
    """Names the processes that hang: where a message fails within, because a process did not answer for as long as
    :func:`join` waits, every other process raises within ``seconds``, and the first names those that are missing.

    Raises:
        ProcessError: that; the message's own error is its cause.
    """
    watch = dist.new_group(backend="gloo") if group.size > 1 else None
    try:
        yield
    except RuntimeError as error:
        if watch is None or not _of_a_message(error):
            raise
        wait = timedelta(seconds=_checks.positive("seconds", seconds))
        try:
            dist.monitored_barrier(watch, timeout=wait, wait_all_ranks=True)
        except RuntimeError as missing:
            raise ProcessError(f"a process did not answer: {missing}") from error
        raise


def _of_a_message(error: RuntimeError) -> bool:
    """Says whether an error is of a message between processes; gloo's are plain ones."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
