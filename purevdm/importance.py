"""Importance sampling of times, as a schedule: more times where the diffusion loss is large, each with less weight.

In continuous time the bound depends only on a schedule's endpoints (sec. 5.1, App. I). So to draw the time t from a density
p, and to weigh its loss by 1 / p(t), is the same as to pass uniform times u through warp, the inverse of p's distribution
function: gamma(warp(u)) is a schedule with the same endpoints, and its slope carries the weight, as warp'(u) = 1 / p.
:func:`warped` makes this schedule of any other.

Let l(t) be an example's diffusion loss at time t under the base schedule. The variance of l(t) / p(t) over examples, noise
and times is least where p(t) is proportional to sqrt(E[l(t)**2]) (Nichol & Dhariwal 2021, arXiv 2102.09672). Zheng et al.
(2023, arXiv 2305.03935) learn p by the gradient of the variance, as :mod:`purevdm.variance` does. Here p is a histogram over
the base's time, made of the losses that training saw: ``model.loss_and_stats`` returns it moved by the batch, and
``training.train_step`` keeps it.

A loop of one's own keeps it in one line:

>>> import optree, torch, purevdm
>>> from purevdm import importance, networks, random, schedules
>>> schedule = importance.warped(schedules.learned_linear(), bins=8)
>>> model = purevdm.vdm(networks.mlp(32), schedule, event_shape=(2,))
>>> params, x = model.init(random.key(0)), random.randint(random.key(1), (64, 2), 0, 256)
>>> step = torch.func.grad_and_value(model.loss_and_stats, has_aux=True)
>>> for i in range(3):
...     grads, (loss, stats) = step(params, x, random.key(i))
...     params = optree.tree_map(lambda p, g: p - 1e-4 * g, params, grads)
...     params["schedule"] |= stats["schedule"]
>>> importance.density(schedule, params["schedule"]).shape
torch.Size([8])
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, _facts
from purevdm._compile import constant, fixed
from purevdm.schedules import Schedule
from purevdm.types import Key, Params

__all__ = ["density", "warped"]


@dataclass(frozen=True)
class Warped(Schedule):
    """The schedule of :func:`warped`."""

    base: Schedule
    bins: int
    uniform: float
    rate: float

    @property
    def endpoints(self) -> tuple[float, float] | None:  # type: ignore[override]
        return self.base.endpoints

    @property
    def contextual(self) -> bool:  # type: ignore[override]
        return self.base.contextual

    @constant
    def numbers(self) -> tuple[int, float, float]:
        """Gives the settings, constants to a compiler."""
        return self.bins, self.uniform, self.rate

    def init(self, key: Key) -> Params:
        zeros = torch.zeros(self.bins, dtype=torch.float32, device=key.device)
        return {"base": self.base.init(key), "warp": {"square": zeros, "visits": zeros.clone()}}

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        at = warp(edges(self.density(params)), t)
        return self.base.gamma(params["base"], at, *context)

    def observe(self, params: Params, t: Tensor, losses: Tensor) -> Params:  # type: ignore[override]
        return {"warp": observe(params["warp"], edges(self.density(params)), t, losses.detach(), self.numbers()[2])}

    def density(self, params: Params) -> Tensor:
        """Gives the density of times over the bins, of mean 1."""
        return optimal(_second_moment(params["warp"]), self.numbers()[1])

    def with_gamma_min(self, gamma_min: float) -> Schedule:
        return self._replace(base=self.base.with_gamma_min(gamma_min))


def warped(base: Schedule, bins: int = 32, *, uniform: float = 0.1, rate: float = 0.95) -> Schedule:
    """Makes a schedule whose times are drawn by importance: ``base`` at warp(t), which starts as t itself.

    The histogram takes no gradient, and ``base`` learns as it does without it. In T steps the bound depends on the interior:
    losses then do not move the histogram, and ``training.gradients`` refuses. A sampler's steps that are even in time follow
    the warp; those of ``grid="gamma"`` do not. To go on without a warp, take ``base`` and ``params["schedule"]["base"]``.

    Args:
        base: any schedule.
        bins: of the histogram, even in the base's time.
        uniform: the part of times that stays uniform, whatever the losses; so no weight exceeds 1 / uniform.
        rate: how much of the histogram stays in a step; nearer to 1 for small batches.

    Returns:
        A schedule with the parameters ``{"base": ..., "warp": {"square": (bins,), "visits": (bins,)}}``: moving averages
        over batches of the squared losses in each bin, nats**2, and of the part of examples that fell there.

    Raises:
        TypeError, ValueError: another base than a schedule, one that is warped, fewer than two bins, uniform above 1 or
            below bins / 10**6, a rate outside of [0, 1).
    """
    if _checks.instance("base", base, Schedule, "a purevdm Schedule").observe is not None:
        raise ValueError(f"base: expected a schedule that is not warped, got {base!r}")
    bins = _checks.integer("bins", bins, 2)
    if not bins * 1e-6 <= _checks.real("uniform", uniform) <= 1.0:
        raise ValueError(f"uniform: expected a number in [{bins * 1e-6:g}, 1], got {uniform}")
    return Warped(base, bins, float(uniform), _checks.probability("rate", rate))


# The mathematics


def optimal(square: Tensor, uniform: float = 0.0) -> Tensor:
    """Gives the density over even bins of time that leaves the estimate the least variance, (bins,), of mean 1: proportional
    to the square root of the loss's second moment in each bin, with a part that is uniform."""
    root = square.sqrt()
    mean = root.mean()
    return uniform + (1.0 - uniform) * torch.where(mean > 0, root / mean, 1.0)


def edges(p: Tensor) -> Tensor:
    """Gives the distribution function at the edges of the bins, (bins + 1,), of a density p over even bins, of mean 1: from
    0 to 1, both exact."""
    inner = p.double().cumsum(0)[:-1] / p.shape[0]
    ends = torch.tensor([0.0, 1.0], dtype=p.dtype, device=p.device)
    return torch.cat([ends[:1], inner.to(p.dtype), ends[1:]])


def warp(edges: Tensor, u: Tensor) -> Tensor:
    """Inverts the distribution function at times u of any shape: increasing, from 0 to 1, a line in each bin."""
    hits, bins = _hits(edges, u), fixed(edges.shape[0] - 1)
    low, width = (hits * edges[:-1]).sum(-1), (hits * edges.diff()).sum(-1)
    index = (hits * torch.arange(bins, dtype=u.dtype, device=u.device)).sum(-1)
    return (index + (u - low) / width) / bins


def _hits(edges: Tensor, u: Tensor) -> Tensor:
    """Gives 1 in the bin that each u lies in, and 0 in the rest, (..., bins)."""
    # Under vmap, `gather` and `cat` of these would tie a dynamic graph to one size of batch (2.13).
    index = (u[..., None] >= edges[1:-1]).sum(-1)
    return (index[..., None] == torch.arange(fixed(edges.shape[0] - 1), device=u.device)).to(u.dtype)


def observe(histogram: Params, edges: Tensor, u: Tensor, losses: Tensor, rate: float) -> Params:
    """Moves the histogram by a batch; linear in the mean over its examples, so that pieces and processes average theirs.

    Args:
        histogram: ``{"square": (bins,), "visits": (bins,)}``, as :func:`warped` says.
        edges: those that the losses were computed under, (bins + 1,).
        u: the times, (B,), before the warp.
        losses: each example's diffusion loss, (B,), weight included.
        rate: how much of the histogram stays.
    """
    hits = _hits(edges, u)
    p = (hits * edges.diff()).sum(-1) * (edges.shape[0] - 1)
    unweighted = losses * p
    batch = {"square": (hits * unweighted.square()[:, None]).mean(0), "visits": hits.mean(0)}
    return {name: rate * histogram[name] + (1.0 - rate) * part for name, part in batch.items()}


def _second_moment(histogram: Params) -> Tensor:
    """Gives the second moment of the loss in each bin, (bins,), up to a factor. What the averages have not met yet counts
    as met at the overall mean."""
    square, visits = histogram["square"].detach(), histogram["visits"].detach()
    total = visits.sum()
    mean = torch.where(total > 0, square.sum() / total, 1.0)
    rest = (1.0 - total).clamp(min=1e-6) / visits.shape[0]  # never none, for bins that were not visited for long
    return (square + rest * mean) / (visits + rest)


def density(schedule: Schedule, params: Params) -> Tensor:
    """Gives the density of times that a warped schedule has learned, over even bins of its base's time: (bins,), of mean 1.

    Args:
        schedule: of :func:`warped`.
        params: its parameters, ``params["schedule"]``.
    """
    if not isinstance(schedule, Warped):
        raise TypeError(f"schedule: expected one of importance.warped, got {schedule!r}")
    for name in ("square", "visits"):
        path, x = f"params.warp.{name}", params["warp"][name]
        _checks.shaped(path, x, (schedule.bins,))
        if _facts.readable(x) and not (_facts.plain(x).isfinite() & (_facts.plain(x) >= 0.0)).all():
            raise _checks.outside("finite numbers of at least 0", path, x)
    return schedule.density(params)
