"""The noise processes that other people's networks were trained with, in terms of gamma.

Each is x_t = alpha data + sigma noise at some scale. With c = sqrt(alpha**2 + sigma**2) the latent is z = x_t / c, and
gamma = 2 log(sigma / alpha), so that log p(x_t) = log p(z) - D log c in D dimensions. A :class:`Process` is a value that
knows gamma at its times, what the network takes for a latent (x_t, scaled, and a time), and what its output says of the
noise or the data. :func:`purevdm.interop.adapt` makes a model of it and a network.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from purevdm import _checks, _facts
from purevdm._compile import fixed
from purevdm._values import Value
from purevdm.interop._betas import levels_of
from purevdm.parts import Reverse, learned_range, posterior, upper
from purevdm.process import alpha
from purevdm.schedules import Schedule, tabulated

__all__ = ["Process", "ddpm"]


class Process(Value):
    """A noise process, and what a network takes and gives in it. Derive from it to write one's own.

    Attributes:
        predicts: what :meth:`prediction` gives: "eps", "x" or "v".
        timesteps: the steps of a process in discrete time, or 0.
        channels: how many times the data's channels the network returns.
        schedule: gamma(t).
        reverse: the variance of the reverse process.
    """

    predicts: str = "eps"
    timesteps: int = 0
    channels: int = 1

    @property
    def schedule(self) -> Schedule:
        raise NotImplementedError

    @property
    def reverse(self) -> Reverse:
        return posterior()

    def inputs(self, z: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Gives what the network takes for latents z, (B, *event_shape), at gamma, (B, 1, ..., 1): data with their noise, of
        z's shape, scaled as it wants them, and a time of gamma's shape."""
        raise NotImplementedError

    def prediction(self, z: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
        """Gives what ``predicts`` says of z, from the network's output, of z's shape."""
        return out


# Discrete time


@dataclass(frozen=True, repr=False, kw_only=True)
class DDPM(Process):
    """The process of :func:`ddpm`.

    Attributes:
        levels: gamma at each of its T times.
        times: what the network takes there.
        kept: the indices of the times that a respaced process has, or None for all.
    """

    levels: tuple[float, ...]
    times: tuple[float, ...]
    predicts: str
    variance: str
    integer_times: bool = False
    kept: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        kept = "" if self.kept is None else f", {len(self.kept)} of them kept"
        ends = f"from {self.levels[0]:.6g} to {self.levels[-1]:.6g}"
        return f"DDPM({len(self.levels)} levels {ends}{kept}, {self.predicts!r}, {self.variance!r})"

    @property
    def _own(self) -> tuple[float, ...]:
        return self.levels if self.kept is None else tuple(self.levels[i] for i in self.kept)

    @property
    def timesteps(self) -> int:  # type: ignore[override]
        return len(self._own) - 1

    @property
    def channels(self) -> int:  # type: ignore[override]
        return 2 if self.variance == "learned_range" else 1

    @property
    def schedule(self) -> Schedule:
        return tabulated(self._own)

    @property
    def reverse(self) -> Reverse:
        # At the last step, p(x given z_0), the posterior's variance is 0, and the published code takes that of the step
        # before: sigma_Q**2 of z_0 given z_1, which is beta_1 (1 - abar_0) / (1 - abar_1).
        first, second = self._own[:2]
        low = math.log(-math.expm1(first - second)) - math.log1p(math.exp(-first))
        if self.variance == "learned_range":
            return learned_range((low, -math.log1p(math.exp(-first))))
        return (upper if self.variance == "fixed_large" else posterior)(low)

    def inputs(self, z: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        levels, times = (torch.tensor(table, dtype=z.dtype, device=z.device) for table in (self.levels, self.times))
        i = torch.searchsorted(levels, gamma.detach().contiguous(), right=True) - 1
        i = i.clamp(0, len(self.levels) - 2)
        share = ((gamma - levels[i]) / (levels[i + 1] - levels[i])).clamp(0.0, 1.0)
        time = times[i] * (1.0 - share) + times[i + 1] * share
        return z, _whole(time) if self.integer_times else time


def _whole(at: Tensor) -> Tensor:
    """Gives times that are integers up to rounding; others are refused, or in a compiled graph NaN."""
    whole = at.round()
    near = (at - whole).abs() < 0.01
    if not _facts.readable(at):
        return torch.where(near, whole, math.nan)

    def error() -> ValueError:
        off = _facts.plain(at)[~_facts.plain(near)].flatten()[0].item()
        told = "the model's own steps (timesteps=..., and in samplers grid='time' with steps that divide them)"
        return ValueError(f"network: expected integer times, which it was trained on, got time {off:.6g}; take {told}")

    _facts.verify([_facts.Fact(near, error)])
    return whole


def ddpm(
    betas: Tensor | Sequence[float],
    *,
    predicts: str = "eps",
    variance: str = "fixed_small",
    times: Sequence[float] | None = None,
    integer_times: bool = False,
) -> Process:
    """Makes the process of a DDPM (Ho, Jain, Abbeel 2020; Nichol & Dhariwal 2021), of T betas: alpha_t**2 = abar_t = the
    product of 1 - beta up to t, sigma_t**2 = 1 - abar_t, t = 0, ..., T - 1. x_t is the latent itself, and gamma_t =
    log((1 - abar_t) / abar_t). Data are in [-1, 1], 8-bit values at 2 k / 255 - 1.

    The network takes x_t and t. A model has T - 1 steps between the T levels; DDPM's last step is p(x given z_0), a
    :func:`purevdm.decoders.discretised_gaussian`. Its bound is that of improved-diffusion, term by term, with the true
    normal distribution in the last. In between, t is a straight line in gamma. A last beta of 1, zero terminal SNR, has an
    infinite gamma, for which that of the level before plus 20 is taken: an SNR of 2e-9 times the one before.

    Args:
        betas: T numbers, such as :func:`purevdm.interop.betas`; better of float64, as 1 - abar of float32 is off by up to
            5e-4 at the start.
        predicts: "eps" for the noise, "x" for the data ("sample" in diffusers), or "v" = alpha eps - sigma x.
        variance: of the reverse process: "fixed_small" for the posterior's, "fixed_large" for beta, or "learned_range" for a
            network with a second half of channels. The last step's: that of the posterior one step before for all, with
            beta_0 as the range's upper end, as in improved-diffusion.
        times: what the network takes at each level, T rising numbers; t = 0, ..., T - 1 where left out. A network that was
            trained with ``rescale_timesteps`` takes 1000 t / T.
        integer_times: whether it takes integer times only, as one with a table of times does. It then refuses others.

    Raises:
        TypeError, ValueError: fewer than two betas, or some that are not in (0, 1); other times; another choice; a last beta
            of 1 for a network that predicts the noise, which says nothing of the data there.

    >>> from purevdm import interop
    >>> interop.ddpm(interop.betas("linear"))
    DDPM(1000 levels from -9.21024 to 10.1177, 'eps', 'fixed_small')
    """
    choices = ("fixed_small", "fixed_large", "learned_range")
    levels, predicts = levels_of(betas), _checks.choice("predicts", predicts, ("eps", "x", "v"))
    if predicts == "eps" and float(torch.as_tensor(betas).flatten()[-1]) == 1.0:
        raise ValueError("predicts: expected 'x' or 'v' with a last beta of 1, zero terminal SNR, got 'eps'")
    told = tuple(_checks.real(f"times[{i}]", t) for i, t in enumerate(range(len(levels)) if times is None else times))
    if len(told) != len(levels) or any(a >= b for a, b in itertools.pairwise(told)):
        raise ValueError(f"times: expected {len(levels)} rising numbers, one for each beta, got {_checks.describe(times)}")
    return DDPM(
        levels=levels,
        times=told,
        predicts=predicts,
        variance=_checks.choice("variance", variance, choices),
        integer_times=_checks.boolean("integer_times", integer_times),
    )


# What processes in continuous time share


def wide(gamma: Tensor) -> Tensor:
    """Computes c = sqrt(1 + exp(gamma)), the scale of data plus noise of scale exp(gamma / 2)."""
    return 1.0 / alpha(gamma)


def vp_time(total: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """Computes the time t at which B = beta_min t + (beta_max - beta_min) t**2 / 2 is ``total``."""
    low, rise = fixed(beta_min), fixed(beta_max - beta_min)
    return 2.0 * total / (low + torch.sqrt(low**2 + 2.0 * rise * total))
