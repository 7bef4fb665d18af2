"""What noise does to a token: it hides it behind a mask, or puts another class in its place.

A token is itself with probability alpha = sigmoid(-gamma), for gamma a schedule's (:mod:`purevdm.schedules`). From s < t it
stays with alpha_t / alpha_s. With c = 1 - exp(gamma_s - gamma_t),

    (alpha_s - alpha_t) / (1 - alpha_t) = alpha_s c         is the probability that a hidden token shows in the step back,
    (alpha_s - alpha_t) / alpha_s = (1 - alpha_t) c         that a token is noised in the step,

per unit of continuous time alpha gamma' and (1 - alpha) gamma'. Nothing cancels in them.

The two kinds are values with the same methods. These take a batch of tokens, (B, *event_shape) int64, ``log_p``, the log
probabilities of the K classes on a last axis, and gamma that broadcasts to the tokens. A mask is the symbol K. A
:data:`Corruption` is either.
"""

import math
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm import random
from purevdm._compile import fixed
from purevdm._stable import expm1
from purevdm.decoders import is_class
from purevdm.types import Key

__all__ = ["Corruption", "Masking", "Uniform"]


class Step(NamedTuple):
    """A step back from t to s, of a T-th of the time, or of continuous time, where s is t.

    Attributes:
        gamma_t, gamma_s: its levels.
        c: T (1 - exp(gamma_s - gamma_t)), or gamma'(t).
        timesteps: T, or 0.
    """

    gamma_t: Tensor
    gamma_s: Tensor
    c: Tensor
    timesteps: int


def weighted(gamma_t: Tensor, weight: Tensor, timesteps: int) -> Step:
    """Makes the step of a weight of :class:`purevdm.schedules.Levels`, T expm1(gamma_t - gamma_s) or gamma'(t)."""
    if timesteps == 0:
        return Step(gamma_t, gamma_t, weight, 0)
    rise = weight / timesteps
    return Step(gamma_t, gamma_t - torch.log1p(rise), weight / (1.0 + rise), timesteps)


def between(gamma_t: Tensor, gamma_s: Tensor) -> Step:
    """Makes a sampler's step."""
    return Step(gamma_t, gamma_s, -expm1(gamma_s - gamma_t), 1)


def of(x: Tensor, by_class: Tensor) -> Tensor:
    """Takes the entry of each token's class."""
    return by_class.gather(-1, x[..., None])[..., 0]


def _evenly(key: Key, shape: tuple[int, ...], classes: int) -> Tensor:
    return random.randint(key, shape, 0, classes, torch.int64)


def _chance(key: Key, shape: tuple[int, ...], p: Tensor) -> Tensor:
    """Draws True with probability p."""
    return random.uniform(key, shape, p.dtype) < p


class Masking(NamedTuple):
    """Masks: the absorbing state.

    Attributes:
        classes: K.
    """

    classes: int

    @property
    def _k(self) -> int:
        return fixed(self.classes)

    @property
    def symbols(self) -> int:
        """How many symbols a latent's tokens take: the classes, and the mask."""
        return self._k + 1

    def noised(self, x: Tensor, gamma: Tensor, u: Tensor, others: Tensor | None) -> Tensor:
        """Hides tokens where u, uniform on [0, 1), is below 1 - alpha."""
        return torch.where(u < torch.sigmoid(gamma), self._k, x)

    def log_q(self, x: Tensor, z: Tensor, gamma: Tensor) -> Tensor:
        """Computes log q(z given x) of each token."""
        return F.logsigmoid(torch.where(z == self._k, gamma, -gamma))

    def loss(self, log_p: Tensor, x: Tensor, z: Tensor, step: Step) -> Tensor:
        """Computes what each token adds to the diffusion loss, nats: T KL(q(z_s given z_t, x) || p(z_s given z_t)), or its
        limit. It is T alpha_s c, or alpha gamma', times -log p(x), for a hidden token, and 0 for one that shows."""
        return torch.where(z == self._k, -self.shows(step) * of(x, log_p), 0.0)

    def shows(self, step: Step) -> Tensor:
        """Computes T times the probability that a hidden token shows itself in a step, or the rate at which it does."""
        return torch.sigmoid(-step.gamma_s) * step.c

    def prior(self, gamma_1: Tensor) -> Tensor:
        """Computes KL(q(z_1 given x) || p(z_1)) of each token, nats: alpha_1 log K, for p(z_1) a mask with probability
        1 - alpha_1, else any class."""
        return torch.sigmoid(-gamma_1) * math.log(self._k)

    def reconstruction(self, gamma_0: Tensor) -> Tensor:
        """Computes E[-log p(x given z_0)] of each token, nats: (1 - alpha_0) log K, as what is hidden at time 0 is guessed
        evenly."""
        return torch.sigmoid(gamma_0) * math.log(self._k)

    def start(self, key: Key, shape: tuple[int, ...], gamma_1: Tensor) -> Tensor:
        """Draws z_1 of p(z_1)."""
        k_hide, k_class = random.split(key).unbind(0)
        return torch.where(_chance(k_hide, shape, torch.sigmoid(gamma_1)), self._k, _evenly(k_class, shape, self._k))

    def back(self, key: Key, log_p: Tensor, z: Tensor, step: Step) -> Tensor:
        """Draws z_s of p(z_s given z_t): whether a hidden token shows, and then as what.

        One draw of the K + 1 outcomes by the Gumbel trick would favour likely classes: in numbers of 32 bits Gumbels end at
        16, and classes that show with a small probability are told apart by those alone (Zheng et al. 2024, arXiv
        2409.02908).
        """
        k_show, k_class = random.split(key).unbind(0)
        moves = (z == self._k) & _chance(k_show, tuple(z.shape), self.shows(step))
        return torch.where(moves, random.categorical(k_class, log_p), z)

    def finish(self, key: Key, z: Tensor, gamma_0: Tensor) -> Tensor:
        """Draws x of p(x given z_0)."""
        return torch.where(z == self._k, _evenly(key, tuple(z.shape), self._k), z)


class Uniform(NamedTuple):
    """Classes in place of others, all K equally likely, itself too: the uniform state (Austin et al. 2021, arXiv
    2107.03006; Sahoo et al. 2025, arXiv 2506.10892). Attributes and methods are those of :class:`Masking`.

    As in DUO, p(z_s given z_t) is q(z_s given z_t, x) with the network's probabilities p for the unit vector of x. This is
    exact where p is that of x_i given all of z_t but its own token: the formula itself weighs in what that one says of x_i.
    """

    classes: int

    @property
    def _k(self) -> int:
        return fixed(self.classes)

    @property
    def symbols(self) -> int:
        return self._k

    def noised(self, x: Tensor, gamma: Tensor, u: Tensor, others: Tensor | None) -> Tensor:
        return torch.where(u < torch.sigmoid(gamma), others, x)  # type: ignore[arg-type]

    def log_q(self, x: Tensor, z: Tensor, gamma: Tensor) -> Tensor:
        other = F.logsigmoid(gamma) - math.log(self._k)
        return torch.where(z == x, torch.logaddexp(F.logsigmoid(-gamma), other), other)

    def loss(self, log_p: Tensor, x: Tensor, z: Tensor, step: Step) -> Tensor:
        q, p = (self.rates(each, z, step) for each in (is_class(x, self._k).to(log_p.dtype), log_p.exp()))
        own = is_class(z, self._k)
        moves = (torch.where(own, 0.0, q * torch.log(torch.where(own, 1.0, q / torch.where(own, 1.0, p)))) - q + p).sum(-1)
        if step.timesteps == 0:  # what it costs to take one Poisson process's rates for another's
            return moves
        r, other = (rates.sum(-1) / step.timesteps for rates in (q, p))
        # z stays with probability 1 - r. Both logarithms are near -r, and what the first order leaves is small.
        return moves + step.timesteps * ((1.0 - r) * (torch.log1p(-r) - torch.log1p(-other)) + r - other)

    def rates(self, p: Tensor, z: Tensor, step: Step) -> Tensor:
        """Computes T p(z_s = j given z_t = z) on a last axis over j, 0 at z itself, for probabilities p of x."""
        noised, at_t = torch.sigmoid(step.gamma_t), torch.sigmoid(-step.gamma_t) * of(z, p)
        rate = noised * step.c / self._k / (at_t + noised / self._k)
        at_s = torch.sigmoid(-step.gamma_s)[..., None] * p + torch.sigmoid(step.gamma_s)[..., None] / self._k
        return torch.where(is_class(z, self._k), 0.0, rate[..., None] * at_s)

    def prior(self, gamma_1: Tensor) -> Tensor:
        """Computes KL(q(z_1 given x) || p(z_1)) of each token, nats, for p(z_1) uniform."""
        alpha, k = torch.sigmoid(-gamma_1), self._k
        same, other = 1.0 + (k - 1.0) * alpha, torch.sigmoid(gamma_1)  # K q(j), for j = x and any other
        return (torch.xlogy(same, same) + (k - 1.0) * torch.xlogy(other, other)) / k

    def reconstruction(self, gamma_0: Tensor) -> Tensor:
        """Computes E[-log p(x given z_0)] of each token, nats, for the posterior of evenly likely classes: the entropy of
        q(z_0 given x)."""
        other = torch.sigmoid(gamma_0) / self._k
        rest = (self._k - 1.0) * other
        return -(1.0 - rest) * torch.log1p(-rest) - torch.xlogy(rest, other)

    def start(self, key: Key, shape: tuple[int, ...], gamma_1: Tensor) -> Tensor:
        return _evenly(key, shape, self._k)

    def back(self, key: Key, log_p: Tensor, z: Tensor, step: Step) -> Tensor:
        k_move, k_class = random.split(key).unbind(0)
        rates = self.rates(log_p.exp(), z, step)
        moves = _chance(k_move, tuple(z.shape), rates.sum(-1))
        log_rates = torch.log(rates.clamp(min=torch.finfo(rates.dtype).tiny))
        return torch.where(moves, random.categorical(k_class, log_rates), z)

    def finish(self, key: Key, z: Tensor, gamma_0: Tensor) -> Tensor:
        k_move, k_class = random.split(key).unbind(0)
        shape = tuple(z.shape)
        return torch.where(_chance(k_move, shape, torch.sigmoid(gamma_0)), _evenly(k_class, shape, self._k), z)


Corruption: TypeAlias = Masking | Uniform
