"""Means that move with time."""

from typing import Any

import torch
from torch import Tensor

from purevdm._values import Value
from purevdm.types import Key, Params, Shape


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
