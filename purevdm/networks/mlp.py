"""A fully connected score network for points, as in the official 2D example."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from purevdm import _checks, nn, random
from purevdm.networks import _blocks, _condition
from purevdm.networks._network import Network


def mlp(
    hidden: int = 512,
    layers: int = 2,
    *,
    fourier: Sequence[int] = tuple(range(8)),
    cond_dim: int = 0,
    classes: int = 0,
    cond_drop: float = 0.0,
    self_condition: bool = False,
    gamma_min: float = -13.3,
    gamma_max: float = 5.0,
) -> Network:
    """Hidden layers with swish and a linear output, over z, gamma normalised to [-1, 1], and Fourier features of both.

    Args:
        hidden: the width of the hidden layers.
        layers: how many hidden layers.
        fourier: the exponents n of the base-2 Fourier features; () for none.
        cond_dim: how many numbers the condition's vector holds, which go in beside z; 0 for none.
        classes: how many classes its label takes, embedded and added to the first hidden layer; 0 for none.
        cond_drop: the rate at which training drops the condition for guidance, when ``apply`` is given a key.
        self_condition: whether an earlier estimate of the data goes in beside z.
        gamma_min, gamma_max: what the network takes for -1 and 1; give the ends that the schedule starts from.

    Returns:
        A :class:`~purevdm.networks.Network` for events of any shape (flattened inside). Its layers are named ``dense1``,
        ``dense2``, ... as in the official example.

    Raises:
        TypeError, ValueError: an argument out of its range.
    """
    hidden, layers = _checks.integer("hidden", hidden, 1), _checks.integer("layers", layers, 1)
    kinds = _condition.kinds(cond_dim, classes, 0, cond_drop)
    exponents = tuple(_checks.integer("fourier", n) for n in fourier)
    low, high = _checks.increasing("gamma_min", gamma_min, "gamma_max", gamma_max)

    def init(key: Tensor, event_shape: Sequence[int]) -> nn.Params:
        _checks.key("key", key)
        size = math.prod(_checks.shape("event_shape", event_shape))
        n_in = (size + 1) * (1 + 2 * len(exponents)) + size * self_condition + kinds.cond_dim
        widths = [n_in, *[hidden] * layers, size]
        *keys, k_cond = random.split(key, layers + 2).unbind(0)
        dense = {f"dense{i + 1}": nn.dense_init(k, widths[i], widths[i + 1]) for i, k in enumerate(keys)}
        return dense | _condition.init(kinds, k_cond, hidden)

    def apply(
        params: nn.Params,
        z: Tensor,
        gamma: Tensor,
        cond: Any = None,
        key: Tensor | None = None,
        x_hat: Tensor | None = None,
    ) -> Tensor:
        _checks.shaped("gamma", gamma, ())
        given = _condition.read(kinds, params, cond, z, key)
        level = 2.0 * ((gamma - low) / (high - low)) - 1.0
        h = nn.concatenate([z.flatten(), level[None]])
        features = nn.fourier_features(h, exponents) if exponents else None
        estimate = _blocks.estimate(z, x_hat, self_condition)
        h = nn.concatenate([h, *(part.flatten() for part in (features, given.vector, estimate) if part is not None)])
        h = nn.dense(params["dense1"], h.to(params["dense1"]["kernel"].dtype))
        h = nn.swish(h if given.label is None else h + given.label)
        for i in range(1, layers):
            h = nn.swish(nn.dense(params[f"dense{i + 1}"], h))
        return nn.dense(params[f"dense{layers + 1}"], h).reshape(z.shape).to(z.dtype)

    return Network(init, apply, self_condition)
