"""Real numbers as they are, and their density given a latent.

A number x goes to f = (x - loc) / scale, and p(x given z_0) = N(f; z_0 / alpha_0, exp(gamma_0)) / scale, the density of x
itself, independently for each dimension. The reconstruction term is then the noise's own log-density, whatever the data. A
deviation of one's own in place of exp(gamma_0 / 2) costs more on average, unless it is the same.

Under an ideal denoiser the diffusion loss is the mutual information of f and z_0 minus that of f and z_1 (Guo, Shamai, Verdu
2005). So the bound is the entropy of f with noise of variance exp(gamma_0) added, plus log(scale) for each dimension, plus
KL(q(z_1) || N(0, I)), which is next to nothing. gamma_0 says how fine a structure the model can hold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm.decoders._decoder import (
    FLOATS,
    Decoder,
    Elementwise,
    affine,
    checked_affine,
    checked_numbers,
    data,
    finite,
    level,
)
from purevdm.types import Key, Params

__all__ = ["gaussian"]


def _numbers(x: Tensor) -> Tensor:
    """Gives data of float32 or float64."""
    whole = isinstance(x, Tensor) and not x.is_floating_point() and not x.is_complex()
    hint = "; integers go with decoders.discrete" if whole else ""
    return data(x, (torch.float32, torch.float64), "float32 or float64 numbers", hint)


@dataclass(frozen=True)
class Gaussian(Elementwise):
    """The decoder of :func:`gaussian`: numbers, or nested tuples of them."""

    loc: Any
    scale: Any
    noise: Any = None

    support = "finite numbers"
    unit = "nats"

    def check(self, x: Tensor) -> Tensor:
        return _numbers(x).isfinite()

    def encode(self, params: Params, x: Tensor, cond: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        wide = _numbers(x).to(torch.promote_types(x.dtype, _checks.dtype("dtype", dtype, FLOATS)))
        loc, scale = affine(self.loc, self.scale, wide)
        return ((wide - loc) / scale).to(dtype)

    def reconstruction(
        self, params: Params, x: Tensor, eps_0: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        _, scale = affine(self.loc, self.scale, eps_0)
        constant = 0.5 * math.log(2.0 * math.pi) + _log(scale)
        if self.noise is None:
            return 0.5 * (eps_0.square() + gamma_0) + constant
        noise = affine(0.0, self.noise, eps_0)[1]
        return 0.5 * (torch.exp(0.5 * gamma_0) * eps_0 / noise).square() + (constant + _log(noise))

    def mode(self, params: Params, z: Tensor, cond: Any = None, estimate: Tensor | None = None) -> Tensor:
        finite(z)
        loc, scale = affine(self.loc, self.scale, z)
        return z * scale + loc

    def sample(
        self, params: Params, key: Key, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        gamma_0 = level(gamma_0, z)
        _checks.together("z", z, _checks.key("key", key).device)
        noise = torch.exp(0.5 * gamma_0) if self.noise is None else affine(0.0, self.noise, z)[1]
        return self.mode(params, z + noise * random.normal(key, z.shape, z.dtype))


def _log(x: Any) -> Any:
    return x.log() if isinstance(x, Tensor) else math.log(x)


def gaussian(
    *, loc: float | Sequence[Any] = 0.0, scale: float | Sequence[Any] = 1.0, noise: float | Sequence[Any] | None = None
) -> Decoder:
    """Makes the decoder of real numbers, float32 or float64: bounds are on the density of x as given, in nats an example.

    Data are standardised in the wider of their dtype and the model's, and only then rounded to the model's: float64 data far
    from 0 keep their digits under a float32 model.

    Data that repeat values (counts, or numbers recorded with few digits) have no density: the bound falls without end as
    gamma_0 does. Take :func:`discrete` for them, or add uniform noise as wide as their step.

    Args:
        loc, scale: numbers, or (nested) sequences of numbers that broadcast against an event: give the mean and standard
            deviation of the training data, as a network expects numbers of about 1.
        noise: the standard deviation of (x - loc) / scale given z_0, about z_0 / alpha_0: a number, or sequences as above,
            such as ``((0.01,), (0.1,))`` for two channels of series. None for exp(gamma_0 / 2), the best on average: what
            the noise of z_0 leaves open.

    >>> import torch, purevdm
    >>> from purevdm import decoders, networks, random, schedules
    >>> decoder = decoders.gaussian(loc=(10.0, 0.0), scale=(2.0, 1.0))
    >>> model = purevdm.vdm(networks.mlp(32), schedules.fixed_linear(-8.0, 5.0), event_shape=(2,), decoder=decoder)
    >>> x = random.normal(random.key(0), (16, 2)) + torch.tensor([10.0, 0.0])
    >>> model.nll_bound(model.init(random.key(1)), x, random.key(2)).total.shape  # nats, each an upper bound on -log p(x)
    torch.Size([16])
    """
    return Gaussian(*checked_affine(loc, scale), None if noise is None else checked_numbers("noise", noise, positive=True))
