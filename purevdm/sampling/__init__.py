"""The reverse process: from noise to data, its inverse by deterministic solvers, and completions of partly known data."""

from purevdm.sampling.inversion import interpolate, invert
from purevdm.sampling.loops import loop
from purevdm.sampling.reverse import Sample, inpaint, repaint, sample
from purevdm.sampling.trajectory import Options  # noqa: F401, for the other rooms

__all__ = ["Sample", "inpaint", "interpolate", "invert", "loop", "repaint", "sample"]
