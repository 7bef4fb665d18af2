"""Codes of zeros and ones: one of them, or k. Gradients pass straight through to what they were rounded from."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm._compile import constant
from purevdm.codes._code import Code, mapped
from purevdm.types import Key

__all__ = ["k_hot", "one_hot"]


def _straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Gives ``hard``, with the gradient of ``soft``."""
    return (hard - soft).detach() + soft


def _to_uniform(logits: Tensor) -> Tensor:
    """Gives the terms of KL(softmax(logits) || uniform) over the last axis."""
    log_q = torch.log_softmax(logits, -1)
    return log_q.exp() * (log_q + math.log(logits.shape[-1]))


@dataclass(frozen=True)
class OneHot(Code):
    """The code of :func:`one_hot`."""

    encoder: Any
    size: int
    temperature: float

    def noise(self, key: Key, dtype: torch.dtype) -> Tensor:
        return random.gumbel(key, (self.size,), dtype)

    def draw(self, out: Tensor, noise: Tensor) -> Tensor:
        moved = (out + noise) / self.temperature
        hard = torch.nn.functional.one_hot(moved.argmax(-1), self.size).to(out.dtype)
        return _straight_through(hard, torch.softmax(moved, -1))

    def kl(self, out: Tensor) -> Tensor:
        return _to_uniform(out)

    def log_ratio(self, out: Tensor, code: Tensor) -> Tensor:
        return -math.log(self.size) - (code * torch.log_softmax(out, -1)).sum(1)

    def prior(self, key: Key, dtype: torch.dtype) -> Tensor:
        index = random.randint(key, (), 0, self.size)
        return (torch.arange(self.size, device=key.device) == index).to(dtype)


def one_hot(encoder: Any, size: int, temperature: float = 1.0) -> Code:
    """Makes a code of one among m classes, with a uniform prior: the largest of logits with Gumbel noise, exactly a draw of
    their softmax, with the gradient of softmax((logits + noise) / temperature) (Jang, Gu, Poole 2017, arXiv 1611.01144).

    Args:
        encoder: a map to ``size`` logits an example, as :class:`Code` says.
        size: m.
        temperature: of the gradient. The official code lowers it from 1 to 1/2 over 70,000 steps.

    Raises:
        TypeError, ValueError: no map, a size below 1, a temperature that is not above 0.
    """
    return OneHot(mapped(encoder), _checks.integer("size", size, 1), _checks.positive("temperature", temperature))


TERMS, TEMPERATURE, TRIES = 10, 10.0, 8


def _gammas(key: Key, shape: float, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Draws Gamma variates of a shape below or at 1, of scale 1 (Marsaglia & Tsang 2000, of shape + 1, times a power of a
    uniform number). Of eight tries the first that is accepted counts; each is with a probability above 0.95."""
    k_normal, k_uniform, k_power = random.split(key, 3).unbind(0)
    d = shape + 1.0 - 1.0 / 3.0
    x, u = random.normal(k_normal, (TRIES, *size), dtype), random.uniform(k_uniform, (TRIES, *size), dtype)
    v = (1.0 + x / math.sqrt(9.0 * d)) ** 3
    good = (v > 0.0) & (torch.log(u) < 0.5 * x.square() + d * (1.0 - v + torch.log(v.clamp(min=1e-30))))
    first = good & (good.to(torch.int32).cumsum(0) == 1)
    return d * (first * v).sum(0) * random.uniform(k_power, size, dtype) ** (1.0 / shape)


@dataclass(frozen=True)
class KHot(Code):
    """The code of :func:`k_hot`."""

    encoder: Any
    size: int
    k: int
    penalty: str
    perturbation: str

    def noise(self, key: Key, dtype: torch.dtype) -> Tensor:
        if self.perturbation == "gumbel":
            return random.gumbel(key, (self.size,), dtype)
        drawn = _gammas(key, 1.0 / self.k, (TERMS, self.size), dtype)
        weights = torch.arange(1, TERMS + 1, dtype=dtype, device=key.device)[:, None] / self.k
        return TEMPERATURE / self.k * ((weights * drawn).sum(0) - math.log(TERMS))

    def draw(self, out: Tensor, noise: Tensor) -> Tensor:
        moved = out + noise
        moved = moved - moved.mean(1, keepdim=True)
        soft = moved / torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        index = moved.topk(self.k, dim=1).indices
        return _straight_through(torch.zeros_like(moved).scatter(1, index, 1.0), soft)

    def kl(self, out: Tensor) -> Tensor:
        if self.penalty == "softmax":
            return _to_uniform(out)
        return torch.full_like(out[:, :1], self._log_count())

    def log_ratio(self, out: Tensor, code: Tensor) -> Tensor:
        return torch.full_like(out[:, 0], -self._log_count())

    def prior(self, key: Key, dtype: torch.dtype) -> Tensor:
        return (random.permutation(key, self.size) < self.k).to(dtype)

    @constant
    def _log_count(self) -> float:
        """Computes the log of how many codes there are."""
        return math.log(math.comb(self.size, self.k))


def k_hot(encoder: Any, size: int, k: int, *, penalty: str = "bound", perturbation: str = "gamma") -> Code:
    """Makes a code of k ones among m numbers, with a uniform prior over all such codes: the places of the k largest of
    logits with noise. Gradients are those of the centred sum of both, divided by its norm (Sahoo et al. 2023, arXiv
    2205.15213).

    How likely a code is under the noise has no closed form. What holds for every encoder is KL(q || p) <= log C(m, k), the
    logarithm of how many codes there are: that is the "bound". The official code, and the paper's 2.55 bits/dim, count the
    KL of *one* softmax of the logits to uniform, log m at most, which is less than k ones can tell: 3.9 nats for 28.4 at
    m = 50 and k = 15, some 0.01 bits/dim of CIFAR-10. That is the "softmax", with which ``nll_bound`` is no bound.

    Args:
        encoder: a map to ``size`` logits an example, as :class:`Code` says.
        size: m.
        k: how many ones, at most m.
        penalty: what stands for the KL, "bound" or "softmax". Only the second has a gradient, which keeps logits small.
        perturbation: the noise, "gamma" or "gumbel". The first is ten Gamma(1 / k) variates summed with the weights i / k,
            less log 10, times 10 / k, as the official code computes it; Niepert, Minervini, Franceschi (2021, arXiv
            2106.01798, sec. 4.2), who introduced it, weigh with k / i, and have much larger noise.

    Raises:
        TypeError, ValueError: no map, sizes out of range, another penalty or perturbation.
    """
    size = _checks.integer("size", size, 1)
    _checks.choice("penalty", penalty, ("bound", "softmax"))
    _checks.choice("perturbation", perturbation, ("gamma", "gumbel"))
    return KHot(mapped(encoder), size, _checks.integer("k", k, 1, size), penalty, perturbation)
