"""The distribution of how many elements a set has, and masks of sets of given sizes.

A set x of n elements has p(x) = p(n) p(x given n). A model with a mask bounds -log p(x given n); the bound on the whole set
is that minus log p(n). Both are of the elements in the order in which they are given. Where order means nothing, a model
that is invariant to it gives the unordered set n! times that density, and so log n! nats less.

>>> import torch, purevdm
>>> from purevdm import decoders, networks, random, schedules, sizes
>>> x, n = random.normal(random.key(0), (64, 9, 3)), random.randint(random.key(1), (64,), 2, 10)
>>> known = sizes.counts(n, most=9)  # fitted to the sets' sizes
>>> parts = dict(decoder=decoders.gaussian(), event_shape=(9, 3))
>>> model = purevdm.vdm(networks.transformer(16, 1), schedules.learned_linear(), **parts)
>>> params = model.init(random.key(2))
>>> nll = model.nll_bound(params, x, random.key(3), mask=sizes.mask(n, model.event_shape)).total - known.log_prob(n)
>>> drawn = known.sample(random.key(4), 5)
>>> model.sample(params, random.key(5), 5, steps=10, mask=sizes.mask(drawn, model.event_shape)).shape
torch.Size([5, 9, 3])
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm._values import Value
from purevdm.types import Key, Shape

__all__ = ["Sizes", "counts", "mask"]


@dataclass(frozen=True)
class Sizes(Value):
    """A distribution of sizes from 1 on; :func:`counts` fits one.

    Attributes:
        weights: in proportion to the probabilities of 1, 2, ..., at least 0.
    """

    weights: tuple[float, ...]

    def _log_probs(self, like: Tensor) -> Tensor:
        weights = torch.tensor(self.weights, dtype=torch.float64, device=like.device)
        return (weights / weights.sum()).log()

    def log_prob(self, n: Tensor) -> Tensor:
        """Computes log p(n) of sizes, integers of any shape, nats, float64; minus infinity for a size of probability 0.

        Raises:
            TypeError, ValueError: no integers; in eager mode, sizes below 1 or above the largest.
        """
        n = _sizes("n", n, len(self.weights))
        return self._log_probs(n)[n - 1]

    def sample(self, key: Key, n: int) -> Tensor:
        """Draws n sizes, int64 (n,)."""
        logits = self._log_probs(_checks.key("key", key))
        return random.categorical(key, logits, shape=(_checks.integer("n", n, 1),)).to(torch.int64) + 1


def counts(n: Tensor, most: int, *, smoothing: float = 1.0) -> Sizes:
    """Makes the distribution that the sizes of training data count out, with ``smoothing`` more of each from 1 to ``most``.

    Args:
        n: the sizes, integers in [1, most].
        most: the largest size that there may be: what an event has room for.
        smoothing: 0 leaves a size that was not seen at a probability of 0, and the bound of a set of that size infinite.

    Raises:
        TypeError, ValueError: no integers, none at all, or sizes out of range; a smoothing below 0.
    """
    most = _checks.integer("most", most, 1, 2**24)
    n = _sizes("n", n, most)
    if n.numel() == 0:
        raise ValueError("n: expected at least one size, got none")
    if _checks.real("smoothing", smoothing) < 0.0:
        raise ValueError(f"smoothing: expected a number of at least 0, got {smoothing}")
    return Sizes(tuple((torch.bincount(n.flatten() - 1, minlength=most).double() + smoothing).tolist()))


def mask(n: Tensor, event_shape: Shape) -> Tensor:
    """Makes the mask of sets whose first n elements exist, as it broadcasts to a batch of events (elements, ...): bool,
    (B, elements, 1, ...).

    Args:
        n: the size of each set, integers (B,).
        event_shape: of the padded events.

    Raises:
        TypeError, ValueError: no integers of that shape, or no event; in eager mode, sizes below 1 or beyond the event.

    >>> import torch
    >>> from purevdm import sizes
    >>> sizes.mask(torch.tensor([1, 3]), (3, 2)).squeeze(-1)
    tensor([[ True, False, False],
            [ True,  True,  True]])
    """
    event_shape = _checks.shape("event_shape", event_shape)
    if not event_shape:
        raise ValueError("event_shape: expected at least the axis of the elements, got ()")
    n = _checks.shaped("n", _sizes("n", n, event_shape[0]), (len(n) if n.ndim else 1,))
    there = torch.arange(event_shape[0], device=n.device) < n[:, None]
    return there.reshape(*there.shape, *(1 for _ in event_shape[1:]))


def _sizes(name: str, n: Tensor, most: int) -> Tensor:
    """Checks that sizes lie in [1, most], reading them in eager mode only; gives them in int64."""
    n = _checks.tensor(name, n)
    if n.is_floating_point() or n.is_complex() or n.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, the sizes, got {_checks.describe(n)}")
    _checks.within(name, n, 1, most)
    return n.to(torch.int64)
