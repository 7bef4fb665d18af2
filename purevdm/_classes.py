"""Classes as networks take them, and logits as they give them."""

from typing import NamedTuple

import torch
from torch import Tensor

from purevdm.types import Shape


class Layout(NamedTuple):
    """Where the classes of an event's elements lie in what a network takes and returns.

    Probabilities lie on the last axis, (*event_shape, K). Of two classes a network takes only a number for class 0, in the
    event's shape. Of K > 2 it takes all: of an event (C, ...) as (C K, ...), a channel's classes next to one another, or
    with ``last`` as (C, ..., K). Methods take one example, or, of masks, a batch.
    """

    classes: int
    last: bool

    def shape(self, event_shape: Shape) -> tuple[int, ...]:
        """Gives the shape of what a network takes."""
        if self.classes == 2:
            return tuple(event_shape)
        if self.last:
            return (*event_shape, self.classes)
        return (event_shape[0] * self.classes, *event_shape[1:])

    def shown(self, p: Tensor) -> Tensor:
        """Gives probabilities p as a network takes them: 2 p - 1."""
        seen = 2.0 * p - 1.0
        if self.classes == 2:
            return seen[..., 0]
        return seen if self.last else seen.movedim(-1, 1).flatten(0, 1)

    def mask(self, mask: Tensor) -> Tensor:
        """Gives a mask of events, (B, *event_shape), as it broadcasts to what a network takes of them."""
        if self.classes == 2:
            return mask
        return mask[..., None] if self.last else mask.repeat_interleave(self.classes, 1)

    def logits(self, raw: Tensor) -> Tensor:
        """Gives a network's output, of its input's shape, as logits on the last axis; of two classes it is that of class
        1."""
        if self.classes == 2:
            return torch.stack([torch.zeros_like(raw), raw], -1)
        return raw if self.last else raw.unflatten(0, (-1, self.classes)).movedim(1, -1)
