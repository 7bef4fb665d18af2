"""Data to real numbers, and p(x given z_0) back on the data.

:func:`discrete` holds integers, and its bounds are in bits per dimension. :func:`gaussian` holds real numbers, and its
bounds are of a density, in nats an example. In both, a latent enters divided by its alpha, ``z_0 / alpha_0`` (written
``z``), which is the data plus noise of scale exp(gamma_0 / 2).
"""

# What is not listed is for the other rooms.
from purevdm.decoders._decoder import Decoder, fits, plain, spacing  # noqa: F401
from purevdm.decoders._discrete import Discrete, discrete, reconstruction_bits  # noqa: F401
from purevdm.decoders._gaussian import Gaussian, gaussian  # noqa: F401

__all__ = ["Decoder", "discrete", "gaussian", "reconstruction_bits"]
