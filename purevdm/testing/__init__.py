"""Laws that the parts of a model obey, to check your own parts against, and closed-form sources.

A check returns None, or raises a :class:`LawError` that says which law is broken, by how much, and how to see it:

>>> from purevdm import schedules, testing
>>> testing.check_schedule(schedules.learned_linear())

:mod:`purevdm.testing.sources` has distributions whose ideal denoiser is known, so that bounds, densities and samples are
known as well.
"""

from purevdm.testing import sources
from purevdm.testing._law import LawError
from purevdm.testing.decoders import check_decoder
from purevdm.testing.models import check_density, check_model
from purevdm.testing.networks import check_network
from purevdm.testing.rotation import check_rotation
from purevdm.testing.schedules import check_schedule
from purevdm.testing.sets import check_padding, check_permutation
from purevdm.testing.solvers import check_solver

__all__ = [
    "LawError",
    "check_decoder",
    "check_density",
    "check_model",
    "check_network",
    "check_padding",
    "check_permutation",
    "check_rotation",
    "check_schedule",
    "check_solver",
    "sources",
]
