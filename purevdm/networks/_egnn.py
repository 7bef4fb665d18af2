"""An E(n)-equivariant network for points with features, such as atoms (Satorras et al. 2021, arXiv 2102.09844)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, nn, random
from purevdm._compile import fixed
from purevdm.networks import _blocks, _condition
from purevdm.networks._network import Network
from purevdm.types import Key, Params, Shape

__all__ = ["egnn"]

RATES = tuple(2.0 ** (0.5 * i) for i in range(-6, 6))  # of the squared distance, in radial functions


@dataclass(frozen=True, kw_only=True)
class EGNN(_blocks.Own):
    """The network of :func:`egnn`."""

    hidden: int
    layers: int
    coordinates: int
    time_scale: float

    masked = True

    def init(self, key: Key, event_shape: Shape) -> Params:
        _checks.key("key", key)
        shape, hidden = _checks.shape("event_shape", event_shape), self.hidden
        if len(shape) != 2 or shape[1] < self.coordinates:
            raise ValueError(f"event_shape: expected (points, {self.coordinates} or more), got {shape}")
        k_context, k_in, k_out, k_cond, *keys = random.split(key, 4 + self.layers).unbind(0)
        features = shape[1] - self.coordinates
        params = {
            "context": _blocks.context_init(random.split(k_context), hidden // 4, self.condition.cond_dim),
            "in": nn.dense_init(k_in, features, hidden) if features else {"bias": torch.zeros(hidden, device=key.device)},
            **{f"layer{i + 1}": self._layer_init(k) for i, k in enumerate(keys)},
        }
        out = {"out": nn.dense_init(k_out, hidden, features, kernel_init=nn.zeros)} if features else {}
        return params | out | _condition.init(self.condition, k_cond, hidden)

    def _layer_init(self, key: Key) -> Params:
        n = self.hidden
        keys, zeros = random.split(key, 9).unbind(0), nn.zeros
        return {
            "from": nn.dense_init(keys[0], n, n, bias=False),
            "to": nn.dense_init(keys[1], n, n),
            "radial": nn.dense_init(keys[2], 2 * (1 + len(RATES)), n, bias=False),
            "context": nn.dense_init(keys[3], n, n, bias=False),
            "message": nn.dense_init(keys[4], n, n),
            "gate": nn.dense_init(keys[5], n, 1),
            "weight": nn.dense_init(keys[6], n, 1, bias=False, kernel_init=zeros),
            "node": nn.dense_init(keys[7], 2 * n, n),
            "update": nn.dense_init(keys[8], n, n, kernel_init=zeros),
        }

    def apply(  # type: ignore[override]
        self, params: Params, z: Tensor, gamma: Tensor, cond: Any = None, key: Key | None = None, mask: Tensor | None = None
    ) -> Tensor:
        given = _condition.read(self.condition, params, cond, z, key)
        level, scale = _blocks.normalised(gamma, self.ends(), z), fixed(self.time_scale)
        context = _blocks.context(params["context"], level, scale, self.hidden // 4, given.vector, given.label)
        dtype, d = context.dtype, fixed(self.coordinates)
        there = torch.ones_like(z[:, :1]) if mask is None else mask.expand_as(z).any(1, keepdim=True).to(z.dtype)
        start, features = z[:, :d] * there, (z[:, d:] * there).to(dtype)
        h = nn.dense(params["in"], features) if z.shape[1] > d else params["in"]["bias"].expand(z.shape[0], -1)
        edges = (there * there.mT * (1.0 - torch.eye(z.shape[0], dtype=z.dtype, device=z.device)))[..., None]
        x, first = start, _radial(_squares(start)).to(dtype)
        for i in range(self.layers):
            h, x = self._layer(params[f"layer{i + 1}"], h, x, first, context, there, edges)
        moved = (x - start) * there
        if "out" not in params:
            return moved
        return nn.concatenate([moved, nn.dense(params["out"], nn.swish(h)).to(z.dtype) * there], 1)

    def _layer(
        self, params: Params, h: Tensor, x: Tensor, first: Tensor, context: Tensor, there: Tensor, edges: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Moves features and points by messages along the edges, of features, distances and the noise level."""
        dtype, squares = h.dtype, _squares(x)
        radial = nn.concatenate([first, _radial(squares).to(dtype)], -1)
        ends = nn.dense(params["from"], h)[:, None] + nn.dense(params["to"], h) + nn.dense(params["context"], context)
        m = nn.swish(nn.dense(params["message"], nn.swish(ends + nn.dense(params["radial"], radial))))
        m = m * torch.sigmoid(nn.dense(params["gate"], m)) * edges.to(dtype)
        # A unit vector of its own smooth length: its derivative is finite where two points are one.
        away = (x[:, None] - x) * torch.rsqrt(1.0 + squares)
        x = x + (nn.dense(params["weight"], m).to(x.dtype) * away).sum(1) * there
        both = nn.concatenate([h, m.sum(1)], -1)
        return h + nn.dense(params["update"], nn.swish(nn.dense(params["node"], both))), x


def _squares(x: Tensor) -> Tensor:
    """Gives the squared distances of points, (n, n, 1): smooth, as distances are not."""
    return (x[:, None] - x).square().sum(-1, keepdim=True)


def _radial(squares: Tensor) -> Tensor:
    """Gives smooth functions of distances, at several scales."""
    rates = torch.tensor(RATES, dtype=squares.dtype, device=squares.device)
    return nn.concatenate([torch.log1p(squares), torch.exp(-squares * rates)], -1)


def egnn(
    hidden: int = 64,
    layers: int = 4,
    *,
    coordinates: int = 3,
    cond_dim: int = 0,
    classes: int = 0,
    cond_drop: float = 0.0,
    time_scale: float = 100.0,
    predicts: str = "v",
    gamma_min: float | None = None,
    gamma_max: float | None = None,
) -> Network:
    """Makes a network for points with features, (points, coordinates + features), such as atoms, in which each two that
    exist send messages. Coordinates turn, reflect and move as the latent's do, the output's as vectors; features do not
    change. It takes masks, and with ``subspace=parts.zero_centre(columns=3)`` the bound is the same for a turned example
    (:func:`purevdm.testing.check_rotation`).

    Args:
        hidden: the width of the features inside, a multiple of 4, at least 16.
        layers: how often messages are sent.
        coordinates: how many of the last axis's entries, from the first, are coordinates.
        cond_dim: how many numbers the condition's vector holds; 0 for none.
        classes: how many classes its label takes; 0 for none.
        cond_drop: the rate at which training drops the condition for guidance, when ``apply`` is given a key.
        time_scale: the normalised gamma times this goes into sinusoids.
        predicts: what the output is: "v", "eps" or "x".
        gamma_min, gamma_max: as in :func:`purevdm.networks.mlp`.

    Raises:
        TypeError, ValueError: an argument out of its range.
    """
    hidden = _checks.integer("hidden", hidden, 16)
    if hidden % 4:
        raise ValueError(f"hidden: expected a multiple of 4, got {hidden}")
    return EGNN(
        hidden=hidden,
        layers=_checks.integer("layers", layers, 1),
        coordinates=_checks.integer("coordinates", coordinates, 1),
        time_scale=_checks.positive("time_scale", time_scale),
        **_blocks.shared((), (cond_dim, classes, 0, 0, cond_drop), False, predicts, None, gamma_min, gamma_max),
    )
