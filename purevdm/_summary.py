"""What a batch's terms amount to: the loss, and the parts of the bound, in bits/dim."""

import math
from typing import Any

from torch import Tensor

from purevdm import bound, process, schedules
from purevdm._door import Batch
from purevdm.bound import Terms
from purevdm.noise import Noise


def summary(model: Any, terms: Terms, levels: schedules.Levels, noise: Noise, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
    """Gives the loss, the mean of the weighted terms, and the parts of the bound, bits/dim."""
    each, dims = bound.summed(terms), batch.dims
    stats: dict[str, Any] = {name: _mean(term, dims) for name, term in each._asdict().items()}
    first, second, diffusion, *code = stats.values()
    if model.weighting is not None:
        weight = model.weighting.weight(process.align(levels.gamma_t, terms.diffusion))
        each = bound.summed(terms._replace(diffusion=weight * terms.diffusion))
        diffusion = _mean(each.diffusion, dims)
    loss = sum(code, first + second + diffusion)
    stats |= {"gamma_0": levels.gamma_0.mean(), "gamma_1": levels.gamma_1.mean()}
    if model.schedule.observe is not None and model.timesteps == 0:
        stats["schedule"] = model.schedule.observe(batch.params["schedule"], noise.t, each.diffusion)
    return loss, stats


def _mean(term: Tensor, dims: Tensor | float) -> Tensor:
    """Computes the mean over examples of a term, bits/dim."""
    if isinstance(dims, Tensor):
        return (term / dims).mean() / math.log(2.0)
    return term.mean() * (1.0 / (dims * math.log(2.0)))
