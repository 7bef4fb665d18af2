"""The reverse process: from noise to data, its inverse by deterministic solvers, and completions of partly known data."""

from purevdm.sampling.inversion import interpolate, invert
from purevdm.sampling.reverse import Sample, inpaint, repaint, sample
from purevdm.sampling.trajectory import Options, loop

__all__ = ["Options", "Sample", "inpaint", "interpolate", "invert", "loop", "repaint", "sample"]
