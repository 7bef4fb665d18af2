"""One step of the reverse process, from noise at time 1 towards data at time 0, of several kinds.

A :class:`Solver` is a value: a pure step, and what it carries from step to step. Each kind's mathematics is a function
beside it, elementwise, with all noise as an argument. :mod:`purevdm.sampling` loops over the steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from purevdm import process, random
from purevdm._stable import expm1
from purevdm._values import Value
from purevdm.denoiser import Prediction
from purevdm.types import Key

__all__ = ["Solver", "Step", "ancestral", "ancestral_step", "ddim", "ddim_step", "dpmpp_2m", "dpmpp_2m_step"]


class Step(NamedTuple):
    """One step: the next latents, the estimate of the data that they were made from (both of z's shape),
    and what the solver carries on."""

    z: Tensor
    x_hat: Tensor
    carry: tuple[Tensor, ...] = ()


Carry: TypeAlias = tuple[Tensor, ...]
Denoise: TypeAlias = Callable[[Tensor, Tensor], Prediction]


class Solver(Value):
    """Takes one step back in time. Derive from it and write :meth:`step`, or give a function to :meth:`of`.

    >>> from purevdm import process, solvers
    >>> def step(denoise, z_t, gamma_t, gamma_s, key, carry):
    ...     eps, x = denoise(z_t, gamma_t)
    ...     return solvers.Step(process.diffuse(x, gamma_s, eps), x)
    >>> my_ddim = solvers.Solver.of(step)
    """

    def init(self, z_1: Tensor, gamma_1: Tensor) -> Carry:
        """Gives the tensors that the first step takes: none, unless a solver says otherwise."""
        return ()

    def step(self, denoise: Denoise, z_t: Tensor, gamma_t: Tensor, gamma_s: Tensor, key: Key | None, carry: Carry) -> Step:
        """Takes latents from the time t to an earlier s.

        Args:
            denoise: ``denoise(z, gamma)`` gives the :class:`~purevdm.denoiser.Prediction` for latents of the batch.
            z_t: latents, (B, *latent_shape).
            gamma_t, gamma_s: gamma at t and at s, (B, 1, ..., 1) or (B, *latent_shape).
            key: the step's own; None where a deterministic solver is run forward (:func:`purevdm.sampling.invert`).
            carry: what :meth:`init` or the last step returned.
        """
        raise NotImplementedError

    @staticmethod
    def of(step: Callable[..., Step], init: Callable[[Tensor, Tensor], Carry] | None = None) -> "Solver":
        """Makes a solver of one's own functions, with the arguments of the methods."""
        return Functions(step, init)


@dataclass(frozen=True)
class Functions(Solver):
    """A solver made of two functions."""

    own_step: Callable[..., Step]
    own_init: Callable[[Tensor, Tensor], Carry] | None = None

    def init(self, z_1: Tensor, gamma_1: Tensor) -> Carry:
        return () if self.own_init is None else self.own_init(z_1, gamma_1)

    def step(self, denoise: Denoise, z_t: Tensor, gamma_t: Tensor, gamma_s: Tensor, key: Key | None, carry: Carry) -> Step:
        return self.own_step(denoise, z_t, gamma_t, gamma_s, key, carry)


@dataclass(frozen=True)
class Ancestral(Solver):
    """The solver of :func:`ancestral`."""

    def step(self, denoise: Denoise, z_t: Tensor, gamma_t: Tensor, gamma_s: Tensor, key: Key | None, carry: Carry) -> Step:
        if key is None:
            raise ValueError("solver: expected a deterministic one, such as purevdm.solvers.ddim(), got ancestral()")
        eps_hat, x_hat = denoise(z_t, gamma_t)
        eps = random.normal(key, z_t.shape, z_t.dtype)
        # Where alpha_t is below exp(-5), z_t and eps_hat hold too little of an estimate x_hat that was predicted or clamped.
        q = process.posterior(z_t, x_hat, gamma_t, gamma_s)
        z_s = torch.where(gamma_t > 10.0, q.mean + q.std * eps, ancestral_step(z_t, eps_hat, gamma_t, gamma_s, eps))
        return Step(z_s, x_hat)


def ancestral() -> Solver:
    """Makes the paper's sampler: a draw of p(z_s given z_t) in each step (eq. 34)."""
    return Ancestral()


def ancestral_step(z_t: Tensor, eps_hat: Tensor, gamma_t: Tensor, gamma_s: Tensor, eps: Tensor) -> Tensor:
    """Draws z_s from p(z_s given z_t) = q(z_s given z_t, x = x_hat) (eq. 34).

    Args:
        z_t: the latent at the later time t.
        eps_hat: the noise that the network predicts in it.
        gamma_t, gamma_s: gamma at t and at an earlier s; they broadcast.
        eps: standard normal noise, of z_t's shape.
    """
    q = process.posterior_from_eps(z_t, eps_hat, gamma_t, gamma_s)
    return q.mean + q.std * eps


@dataclass(frozen=True)
class DDIM(Solver):
    """The solver of :func:`ddim`."""

    def step(self, denoise: Denoise, z_t: Tensor, gamma_t: Tensor, gamma_s: Tensor, key: Key | None, carry: Carry) -> Step:
        eps_hat, x_hat = denoise(z_t, gamma_t)
        return Step(ddim_step(x_hat, eps_hat, gamma_s), x_hat)


def ddim() -> Solver:
    """Makes the deterministic DDIM (Song, Meng, Ermon 2020): of order 1 in the step, for few steps."""
    return DDIM()


def ddim_step(x_hat: Tensor, eps_hat: Tensor, gamma_s: Tensor) -> Tensor:
    """Gives z_s = alpha_s x_hat + sigma_s eps_hat: the first-order solver of the probability flow."""
    return process.diffuse(x_hat, gamma_s, eps_hat)


@dataclass(frozen=True)
class DPMpp2M(Solver):
    """The solver of :func:`dpmpp_2m`."""

    def init(self, z_1: Tensor, gamma_1: Tensor) -> Carry:
        # An infinite gamma stands for "no step yet".
        return torch.zeros_like(z_1), torch.full_like(gamma_1, torch.inf)

    def step(self, denoise: Denoise, z_t: Tensor, gamma_t: Tensor, gamma_s: Tensor, key: Key | None, carry: Carry) -> Step:
        _, x_hat = denoise(z_t, gamma_t)
        return Step(dpmpp_2m_step(z_t, x_hat, gamma_t, gamma_s, *carry), x_hat, (x_hat, gamma_t.contiguous()))


def dpmpp_2m() -> Solver:
    """Makes DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): deterministic, of order 2, one evaluation of
    the network a step. It wants steps even in gamma."""
    return DPMpp2M()


def dpmpp_2m_step(
    z_t: Tensor, x_hat: Tensor, gamma_t: Tensor, gamma_s: Tensor, x_last: Tensor, gamma_last: Tensor
) -> Tensor:
    """Gives z_s = sigma_s / sigma_t z_t - alpha_s expm1(-h) x, with x extrapolated from this and the last estimate.

    h is the step in lambda = -gamma / 2, half the log signal-to-noise ratio.

    Args:
        z_t, x_hat: the latent, and the data that the network predicts from it.
        gamma_t, gamma_s: gamma at t and at an earlier s; they broadcast.
        x_last, gamma_last: the last step's x_hat, and the gamma at which it was made; infinity where there was none, and
            then this step is :func:`ddim_step`.
    """
    first = gamma_last.isinf()
    # Any finite gamma where there was none: an infinity would make the derivative NaN.
    gamma_last = torch.where(first, gamma_t + (gamma_t - gamma_s), gamma_last)
    ratio = (gamma_last - gamma_t) / (gamma_t - gamma_s)
    x = torch.where(first, x_hat, x_hat + (x_hat - x_last) / (2.0 * ratio))
    scale = process.sigma(gamma_s) / process.sigma(gamma_t)
    return scale * z_t - process.alpha(gamma_s) * expm1(0.5 * (gamma_s - gamma_t)) * x
