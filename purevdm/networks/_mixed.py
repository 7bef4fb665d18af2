"""Mixed precision: a network that computes in a shorter dtype than its parameters have."""

import torch

from purevdm import _checks
from purevdm.networks._network import Network

__all__ = ["mixed"]


def mixed(network: Network, dtype: torch.dtype = torch.bfloat16) -> Network:
    """The same network with its parameters cast to ``dtype`` in each call.

    A network of :func:`from_module` runs under ``torch.autocast`` instead, which casts the inputs of its matrix products and
    convolutions, and leaves norms and buffers.

    The parameters themselves, their gradients and averages stay float32, and so does all around the network: the latent and
    its Fourier features, the embedding of gamma, the schedule, the random numbers and the losses. The networks of this
    library compute in their parameters' dtype.

    Raises:
        TypeError: another dtype than bfloat16 or float16.
    """
    _checks.instance("network", network, Network, "a purevdm Network")
    _checks.dtype("dtype", dtype, (torch.bfloat16, torch.float16))
    return network.computing_in(dtype)
