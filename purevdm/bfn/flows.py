"""Bayesian flows: how an input distribution moves from t = 0, where nothing is known, to t = 1.

Let h be the data as numbers: x itself for real data, e_x - 1 / K for classes. By the time t the sender's noisy messages,
added up with their accuracies, amount to snr(t) h + sqrt(snr(t)) eps: a Brownian motion with drift h, whose clock is the
signal-to-noise ratio snr(t), beta(t) for real data and K beta(t) for classes. The latent is that sum over sqrt(snr),

    w = sqrt(snr) h + eps,

standard normal noise at t = 0. The input distribution is a function of w and t: its mean is sqrt(snr) w / (1 + snr) for real
data, its probabilities are softmax(sqrt(snr) w) for classes. A variational diffusion model's latent is the same w times
sigma (:mod:`purevdm.bfn.bridge`).

The two flows are values, whose methods take one example, or only times. A :data:`Flow` is either.
"""

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from purevdm._classes import Layout
from purevdm._compile import fixed
from purevdm._stable import expm1
from purevdm.types import Shape

__all__ = ["Categorical", "Flow", "Normal"]

T_MIN = 1e-6
"""Before this time a noise-predicting network's mean of the data is taken to be 0 and its deviation 1, as in the paper's
algorithms."""


def latent(h: Tensor, snr: Tensor, eps: Tensor) -> Tensor:
    """Computes w = sqrt(snr) h + eps."""
    return torch.sqrt(snr) * h + eps


class Normal(NamedTuple):
    """The flow of real numbers (sec. 4): normal input distributions, from N(0, 1) to a deviation of sigma_1. The network
    takes their means.

    At time t the variance is sigma_1**(2 t), and the accuracy of all messages beta(t) = sigma_1**(-2 t) - 1 (eq. 72).
    """

    sigma_1: float

    @property
    def _rate(self) -> float:  # how fast the logarithm of the precision grows
        return -2.0 * math.log(fixed(self.sigma_1))

    def snr(self, t: Tensor) -> Tensor:
        """Computes the signal-to-noise ratio at time t: 0 at t = 0, and growing."""
        return expm1(self._rate * t)

    def slope(self, t: Tensor) -> Tensor:
        """Computes snr'(t), here alpha(t) of eq. 74."""
        return self._rate * torch.exp(self._rate * t)

    def gain(self, s: Tensor, t: Tensor) -> Tensor:
        """Computes snr(t) - snr(s) without cancellation, here alpha_i of eq. 95 for the times (i - 1) / n and i / n."""
        return torch.exp(self._rate * s) * expm1(self._rate * (t - s))

    def latent_shape(self, event_shape: Shape) -> tuple[int, ...]:
        """Gives the shape of w."""
        return tuple(event_shape)

    def network_shape(self, event_shape: Shape) -> tuple[int, ...]:
        """Gives the shape of what a network takes."""
        return tuple(event_shape)

    def parameters(self, w: Tensor, t: Tensor) -> Tensor:
        """Computes the input distribution's parameters, the paper's theta."""
        return torch.sqrt(self.snr(t)) * torch.exp(-self._rate * t) * w

    def shown(self, parameters: Tensor) -> Tensor:
        """Gives the parameters as a network takes them."""
        return parameters

    def shown_mask(self, mask: Tensor) -> Tensor:
        """Gives a mask of events, (B, *event_shape), as it broadcasts to what a network takes of them."""
        return mask

    def estimate(self, h_hat: Tensor) -> Tensor:
        """Gives an estimate of the data as a self-conditioned network takes it, in the shape of its input."""
        return h_hat

    def predicted(self, w: Tensor, t: Tensor, predicts: str) -> tuple[Tensor, Tensor]:
        """Computes (offset, factor): the data that a network predicts are offset + factor * output, and where its second
        output is a log deviation, the deviation is ``|factor| exp(output)`` (1 where the factor is 0).

        ``predicts`` is "x", the data; "eps", the noise, as in the paper; or "v", sqrt(g) eps - sqrt(1 - g) x with
        g = 1 - sigma_1**(2 t), the paper's gamma(t), as for diffusion.
        """
        t = t + torch.zeros_like(w)
        if predicts == "x":
            return torch.zeros_like(w), torch.ones_like(w)
        if predicts == "v":
            std = torch.sqrt(torch.exp(-self._rate * t))
            return torch.sqrt(-expm1(-self._rate * t)) * std * w, -std
        early = t < fixed(T_MIN)
        scale = torch.rsqrt(self.snr(torch.where(early, 1.0, t)))
        return torch.where(early, 0.0, w * scale), torch.where(early, 0.0, -scale)

    def clock(self, t: Tensor) -> Tensor:
        """Computes the variable in which second-order solvers extrapolate."""
        return 0.5 * torch.log(self.snr(t))

    def lead(self, s: Tensor, t: Tensor) -> Tensor:
        """Computes by how much of the clock's step from s to t the extrapolated mean of a stochastic step is ahead."""
        return torch.full_like(t, 0.5)


class Categorical(NamedTuple):
    """The flow of classes (sec. 6): categorical input distributions, from the uniform one, with the accuracy
    beta(t) = beta_1 t**2. Classes lie on the last axis of w.

    A network takes 2 theta - 1. Of two classes it takes only that of class 0, as in the official code, in the event's shape.
    Of K > 2 it takes all: of an event (C, ...) as (C K, ...), a channel's classes next to one another, or with
    ``classes_last`` as (C, ..., K), as transformers over tokens take them. Methods are those of :class:`Normal`.
    """

    classes: int
    beta_1: float
    classes_last: bool = False

    @property
    def _k(self) -> int:
        return fixed(self.classes)

    @property
    def _layout(self) -> Layout:
        return Layout(self._k, self.classes_last)

    def snr(self, t: Tensor) -> Tensor:
        return self._k * (fixed(self.beta_1) * t.square())

    def slope(self, t: Tensor) -> Tensor:
        return self._k * (2.0 * fixed(self.beta_1) * t)

    def gain(self, s: Tensor, t: Tensor) -> Tensor:
        return self._k * (fixed(self.beta_1) * (t - s) * (t + s))

    def latent_shape(self, event_shape: Shape) -> tuple[int, ...]:
        return (*event_shape, self._k)

    def network_shape(self, event_shape: Shape) -> tuple[int, ...]:
        return self._layout.shape(event_shape)

    def parameters(self, w: Tensor, t: Tensor) -> Tensor:
        return torch.softmax(torch.sqrt(self.snr(t)) * w, -1)

    def shown(self, parameters: Tensor) -> Tensor:
        return self._layout.shown(parameters)

    def shown_mask(self, mask: Tensor) -> Tensor:
        return self._layout.mask(mask)

    def estimate(self, h_hat: Tensor) -> Tensor:
        return self.shown(h_hat + 1.0 / self._k)

    def logits(self, raw: Tensor) -> Tensor:
        """Gives a network's output, of its input's shape, as logits of the classes on the last axis; for two classes it
        is the logit of class 1."""
        return self._layout.logits(raw)

    def clock(self, t: Tensor) -> Tensor:
        return t.clone()

    def lead(self, s: Tensor, t: Tensor) -> Tensor:
        return (2.0 * t + s) / (3.0 * (t + s))


Flow: TypeAlias = Normal | Categorical
