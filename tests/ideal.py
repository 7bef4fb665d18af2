"""Sources for BFNs whose ideal output distribution is known in closed form, as networks without parameters. They see what
any network sees: parameters of the input distribution, and the time."""

import torch
from torch import Tensor

from purevdm.networks import Network


def _network(apply, **kind) -> Network:
    def init(key, event_shape):
        return {}

    return Network.of(init, apply, **kind)


def classes(p: Tensor) -> Network:
    """Independent dimensions with probabilities p over len(p) > 2 classes, for ``classes_last``: p theta, normalised."""

    def apply(params, seen, t, cond=None, key=None):
        return p.log() + (0.5 + 0.5 * seen).log()

    return _network(apply)


def coins(p: float) -> Network:
    """Independent dimensions that are 1 with probability p; the network sees 2 theta_0 - 1."""
    odds = torch.tensor(p / (1 - p), dtype=torch.float64).log()

    def apply(params, seen, t, cond=None, key=None):
        return odds - ((1.0 + seen) / (1.0 - seen)).log()

    return _network(apply)


def gaussian(std: float, sigma_1: float) -> Network:
    """Independent x ~ N(0, std**2): the posterior's mean."""

    def apply(params, mean, t, cond=None, key=None):
        rho = sigma_1 ** (-2 * t)
        return rho * mean / (rho - 1.0 + std**-2)

    return _network(apply, predicts="x")


def two_bins(p: float, sigma_1: float) -> Network:
    """Independent dimensions in two bins, the upper one with probability p. Every such posterior is a normal's over bins."""
    odds = torch.tensor(p / (1 - p), dtype=torch.float64).log()

    def apply(params, mean, t, cond=None, key=None):
        # the likelihood's log ratio of the centres +-1/2 given the sum rho mean of all messages
        upper = torch.sigmoid(odds + sigma_1 ** (-2 * t) * mean)
        return torch.stack([torch.special.ndtri(upper), torch.zeros_like(mean)], -1)

    return _network(apply, predicts="x", outputs=2)
