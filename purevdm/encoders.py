"""Encoders whose means move with time (DiffEnc, Nielsen et al. 2024, arXiv 2310.19789).

q(z_t given x) is normal about alpha_t f_t instead of alpha_t f, and the network estimates f_t. So the reverse process has to
guess how f_t moves. With m = df_t / dgamma and the guess g the diffusion loss in continuous time is

    gamma'(t) / 2 |eps - eps_hat + exp(-gamma / 2) (m - g)|**2,

that of a network which predicts v

    gamma'(t) alpha**2 / 2 |v - v_hat + (m - g) exp(-gamma / 2) / alpha|**2,

and a step of the sampler adds alpha_s (gamma_s - gamma_t) g. In T steps, h = gamma_s - gamma_t, (f_s - f_t - h g) /
expm1(h) stands for m - g. Prior and reconstruction take f_t at the times 1 and 0. Where nothing moves and nothing is guessed
this is the model without an encoder, bit for bit.

>>> import torch, purevdm
>>> from purevdm import encoders, networks, random, schedules
>>> encoder = encoders.learned(networks.mlp(16, fourier=()))
>>> network, schedule = networks.mlp(32, predicts="v"), schedules.fixed_linear()
>>> model = purevdm.vdm(network, schedule, event_shape=(2,), encoder=encoder)
>>> params, x = model.init(random.key(0)), random.randint(random.key(1), (4, 2), 0, 256)
>>> model.nll_bound(params, x, random.key(2)).total.shape, model.sample(params, random.key(3), 5, steps=10).shape
(torch.Size([4]), torch.Size([5, 2]))
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, process
from purevdm._compile import refuse_zero_derivatives
from purevdm._stable import expm1
from purevdm.denoiser import Denoiser, output
from purevdm.model import Model
from purevdm.networks import Network
from purevdm.parts import Encoder
from purevdm.schedules import Levels
from purevdm.types import Key, Params, Shape

__all__ = ["identity", "learned", "shrinking"]


@dataclass(frozen=True)
class Identity(Encoder):
    """The encoder of :func:`identity`."""

    def shift(self, params: Params, f: Tensor, gamma: Tensor, cond: Any = None) -> Tensor:
        return torch.zeros_like(f)


def identity() -> Encoder:
    """Makes the encoder that leaves the mean where it is: the model without one, exactly."""
    return Identity()


@dataclass(frozen=True)
class Shrinking(Encoder):
    """The encoder of :func:`shrinking`."""

    def shift(self, params: Params, f: Tensor, gamma: Tensor, cond: Any = None) -> Tensor:
        return -torch.sigmoid(process.align(gamma, f)) * f

    def guess(self, x_hat: Tensor, gamma: Tensor) -> Tensor:
        return -torch.sigmoid(gamma) * x_hat


def shrinking() -> Encoder:
    """Makes the encoder f_t = alpha_t**2 f, which goes to 0 with the signal (the paper's without parameters)."""
    return Shrinking()


@dataclass(frozen=True)
class Learned(Shrinking):
    """The encoder of :func:`learned`."""

    network: Network

    def init(self, key: Key, latent_shape: Shape) -> Params:
        return self.network.init(key, latent_shape)

    def shift(self, params: Params, f: Tensor, gamma: Tensor, cond: Any = None) -> Tensor:
        return torch.sigmoid(process.align(gamma, f)) * (output(self.network, params, f, gamma, cond) - f)


def learned(network: Network) -> Encoder:
    """Makes the encoder f_t = alpha_t**2 f + sigma_t**2 y(f, gamma_t), y a network that trains with the model, on the bound:
    f_t is f where there is no noise. The guess is that of :func:`shrinking`, whose first part is known.

    Args:
        network: of any kind; what it says that it ``predicts`` does not count. It is without dropout, and takes no mask.

    Raises:
        TypeError: no network.
    """
    return Learned(_checks.instance("network", network, Network, "a purevdm Network"))


class Moved(NamedTuple):
    """How far the means of a batch have moved, each (B, *latent_shape).

    Attributes:
        shift_0, shift_1, shift_t: f_t - f at the times 0 and 1 and at those of the batch.
        motion: df_t / dgamma or, in T steps, (f_s - f_t) / expm1(h).
        share: what the guess is multiplied by beside it: 1, or h / expm1(h).
        encoder, gamma: the encoder, and the levels of the batch, (B, 1, ..., 1).
    """

    shift_0: Tensor
    shift_1: Tensor
    shift_t: Tensor
    motion: Tensor
    share: Tensor | float
    encoder: Encoder
    gamma: Tensor

    def missed(self, x_hat: Tensor) -> Tensor:
        """Gives the motion that the reverse process does not expect, in units of the noise: exp(-gamma / 2) (m - g)."""
        return torch.exp(-0.5 * self.gamma) * (self.motion - self.share * self.encoder.guess(x_hat, self.gamma))


def of_batch(model: Model, params: Params, f: Tensor, levels: Levels, denoise: Denoiser) -> Moved:
    """Moves the means f of a batch, behind the door; the parameters are the encoder's."""
    encoder: Encoder = model.encoder  # type: ignore[assignment]
    gamma_t, gamma = levels.gamma_t, process.align(levels.gamma_t, f)
    if gamma_t.ndim != 1:
        raise ValueError(
            f"schedule: expected one gamma for all dimensions beside an encoder, got {tuple(gamma_t.shape[1:])}"
        )

    def shift(gamma: Tensor) -> Tensor:
        return denoise.within(encoder.shift(params, f, gamma.expand_as(gamma_t), denoise.cond))

    ends = shift(levels.gamma_0), shift(levels.gamma_1)
    if model.timesteps == 0:
        return Moved(*ends, *_with_motion(shift, gamma_t), 1.0, encoder, gamma)
    h = -torch.log1p(levels.weight.double() / model.timesteps)  # weight = T expm1(-h)
    gamma_s, rise = (gamma_t + h).to(f.dtype), process.align(expm1(h), f)
    now = shift(gamma_t)
    motion = ((shift(gamma_s) - now) / rise).to(f.dtype)
    return Moved(*ends, now, motion, (process.align(h, f) / rise).to(f.dtype), encoder, gamma)


def _with_motion(shift: Any, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Gives f_t - f and its derivative in gamma, (B,), by reverse mode twice, as :func:`purevdm.schedules.gamma_and_slope`
    does, and for its reasons."""
    refuse_zero_derivatives()
    gamma = gamma.clone()

    def backward(cotangent: Tensor) -> tuple[Tensor, Tensor]:
        values, pull = torch.func.vjp(shift, gamma)  # type: ignore[misc]
        return values, pull(cotangent)[0]

    zeros = torch.zeros_like(shift(gamma))
    _, transposed, values = torch.func.vjp(lambda c: backward(c)[::-1], zeros, has_aux=True)  # type: ignore[misc]
    return values, transposed(torch.ones_like(gamma))[0]
