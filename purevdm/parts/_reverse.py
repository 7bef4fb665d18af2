"""The variance of the reverse process."""

from dataclasses import dataclass

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._compile import fixed
from purevdm._values import Value


class Reverse(Value):
    """The variance of p(z_s given z_t) in T steps, and that of p(x given z_0) around the network's estimate of the data.

    Attributes:
        takes_range: whether the network says where the variance lies, by a second output: the ``v`` of Nichol & Dhariwal
            2021, (B, *latent_shape), 0 at the smaller of the two variances and 1 at the larger.
    """

    takes_range: bool = False

    def log_ratio(self, gamma_t: Tensor, gamma_s: Tensor, v: Tensor | None = None) -> Tensor | None:
        """Computes log of the variance over that of q(z_s given z_t, x), elementwise; None where the two are the same."""
        raise NotImplementedError

    def last(self, gamma_0: Tensor, v: Tensor | None = None) -> Tensor:
        """Computes log of the variance of p(x given z_0), in units of encoded data, for a decoder that takes the estimate:
        gamma_0, that of z_0 / alpha_0 given x, unless a reverse process says otherwise."""
        return gamma_0


@dataclass(frozen=True)
class Posterior(Reverse):
    """The variance of :func:`posterior`."""

    log_last: float | None = None

    def log_ratio(self, gamma_t: Tensor, gamma_s: Tensor, v: Tensor | None = None) -> Tensor | None:
        return None

    def last(self, gamma_0: Tensor, v: Tensor | None = None) -> Tensor:
        return gamma_0 if self.log_last is None else torch.full_like(gamma_0, fixed(self.log_last))


@dataclass(frozen=True)
class Upper(Posterior):
    """The variance of :func:`upper`."""

    def log_ratio(self, gamma_t: Tensor, gamma_s: Tensor, v: Tensor | None = None) -> Tensor | None:
        # sigma_t**2 / sigma_s**2, as sigma_Q**2 = sigma_{t|s}**2 sigma_s**2 / sigma_t**2
        return torch.nn.functional.logsigmoid(gamma_t) - torch.nn.functional.logsigmoid(gamma_s)


@dataclass(frozen=True)
class LearnedRange(Reverse):
    """The variance of :func:`learned_range`."""

    log_last: tuple[float, float] | None = None

    takes_range = True

    def log_ratio(self, gamma_t: Tensor, gamma_s: Tensor, v: Tensor | None = None) -> Tensor | None:
        return v * Upper().log_ratio(gamma_t, gamma_s)  # type: ignore[operator]

    def last(self, gamma_0: Tensor, v: Tensor | None = None) -> Tensor:
        low, high = (gamma_0, gamma_0) if self.log_last is None else map(fixed, self.log_last)
        return v * high + (1.0 - v) * low + torch.zeros_like(gamma_0)  # type: ignore[operator]


def posterior(log_last: float | None = None) -> Reverse:
    """Takes the variance of q(z_s given z_t, x), the paper's (eq. 33): the smaller of the two that a DDPM chooses between.

    Args:
        log_last: log of the variance of p(x given z_0), for a decoder that takes the estimate; gamma_0 where left out.
    """
    return Posterior(None if log_last is None else _checks.real("log_last", log_last))


def upper(log_last: float | None = None) -> Reverse:
    """Takes the variance of q(z_t given z_s), sigma_{t|s}**2: the larger of the two (Ho, Jain, Abbeel 2020, sec. 3.2).
    ``log_last`` as for :func:`posterior`."""
    return Upper(None if log_last is None else _checks.real("log_last", log_last))


def learned_range(log_last: tuple[float, float] | None = None) -> Reverse:
    """Lets the network choose between the two, exp(v log sigma_{t|s}**2 + (1 - v) log sigma_Q**2) (Nichol & Dhariwal
    2021, arXiv 2102.09672, eq. 15). The network has two outputs for each number of the latent, ``outputs=2``: its
    prediction, and V = 2 v - 1, which nothing confines to [-1, 1].

    ``loss_fn`` is then the bound, which trains both outputs at once. In continuous time the two variances are one, and v has
    no effect. Samplers have their own variance.

    Args:
        log_last: log of the least and the greatest variance of p(x given z_0), for a decoder that takes the estimate;
            both gamma_0 where left out.
    """
    if log_last is None:
        return LearnedRange()
    if not isinstance(log_last, (tuple, list)) or len(log_last) != 2:
        raise TypeError(f"log_last: expected two numbers, got {_checks.describe(log_last)}")
    return LearnedRange((_checks.real("log_last[0]", log_last[0]), _checks.real("log_last[1]", log_last[1])))
