"""Estimates of log p(x) from weights, and what their samples share: keys, copies of the data, the prior."""

import math
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm.types import Key


class Estimate(NamedTuple):
    """The log-likelihood of a batch.

    Attributes:
        log_prob: the logarithm of the mean of the weights, (B,), nats.
        error: its standard error, (B,), nats, from the spread of the weights; NaN for one sample. It leaves out the error of
            the integration. It is too small where a few weights dominate (an :attr:`ess` near 1), and where q(z_0 given x)
            is much narrower than x's bin: "uniform" serves better there.
        log_weights: the weights' logarithms, (K, B), nats.
        evaluations: how often the network was applied to each example, int64 (B,).
    """

    log_prob: Tensor
    error: Tensor
    log_weights: Tensor
    evaluations: Tensor

    @property
    def ess(self) -> Tensor:
        """The effective sample size (sum w)**2 / sum w**2 (Kong, Liu, Wong 1994), (B,): K where all weights are equal, 1
        where one outweighs the rest, and neither the estimate nor its error can be trusted.

        >>> import torch
        >>> from purevdm import likelihood
        >>> likelihood.combine(torch.tensor([[1.0, 1.0], [1.0, 1e-9]]).log(), torch.tensor([2, 2])).ess
        tensor([2., 1.])
        """
        return torch.exp(2.0 * torch.logsumexp(self.log_weights, 0) - torch.logsumexp(2.0 * self.log_weights, 0))


def combine(log_weights: Tensor, evaluations: Tensor) -> Estimate:
    """Gives the estimate of K weights, (K, B): logsumexp minus log K, and its standard error by the delta method. To combine
    the weights of several calls, concatenate them. ``evaluations`` is (B,).

    >>> import torch
    >>> from purevdm import likelihood
    >>> likelihood.combine(torch.tensor([[1.0], [3.0]]).log(), torch.tensor([2])).log_prob.exp()
    tensor([2.])
    """
    if _checks.floating("log_weights", log_weights).ndim != 2 or 0 in log_weights.shape:
        raise ValueError(
            f"log_weights: expected those of at least one sample and example, (K, B), got {_checks.describe(log_weights)}"
        )
    _checks.shaped("evaluations", evaluations, log_weights.shape[1:])
    k = log_weights.shape[0]
    log_prob = torch.logsumexp(log_weights, 0) - math.log(k)
    error = (log_weights - log_prob).exp().std(0) / math.sqrt(k) if k > 1 else torch.full_like(log_prob, math.nan)
    return Estimate(log_prob, error, log_weights, evaluations)


def sample_keys(key: Key, n: int, samples: int) -> Tensor:
    """Gives a key for each example and sample, (samples * n, 2), samples first."""
    keys = random.split(key, n)
    index = torch.arange(samples, device=key.device)
    return torch.func.vmap(lambda k: torch.func.vmap(lambda i: random.fold_in(k, i))(index), out_dims=1)(keys).reshape(-1, 2)


def repeated(tree: Any, samples: int) -> Any:
    """Repeats every tensor's rows, samples first."""

    def repeat(leaf: Tensor | None) -> Tensor | None:
        return None if leaf is None else leaf.expand(samples, *leaf.shape).reshape(-1, *leaf.shape[1:])

    return optree.tree_map(repeat, tree, none_is_leaf=True)


def summed(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sums over an example's dimensions, those that exist, (B,)."""
    x = x if mask is None else torch.where(mask, x, 0.0)
    return x.reshape(x.shape[0], -1).sum(1)


def log_normal(z: Tensor, share: float | Tensor = 1.0) -> Tensor:
    """Gives the log-density of the standard normal, elementwise; in a subspace, with each element's share of a dimension."""
    return -0.5 * (z.square() + math.log(2.0 * math.pi) * share)
