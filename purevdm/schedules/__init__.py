"""Noise schedules: gamma(t), minus the log signal-to-noise ratio at time t in [0, 1] (sec. 3.2, App. H).

A :class:`Schedule` has two pure functions, ``init`` and ``gamma``. ``gamma(params, t)`` takes one time and is strictly
increasing in it. It returns a number, or a tensor of the latent's shape for a schedule of its own in each dimension
(multivariate noise). It is differentiable twice, as the continuous-time loss weighs with its derivative (eq. 17). The
functions :func:`gamma`, :func:`gamma_and_slope` and :func:`levels` take any number of times.

The default endpoints, -13.3 and 5, are the paper's for 8-bit images. Where ``gamma_min`` is left out, a model takes one that
suits the number of levels of its data (:func:`gamma_min_for`), and -13.3 for real data, whose fineness nobody knows.

gamma may be from -40 to 40 in a float32 model, and from -300 to 300 in a float64 one. Other values are refused when a model
is made, and in every call in eager mode.

>>> import torch
>>> from purevdm import random, schedules
>>> schedule = schedules.learned_linear()
>>> params = schedule.init(random.key(0))
>>> schedules.gamma(schedule, params, torch.tensor([0.0, 0.5, 1.0]))
tensor([-13.3000,  -4.1500,   5.0000])

A schedule of one's own, here a fixed one for each of three dimensions:

>>> def init(key):
...     return {}
>>> def gamma(params, t):
...     return -10.0 + torch.tensor([12.0, 14.0, 16.0]) * t
>>> schedules.gamma(schedules.Schedule.of(init, gamma), {}, torch.tensor(0.5))
tensor([-4., -3., -2.])
"""

# Those with an alias are for the other rooms.
from purevdm.schedules._kinds import GAMMA_MIN as GAMMA_MIN
from purevdm.schedules._kinds import constrained_monotone, fixed_linear, gamma_min_for, learned_linear, monotone_mlp
from purevdm.schedules._multivariate import multivariate_mlp, polynomial
from purevdm.schedules._schedule import Levels, Schedule, gamma, gamma_and_slope, levels
from purevdm.schedules._schedule import increasing as increasing
from purevdm.schedules._schedule import limit as limit
from purevdm.schedules._schedule import over_step as over_step
from purevdm.schedules._schedule import rising as rising
from purevdm.schedules._schedule import slack as slack
from purevdm.schedules._survival import cosine, power
from purevdm.schedules._tables import karras, tabulated

__all__ = [
    "Levels",
    "Schedule",
    "constrained_monotone",
    "cosine",
    "fixed_linear",
    "gamma",
    "gamma_and_slope",
    "gamma_min_for",
    "karras",
    "learned_linear",
    "levels",
    "monotone_mlp",
    "multivariate_mlp",
    "polynomial",
    "power",
    "tabulated",
]
