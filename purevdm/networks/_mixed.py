"""Mixed precision: a network that computes in a shorter dtype than that of its parameters."""

import torch

from purevdm import _checks
from purevdm.networks._network import Network

__all__ = ["mixed"]


def mixed(network: Network, dtype: torch.dtype = torch.bfloat16) -> Network:
    """Makes a network compute in ``dtype``, to which its parameters are cast in each call.

    A network of :func:`from_module` runs under ``torch.autocast`` instead, which casts the inputs of its matrix products and
    convolutions, and leaves norms and buffers.

    The parameters themselves, their gradients and averages stay float32, and so does the rest: the latent and its Fourier
    features, the embedding of gamma, the schedule, the random numbers and the losses. The networks of this library compute
    in their parameters' dtype.

    Raises:
        TypeError: another dtype than bfloat16 or float16.
    """
    _checks.instance("network", network, Network, "a purevdm Network")
    _checks.dtype("dtype", dtype, (torch.bfloat16, torch.float16))
    return network.computing_in(dtype)
