"""From data to the noise that they are sampled from, by a deterministic solver run forward; and between two noises.

>>> import torch, purevdm
>>> from purevdm import inversion, networks, random, schedules, solvers
>>> model = purevdm.vdm(networks.mlp(hidden=8), schedules.learned_linear(), event_shape=(2,))
>>> params, options = model.init(random.key(0)), dict(steps=100, solver=solvers.ddim())
>>> x = torch.tensor([[10, 200], [128, 31]])
>>> z_1 = inversion.invert(model, params, x, **options)
>>> torch.equal(model.sample(params, random.key(1), 2, z=z_1, **options), x)
True
>>> between = inversion.interpolate(z_1[0], z_1[1], torch.linspace(0.0, 1.0, 5))
>>> model.sample(params, random.key(1), 5, z=between, **options)[[0, -1]].equal(x)
True
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, process, sampling, schedules
from purevdm.sampling import Sample, Walk
from purevdm.solvers import Solver, dpmpp_2m
from purevdm.types import Params
from purevdm.vdm import VDM

__all__ = ["encode", "interpolate", "invert"]


def encode(model: VDM, params: Params, x: Tensor, cond: Any = None) -> Tensor:
    """The mean of q(z_0 given x), alpha_0 times the encoded data: latents at time 0, (n, *event_shape).

    Raises:
        TypeError, ValueError: as the methods of :class:`purevdm.VDM`.
    """
    n = model._check(params, x, cond)
    t = torch.zeros(n if model.schedule.contextual else (), dtype=model.dtype, device=x.device)
    f = model.decoder.encode(x, model.dtype)
    gamma_0 = model.gamma(params, t, cond)
    return process.alpha(process.align(gamma_0, f) if model.schedule.contextual else gamma_0) * f
