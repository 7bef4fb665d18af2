"""The paper's score network: a U-Net that never leaves the full resolution (App. B, and the official code)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from purevdm import _checks, nn, random
from purevdm.networks._network import Network, condition


def vdm_unet(
    embed: int = 128,
    layers: int = 32,
    *,
    attention: bool = False,
    fourier: Sequence[int] = (6, 7),
    dropout: float = 0.1,
    cond_dim: int = 0,
    groups: int = 32,
    gamma_min: float = -13.3,
    gamma_max: float = 5.0,
) -> Network:
    """The U-Net of the paper: ResNet blocks at one resolution, ``layers`` down, two in the middle around an attention,
    ``layers + 1`` up with skips from down, and z added to the output. Exactly the official network, channels first.

    Args:
        embed: the width.
        layers: the depth of each half.
        attention: whether attention follows every block, or the first of the middle's alone.
        fourier: the exponents n of the base-2 Fourier features that go in beside z; () for none.
        dropout: the rate in every block, when ``apply`` is given a key.
        cond_dim: how many numbers ``cond`` holds, appended to the embedding of gamma; 0 for no condition.
        groups: the groups of each group norm.
        gamma_min, gamma_max: what the network takes for 0 and 1 when it embeds gamma. They are constants: give the ends
            that the schedule starts from.

    Returns:
        A :class:`~purevdm.networks.Network` for events (channels, height, width) of any size.

    Raises:
        TypeError, ValueError: an argument out of its range, or an ``embed`` that the groups do not divide.
    """
    embed, layers = _checks.integer("embed", embed, 4), _checks.integer("layers", layers, 1)
    groups, cond_dim = _checks.integer("groups", groups, 1), _checks.integer("cond_dim", cond_dim, 0)
    if embed % groups:
        raise ValueError(f"embed: expected a multiple of the {groups} groups, got {embed}")
    exponents = tuple(_checks.integer("fourier", n) for n in fourier)
    rate = _checks.probability("dropout", dropout)
    low, high = _checks.increasing("gamma_min", gamma_min, "gamma_max", gamma_max)
    hidden = 4 * embed

    def block_init(key: Tensor, n_in: int, with_attention: bool) -> nn.Params:
        keys = random.split(key, 5)
        params = {
            "norm1": nn.group_norm_init(key, n_in),
            "conv1": nn.conv_init(keys[0], n_in, embed),
            "cond_proj": nn.dense_init(keys[1], hidden, embed, bias=False, kernel_init=nn.zeros),
            "norm2": nn.group_norm_init(key, embed),
            "conv2": nn.conv_init(keys[2], embed, embed, kernel_init=nn.zeros),
        }
        if n_in != embed:
            params["nin_shortcut"] = nn.dense_init(keys[3], n_in, embed)
        if with_attention:
            params["attn"] = attention_init(keys[4])
        return params

    def attention_init(key: Tensor) -> nn.Params:
        keys = random.split(key, 3)
        return {
            "norm": nn.group_norm_init(key, embed),
            **{name: nn.dense_init(k, embed, embed) for name, k in zip("qkv", keys, strict=True)},
            "proj_out": nn.dense_init(key, embed, embed, kernel_init=nn.zeros),
        }

    def init(key: Tensor, event_shape: Sequence[int]) -> nn.Params:
        _checks.key("key", key)
        event_shape = _checks.shape("event_shape", event_shape)
        if len(event_shape) != 3:
            raise ValueError(f"event_shape: vdm_unet expects (channels, height, width), got {event_shape}")
        channels = event_shape[0]
        k_dense0, k_dense1, k_in, k_down, k_mid, k_up = random.split(key, 6)
        return {
            "dense0": nn.dense_init(k_dense0, embed + cond_dim, hidden),
            "dense1": nn.dense_init(k_dense1, hidden, hidden),
            "conv_in": nn.conv_init(k_in, channels * (1 + 2 * len(exponents)), embed),
            "down": {str(i): block_init(k, embed, attention) for i, k in enumerate(random.split(k_down, layers))},
            "mid": {
                "block1": block_init(random.fold_in(k_mid, 0), embed, True),
                "block2": block_init(random.fold_in(k_mid, 1), embed, False),
            },
            "up": {str(i): block_init(k, 2 * embed, attention) for i, k in enumerate(random.split(k_up, layers + 1))},
            "norm_out": nn.group_norm_init(key, embed),
            "conv_out": nn.conv_init(key, embed, channels, kernel_init=nn.zeros),
        }

    def attend(params: nn.Params, x: Tensor) -> Tensor:
        tokens = rearrange(nn.group_norm(params["norm"], x, groups), "c h w -> (h w) c")
        q, k, v = (nn.dense(params[name], tokens) for name in "qkv")
        out = nn.dense(params["proj_out"], nn.attention(q, k, v))
        return x + rearrange(out, "(h w) c -> c h w", h=x.shape[1])

    def block(params: nn.Params, x: Tensor, context: Tensor, keep: Tensor | None) -> Tensor:
        h = nn.conv(params["conv1"], F.silu(nn.group_norm(params["norm1"], x, groups)))
        h = h + nn.dense(params["cond_proj"], context)[:, None, None]
        h = F.silu(nn.group_norm(params["norm2"], h, groups))
        if keep is not None:
            h = nn.dropout(keep, h, rate)
        h = nn.conv(params["conv2"], h)
        x = (nn.pointwise(params["nin_shortcut"], x) if "nin_shortcut" in params else x) + h
        return attend(params["attn"], x) if "attn" in params else x

    def apply(params: nn.Params, z: Tensor, gamma: Tensor, cond: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        _checks.shaped("gamma", gamma, ())
        if z.ndim != 3:
            raise ValueError(f"z: vdm_unet expects (channels, height, width), got {_checks.describe(z)}")
        context = nn.timestep_embedding(1000.0 * ((gamma - low) / (high - low)), embed)
        extra = condition(cond, cond_dim, z)
        context = context if extra is None else torch.cat([context, extra])
        context = F.silu(nn.dense(params["dense0"], context))
        context = F.silu(nn.dense(params["dense1"], context))

        # One draw for the masks of all blocks, in the order of the forward pass.
        masks: list[Tensor | None] = [None] * (2 * layers + 3)
        if key is not None and rate > 0.0:
            masks = list(random.bernoulli(key, 1.0 - rate, (len(masks), embed, *z.shape[1:])).unbind(0))
        keep = iter(masks)

        h = nn.conv(params["conv_in"], torch.cat([z, nn.fourier_features(z, exponents)]) if exponents else z)
        skips = [h]
        for i in range(layers):
            h = block(params["down"][str(i)], h, context, next(keep))
            skips.append(h)
        h = block(params["mid"]["block1"], h, context, next(keep))
        h = block(params["mid"]["block2"], h, context, next(keep))
        for i in range(layers + 1):
            h = block(params["up"][str(i)], torch.cat([h, skips.pop()]), context, next(keep))
        return z + nn.conv(params["conv_out"], F.silu(nn.group_norm(params["norm_out"], h, groups)))

    return Network(init, apply)
