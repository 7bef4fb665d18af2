"""Work shared by several processes. In training each takes a part of every batch, and gradients are averaged. In evaluation
they take turns at whole batches, and the results are gathered.

A batch's noise is a function of its key, and each process draws the noise of its own rows. So N processes compute what one
computes with the whole batch, except for the order of sums.
"""

import importlib
import os
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from purevdm import _checks

__all__ = ["Group", "average", "barrier", "gather", "join", "leave"]

T = TypeVar("T")


class Group(NamedTuple):
    """This process's rank among the ``size`` processes of a group, and the device on which it computes."""

    rank: int
    size: int
    device: torch.device


def join(device: str = "cpu") -> Group:
    """Joins the processes that ``torchrun`` started, by gloo on CPUs, by nccl on GPUs, one each; or only this one."""
    here, size = torch.device(device), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Group(0, 1, here)
    if here.type == "cuda":
        here = torch.device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(here)
    # Ten functions in there have the group of the moment as a default argument. torch.func imports the module; were that to
    # happen after the next line, the group, and with it gloo's threads, would outlive `leave` and could abort the exit.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo")
    return Group(dist.get_rank(), size, here)


def _size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def barrier() -> None:
    """Waits until every process of the group has come here."""
    if _size() > 1:
        dist.barrier()


def leave() -> None:
    """Leaves the group, if there is one, and waits until the threads that served it have ended.

    Call it before the program ends. A gloo thread that releases a tensor while Python shuts down aborts the process.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def average(tensors: list[Tensor], bucket: int = 1 << 23) -> list[Tensor]:
    """Returns the mean of each tensor over the processes, with its strides. Every process gives tensors of the same shapes.

    They travel in flat buckets of about ``bucket`` numbers of one dtype: few large messages, not many small ones.
    """
    bucket, size = _checks.integer("bucket", bucket, 1), _size()
    if size == 1:
        return list(tensors)
    buckets: list[list[Tensor]] = []
    for tensor in tensors:
        last = buckets[-1] if buckets else []
        fits = sum(other.numel() for other in last) + tensor.numel() <= bucket
        if last and fits and last[0].dtype == tensor.dtype:
            last.append(tensor)
        else:
            buckets.append([tensor])
    result: list[Tensor] = []
    for some in buckets:
        flat = torch.cat([tensor.reshape(-1) for tensor in some])
        dist.all_reduce(flat)
        flat /= size
        pieces = flat.split([tensor.numel() for tensor in some])
        result += [torch.empty_like(old).copy_(new.view(old.shape)) for old, new in zip(some, pieces, strict=True)]
    return result


def gather(value: T) -> list[T]:
    """Returns every process's value, by rank, in every process: anything that pickles, with its tensors on the CPU."""
    values: list[T] = [value] * _size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values
