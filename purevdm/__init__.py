"""Variational Diffusion Models (Kingma, Salimans, Poole, Ho 2021, arXiv 2107.00630) as pure functions in PyTorch.

A model is a few pure functions, and everything they depend on is an argument: parameters are a pytree, randomness is a
key, noise is a tensor. :func:`vdm` binds a network (:mod:`purevdm.networks`), a schedule (:mod:`purevdm.schedules`) and a
decoder (:mod:`purevdm.decoder`) into a :class:`VDM`.
"""

from purevdm import (
    decoder,
    elbo,
    evaluation,
    interop,
    networks,
    nn,
    process,
    random,
    sampling,
    schedules,
    training,
    variance,
)
from purevdm.elbo import ELBO, Noise
from purevdm.vdm import VDM, Sample, vdm

__all__ = [
    "ELBO",
    "VDM",
    "Noise",
    "Sample",
    "decoder",
    "elbo",
    "evaluation",
    "interop",
    "networks",
    "nn",
    "process",
    "random",
    "sampler",
    "sampling",
    "schedules",
    "training",
    "variance",
    "vdm",
]
__version__ = "0.1.0"
