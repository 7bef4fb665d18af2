"""The diffusion loss over noise levels: its mean in bins of time, and in bins of gamma, with errors."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, _sharding, schedules
from purevdm._vdm import VDM
from purevdm.bound import NLLBound
from purevdm.evaluation._examples import called, draws
from purevdm.evaluation._figures import Figure, figure, per_unit
from purevdm.noise import Seeds, discretise
from purevdm.parallel import Group
from purevdm.types import Key, Params

__all__ = ["Curve", "Profile", "profile"]


class Curve(NamedTuple):
    """A function as its means over bins. Tensors are float64, on the CPU.

    Attributes:
        edges: of the bins, increasing, (bins + 1,).
        mean: the function's mean over each bin, (bins,), NaN where nothing was drawn.
        error: its standard error over examples, (bins,), NaN with fewer than two examples. Draws of one example in one bin
            count as one cluster.
        draws: how many there were, int64 (bins,).
    """

    edges: Tensor
    mean: Tensor
    error: Tensor
    draws: Tensor

    @property
    def centres(self) -> Tensor:
        """The middles of the bins, (bins,)."""
        return (self.edges[1:] + self.edges[:-1]) / 2


class Profile(NamedTuple):
    """The diffusion loss of a data set over the noise levels.

    Attributes:
        t: against time: the loss at t, whose mean over [0, 1] is the diffusion loss.
        gamma: against gamma: the loss per unit of gamma, |eps - eps_hat|**2 / 2, whose integral from gamma(0) to gamma(1)
            is the diffusion loss, whatever the schedule between them. None under a contextual schedule.
        diffusion: the diffusion loss.
        examples, passes, unit: as of an :class:`Evaluation`.
    """

    t: Curve
    gamma: Curve | None
    diffusion: Figure
    examples: int
    passes: int
    unit: str


@torch.no_grad()
def profile(
    model: VDM,
    params: Params,
    batches: Iterable[Any],
    key: Key,
    *,
    bins: int = 20,
    passes: int = 1,
    timesteps: int | None = None,
    bound: Callable[..., NLLBound] | None = None,
    group: Group | None = None,
    callback: Callable[[int], None] | None = None,
) -> Profile:
    """Computes the diffusion loss against time and against gamma, from the same draws as :func:`evaluate` with this key.

    In T steps the loss is constant within a step, and gamma is taken to be a line there. So against gamma it is
    expm1(h) / h |eps - eps_hat|**2 / 2 over a step in which gamma rises by h. Mean and integral remain the diffusion loss.
    Under a schedule for each dimension, gamma stands for its mean over dimensions.

    Args:
        bins: how many, even in t and even in gamma.
        bound: ``model.nll_bound`` compiled, called with the :class:`~purevdm.Seeds` of each batch; in eager mode where left
            out.
        model, params, batches, key, passes, timesteps, group, callback: as for :func:`per_example`.

    Raises:
        TypeError, ValueError: as :func:`per_example`, a model that is no VDM, and bins < 1.

    >>> import purevdm
    >>> from purevdm import evaluation, networks, random, schedules
    >>> model = purevdm.vdm(networks.mlp(16), schedules.fixed_linear(-13.3, 5.0), event_shape=(2,))
    >>> x = random.randint(random.key(0), (64, 2), 0, 256)
    >>> loss = evaluation.profile(model, model.init(random.key(1)), [x], random.key(2), bins=4)
    >>> loss.t.edges.tolist(), loss.t.draws.tolist()
    ([0.0, 0.25, 0.5, 0.75, 1.0], [16, 16, 16, 16])
    """
    _checks.instance("model", model, VDM, "a purevdm VDM, whose schedule gives gamma")
    bins = _checks.integer("bins", bins, 1)
    model, call = called(model, timesteps, "bound", bound)
    params = _sharding.whole(params)

    def losses(x: Tensor, key: Key, cond: Any, **mask: Tensor) -> Tensor:
        even = model._replace(timesteps=0).seeds(key, x.shape[0])
        seeds = Seeds(discretise(even.t, model.timesteps), even.key)
        loss = call(params, x, seeds, cond, **mask).diffusion
        return torch.stack([even.t, *_gamma_and_slope(model, params, even.t), loss]).double()

    unit = model.decoder.unit
    done, _, dims = draws(model, losses, batches, key, passes, group, callback)
    t, gamma, slope, loss = torch.stack([torch.cat(of_pass, 1) for of_pass in done]).unbind(1)
    loss = loss / per_unit(dims, unit)
    against_t = _curve(torch.linspace(0.0, 1.0, bins + 1, dtype=torch.float64, device="cpu"), t, loss, torch.ones_like(t))
    against_gamma = None
    if not model.schedule.contextual:
        ends = _gamma_and_slope(model, params, torch.tensor([0.0, 1.0], dtype=model.dtype, device=key.device))[0]
        low, high = ends.tolist()
        edges = torch.linspace(low, high, bins + 1, dtype=torch.float64, device="cpu")
        # Times even in [0, 1] are not even in gamma: each draw stands for the gamma that goes by at its time.
        against_gamma = _curve(edges, gamma, loss / slope, slope)
    return Profile(against_t, against_gamma, figure(sum(loss) / passes), loss.shape[1], passes, unit)  # type: ignore[arg-type]


def _gamma_and_slope(model: VDM, params: Params, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns gamma and its slope at times (n,), each (n,), means over dimensions; in T steps, those of a line over each."""
    schedule, own, steps = model.schedule, params["schedule"], model.timesteps
    if schedule.contextual:
        return torch.zeros_like(t), torch.ones_like(t)
    if steps == 0:
        gamma, slope = schedules.gamma_and_slope(schedule, own, t)
        return gamma.reshape(t.shape[0], -1).mean(1), slope.reshape(t.shape[0], -1).mean(1)
    end = discretise(t, steps)
    low, high = (ends.reshape(t.shape[0], -1).mean(1) for ends in schedules.over_step(schedule, own, end, steps))
    slope = (high - low) * steps
    return (low + (t - end + 1.0 / steps) * slope).to(t.dtype), slope.to(t.dtype)


def _curve(edges: Tensor, at: Tensor, value: Tensor, weight: Tensor) -> Curve:
    """Computes the weighted means of values, (passes, N), over the bins that they lie in, with errors from ratios of sums
    over examples."""
    bins, n = len(edges) - 1, at.shape[1]
    # Rounding may put a draw outside the outer edges: it belongs to the bin next to it.
    where = torch.bucketize(at.contiguous(), edges[1:-1].contiguous(), right=True)
    cell = (where * n + torch.arange(n, device="cpu")).flatten()

    def of_examples(x: Tensor) -> Tensor:
        return torch.zeros(bins * n, dtype=torch.float64, device="cpu").index_add(0, cell, x.flatten()).reshape(bins, n)

    total = of_examples(weight).sum(1)
    average = of_examples(weight * value).sum(1) / total
    drawn = of_examples(torch.ones_like(at))
    clusters = (drawn > 0).sum(1)
    spread = of_examples(weight * (value - average[where])).square().sum(1).sqrt()
    error = torch.where(clusters > 1, (clusters / (clusters - 1)).sqrt() * spread / total, torch.nan)
    return Curve(edges, average, error, drawn.sum(1).long())
