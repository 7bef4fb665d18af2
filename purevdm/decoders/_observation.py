"""p(x given what a decoding map says): real numbers and classes. :func:`purevdm.decoders.learned` takes these."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm._values import Value
from purevdm.decoders._decoder import data, is_class
from purevdm.decoders._discrete import integers
from purevdm.types import Key, Params, Shape


class Observation(Value):
    """A distribution of data, (B, *event_shape), given what a decoding map returns, ``out``: (B, *event_shape), or
    (B, *event_shape, outputs) where a number takes several. Derive from it to make one of your own.

    Attributes:
        support, vocab_size, unit: as those of a :class:`purevdm.decoders.Decoder`.
        outputs: how many numbers of ``out`` go with one of the data, on a last axis, or None for one without such an axis.
    """

    support: str = "data"
    vocab_size: int | None = None
    unit: str = "nats"
    outputs: int | None = None

    def init(self, key: Key, event_shape: Shape) -> Params:
        """Makes fresh parameters that do not depend on the latent, {} for none."""
        return {}

    def check(self, x: Tensor) -> Tensor:
        """Says whether each element is in the support, bool, of x's shape.

        Raises:
            TypeError: x is not a tensor of such data at all.
        """
        raise NotImplementedError

    def features(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Gives the data as an encoding map takes them: of ``out``'s shape, numbers of about 1."""
        raise NotImplementedError

    def log_prob(self, params: Params, x: Tensor, out: Tensor, cond: Any = None) -> Tensor:
        """Computes log p(x given out) of each element, nats."""
        raise NotImplementedError

    def mode(self, params: Params, out: Tensor, cond: Any = None) -> Tensor:
        """Gives the likeliest data."""
        raise NotImplementedError

    def sample(self, params: Params, key: Key, out: Tensor, cond: Any = None) -> Tensor:
        """Draws data from p(x given out)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Normal(Observation):
    """The distribution of :func:`normal`."""

    scale: float
    learned: bool

    support = "finite numbers"

    def init(self, key: Key, event_shape: Shape) -> Params:
        start = torch.full(tuple(event_shape), math.log(self.scale), device=key.device)
        return {"log_scale": start} if self.learned else {}

    def check(self, x: Tensor) -> Tensor:
        return data(x, (torch.float32, torch.float64), "float32 or float64 numbers").isfinite()

    def features(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype)

    def log_prob(self, params: Params, x: Tensor, out: Tensor, cond: Any = None) -> Tensor:
        log_scale = self._log_scale(params, out)
        error = (x.to(out.dtype) - out) * torch.exp(-log_scale)
        return -0.5 * error.square() - log_scale - 0.5 * math.log(2.0 * math.pi)

    def mode(self, params: Params, out: Tensor, cond: Any = None) -> Tensor:
        return out

    def sample(self, params: Params, key: Key, out: Tensor, cond: Any = None) -> Tensor:
        return out + torch.exp(self._log_scale(params, out)) * random.normal(key, tuple(out.shape), out.dtype)

    def _log_scale(self, params: Params, like: Tensor) -> Tensor:
        return params["log_scale"].to(like.dtype) if self.learned else like.new_tensor(math.log(self.scale))


def normal(scale: float = 1.0, *, learned: bool = True) -> Observation:
    """Makes the distribution of real numbers, normal about ``out``: p(x given out) = N(out, scale**2), a density, in nats.

    Args:
        scale: the standard deviation, at the start where it is learned.
        learned: whether it is learned, one for each element of an event, or stays.

    Raises:
        TypeError, ValueError: a scale that is not above 0.
    """
    return Normal(_checks.positive("scale", scale), _checks.boolean("learned", learned))


@dataclass(frozen=True)
class Categorical(Observation):
    """The distribution of :func:`categorical`."""

    vocab_size: int  # type: ignore[assignment]

    unit = "bits/dim"

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return self.vocab_size

    @property
    def support(self) -> str:  # type: ignore[override]
        return f"integers in [0, {self.vocab_size - 1}]"

    def check(self, x: Tensor) -> Tensor:
        wide = integers(x).to(torch.int64)
        return (wide >= 0) & (wide < self.vocab_size)

    def features(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return is_class(x, self.vocab_size).to(dtype)

    def log_prob(self, params: Params, x: Tensor, out: Tensor, cond: Any = None) -> Tensor:
        return torch.log_softmax(out, -1).gather(-1, x.long()[..., None])[..., 0]

    def mode(self, params: Params, out: Tensor, cond: Any = None) -> Tensor:
        return out.argmax(-1)

    def sample(self, params: Params, key: Key, out: Tensor, cond: Any = None) -> Tensor:
        return random.categorical(key, out)


def categorical(classes: int) -> Observation:
    """Makes the distribution of unordered classes, integers from 0: the softmax of so many outputs on ``out``'s last axis.

    Raises:
        TypeError, ValueError: fewer than 2 classes, or no integer.
    """
    return Categorical(_checks.integer("classes", classes, 2))
