"""Markov chains whose ideal predictors are known, as networks without parameters, and expectations over all masks."""

import itertools

import numpy as np
import torch
from torch import Tensor

from purevdm import masked
from purevdm.networks import Network

F64 = torch.float64
FLAT = {"network": {}, "schedule": {}}


def posteriors(start: Tensor, transition: Tensor, evidence: Tensor) -> Tensor:
    """p(x_i given the evidence of all tokens), (..., L, K), by messages forwards and backwards."""
    before, after = [start.expand(evidence.shape[:-2] + start.shape)], [torch.ones_like(evidence[..., 0, :])]
    for i in range(evidence.shape[-2] - 1):
        before.append((before[-1] * evidence[..., i, :]) @ transition)
    for i in range(evidence.shape[-2] - 1, 0, -1):
        after.append((after[-1] * evidence[..., i, :]) @ transition.T)
    joint = torch.stack(before, -2) * evidence * torch.stack(after[::-1], -2)
    return joint / joint.sum(-1, keepdim=True)


def ideal(start: Tensor, transition: Tensor, uniform: bool = False) -> Network:
    """The ideal predictor of a chain under masks, or under uniform noise, whose level it needs; for ``classes_last``. Under
    masks p(x_i given z), under uniform noise p(x_i given the rest of z)."""
    k = len(start)

    def apply(params, seen, gamma, cond=None, key=None):
        e = 0.5 + 0.5 * seen
        if uniform:
            evidence = torch.sigmoid(-gamma) * e + torch.sigmoid(gamma) / k
            return posteriors(start, transition, evidence).log() - evidence.log()
        p = posteriors(start, transition, e[..., :k] + e[..., k:])
        return torch.cat([p.log().clamp(min=-1e4), torch.zeros_like(e[..., k:])], -1)

    return Network.of(lambda key, shape: {}, apply)


def log_prob(start: Tensor, transition: Tensor, x: Tensor) -> Tensor:
    return start.log()[x[..., 0]] + transition.log()[x[..., :-1], x[..., 1:]].sum(-1)


def masks(length: int) -> Tensor:
    """All masks, (2**L, L): bit i of the row's number says that token i is hidden."""
    return torch.tensor([[s >> i & 1 for i in range(length)] for s in range(2**length)], dtype=torch.bool)


def every(classes: int, length: int) -> Tensor:
    """All sequences."""
    return torch.tensor(list(itertools.product(range(classes), repeat=length)))


def expected_bound(model: masked.MaskedDiffusion, x: Tensor, t: Tensor, weight: Tensor) -> masked.bound.NLLBound:
    """The exact expectation of a masked model's bound of sequences x, (n, L): over all masks, and over times with weights,
    each term (n,)."""
    n, length = x.shape
    hidden = masks(length)
    gamma = model.schedule.gamma({}, t)
    q = torch.where(hidden, torch.sigmoid(gamma)[:, None, None], torch.sigmoid(-gamma)[:, None, None]).prod(-1)
    u = (~hidden).to(F64) * np.nextafter(1.0, 0.0)
    rows = len(t) * len(hidden)
    noise = masked.Noise(
        t[:, None].expand(-1, len(hidden)).reshape(1, rows).expand(n, -1).reshape(-1),
        u.expand(len(t), -1, -1).reshape(1, rows, length).expand(n, -1, -1).reshape(-1, length),
    )
    terms = masked.bound.bound(model, FLAT, x[:, None].expand(-1, rows, -1).reshape(-1, length), noise)
    weights = (weight[:, None] * q).reshape(-1)
    return type(terms)(*((term.reshape(n, rows) * weights).sum(1) for term in terms))


def gauss(nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss and Legendre's nodes and weights on [0, 1]: exact for polynomials of degree 2 nodes - 1."""
    at, weight = np.polynomial.legendre.leggauss(nodes)
    return torch.tensor(0.5 + 0.5 * at), torch.tensor(0.5 * weight)


# A chain of three tokens of three classes, short enough to sum over.

START = torch.tensor([0.6, 0.3, 0.1], dtype=F64)
TRANSITION = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]], dtype=F64)
LENGTH = 3
EVERY = every(3, LENGTH)
LOG_P = log_prob(START, TRANSITION, EVERY)
ENTROPY = -(LOG_P.exp() * LOG_P).sum()


def ideal_model(schedule=None, corruption="masking", **options):
    """A model of the chain of three tokens with the ideal predictor."""
    network = ideal(START, TRANSITION, corruption == "uniform")
    options = dict(corruption=corruption, classes_last=True, dtype=F64) | options
    return masked.diffusion(network, schedule, (LENGTH,), 3, **options)
