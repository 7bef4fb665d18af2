"""The batches of a data set, as its users give them."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from purevdm import _checks


def pairs(batches: Iterable[Any]) -> Iterator[tuple[Tensor, Any]]:
    """Yields the batches x, (x,) or (x, cond) as pairs (x, cond)."""
    yield from _parts(batches, 2, "a tensor x, (x,) or (x, cond)")  # type: ignore[misc]


def triples(batches: Iterable[Any]) -> Iterator[tuple[Tensor, Any, Any]]:
    """Yields the batches x, (x,), (x, cond) or (x, cond, mask) as triples (x, cond, mask)."""
    yield from _parts(batches, 3, "a tensor x, (x,), (x, cond) or (x, cond, mask)")  # type: ignore[misc]


def unpacked(x: Any, cond: Any = None) -> tuple[Tensor, Any, Any]:
    """Gives data, or a batch (x, cond, mask) of which the last may be left out, as (x, cond, mask)."""
    if isinstance(x, Tensor):
        return x, cond, None
    if not isinstance(x, (tuple, list)) or not 1 <= len(x) <= 3:
        raise TypeError(f"x: expected data or a batch (x, cond, mask), got {_checks.describe(x)}")
    if cond is not None:
        raise ValueError(f"cond: expected it in the batch only, (x, cond, mask), got {_checks.describe(cond)}")
    return (*x, *(None,) * (3 - len(x)))  # type: ignore[return-value]


def _parts(batches: Iterable[Any], most: int, wanted: str) -> Iterator[tuple[Any, ...]]:
    """Yields each batch as a tuple of as many parts, None for those left out."""
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        given = _checks.describe(batches)
        raise TypeError(f"batches: expected an iterable of batches, as [x] for a single tensor x, got {given}")
    for j, batch in enumerate(batches):
        parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        if not 1 <= len(parts) <= most or not isinstance(parts[0], Tensor):
            raise TypeError(f"batches[{j}]: expected {wanted}, got {_checks.describe(batch)}")
        if parts[0].ndim == 0 or parts[0].shape[0] == 0:
            raise ValueError(f"batches[{j}]: expected at least one example, got {_checks.describe(parts[0])}")
        yield (*parts, *(None,) * (most - len(parts)))
