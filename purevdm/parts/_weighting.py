"""Weightings of the training loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._values import Value


class Weighting(Value):
    """The weight of the diffusion loss in training, as a function of the noise level (Kingma & Gao 2023, arXiv 2303.00848).

    A weighted loss is no bound; ``nll_bound`` never has one. Weights are relative to the bound's, whatever the schedule: in
    continuous time the loss is the integral over gamma of w(gamma) (eps - eps_hat)**2 / 2, and a factor counts for nothing
    but against the other two terms. Draw times to match by :func:`purevdm.importance.warped`, which follows the weighted
    losses. Other weights, as of channels or of the terms, are one line on ``model.terms``.
    """

    def weight(self, gamma: Tensor) -> Tensor:
        """Computes w(gamma), elementwise, at least 0; 1 gives the bound."""
        raise NotImplementedError

    @staticmethod
    def of(weight: Callable[[Tensor], Tensor]) -> "Weighting":
        """Makes a weighting of one's own function."""
        return Weight(weight)


@dataclass(frozen=True)
class Weight(Weighting):
    """A weighting made of a function."""

    own: Callable[[Tensor], Tensor]

    def weight(self, gamma: Tensor) -> Tensor:
        return self.own(gamma)


@dataclass(frozen=True)
class Sigmoid(Weighting):
    """The weighting of :func:`sigmoid`."""

    bias: float

    def weight(self, gamma: Tensor) -> Tensor:
        return torch.sigmoid(gamma + self.bias)


def sigmoid(bias: float = 2.0) -> Weighting:
    """Weighs by w = sigmoid(gamma + bias), which gives less weight to small noise (Kingma & Gao 2023, sec. 4.3; gamma is
    minus their lambda)."""
    return Sigmoid(_checks.real("bias", bias))


@dataclass(frozen=True)
class EDM(Weighting):
    """The weighting of :func:`edm`."""

    mean: float
    std: float
    data_std: float

    def weight(self, gamma: Tensor) -> Tensor:
        log_normal, log_var = -0.5 * ((gamma - self.mean) / self.std).square(), 2.0 * math.log(self.data_std)
        return torch.exp(log_normal + torch.logaddexp(gamma, gamma.new_tensor(log_var)))


def edm(mean: float = -2.4, std: float = 2.4, data_std: float = 0.5) -> Weighting:
    """Weighs as EDM trains (Karras et al. 2022, arXiv 2206.00364; Kingma & Gao 2023, table 1): w = N(gamma; mean, std**2)
    (exp(gamma) + data_std**2), without the normal density's constant. exp(gamma / 2) is their sigma, and ``mean`` and
    ``std`` are twice their P_mean and P_std."""
    std, data_std = (_checks.positive(name, x) for name, x in (("std", std), ("data_std", data_std)))
    return EDM(_checks.real("mean", mean), std, data_std)


@dataclass(frozen=True)
class TruncatedSNR(Weighting):
    """The weighting of :func:`truncated_snr`."""

    def weight(self, gamma: Tensor) -> Tensor:
        return torch.exp(gamma.clamp(min=0.0)) / torch.cosh(0.5 * gamma)


def truncated_snr() -> Weighting:
    """Weighs as max(SNR, 1) (x - x_hat)**2 at the times of a cosine schedule (Salimans & Ho 2022, arXiv 2202.00512, sec. 4):
    w = max(exp(gamma), 1) sech(gamma / 2). Large noise has the most weight, without limit."""
    return TruncatedSNR()


@dataclass(frozen=True)
class Monotone(Weighting):
    """The weighting of :func:`monotone`."""

    base: Weighting
    peak: float

    def weight(self, gamma: Tensor) -> Tensor:
        return self.base.weight(gamma.clamp(max=self.peak))


def monotone(base: Weighting) -> Weighting:
    """Weighs as another weighting does up to its maximum, and by the maximum beyond, so that the weight never falls as the
    noise grows (Kingma & Gao 2023, sec. 4.3). The loss is then a mean of bounds on the likelihood of noised data (sec. 4.1).

    Raises:
        TypeError, ValueError: no weighting, or one that falls before its maximum over gamma from -20 to 20.
    """
    _checks.instance("base", base, Weighting, "a Weighting of purevdm.parts")
    gamma = torch.linspace(-20.0, 20.0, 4001, dtype=torch.float64, device="cpu")
    w = base.weight(gamma)
    top = int(w.argmax())
    if not w.isfinite().all() or (w[: top + 1].diff() < 0.0).any():
        raise ValueError(f"base: expected a weighting that rises to one maximum, got {base!r}")
    return base if top == len(w) - 1 else Monotone(base, float(gamma[top]))
