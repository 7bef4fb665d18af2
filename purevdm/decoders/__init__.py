"""Data to real numbers, and p(x given z_0) back on the data.

:func:`discrete` holds integers, and its bounds are in bits per dimension. :func:`gaussian` holds real numbers, and its
bounds are of a density, in nats an example; so does :func:`denoised`, around the network's estimate. :func:`integers` holds
integers without an end, :func:`one_hot` classes as unit vectors, and :func:`product` several kinds side by side. In all of
them, a latent enters divided by its alpha, ``z_0 / alpha_0`` (written ``z``), which is the data plus noise of scale
exp(gamma_0 / 2).
"""

from purevdm.decoders._decoder import Decoder, fits, plain, spacing
from purevdm.decoders._denoised import Denoised, denoised
from purevdm.decoders._discrete import Discrete, discrete, reconstruction_bits
from purevdm.decoders._gaussian import Gaussian, gaussian
from purevdm.decoders._integers import Integers, OneHot, integers, one_hot
from purevdm.decoders._product import Product, product

__all__ = [
    "Decoder",
    "Denoised",
    "Discrete",
    "Gaussian",
    "Integers",
    "OneHot",
    "Product",
    "denoised",
    "discrete",
    "fits",
    "gaussian",
    "integers",
    "one_hot",
    "plain",
    "product",
    "reconstruction_bits",
    "spacing",
]
