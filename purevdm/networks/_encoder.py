"""A U-Net's way down, from data to a few numbers: the encoder of a code (:mod:`purevdm.codes`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm import _apply, _checks, nn, random
from purevdm._compile import fixed
from purevdm._values import Value
from purevdm.networks import _adapter, _blocks
from purevdm.types import Key, Params, Shape

__all__ = ["unet_encoder"]

_RANK = 2


@dataclass(frozen=True)
class UNetEncoder(Value):
    """The map of :func:`unet_encoder`."""

    event_shape: tuple[int, ...]
    out: int
    embed: int
    blocks: int
    fourier: tuple[int, ...]
    dropout: float
    groups: int

    def init(self, key: Key) -> Params:
        embed, (channels, *space) = self.embed, self.event_shape
        keys = random.split(key, 7)
        k_mid = random.split(keys[4], 3).unbind(0)
        return {
            **_blocks.context_init(keys[:2], embed, 1),
            "conv_in": nn.conv_init(keys[2], channels * (1 + 2 * len(self.fourier)), embed),
            "down": {
                str(i): {"resnet": _blocks.resnet_init(k, embed, embed, 4 * embed)}
                for i, k in enumerate(random.split(keys[3], self.blocks).unbind(0))
            },
            "mid": {
                "block1": {
                    "resnet": _blocks.resnet_init(k_mid[0], embed, embed, 4 * embed),
                    "attn": {"0": _blocks.attention_init(k_mid[1], embed)},
                },
                "block2": {"resnet": _blocks.resnet_init(k_mid[2], embed, embed, 4 * embed)},
            },
            "norm_out": nn.group_norm_init(key, embed),
            "conv_out": nn.conv_init(key, embed, 1, kernel_init=nn.zeros),
            "out": nn.dense_init(keys[5], math.prod(space), self.out),
        }

    def apply(self, params: Params, f: Tensor, keys: Tensor | None = None) -> Tensor:
        """Gives (B, out) of encoded data f, (B, *event_shape); keys (B, 2) switch on dropout."""
        n, embed, dtype = len(f), fixed(self.embed), params["dense0"]["kernel"].dtype
        # The official encoder keeps the score network's embedding of time and condition, of zeros.
        zero = torch.zeros((), dtype=dtype, device=f.device)
        context = _blocks.context(params, zero, 1.0, embed, zero[None], None).expand(n, -1)
        x = _apply.over_batch(lambda _, z: _blocks.inputs(z, self.fourier, None, False, None, dtype))({}, f)
        h = nn.conv(params["conv_in"], x)
        shapes, rate = [(embed, *f.shape[2:])] * (self.blocks + 2), fixed(self.dropout)
        masks = _masks(keys, rate, shapes)

        def block(of: Params, h: Tensor) -> Tensor:
            h = _blocks.resnet(of["resnet"], h, context, self.groups, next(masks), rate)
            return _blocks.attend(of["attn"]["0"], h, _adapter.DEFAULTS[_RANK], self.groups) if "attn" in of else h

        for i in range(self.blocks):
            h = block(params["down"][str(i)], h)
        h = block(params["mid"]["block2"], block(params["mid"]["block1"], h))
        h = nn.swish(nn.group_norm(params["norm_out"], h, self.groups, rank=_RANK))
        return nn.dense(params["out"], nn.swish(nn.conv(params["conv_out"], h).reshape(n, -1)))


def _masks(keys: Tensor | None, rate: float, shapes: Sequence[tuple[int, ...]]) -> Any:
    """Yields the dropout masks of a batch's blocks, or None for each."""
    if keys is None or rate == 0.0:
        return iter([None] * len(shapes))
    return iter(torch.func.vmap(lambda k: _blocks.dropout_masks(k, rate, shapes))(keys))  # type: ignore[arg-type]


def unet_encoder(
    event_shape: Shape,
    out: int,
    embed: int = 128,
    blocks: int = 4,
    *,
    fourier: Sequence[int] = (6, 7),
    dropout: float = 0.1,
    groups: int = 32,
) -> Any:
    """Makes the encoder of MuLAN's code (Sahoo et al. 2024, as in the official code): the paper's U-Net as far as its
    middle, one channel of it, and a dense layer of all pixels.

    Args:
        event_shape: (channels, height, width).
        out: how many numbers an example: a code's ``outputs``.
        embed, blocks, fourier, dropout, groups: as for :func:`vdm_unet`; ``blocks`` is the depth.

    Returns:
        A map with ``init(key)`` and ``apply(params, f, keys=None)``, for :func:`purevdm.codes.k_hot` and its kin.

    Raises:
        TypeError, ValueError: arguments out of range, an event that is no image, groups that do not divide ``embed``.

    >>> import torch
    >>> from purevdm import networks, random
    >>> encoder = networks.unet_encoder((3, 8, 8), 10, 32, 1)
    >>> encoder.apply(encoder.init(random.key(0)), torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """
    shape = _checks.integers("event_shape", event_shape, 1)
    if len(shape) != 1 + _RANK:
        raise ValueError(f"event_shape: expected (channels, height, width), got {shape}")
    out, embed, blocks = (_checks.integer(name, x, 1) for name, x in (("out", out), ("embed", embed), ("blocks", blocks)))
    groups = _checks.integer("groups", groups, 1)
    if embed % groups or embed < 4:
        raise ValueError(f"embed, groups: expected embed to be a multiple of groups, at least 4, got {embed} and {groups}")
    rate = _checks.probability("dropout", dropout)
    return UNetEncoder(shape, out, embed, blocks, _blocks.exponents(fourier), rate, groups)
