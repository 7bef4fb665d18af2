"""A fully connected score network for points, as in the official 2D example."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from purevdm import _checks, nn, random
from purevdm.networks import _blocks, _condition
from purevdm.networks._network import Network
from purevdm.types import Key, Params, Shape

__all__ = ["mlp"]


@dataclass(frozen=True, kw_only=True)
class MLP(_blocks.Own):
    """The network of :func:`mlp`."""

    hidden: int
    layers: int

    def init(self, key: Key, event_shape: Shape) -> Params:
        _checks.key("key", key)
        size, hidden, layers = math.prod(_checks.shape("event_shape", event_shape)), self.hidden, self.layers
        n_in = (size + 1) * (1 + 2 * len(self.fourier)) + size * self.self_condition + self.condition.cond_dim
        widths = [n_in, *[hidden] * layers, size * (self.outputs or 1)]
        *keys, k_cond = random.split(key, layers + 2).unbind(0)
        dense = {f"dense{i + 1}": nn.dense_init(k, widths[i], widths[i + 1]) for i, k in enumerate(keys)}
        return dense | _condition.init(self.condition, k_cond, hidden)

    def apply(
        self, params: Params, z: Tensor, gamma: Tensor, cond: Any = None, key: Key | None = None, x_hat: Tensor | None = None
    ) -> Tensor:
        given = _condition.read(self.condition, params, cond, z, key)
        level = 2.0 * _blocks.normalised(gamma, self.ends(), z) - 1.0
        h = nn.concatenate([z.flatten(), level[None]])
        features = nn.fourier_features(h, self.fourier) if self.fourier else None
        estimate = _blocks.estimate(z, x_hat, self.self_condition)
        h = nn.concatenate([h, *(part.flatten() for part in (features, given.vector, estimate) if part is not None)])
        h = nn.dense(params["dense1"], h.to(params["dense1"]["kernel"].dtype))
        h = nn.swish(h if given.label is None else h + given.label)
        for i in range(1, self.layers):
            h = nn.swish(nn.dense(params[f"dense{i + 1}"], h))
        h = nn.dense(params[f"dense{self.layers + 1}"], h)
        return h.reshape(z.shape) if self.outputs is None else h.reshape(*z.shape, self.outputs)


def mlp(
    hidden: int = 512,
    layers: int = 2,
    *,
    fourier: Sequence[int] = tuple(range(8)),
    cond_dim: int = 0,
    classes: int = 0,
    cond_drop: float = 0.0,
    self_condition: bool = False,
    predicts: str = "eps",
    outputs: int | None = None,
    gamma_min: float | None = None,
    gamma_max: float | None = None,
) -> Network:
    """Makes hidden layers with swish and a linear output, over z, gamma normalised to [-1, 1], and Fourier features of both.

    Args:
        hidden: the width of the hidden layers.
        layers: how many hidden layers.
        fourier, cond_dim, cond_drop, self_condition, predicts, outputs, gamma_min, gamma_max: as for :func:`unet`.
        classes: how many classes the condition's label takes, embedded and added to the first hidden layer; 0 for none.

    Returns:
        A :class:`~purevdm.networks.Network` for events of any shape (flattened inside). Its layers are named ``dense1``,
        ``dense2``, ... as in the official example.

    Raises:
        TypeError, ValueError: an argument out of its range.
    """
    condition = (cond_dim, classes, 0, 0, cond_drop)
    return MLP(
        hidden=_checks.integer("hidden", hidden, 1),
        layers=_checks.integer("layers", layers, 1),
        **_blocks.shared(fourier, condition, self_condition, predicts, outputs, gamma_min, gamma_max),
    )
