"""To and from other programs: safetensors files, trees and checkpoints of the official Flax code, and networks of other
programs as models.

A trained network of another program becomes a model by its noise process: :func:`adapt` of :func:`ddpm`, :func:`edm`,
:func:`score_sde` or :func:`flow_matching`. :func:`from_diffusers`, :func:`from_improved_diffusion` and
:func:`from_denoising_diffusion` read the process from their objects. Then every ruler of this library can be laid on it:
``model.nll_bound``, :mod:`purevdm.likelihood`, :mod:`purevdm.codec`.
"""

from purevdm.interop._adapter import adapt, respaced, spaced, warn_of_range
from purevdm.interop._betas import betas
from purevdm.interop._edm import edm
from purevdm.interop._flow_matching import flow_matching
from purevdm.interop._others import from_denoising_diffusion, from_diffusers, from_improved_diffusion
from purevdm.interop._process import Process, ddpm
from purevdm.interop._score_sde import score_sde
from purevdm.interop.files import load_params, save_params
from purevdm.interop.flax import Checkpoint, from_flax, load_flax, to_flax

__all__ = [
    "Checkpoint",
    "Process",
    "adapt",
    "betas",
    "ddpm",
    "edm",
    "flow_matching",
    "from_denoising_diffusion",
    "from_diffusers",
    "from_flax",
    "from_improved_diffusion",
    "load_flax",
    "load_params",
    "respaced",
    "save_params",
    "score_sde",
    "spaced",
    "to_flax",
    "warn_of_range",
]
