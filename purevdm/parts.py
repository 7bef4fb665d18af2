"""What a model may be given besides a network, a schedule and a decoder: a subspace that its latents lie in, the variance of
its reverse process, a weighting of its training loss, an encoder whose means move with time.

Each is a value with one or two methods. To make one of your own, derive from its class.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._compile import fixed
from purevdm._values import Value
from purevdm.types import Key, Params, Shape

__all__ = [
    "Encoder",
    "Reverse",
    "Subspace",
    "Weighting",
    "edm",
    "learned_range",
    "monotone",
    "posterior",
    "sigmoid",
    "truncated_snr",
    "upper",
    "zero_centre",
]


# Subspaces


class Subspace(Value):
    """A linear subspace that data and latents lie in. Noise, prior, samples and the count of dimensions follow it."""

    def project(self, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Projects latents, (B, *latent_shape), orthogonally. ``mask`` is bool, broadcasts to v, and says what exists."""
        raise NotImplementedError

    def rank(self, mask: Tensor) -> Tensor:
        """The dimensions of each example's subspace, (B,), floating-point or integer, of a mask of v's shape."""
        raise NotImplementedError

    def share(self, mask: Tensor) -> Tensor:
        """Each element's share of the rank, of the mask's shape, float64: over what exists they add up to it."""
        count = mask.reshape(mask.shape[0], -1).sum(1).clamp(min=1)
        return (self.rank(mask).double() / count).reshape(-1, *(1 for _ in mask.shape[1:])).expand(mask.shape)


@dataclass(frozen=True)
class ZeroCentre(Subspace):
    """The subspace of :func:`zero_centre`."""

    axis: int
    columns: int | None = None

    def _inside(self, like: Tensor) -> Tensor:
        """Which of the last axis's entries have a mean of 0."""
        entries = torch.arange(like.shape[-1], device=like.device)
        return entries < (like.shape[-1] if self.columns is None else fixed(self.columns))

    def project(self, v: Tensor, mask: Tensor | None = None) -> Tensor:
        axis = self.axis + 1
        if mask is None:
            mean = v.mean(axis, keepdim=True)
        else:
            mask = mask.expand_as(v)
            v = torch.where(mask, v, 0.0)
            mean = v.sum(axis, keepdim=True) / mask.sum(axis, keepdim=True).clamp(min=1)
        inside = self._inside(v) if mask is None else mask & self._inside(v)
        return torch.where(inside, v - mean, v)

    def rank(self, mask: Tensor) -> Tensor:
        there = mask.any(self.axis + 1, keepdim=True) & self._inside(mask)  # each of these loses one dimension
        return mask.reshape(mask.shape[0], -1).sum(1) - there.reshape(mask.shape[0], -1).sum(1)

    def share(self, mask: Tensor) -> Tensor:
        lost = self._inside(mask).double() / mask.sum(self.axis + 1, keepdim=True).clamp(min=1)
        return (1.0 - lost).expand(mask.shape)


def zero_centre(axis: int = 0, columns: int | None = None) -> Subspace:
    """Latents whose mean over one axis of an event is 0, such as positions of atoms (points, 3) whose centre of mass is at
    the origin (Hoogeboom et al. 2022, arXiv 2203.17003): n points in d coordinates have (n - 1) d dimensions.

    Data are refused that are not in the subspace; ``zero_centre(...).project(x, mask)`` puts them there.

    Args:
        axis: of the points, counted in an event.
        columns: how many entries of the last axis, from the first, are coordinates; the others, such as features of atoms,
            are free. None for all.

    Raises:
        TypeError, ValueError: no integer, or one out of range.
    """
    return ZeroCentre(_checks.integer("axis", axis, 0), None if columns is None else _checks.integer("columns", columns, 1))


# The variance of the reverse process


class Reverse(Value):
    """The variance of p(z_s given z_t) in T steps, and that of p(x given z_0) around the network's estimate of the data.

    Attributes:
        takes_range: whether the network says where the variance lies, by a second output: the ``v`` of Nichol & Dhariwal
            2021, (B, *latent_shape), 0 at the smaller of the two variances and 1 at the larger.
    """

    takes_range: bool = False

    def log_ratio(self, gamma_t: Tensor, gamma_s: Tensor, v: Tensor | None = None) -> Tensor | None:
        """log of the variance over that of q(z_s given z_t, x), elementwise; None for none, where the two are the same."""
        raise NotImplementedError

    def last(self, gamma_0: Tensor, v: Tensor | None = None) -> Tensor:
        """log of the variance of p(x given z_0), in units of encoded data, for a decoder that takes the estimate:
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
    """The variance of q(z_s given z_t, x), the paper's (eq. 33): the smaller of the two that a DDPM chooses between.

    Args:
        log_last: log of the variance of p(x given z_0), for a decoder that takes the estimate; gamma_0 where left out.
    """
    return Posterior(None if log_last is None else _checks.real("log_last", log_last))


def upper(log_last: float | None = None) -> Reverse:
    """The variance of q(z_t given z_s), sigma_{t|s}**2: the larger of the two (Ho, Jain, Abbeel 2020, sec. 3.2).
    ``log_last`` as for :func:`posterior`."""
    return Upper(None if log_last is None else _checks.real("log_last", log_last))


def learned_range(log_last: tuple[float, float] | None = None) -> Reverse:
    """A variance that the network chooses between the two, exp(v log sigma_{t|s}**2 + (1 - v) log sigma_Q**2) (Nichol &
    Dhariwal 2021, arXiv 2102.09672, eq. 15). The network has two outputs for each number of the latent, ``outputs=2``: its
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


# Means that move


class Encoder(Value):
    """A mean that moves with the noise level (DiffEnc, Nielsen et al. 2024, arXiv 2310.19789): q(z_t given x) is normal
    about alpha_t f_t, where f_t = f + shift(f, gamma_t). :mod:`purevdm.encoders` has the library's. Derive from it and
    write :meth:`shift`."""

    def init(self, key: Key, latent_shape: Shape) -> Params:
        """Draws parameters: {}, for which a model has no branch, unless an encoder says otherwise."""
        return {}

    def shift(self, params: Params, f: Tensor, gamma: Tensor, cond: Any = None) -> Tensor:
        """Gives f_t - f, of f's shape, (B, *latent_shape), at noise levels (B,). Where gamma is small it must be, too."""
        raise NotImplementedError

    def guess(self, x_hat: Tensor, gamma: Tensor) -> Tensor:
        """Gives what the reverse process takes for the motion df_t / dgamma, where it knows only the network's estimate of
        f_t: elementwise, gamma broadcasts. None is a guess of 0."""
        return torch.zeros_like(x_hat)


# Weightings of the training loss


class Weighting(Value):
    """The weight of the diffusion loss in training, as a function of the noise level (Kingma & Gao 2023, arXiv 2303.00848).

    A weighted loss is no bound; ``nll_bound`` never has one. Weights are relative to the bound's, whatever the schedule: in
    continuous time the loss is the integral over gamma of w(gamma) (eps - eps_hat)**2 / 2, and a factor counts for nothing
    but against the other two terms. Draw times to match by :func:`purevdm.importance.warped`, which follows the weighted
    losses. Other weights, as of channels or of the terms, are one line on ``model.terms``.
    """

    def weight(self, gamma: Tensor) -> Tensor:
        """w(gamma), elementwise, at least 0; 1 gives the bound."""
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
