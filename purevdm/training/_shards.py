"""A sharded state's tensors in files: each process writes its own, in safetensors, by ``torch.distributed.checkpoint``.

Any number of processes reads them, and one without a launcher.
"""

import hashlib
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from purevdm import _files, _spread

T = TypeVar("T")


def digest(path: Path) -> str:
    """Computes a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def agreed(run: Callable[[], T], group: Any) -> list[T]:
    """Lists what ``run`` returns in each process of a group; where it raises in one, all raise that error."""
    outcome: Any
    try:
        outcome = (run(), None)
    except Exception as error:
        outcome = (None, error)
    outcomes = [outcome] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, outcome, group=group)
    for rank, (_, failure) in enumerate(outcomes):
        if failure is not None:
            failure.add_note(f"in the process of rank {rank}")
            raise failure
    return [value for value, _ in outcomes]


def write(folder: Path, leaves: dict[str, Tensor], group: Any) -> dict[str, str]:
    """Writes sharded leaves, by name, into a folder that is there, by all processes of a group together. Returns the SHA-256
    of each file, once the disk has them all."""
    import torch.distributed.checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)

    def put() -> None:
        with _plain_errors():
            dcp.save({name: leaf.detach() for name, leaf in leaves.items()}, storage_writer=writer, process_group=group)

    agreed(put, group)
    rank, size = dist.get_rank(group), dist.get_world_size(group)

    def settle() -> dict[str, str]:
        mine = sorted(folder.glob("*.safetensors"))[rank::size]
        for path in mine:
            _files.sync(path)
        return {path.name: digest(path) for path in mine}

    return {name: value for part in agreed(settle, group) for name, value in part.items()}


def shapes(folder: Path) -> dict[str, Tensor]:
    """Lists the leaves of a folder's files by name, on the meta device."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    with _plain_errors():
        metadata: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    found = {}
    for name, entry in metadata.items():
        found[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    return found


def read(folder: Path, files: dict[str, str], like: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Reads leaves by name: sharded as those of ``like`` are, by all of their processes, or whole, on a device.

    Raises:
        ValueError: files that are missing or damaged.
    """
    import torch.distributed.checkpoint as dcp

    together = _spread.sharded(like)
    rank, size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    def verify() -> None:
        for name in sorted(files)[rank::size]:
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name}: missing")
            if digest(folder / name) != files[name]:
                raise ValueError(f"{folder / name}: damaged (its SHA-256 is not the one in the notes)")

    agreed(verify, None) if together else verify()
    empty = {
        name: torch.empty_like(leaf) if together else torch.empty(leaf.shape, dtype=leaf.dtype, device=device)
        for name, leaf in like.items()
    }
    reader = dcp.HuggingFaceStorageReader(str(folder))
    with _plain_errors():
        dcp.load(empty, storage_reader=reader, no_dist=not together)
    return empty


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turns the exception of ``torch.distributed.checkpoint``, which no ``except Exception`` catches, into its cause, and
    says nothing of a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            yield
        except BaseException as error:
            failures = getattr(error, "failures", None)
            if isinstance(error, Exception) or not failures:
                raise
            rank, (cause, _) = min(failures.items(), key=operator.itemgetter(0))
            if isinstance(cause, OSError):
                raise cause from error
            raise ValueError(f"checkpoint, in the process of rank {rank}: {cause}") from error
