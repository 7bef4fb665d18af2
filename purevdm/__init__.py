"""Variational Diffusion Models (Kingma, Salimans, Poole, Ho 2021, arXiv 2107.00630) as pure functions in PyTorch.

A model is a few pure functions, and everything they depend on is an argument: parameters are a pytree, randomness is a
key, noise is a tensor. :func:`vdm` binds a network (:mod:`purevdm.networks`), a schedule (:mod:`purevdm.schedules`) and a
decoder (:mod:`purevdm.decoders`) into a :class:`VDM`.
"""

from purevdm import (
    artifact,
    bfn,
    bound,
    coded,
    codes,
    decoders,
    denoiser,
    encoders,
    evaluation,
    importance,
    interop,
    likelihood,
    masked,
    model,
    module,
    networks,
    nn,
    noise,
    ode,
    parallel,
    parts,
    process,
    random,
    sampling,
    schedules,
    sizes,
    solvers,
    training,
    types,
    variance,
)
from purevdm._vdm import VDM, Sample, vdm
from purevdm.bound import NLLBound
from purevdm.noise import Noise, Seeds

__all__ = [
    "VDM",
    "NLLBound",
    "Noise",
    "Sample",
    "Seeds",
    "artifact",
    "bfn",
    "bound",
    "coded",
    "codes",
    "decoders",
    "denoiser",
    "encoders",
    "evaluation",
    "importance",
    "interop",
    "likelihood",
    "masked",
    "model",
    "module",
    "networks",
    "nn",
    "noise",
    "ode",
    "parallel",
    "parts",
    "process",
    "random",
    "sampling",
    "schedules",
    "sizes",
    "solvers",
    "training",
    "types",
    "variance",
    "vdm",
]
__version__ = "0.4.0"
