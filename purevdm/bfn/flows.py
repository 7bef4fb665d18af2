"""Bayesian flows as values: how an input distribution moves from t = 0 to t = 1, and what a network sees of it.

Methods take one example, or times alone. ``w`` is the latent of :mod:`purevdm.bfn.process`.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from purevdm._compile import fixed
from purevdm.bfn import categorical, normal
from purevdm.types import Shape

__all__ = ["Categorical", "Flow", "Normal"]


class Flow(Protocol):
    """What a model needs of a Bayesian flow; :class:`Normal` and :class:`Categorical` are the two."""

    def snr(self, t: Tensor) -> Tensor:
        """The signal-to-noise ratio at time t: 0 at t = 0, and growing."""

    def slope(self, t: Tensor) -> Tensor:
        """snr'(t)."""

    def gain(self, s: Tensor, t: Tensor) -> Tensor:
        """snr(t) - snr(s), without cancellation."""

    def latent_shape(self, event_shape: Shape) -> tuple[int, ...]:
        """The shape of w."""

    def network_shape(self, event_shape: Shape) -> tuple[int, ...]:
        """The shape of what a network sees."""

    def parameters(self, w: Tensor, t: Tensor) -> Tensor:
        """The input distribution's parameters, which the paper calls theta."""

    def shown(self, parameters: Tensor) -> Tensor:
        """The parameters as a network sees them."""

    def shown_mask(self, mask: Tensor) -> Tensor:
        """A mask of events, (B, *event_shape), as it broadcasts to what a network sees of them."""

    def estimate(self, h_hat: Tensor) -> Tensor:
        """An estimate of the data as a self-conditioned network sees it, of the same shape."""

    def clock(self, t: Tensor) -> Tensor:
        """The variable in which second-order solvers extrapolate."""

    def lead(self, s: Tensor, t: Tensor) -> Tensor:
        """By how much of the clock's step from s to t the extrapolated mean of a stochastic step is ahead."""


class Normal(NamedTuple):
    """The flow of real numbers: normal input distributions from N(0, 1) to a deviation of sigma_1. The network sees their
    means."""

    sigma_1: float

    def snr(self, t: Tensor) -> Tensor:
        return normal.beta(t, self.sigma_1)

    def slope(self, t: Tensor) -> Tensor:
        return normal.rate(t, self.sigma_1)

    def gain(self, s: Tensor, t: Tensor) -> Tensor:
        return normal.accuracy(s, t, self.sigma_1)

    def latent_shape(self, event_shape: Shape) -> tuple[int, ...]:
        return tuple(event_shape)

    def network_shape(self, event_shape: Shape) -> tuple[int, ...]:
        return tuple(event_shape)

    def parameters(self, w: Tensor, t: Tensor) -> Tensor:
        left = normal.variance(t, self.sigma_1)
        return torch.sqrt(self.snr(t)) * left * w

    def shown(self, parameters: Tensor) -> Tensor:
        return parameters

    def shown_mask(self, mask: Tensor) -> Tensor:
        return mask

    def estimate(self, h_hat: Tensor) -> Tensor:
        return h_hat

    def clock(self, t: Tensor) -> Tensor:
        return 0.5 * torch.log(self.snr(t))

    def lead(self, s: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(t, 0.5)


class Categorical(NamedTuple):
    """The flow of classes: categorical input distributions from the uniform, with the accuracy beta_1 t**2.

    A network sees 2 theta - 1. Of two classes it sees that of class 0 alone, as in the official code, in the event's shape.
    Of K > 2 it sees all: of an event (C, ...) as (C K, ...), a channel's classes next to one another, or with
    ``classes_last`` as (C, ..., K), as transformers over tokens take them.
    """

    classes: int
    beta_1: float
    classes_last: bool = False

    @property
    def k(self) -> int:
        """``classes``, a constant to a compiler."""
        return fixed(self.classes)

    def snr(self, t: Tensor) -> Tensor:
        return self.k * categorical.beta(t, self.beta_1)

    def slope(self, t: Tensor) -> Tensor:
        return self.k * categorical.rate(t, self.beta_1)

    def gain(self, s: Tensor, t: Tensor) -> Tensor:
        return self.k * categorical.accuracy(s, t, self.beta_1)

    def latent_shape(self, event_shape: Shape) -> tuple[int, ...]:
        return (*event_shape, self.k)

    def network_shape(self, event_shape: Shape) -> tuple[int, ...]:
        if self.k == 2:
            return tuple(event_shape)
        if self.classes_last:
            return (*event_shape, self.k)
        return (event_shape[0] * self.k, *event_shape[1:])

    def parameters(self, w: Tensor, t: Tensor) -> Tensor:
        return torch.softmax(torch.sqrt(self.snr(t)) * w, -1)

    def shown(self, parameters: Tensor) -> Tensor:
        seen = 2.0 * parameters - 1.0
        if self.k == 2:
            return seen[..., 0]
        return seen if self.classes_last else seen.movedim(-1, 1).flatten(0, 1)

    def shown_mask(self, mask: Tensor) -> Tensor:
        if self.k == 2:
            return mask
        return mask[..., None] if self.classes_last else mask.repeat_interleave(self.k, 1)

    def logits(self, raw: Tensor) -> Tensor:
        """A network's output, of the shape that it sees, as logits of the classes on the last axis; for two classes it is
        the logit of class 1."""
        if self.k == 2:
            return torch.stack([torch.zeros_like(raw), raw], -1)
        return raw if self.classes_last else raw.unflatten(0, (-1, self.k)).movedim(1, -1)

    def estimate(self, h_hat: Tensor) -> Tensor:
        return self.shown(h_hat + 1.0 / self.k)

    def clock(self, t: Tensor) -> Tensor:
        return t.clone()

    def lead(self, s: Tensor, t: Tensor) -> Tensor:
        return (2.0 * t + s) / (3.0 * (t + s))
