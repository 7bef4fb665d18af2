"""A model's sampler: from a key to data, by any of the steps of :mod:`purevdm.sampling`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, process, random, sampling
from purevdm.decoder import Decoder, data_range
from purevdm.nn import Params

__all__ = ["Sample", "sampler"]


class Sample(NamedTuple):
    """What sampling gives when the trajectory is asked for.

    Attributes:
        x: integers, (n, *event_shape), int64.
        z: the latents from time 1 to time 0, (steps + 1, n, *event_shape).
    """

    x: Tensor
    z: Tensor


def sampler(
    eps_hat: Callable[..., Tensor],
    gamma: Callable[[Params, Tensor], Tensor],
    decoder: Decoder,
    event_shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    self_condition: bool = False,
) -> Callable[..., Any]:
    """Binds a model's prediction, schedule and decoder into its function ``sample``.

    ``sample(params, key, n, *, steps=1000, ...)`` walks back from noise, by default in ancestral steps (eq. 34). Step i
    draws from ``fold_in(k, i)``, k being the second of the three keys that the sampling key is split into; the first draws
    z_1, the third decodes. A self-conditioned network sees each step's x_hat, clamped to the data's range, in the next.

    - ``method`` is "ancestral" or, for few steps, one of the deterministic "ddim" (order 1) and "dpmpp_2m" (order 2), which
      draw z_1 alone; ``grid`` says in what steps are even, "time" or "gamma". See :mod:`purevdm.sampling`.
    - ``cond`` holds n conditions; ``guidance`` other than 1 weighs them against none, for a network with ``cond_drop`` >
      0 (classifier-free, Ho & Salimans 2022; see :func:`purevdm.sampling.guide`).
    - ``decode`` is "argmax" or "sample" (draw from p(x given z_0)); ``clip=True`` clamps every x_hat to the data's range.
    - ``trajectory=True`` returns a :class:`Sample` with all latents; ``callback(i, z)`` follows the steps in eager.
    - ``steps`` may be an integer tensor of shape (): then one compiled graph serves every number of steps.

    Sampling builds no autograd graph.

    Args:
        eps_hat: ``eps_hat(params, z, gamma, cond, x_hat)``, for a batch.
        gamma: ``gamma(params, t)``.
        decoder: from latents to integers.
        event_shape, dtype: of a latent.
        self_condition: whether ``eps_hat`` uses its x_hat.
    """

    @torch.no_grad()
    def sample(
        params: Params,
        key: Tensor,
        n: int,
        *,
        steps: int | Tensor = 1000,
        method: str = "ancestral",
        grid: str = "time",
        cond: Any = None,
        guidance: float | Tensor = 1.0,
        decode: str = "argmax",
        clip: bool = False,
        trajectory: bool = False,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Any:
        _checks.params("params", params)
        k_z, k_steps, k_decode = random.split(_checks.key("key", key), 3).unbind(0)
        n = _checks.integer("n", n, 1)
        _checks.choice("decode", decode, ("argmax", "sample"))
        _checks.choice("method", method, ("ancestral", "ddim", "dpmpp_2m"))
        _checks.choice("grid", grid, ("time", "gamma"))
        guided = isinstance(guidance, Tensor) or _checks.real("guidance", guidance) != 1.0
        if guided and cond is None:
            raise ValueError("cond: expected the condition that guidance strengthens, got None")
        total = torch.as_tensor(steps, device=key.device).to(dtype)
        z_1 = random.normal(k_z, (n, *event_shape), dtype)
        bounds = data_range(decoder, z_1[0])

        def predicted(z: Tensor, gamma_t: Tensor, x_hat: Tensor | None) -> Tensor:
            eps = eps_hat(params, z, gamma_t.expand(n), cond, x_hat)
            return sampling.guide(eps, eps_hat(params, z, gamma_t.expand(n), None, x_hat), guidance) if guided else eps

        ends = gamma(params, torch.tensor([0.0, 1.0], dtype=dtype, device=key.device))
        carries = self_condition or method == "dpmpp_2m"

        def at(i: Tensor) -> Tensor:
            """gamma after i steps."""
            left = (total - i) / total
            return gamma(params, left) if grid == "time" else ends[0] + (ends[1] - ends[0]) * left

        def step(i: Tensor, z: Tensor, x_last: Tensor | None = None) -> tuple[Tensor, ...]:
            gamma_t, gamma_s = at(i), at(i + 1)
            # A self-conditioned network sees the last estimate.
            seen = x_last.clamp(*bounds) if x_last is not None and self_condition else None
            eps_t = predicted(z, gamma_t, seen)
            limits = bounds if clip else None
            if method == "ancestral":
                eps = random.normal(random.fold_in(k_steps, i), z.shape, dtype)
                done = sampling.ancestral_step(z, eps_t, gamma_s, gamma_t, eps, limits)
            elif x_last is None or method == "ddim":
                done = sampling.ddim_step(z, eps_t, gamma_s, gamma_t, limits)
            else:
                gamma_last = at((i - 1).clamp(min=0))
                done = sampling.dpmpp_2m_step(z, eps_t, gamma_s, gamma_t, x_last, gamma_last, i == 0, limits)
            return (done.z, done.x_hat) if carries else (done.z,)

        start = (z_1, torch.zeros_like(z_1)) if carries else (z_1,)
        latents = sampling.run(step, start, steps, trajectory=trajectory, callback=callback)[0]
        z_0 = latents[-1] if trajectory else latents
        rescaled = z_0 / process.alpha(ends[0])
        x = decoder.mode(rescaled) if decode == "argmax" else decoder.sample(k_decode, rescaled, ends[0])
        return Sample(x, latents) if trajectory else x

    return sample
