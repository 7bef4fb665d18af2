"""Data to real numbers, and p(x given z_0) back on the data.

:func:`discrete` holds integers, and its bounds are in bits per dimension. :func:`gaussian` holds real numbers, and its
bounds are of a density, in nats an example; so does :func:`denoised`, around the network's estimate, and
:func:`discretised_gaussian` holds integers around it, as a DDPM's last step does. :func:`integers` holds integers without an
end, :func:`one_hot` classes as unit vectors, and :func:`product` several kinds side by side. In all of them, a latent enters
divided by its alpha, ``z_0 / alpha_0`` (written ``z``), which is the data plus noise of scale exp(gamma_0 / 2).

:func:`learned` puts maps that train with the model around the diffusion, and an :class:`Observation` at their end: counts,
real numbers, classes.
"""

# What is not listed is for the other rooms.
from purevdm.decoders._counts import negative_binomial
from purevdm.decoders._decoder import Decoder, fits, is_class, plain, spacing  # noqa: F401
from purevdm.decoders._denoised import denoised, discretised_gaussian
from purevdm.decoders._discrete import Discrete, discrete, reconstruction_bits  # noqa: F401
from purevdm.decoders._gaussian import Gaussian, gaussian  # noqa: F401
from purevdm.decoders._integers import integers, one_hot
from purevdm.decoders._learned import Map, learned, perceptron
from purevdm.decoders._observation import Observation, categorical, normal
from purevdm.decoders._product import Product, product  # noqa: F401

__all__ = [
    "Decoder",
    "Map",
    "Observation",
    "categorical",
    "denoised",
    "discrete",
    "discretised_gaussian",
    "gaussian",
    "integers",
    "learned",
    "negative_binomial",
    "normal",
    "one_hot",
    "perceptron",
    "product",
    "reconstruction_bits",
]
