"""A fully connected score network for points, as in the official 2D example."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm import _checks, nn, random
from purevdm.networks._network import Network, condition


def mlp(
    hidden: int = 512,
    layers: int = 2,
    *,
    fourier: Sequence[int] = tuple(range(8)),
    cond_dim: int = 0,
    gamma_min: float = -13.3,
    gamma_max: float = 5.0,
) -> Network:
    """Hidden layers with swish and a linear output, over z, gamma normalised to [-1, 1], and Fourier features of both.

    Args:
        hidden: the width of the hidden layers.
        layers: how many hidden layers.
        fourier: the exponents n of the base-2 Fourier features; () for none.
        cond_dim: how many numbers ``cond`` holds, which go in beside z; 0 for no condition.
        gamma_min, gamma_max: what the network takes for -1 and 1; give the ends that the schedule starts from.

    Returns:
        A :class:`~purevdm.networks.Network` for events of any shape (flattened inside). Its layers are named ``dense1``,
        ``dense2``, ... as in the official example.

    Raises:
        TypeError, ValueError: an argument out of its range.
    """
    hidden, layers = _checks.integer("hidden", hidden, 1), _checks.integer("layers", layers, 1)
    cond_dim = _checks.integer("cond_dim", cond_dim, 0)
    exponents = tuple(_checks.integer("fourier", n) for n in fourier)
    low, high = _checks.increasing("gamma_min", gamma_min, "gamma_max", gamma_max)

    def init(key: Tensor, event_shape: Sequence[int]) -> nn.Params:
        _checks.key("key", key)
        size = math.prod(_checks.shape("event_shape", event_shape))
        widths = [(size + 1) * (1 + 2 * len(exponents)) + cond_dim, *[hidden] * layers, size]
        keys = random.split(key, layers + 1)
        return {f"dense{i + 1}": nn.dense_init(k, widths[i], widths[i + 1]) for i, k in enumerate(keys)}

    def apply(params: nn.Params, z: Tensor, gamma: Tensor, cond: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        _checks.shaped("gamma", gamma, ())
        level = 2.0 * ((gamma - low) / (high - low)) - 1.0
        h = torch.cat([z.flatten(), level[None]])
        if exponents:
            h = torch.cat([h, nn.fourier_features(h, exponents)])
        extra = condition(cond, cond_dim, z)
        if extra is not None:
            h = torch.cat([h, extra])
        for i in range(layers):
            h = F.silu(nn.dense(params[f"dense{i + 1}"], h))
        return nn.dense(params[f"dense{layers + 1}"], h).reshape(z.shape)

    return Network(init, apply)
