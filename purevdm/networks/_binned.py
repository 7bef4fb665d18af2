"""Estimates of data that have levels: the mean over bins of a normal distribution."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, _normal, process
from purevdm.networks._network import Network, Wrapped
from purevdm.types import Params


@dataclass(frozen=True)
class Binned(Wrapped):
    """The network of :func:`binned`."""

    bins: int

    predicts = "x"
    residual = False
    outputs = None

    def around(
        self, apply: Callable[..., Tensor], params: Params, z: Tensor, gamma: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        eps, log_ratio = apply(params, z, gamma, *args, **kwargs).to(z.dtype).unbind(-1)
        gamma = process.align(gamma, z)
        mean = process.x_from_eps(z, z + eps, gamma)
        return _normal.bin_expectation(mean, torch.exp(0.5 * gamma + log_ratio), self.bins)


def binned(network: Network, bins: int = 256) -> Network:
    """Makes a network that estimates data of so many levels, as ``decoders.discrete(bins)`` places them, by what it knows of
    them: x is the expectation over the levels under a normal distribution, each level having the mass of its bin.

    This is the output of a Bayesian flow of discretised data (Graves et al. 2023, sec. 5.3), in a diffusion model. The
    distribution has the mean (z - sigma (z + o_1)) / alpha and the deviation exp(o_2) sigma / alpha, for two outputs o of
    ``network``. An estimate that is sure of a level is then exact, which an estimate of the noise cannot be: on grey digits
    it saves 0.17 of 2.19 bits/dim (``examples/studies/families.py``). It costs ``bins`` evaluations of erf for each
    dimension.

    Args:
        network: one with ``outputs=2``, which predicts "eps".
        bins: the levels of the data.

    Raises:
        TypeError, ValueError: another network, or fewer than two bins.

    >>> import purevdm
    >>> from purevdm import networks, random, schedules
    >>> network = networks.binned(networks.mlp(8, outputs=2), 16)
    >>> model = purevdm.vdm(network, schedules.learned_linear(), event_shape=(2,), vocab_size=16)
    >>> x = random.randint(random.key(1), (4, 2), 0, 16)
    >>> model.loss_fn(model.init(random.key(0)), x, random.key(2)).shape
    torch.Size([])
    """
    _checks.instance("network", network, Network, "a purevdm Network")
    if (network.outputs, network.predicts) != (2, "eps"):
        got = f"outputs={network.outputs}, predicts={network.predicts!r}"
        raise ValueError(f"network: expected outputs=2 and predicts='eps', got {got}")
    return Binned(network, _checks.integer("bins", bins, 2, 2**22))
