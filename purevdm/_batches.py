"""The batches of a data set, as its users give them."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from purevdm import _checks


def pairs(batches: Iterable[Any]) -> Iterator[tuple[Tensor, Any]]:
    """Yields the batches x, (x,) or (x, cond) as pairs (x, cond)."""
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        given = _checks.describe(batches)
        raise TypeError(f"batches: expected an iterable of batches, as [x] for a single tensor x, got {given}")
    for j, batch in enumerate(batches):
        pair = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        if len(pair) not in (1, 2) or not isinstance(pair[0], Tensor):
            parts = f" of {', '.join(type(part).__name__ for part in pair)}" if isinstance(batch, (tuple, list)) else ""
            raise TypeError(f"batches[{j}]: expected a tensor x, (x,) or (x, cond), got {type(batch).__name__}{parts}")
        if pair[0].ndim == 0 or pair[0].shape[0] == 0:
            raise ValueError(f"batches[{j}]: expected at least one example, got {_checks.describe(pair[0])}")
        yield pair if len(pair) == 2 else (pair[0], None)  # type: ignore[misc]
