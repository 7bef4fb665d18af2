"""A transformer over the elements of a set or a sequence, with the noise level in its norms, as in a DiT (Peebles & Xie
2023, arXiv 2212.09748)."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from purevdm import _apply, _checks, nn, random
from purevdm._compile import fixed
from purevdm.networks import _blocks, _condition
from purevdm.networks._network import Network
from purevdm.types import Key, Params, Shape

__all__ = ["transformer"]


@dataclass(frozen=True, kw_only=True)
class Transformer(_blocks.Own):
    """The network of :func:`transformer`."""

    width: int
    layers: int
    heads: int
    positions: bool
    dropout: float
    remat: bool
    time_scale: float

    batched = True
    masked = True

    @property
    def residual(self) -> bool:  # type: ignore[override]
        return self.predicts == "eps" and self.outputs is None

    def init(self, key: Key, event_shape: Shape) -> Params:
        _checks.key("key", key)
        event_shape = _checks.shape("event_shape", event_shape)
        if len(event_shape) != 2:
            raise ValueError(f"event_shape: expected elements and their numbers, (n, d), got {event_shape}")
        width, d = self.width, event_shape[1]
        k_0, k_1, k_cond, k_in, k_layers = random.split(key, 5).unbind(0)

        def modulation(parts: int) -> Params:
            return nn.dense_init(key, width, parts * width, kernel_init=nn.zeros)

        def layer(key: Key) -> Params:
            sizes = {"qkv": (width, 3 * width), "proj": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
            keys = random.split(key, len(sizes)).unbind(0)
            dense = {name: nn.dense_init(k, *size) for k, (name, size) in zip(keys, sizes.items(), strict=True)}
            return dense | {"modulation": modulation(6)}

        return {
            **_blocks.context_init(torch.stack([k_0, k_1]), width // 4, self.condition.cond_dim),
            **_condition.init(self.condition, k_cond, width),
            "into": nn.dense_init(k_in, d * (1 + 2 * len(self.fourier) + self.self_condition), width),
            "layers": {str(i): layer(k) for i, k in enumerate(random.split(k_layers, self.layers).unbind(0))},
            "modulation": modulation(2),
            "out": nn.dense_init(key, width, d * (self.outputs or 1), kernel_init=nn.zeros),
        }

    def apply(
        self,
        params: Params,
        z: Tensor,
        gamma: Tensor,
        cond: Any = None,
        key: Tensor | None = None,
        x_hat: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        there = None if mask is None else mask.expand_as(z).any(-1)[:, None, None]  # (B, heads, queries, keys)
        block = _blocks.rematerialised(partial(_block, self.heads, fixed(self.dropout)), self.remat)
        h, context, *keeps = _apply.over_batch(partial(_enter, self))(params, z, gamma, cond, key, x_hat)
        for i in range(self.layers):
            h = block(params["layers"][str(i)], h, context, there, *keeps[2 * i : 2 * i + 2])
        shift, scale = _modulation(params, context, 2)
        out = nn.dense(params["out"], _normed(h, shift, scale))
        return out if self.outputs is None else out.unflatten(-1, (-1, self.outputs))


def _enter(
    settings: Transformer, params: Params, z: Tensor, gamma: Tensor, cond: Any, key: Key | None, x_hat: Tensor | None
) -> tuple[Tensor, ...]:
    """Computes one example's tokens, its context, and two dropout masks for each layer, or none."""
    if z.ndim != 2:
        raise ValueError(f"z: expected elements and their numbers, (n, d), got {_checks.describe(z)}")
    level, width, dtype = _blocks.normalised(gamma, settings.ends(), z), settings.width, params["out"]["kernel"].dtype
    k_dropout, k_cond = _blocks.split_key(key)
    given = _condition.read(settings.condition, params, cond, z, k_cond)
    context = _blocks.context(params, level, fixed(settings.time_scale), width // 4, given.vector, given.label)
    estimate = None if x_hat is None else x_hat.mT  # numbers first, as channels of a map
    h = _blocks.inputs(z.mT, settings.fourier, estimate, settings.self_condition, None, dtype)
    h = nn.dense(params["into"], h.mT)
    if settings.positions:
        angles = torch.func.vmap(lambda i: nn.timestep_embedding(i, width))(
            torch.arange(len(z), dtype=z.dtype, device=z.device)
        )
        h = h + angles.to(dtype)
    keeps = _blocks.dropout_masks(k_dropout, fixed(settings.dropout), [(len(z), width)] * (2 * settings.layers))
    return h, context, *(keeps or ())


def _block(
    heads: int, rate: float, params: Params, h: Tensor, context: Tensor, there: Tensor | None, *keeps: Tensor
) -> Tensor:
    """Applies attention, then two dense layers to each element; ``keeps`` are dropout's masks."""
    shift, scale, gate, shift_2, scale_2, gate_2 = _modulation(params, context, 6)

    def dropped(h: Tensor, i: int) -> Tensor:
        return nn.dropout(keeps[i], h, rate) if keeps else h

    parts = nn.dense(params["qkv"], _normed(h, shift, scale)).unflatten(-1, (3, heads, -1))
    q, k, v = parts.movedim(-2, -4).unbind(-2)  # each (B, heads, elements, width / heads)
    # A CPU's other kernels have no tangent and no second derivative, and are no faster at the sizes of sets.
    with sdpa_kernel(SDPBackend.MATH) if h.device.type == "cpu" else nullcontext():
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=there)
    h = h + gate * dropped(nn.dense(params["proj"], attended.movedim(-3, -2).flatten(-2)), 0)
    up = nn.swish(nn.dense(params["up"], _normed(h, shift_2, scale_2)))
    return h + gate_2 * dropped(nn.dense(params["down"], up), 1)


def _modulation(params: Params, context: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Computes the shifts, scales and gates that the context gives each element, (B, 1, width) each."""
    return nn.dense(params["modulation"], context)[:, None].unflatten(-1, (parts, -1)).unbind(-2)


def _normed(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1.0 + scale) + shift


def transformer(
    width: int = 128,
    layers: int = 4,
    *,
    heads: int = 4,
    positions: bool = False,
    fourier: Sequence[int] = (),
    dropout: float = 0.0,
    cond_dim: int = 0,
    classes: int = 0,
    cond_drop: float = 0.0,
    self_condition: bool = False,
    remat: bool = False,
    predicts: str = "eps",
    outputs: int | None = None,
    gamma_min: float | None = None,
    gamma_max: float | None = None,
    time_scale: float = 1000.0,
) -> Network:
    """Makes a transformer over sets or sequences of any length. Where they are padded, no element attends to what does not
    exist.

    Each block is an attention of all elements to all, and two dense layers. The noise level and the condition shift, scale
    and gate both. Attention is torch's own: on a CPU by the kernel that has derivatives of every kind. Elsewhere torch
    chooses, and its fast kernels have a first derivative only; for others, call the model within
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.

    Args:
        width: of the elements inside, a multiple of 4 and of ``heads``, at least 16.
        layers: how many blocks.
        heads: of each attention.
        positions: whether elements are told their index, by sinusoids. Without it, permuted elements have permuted outputs.
        fourier: the exponents n of the base-2 Fourier features that go in beside z; () for none.
        dropout: the rate after attention and dense layers, when ``apply`` is given a key.
        cond_dim, classes, cond_drop: the condition's vector and label, embedded beside gamma, as for :func:`unet`.
        self_condition, remat, predicts, outputs, gamma_min, gamma_max, time_scale: as for :func:`unet`.

    Returns:
        A :class:`~purevdm.networks.Network` for events (n, d), n elements of d numbers, batched and masked.

    Raises:
        TypeError, ValueError: an argument out of its range.

    >>> import torch
    >>> from purevdm import networks, random
    >>> network = networks.transformer(16, 1)
    >>> params, z = network.init(random.key(0), (9, 3)), random.normal(random.key(1), (2, 9, 3))
    >>> mask = (torch.arange(9) < torch.tensor([[4], [9]]))[..., None]  # sets of 4 and 9 elements
    >>> network.apply(params, z, torch.zeros(2), mask=mask).shape
    torch.Size([2, 9, 3])
    """
    width, heads = _checks.integer("width", width, 16), _checks.integer("heads", heads, 1)
    for name, divisor in (("4", 4), ("heads", heads)):
        if width % divisor:
            raise ValueError(f"width, heads: expected width to be a multiple of {name}, got {width} and {heads}")
    return Transformer(
        width=width,
        layers=_checks.integer("layers", layers, 1),
        heads=heads,
        positions=_checks.boolean("positions", positions),
        dropout=_checks.probability("dropout", dropout),
        remat=_checks.boolean("remat", remat),
        time_scale=_checks.positive("time_scale", time_scale),
        **_blocks.shared(
            fourier, (cond_dim, classes, 0, 0, cond_drop), self_condition, predicts, outputs, gamma_min, gamma_max
        ),
    )
