"""The way back: from noise at time 1 to data at time 0 by steps of the generative model (App. A, eq. 34)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, process

__all__ = ["Denoised", "ancestral_step", "ddim_step", "dpmpp_2m_step", "guide", "run"]

Bounds = tuple[Tensor, Tensor]


class Denoised(NamedTuple):
    """A step's result: the next latent, and the x_hat that it was made from (both of z's shape)."""

    z: Tensor
    x_hat: Tensor


def ancestral_step(
    z_t: Tensor, eps_hat: Tensor, gamma_s: Tensor, gamma_t: Tensor, eps: Tensor, clip: Bounds | None = None
) -> Denoised:
    """A draw of p(z_s given z_t) = q(z_s given z_t, x = x_hat) (eq. 34), elementwise.

    Args:
        z_t: the latent at the later time t.
        eps_hat: the noise that the network sees in it.
        gamma_s, gamma_t: gamma at s < t; they broadcast.
        eps: standard normal noise, of z_t's shape.
        clip: bounds (low, high) to clamp x_hat to, or None.

    Returns:
        z_s and x_hat.
    """
    x_hat = process.x_from_eps(z_t, eps_hat, gamma_t)
    if clip is None:
        q = process.posterior_from_eps(z_t, eps_hat, gamma_s, gamma_t)
    else:
        x_hat = torch.clamp(x_hat, *clip)
        q = process.posterior(z_t, x_hat, gamma_s, gamma_t)
    return Denoised(q.mean + q.std * eps, x_hat)


def ddim_step(z_t: Tensor, eps_hat: Tensor, gamma_s: Tensor, gamma_t: Tensor, clip: Bounds | None = None) -> Denoised:
    """The deterministic step of DDIM (Song, Meng, Ermon 2020): z_s = alpha_s x_hat + sigma_s eps_hat, elementwise.

    The first-order solver of the probability flow: with the true eps_hat, an error of order 1 in the step. ``clip``
    clamps x_hat, and then eps_hat is the noise that goes with it. Else as :func:`ancestral_step`.
    """
    x_hat = process.x_from_eps(z_t, eps_hat, gamma_t)
    if clip is not None:
        x_hat = torch.clamp(x_hat, *clip)
        eps_hat = process.eps_from_x(z_t, x_hat, gamma_t)
    return Denoised(process.diffuse(x_hat, gamma_s, eps_hat), x_hat)


def dpmpp_2m_step(
    z_t: Tensor,
    eps_hat: Tensor,
    gamma_s: Tensor,
    gamma_t: Tensor,
    x_last: Tensor,
    gamma_last: Tensor,
    first: Tensor,
    clip: Bounds | None = None,
) -> Denoised:
    """A step of DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2), elementwise: deterministic, of order 2.

    In lambda = -gamma / 2, half the log signal-to-noise ratio, with h the step and x extrapolated from this and the last
    estimate: z_s = sigma_s / sigma_t z_t - alpha_s expm1(-h) x. One evaluation of the network a step.

    Args:
        z_t, eps_hat, gamma_s, gamma_t, clip: as in :func:`ddim_step`.
        x_last, gamma_last: the last step's x_hat, and the gamma at which it was made.
        first: a bool tensor of shape (): whether there was no last step; then this one is :func:`ddim_step`.
    """
    x_hat = process.x_from_eps(z_t, eps_hat, gamma_t)
    if clip is not None:
        x_hat = torch.clamp(x_hat, *clip)
    ratio = torch.where(first, torch.ones_like(gamma_t), (gamma_last - gamma_t) / (gamma_t - gamma_s))
    x = torch.where(first, x_hat, x_hat + (x_hat - x_last) / (2.0 * ratio))
    scale = process.sigma(gamma_s) / process.sigma(gamma_t)
    return Denoised(scale * z_t - process.alpha(gamma_s) * torch.expm1(0.5 * (gamma_s - gamma_t)) * x, x_hat)


def guide(eps_hat: Tensor, eps_free: Tensor, guidance: float | Tensor) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): eps_free + guidance (eps_hat - eps_free), with the noise seen under
    the condition and without one. 1 gives the condition's own, 0 none of it, more than 1 exaggerates it."""
    return eps_free + guidance * (eps_hat - eps_free)


State = tuple[Tensor, ...]


def run(
    step: Callable[..., State],
    state: State,
    steps: int | Tensor,
    *,
    trajectory: bool = False,
    callback: Callable[[int, Tensor], None] | None = None,
) -> State:
    """Applies ``state = step(i, *state)`` for i = 0, ..., steps - 1.

    In eager this is a Python loop. Under ``torch.compile`` it is one ``torch.while_loop``, whose graph does not depend on
    the number of steps where that is a tensor.

    Args:
        step: ``step(i, *state) -> state``, with i an int32 tensor of shape () on the state's device.
        state: the start: the latents z, and whatever else steps hand on.
        steps: how many, an integer >= 1, or an integer tensor of shape () (on the CPU: a loop's end is tested there).
        trajectory: whether to return, in place of the last z, all of them, from the start on, stacked: (steps + 1,
            *z.shape). Takes an integer.
        callback: in eager, ``callback(i, z)`` after each step, for a progress bar.

    Raises:
        TypeError, ValueError: steps below 1 or of the wrong form; a trajectory of a tensor of steps; a callback under
            compile.
    """
    if isinstance(steps, Tensor):
        _checks.shaped("steps", steps, ())
        if steps.is_floating_point() or steps.dtype == torch.bool:
            raise TypeError(f"steps: expected an integer tensor, got {_checks.describe(steps)}")
        if trajectory:
            raise TypeError("steps: a trajectory has as many latents as steps; give a Python integer, not a tensor")
        _checks.within("steps", steps, 1, 2**31 - 1)
    else:
        steps = _checks.integer("steps", steps, 1)
    if torch.compiler.is_compiling():
        if callback is not None:
            raise ValueError("callback: a compiled loop calls nothing; leave it out, or sample in eager")
        return _compiled(step, state, steps, trajectory)

    latents = [state[0]]
    for i in range(int(steps)):
        state = step(torch.tensor(i, dtype=torch.int32, device=state[0].device), *state)
        if trajectory:
            latents.append(state[0])
        if callback is not None:
            callback(i, state[0])
    return (torch.stack(latents), *state[1:]) if trajectory else state


def _compiled(step: Callable[..., State], state: State, steps: int | Tensor, trajectory: bool) -> State:
    # Two counters: the loop's end is tested on the CPU without waiting for the device, the step counts on z's device.
    end = torch.as_tensor(steps, dtype=torch.int32)
    host = torch.zeros((), dtype=torch.int32)
    here = torch.zeros((), dtype=torch.int32, device=state[0].device)

    def unfinished(host: Tensor, here: Tensor, *state: Tensor) -> Tensor:
        return host < end

    def body(host: Tensor, here: Tensor, *state: Tensor) -> State:
        return host + 1, here + 1, *step(here, *state)

    def recording(host: Tensor, here: Tensor, latents: Tensor, *state: Tensor) -> State:
        state = step(here, *state)
        latents = latents.index_copy(0, (here + 1).to(torch.int64)[None], state[0][None])
        return host + 1, here + 1, latents, *state

    if not trajectory:
        return torch.while_loop(unfinished, body, (host, here, *state))[2:]
    latents = torch.cat([state[0][None], state[0].new_zeros((steps, *state[0].shape))])  # type: ignore[arg-type]
    _, _, latents, _, *rest = torch.while_loop(unfinished, recording, (host, here, latents, *state))
    return latents, *rest
