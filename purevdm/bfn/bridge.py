"""A BFN of real numbers is a variational diffusion model, and this is the schedule that makes it one.

**The same latents.** At time t the mean of the input distribution is g x + sqrt(g (1 - g)) eps, with g = 1 - sigma_1**(2 t).
Over sqrt(g) that is alpha x + sigma eps with alpha**2 = g and sigma**2 = 1 - g: a diffusion's latent z. So mean = alpha z. A
BFN's time runs from noise to data, a diffusion's from data to noise: with t' = 1 - t the schedule is

    gamma(t) = log(sigma**2 / alpha**2) = log(sigma_1**(2 t') / (1 - sigma_1**(2 t'))).

**The same loss.** With the noise eps_hat seen in the latent, the data are x_hat = (z - sigma eps_hat) / alpha for both, and
-log(sigma_1) |x - x_hat|**2 / sigma_1**(2 t') = gamma'(t) |eps - eps_hat|**2 / 2, example by example, time by time. In n
steps it is the same: n alpha_i |x - x_hat|**2 / 2 is the diffusion's with T = n. :func:`as_vdm` gives the diffusion model of
a BFN, with its parameters.

>>> import torch, purevdm
>>> from purevdm import bfn, networks, random
>>> from purevdm.bfn import bridge
>>> model = bfn.continuous(networks.mlp(8), (3,), sigma_1=0.02, clip=False, dtype=torch.float64)
>>> diffusion = bridge.as_vdm(model)
>>> params = model.init(random.key(1))
>>> xs = random.normal(random.key(2), (5, 3), torch.float64)
>>> noise = model.draw(random.key(3), 5, train=False)
>>> ours = bfn.bound.bound(model, params, xs, noise).diffusion
>>> mirrored = purevdm.Noise(1 - noise.t, noise.eps_1, noise.eps)
>>> theirs = purevdm.bound.bound(diffusion, params | {"schedule": {}}, xs, mirrored).diffusion
>>> bool(torch.allclose(ours, theirs, rtol=1e-10))
True

**The same sampler.** The Bayesian update of a mean by a message about x_hat is ancestral sampling's draw of q(z_s given z_t,
x_hat), and :func:`purevdm.bfn.solvers.ode_1` is DDIM.

The two differ in this:

- **Reconstruction.** A diffusion model's last term is p(x given z_0), without a network. A BFN asks its network once more,
  at t = 1, and takes a distribution around what it answers.
- **Start.** A BFN starts at t = 0 from nothing, where gamma is infinite, and pays no prior loss. A diffusion starts from a
  finite gamma(1): here its value at t' = t_min.
- **Clipping.** The paper clamps x_hat to the range of the data; a diffusion model's bound does not.
- **What the network takes.** The mean, which goes to 0 with the information, and t; not z, of variance near 1, and gamma.
- **Discretised data.** The output distribution has a variance too, and gives each bin a mass. Its mean counts in continuous
  time. In n steps the receiver is a mixture over bins, and the loss is no squared error.
- **Discrete data.** The input distribution lives on the simplex. In the logits there still is a Gaussian process
  (:mod:`purevdm.bfn.flows`), but it diffuses e_x - 1 / K, at the ratio K beta(t).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm import _checks, process
from purevdm._compile import fixed
from purevdm._stable import expm1
from purevdm._vdm import VDM, vdm
from purevdm.bfn.flows import T_MIN
from purevdm.bfn.model import BFN, fraction
from purevdm.bfn.outputs import Point
from purevdm.networks import Network, Wrapped
from purevdm.schedules import Schedule
from purevdm.types import Key, Params

__all__ = ["as_vdm", "schedule", "time"]


@dataclass(frozen=True)
class Bridge(Schedule):
    """The schedule of :func:`schedule`."""

    sigma_1: float
    t_min: float

    @property
    def endpoints(self) -> tuple[float, float]:  # type: ignore[override]
        low, high = (self.gamma({}, torch.tensor(t, dtype=torch.float64, device="cpu")).item() for t in (0.0, 1.0))
        return low, high

    def init(self, key: Key) -> Params:
        _checks.key("key", key)
        return {}

    def gamma(self, params: Params, t: Tensor, *context: Any) -> Tensor:
        u = -2.0 * math.log(fixed(self.sigma_1)) * (1.0 - t).clamp(min=fixed(self.t_min))
        return -u - torch.log(-expm1(-u))


def schedule(sigma_1: float, t_min: float = T_MIN) -> Schedule:
    """Makes the schedule gamma(t) = log(sigma_1**(2 t') / (1 - sigma_1**(2 t'))) with t' = 1 - t. It is constant where
    t' < t_min, as it ends at infinity.

    Raises:
        TypeError, ValueError: sigma_1 or t_min outside (0, 1).
    """
    return Bridge(fraction("sigma_1", sigma_1), fraction("t_min", t_min))


def time(gamma: Tensor, sigma_1: float) -> Tensor:
    """Computes the BFN's time at which the schedule's value is gamma."""
    return F.softplus(-gamma, threshold=700.0) / (-2.0 * math.log(fixed(sigma_1)))


@dataclass(frozen=True)
class Bridged(Wrapped):
    """A BFN's network as a diffusion model applies it: shown alpha z and the BFN's time."""

    sigma_1: float

    residual = False
    endpoints = None

    @property
    def update(self) -> Callable[..., Params] | None:  # type: ignore[override]
        return None if self.own.update is None else self._update

    def around(
        self, apply: Callable[..., Tensor], params: Params, z: Tensor, gamma: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        mean, t = self._shown(z, gamma)
        output = apply(params, mean, t, *args, **kwargs)
        return mean + output if self.own.residual else output

    def _update(self, params: Params, z: Tensor, gamma: Tensor, **given: Any) -> Params:
        assert self.own.update is not None
        return self.own.update(params, *self._shown(z, gamma), **given)

    def _shown(self, z: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        return process.alpha(process.align(gamma, z)) * z, time(gamma, self.sigma_1)

    def between(self, endpoints: tuple[float, float]) -> Network:
        return self  # its own takes times


def as_vdm(model: BFN, t_min: float = T_MIN) -> VDM:
    """Makes the diffusion model whose loss a BFN of real numbers has, of the same network, shown alpha z and the BFN's time.

    It takes the BFN's parameters as ``params | {"schedule": {}}``.

    Raises:
        TypeError, ValueError: a BFN of other data, or one that clamps its predictions.
    """
    if not isinstance(model, BFN) or not isinstance(model.output, Point):
        raise TypeError(f"model: expected one of purevdm.bfn.continuous, got {_checks.describe(model)}")
    if model.output.clip is not None:
        raise ValueError(f"model: expected clip=False, as a diffusion model clamps nothing, got clip={model.output.clip}")
    sigma_1 = model.flow.sigma_1  # type: ignore[union-attr]
    settings: Any = dict(timesteps=model.timesteps, antithetic=model.antithetic, dtype=model.dtype)
    return vdm(
        Bridged(model.network, sigma_1), schedule(sigma_1, t_min), model.event_shape, decoder=model.decoder, **settings
    )
