"""The normal distribution: its distribution function, for ``vmap``, and expectations over bins."""

import math
from typing import Any

import torch
from torch import Tensor

from purevdm._compile import fixed, in_front

_ROOT_HALF = math.sqrt(0.5)
_FAR = 9.0  # where erf is 1, and exp(-v**2) is 1e-35, which no sum notices


def log_ndtr(x: Tensor) -> Tensor:
    """Computes log Phi(x), without underflow. (``torch.special.log_ndtr`` has no rule for ``vmap``.)"""
    low, high = x.clamp(max=0.0), x.clamp(min=0.0)
    left = torch.log(0.5 * torch.special.erfcx(-fixed(_ROOT_HALF) * low)) - 0.5 * low.square()
    return torch.where(x < 0.0, left, torch.log1p(-0.5 * torch.erfc(fixed(_ROOT_HALF) * high)))


def bin_expectation(mean: Tensor, std: Tensor, bins: int) -> Tensor:
    """Computes the expectation of the bin's centre under N(mean, std**2), without the probabilities: each edge between two
    bins adds 2 Phi - 1 of its distance below the mean, over the number of bins. ``mean`` and ``std`` have one shape.

    In eager mode it goes by pieces that stay in a processor's cache, and keeps nothing for each edge: several times as fast
    as operation by operation, of which a compiler makes as good a loop.
    """
    if torch.compiler.is_compiling():
        above = torch.special.ndtr(math.sqrt(2.0) * _below(mean, std, bins))
        return (1.0 / bins - 1.0) + (2.0 / bins) * above.sum(-1)
    return _Moments.apply(mean, std, bins, -1)[0] / bins  # type: ignore[no-any-return]


def _below(mean: Tensor, std: Tensor, bins: int) -> Tensor:
    """Computes how far each edge between two bins of [-1, 1] lies below the mean, in units of sqrt(2) std, on a new last
    axis."""
    edges = 2.0 * torch.arange(1, bins, device=mean.device).to(mean.dtype) / bins - 1.0
    return (mean[..., None] - edges) / (math.sqrt(2.0) * std)[..., None]


class _Moments(torch.autograd.Function):
    """The sums over edges, v of them below the mean, of v**n exp(-v**2) for n = 0, ..., ``order``; for order -1, of erf(v).
    Derivatives of such sums are such sums, so that those of all orders exist."""

    @staticmethod
    def forward(mean: Tensor, std: Tensor, bins: int, order: int) -> Any:
        rows = max(1, 2**17 // bins) if mean.is_cpu else max(1, mean.numel())
        pieces = zip(mean.flatten().split(rows), std.flatten().split(rows), strict=True)
        parts = [_sums(_below(m, s, bins), order) for m, s in pieces]
        return tuple(torch.cat(part).view(mean.shape) for part in zip(*parts, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        mean, std, ctx.bins, ctx.order = inputs
        ctx.save_for_backward(mean, std)
        ctx.save_for_forward(mean, std)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        mean, std = ctx.saved_tensors
        each = _slopes(mean, std, ctx.bins, ctx.order)
        by_mean, by_std = (sum(g * slope[i] for g, slope in zip(grads, each, strict=True)) for i in (0, 1))
        return by_mean, by_std, None, None

    @staticmethod
    def jvp(ctx: Any, d_mean: Tensor | None, d_std: Tensor | None, *_: None) -> Any:
        mean, std = ctx.saved_tensors
        each = _slopes(mean, std, ctx.bins, ctx.order)
        tangents = [(i, d) for i, d in enumerate((d_mean, d_std)) if d is not None]
        return tuple(sum(slope[i] * d for i, d in tangents) for slope in each)

    @staticmethod
    def vmap(info: Any, in_dims: Any, mean: Tensor, std: Tensor, bins: int, order: int) -> Any:
        whole = (in_front(x, axis, info.batch_size) for x, axis in zip((mean, std), in_dims, strict=False))
        sums = _Moments.apply(*whole, bins, order)
        return sums, (0,) * len(sums)


def _sums(v: Tensor, order: int) -> list[Tensor]:
    """Sums over the last axis as :class:`_Moments` does, in the memory of v."""
    v = v.clamp_(-_FAR, _FAR)  # exponentials are slow where they underflow
    if order < 0:
        return [v.erf_().sum(-1)]
    power = v.square().neg_().exp_()
    return [power.sum(-1), *(power.mul_(v).sum(-1) for _ in range(order))]


def _slopes(mean: Tensor, std: Tensor, bins: int, order: int) -> list[tuple[Tensor, Tensor]]:
    """Computes the derivatives of each sum of :class:`_Moments` by mean and by std."""
    m = _Moments.apply(mean, std, bins, order + 2)
    # of f(v): by mean, the sum of f'(v) / (sqrt(2) std), and by std, that of -v f'(v) / std
    if order < 0:
        by_v = [(2.0 / math.sqrt(math.pi) * m[0], 2.0 / math.sqrt(math.pi) * m[1])]
    else:
        by_v = [((n * m[n - 1] if n else 0.0) - 2.0 * m[n + 1], n * m[n] - 2.0 * m[n + 2]) for n in range(order + 1)]
    return [(math.sqrt(0.5) * first / std, -times_v / std) for first, times_v in by_v]
