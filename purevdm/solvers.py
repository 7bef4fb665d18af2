"""One step of the way back, from noise at time 1 towards data at time 0, of several kinds.

A :class:`Solver` is a value: a pure step, and what it carries from step to step. Each kind's mathematics is a function
beside it, elementwise, with all noise as an argument. :mod:`purevdm.walks` loops over the steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _values, process, random
from purevdm.types import Key

__all__ = ["Solver", "Step", "ancestral", "ancestral_step", "ddim", "ddim_step", "dpmpp_2m", "dpmpp_2m_step"]


class Step(NamedTuple):
    """What a solver's step gives: the next latents, the estimate of the data that they were made from (both of z's shape),
    and what the solver carries on."""

    z: Tensor
    x_hat: Tensor
    carry: tuple[Tensor, ...] = ()


@_values.by_content
class Solver(NamedTuple):
    """A way to take one step back.

    Attributes:
        init: ``init(z_1, gamma_1) -> carry``: a tuple of the tensors that it hands from step to step.
        step: ``step(denoise, z_t, gamma_t, gamma_s, key, carry) -> Step``, from the time t to an earlier s. gammas have the
            shape (B, 1, ..., 1) or (B, *event_shape). ``denoise(z, gamma)`` gives the
            :class:`~purevdm.denoiser.Prediction` for latents z of the batch at such a gamma; a solver may call it several
            times. The key is the step's own; a deterministic solver does not use it, and may be run forward, from t to a
            later s (:func:`purevdm.inversion.invert`): there the key is None.

    >>> from purevdm import process, solvers
    >>> def step(denoise, z_t, gamma_t, gamma_s, key, carry):
    ...     eps, x = denoise(z_t, gamma_t)
    ...     return solvers.Step(process.diffuse(x, gamma_s, eps), x)
    >>> my_ddim = solvers.Solver(lambda z_1, gamma_1: (), step)
    """

    init: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    step: Callable[..., Step]


def _carry_nothing(z_1: Tensor, gamma_1: Tensor) -> tuple[Tensor, ...]:
    return ()


# Ancestral sampling


def ancestral() -> Solver:
    """The paper's sampler: a draw of p(z_s given z_t) in each step (eq. 34)."""
    return Solver(_carry_nothing, _ancestral)


def _ancestral(
    denoise: Any, z_t: Tensor, gamma_t: Tensor, gamma_s: Tensor, key: Key | None, carry: tuple[Tensor, ...]
) -> Step:
    if key is None:
        raise ValueError("solver: expected a deterministic one, such as purevdm.solvers.ddim(), got ancestral()")
    eps_hat, x_hat = denoise(z_t, gamma_t)
    eps = random.normal(key, z_t.shape, z_t.dtype)
    # Where alpha_t is below exp(-5), z_t and eps_hat hold too little of an estimate x_hat that was predicted or clamped.
    q = process.posterior(z_t, x_hat, gamma_s, gamma_t)
    z_s = torch.where(gamma_t > 10.0, q.mean + q.std * eps, ancestral_step(z_t, eps_hat, gamma_s, gamma_t, eps))
    return Step(z_s, x_hat)


def ancestral_step(z_t: Tensor, eps_hat: Tensor, gamma_s: Tensor, gamma_t: Tensor, eps: Tensor) -> Tensor:
    """z_s, a draw of p(z_s given z_t) = q(z_s given z_t, x = x_hat) (eq. 34).

    Args:
        z_t: the latent at the later time t.
        eps_hat: the noise that the network sees in it.
        gamma_s, gamma_t: gamma at s < t; they broadcast.
        eps: standard normal noise, of z_t's shape.
    """
    q = process.posterior_from_eps(z_t, eps_hat, gamma_s, gamma_t)
    return q.mean + q.std * eps


# DDIM


def ddim() -> Solver:
    """The deterministic DDIM (Song, Meng, Ermon 2020): of order 1 in the step, for few steps."""
    return Solver(_carry_nothing, _ddim)


def _ddim(denoise: Any, z_t: Tensor, gamma_t: Tensor, gamma_s: Tensor, key: Key | None, carry: tuple[Tensor, ...]) -> Step:
    eps_hat, x_hat = denoise(z_t, gamma_t)
    return Step(ddim_step(x_hat, eps_hat, gamma_s), x_hat)


def ddim_step(x_hat: Tensor, eps_hat: Tensor, gamma_s: Tensor) -> Tensor:
    """z_s = alpha_s x_hat + sigma_s eps_hat: the first-order solver of the probability flow."""
    return process.diffuse(x_hat, gamma_s, eps_hat)


# DPM-Solver++(2M)


def dpmpp_2m() -> Solver:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): deterministic, of order 2, one evaluation of the
    network a step. It wants steps even in gamma."""
    return Solver(_dpmpp_2m_init, _dpmpp_2m)


def _dpmpp_2m_init(z_1: Tensor, gamma_1: Tensor) -> tuple[Tensor, ...]:
    # An infinite gamma stands for "no step yet".
    return torch.zeros_like(z_1), torch.full_like(gamma_1, torch.inf)


def _dpmpp_2m(
    denoise: Any, z_t: Tensor, gamma_t: Tensor, gamma_s: Tensor, key: Key | None, carry: tuple[Tensor, ...]
) -> Step:
    _, x_hat = denoise(z_t, gamma_t)
    return Step(dpmpp_2m_step(z_t, x_hat, gamma_s, gamma_t, *carry), x_hat, (x_hat, gamma_t.contiguous()))


def dpmpp_2m_step(
    z_t: Tensor, x_hat: Tensor, gamma_s: Tensor, gamma_t: Tensor, x_last: Tensor, gamma_last: Tensor
) -> Tensor:
    """z_s = sigma_s / sigma_t z_t - alpha_s expm1(-h) x, with x extrapolated from this and the last estimate.

    h is the step in lambda = -gamma / 2, half the log signal-to-noise ratio.

    Args:
        z_t, x_hat: the latent, and the data that the network sees in it.
        gamma_s, gamma_t: gamma at s < t; they broadcast.
        x_last, gamma_last: the last step's x_hat, and the gamma at which it was made; infinity where there was none, and
            then this step is :func:`ddim_step`.
    """
    first = gamma_last.isinf()
    # Any finite gamma where there was none: an infinity would make the derivative NaN.
    gamma_last = torch.where(first, gamma_t + (gamma_t - gamma_s), gamma_last)
    ratio = (gamma_last - gamma_t) / (gamma_t - gamma_s)
    x = torch.where(first, x_hat, x_hat + (x_hat - x_last) / (2.0 * ratio))
    scale = process.sigma(gamma_s) / process.sigma(gamma_t)
    return scale * z_t - process.alpha(gamma_s) * torch.expm1(0.5 * (gamma_s - gamma_t)) * x
