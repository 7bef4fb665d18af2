"""The paper's score network: a U-Net that never leaves the full resolution (App. B, and the official code)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from purevdm import _checks, nn, random
from purevdm.networks import _adapter, _blocks, _condition
from purevdm.networks._network import Network


def vdm_unet(
    embed: int = 128,
    layers: int = 32,
    *,
    attention: bool = False,
    fourier: Sequence[int] = (6, 7),
    dropout: float = 0.1,
    cond_dim: int = 0,
    classes: int = 0,
    cond_drop: float = 0.0,
    self_condition: bool = False,
    groups: int = 32,
    remat: bool = False,
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
        cond_dim: how many numbers the condition's vector holds, appended to the embedding of gamma; 0 for none.
        classes: how many classes its label takes, embedded and added there; 0 for none.
        cond_drop: the rate at which training drops the condition for guidance, when ``apply`` is given a key.
        self_condition: whether an earlier estimate of the data goes in beside z.
        groups: the groups of each group norm.
        remat: whether blocks are computed again in the backward pass of ``training.gradients(..., remat=True)``, for less
            memory.
        gamma_min, gamma_max: what the network takes for 0 and 1 when it embeds gamma. They are constants: give the ends
            that the schedule starts from.

    Returns:
        A :class:`~purevdm.networks.Network` for events (channels, height, width) of any size.

    Raises:
        TypeError, ValueError: an argument out of its range, or an ``embed`` that the groups do not divide.
    """
    embed, layers = _checks.integer("embed", embed, 4), _checks.integer("layers", layers, 1)
    groups = _checks.integer("groups", groups, 1)
    if embed % groups:
        raise ValueError(f"embed: expected a multiple of the {groups} groups, got {embed}")
    kinds = _condition.kinds(cond_dim, classes, 0, cond_drop)
    exponents = tuple(_checks.integer("fourier", n) for n in fourier)
    rate = _checks.probability("dropout", dropout)
    low, high = _checks.increasing("gamma_min", gamma_min, "gamma_max", gamma_max)
    hidden = 4 * embed
    all_places = _adapter.parse(_adapter.DEFAULTS[2])

    def block_init(key: Tensor, n_in: int, with_attention: bool) -> nn.Params:
        params = _blocks.resnet_init(key, n_in, embed, hidden)
        if with_attention:
            params["attn"] = _blocks.attention_init(random.split(key, 5)[4], embed)
        return params

    def init(key: Tensor, event_shape: Sequence[int]) -> nn.Params:
        _checks.key("key", key)
        event_shape = _checks.shape("event_shape", event_shape)
        if len(event_shape) != 3:
            raise ValueError(f"event_shape: vdm_unet expects (channels, height, width), got {event_shape}")
        channels = event_shape[0]
        n_in = channels * (1 + 2 * len(exponents) + self_condition)
        keys = random.split(key, 7)
        k_in, k_down, k_mid, k_up, k_cond = keys[2:]
        return {
            **_blocks.context_init(keys[:2], embed, kinds.cond_dim),
            **_condition.init(kinds, k_cond, hidden),
            "conv_in": nn.conv_init(k_in, n_in, embed),
            "down": {str(i): block_init(k, embed, attention) for i, k in enumerate(random.split(k_down, layers))},
            "mid": {
                "block1": block_init(random.fold_in(k_mid, 0), embed, True),
                "block2": block_init(random.fold_in(k_mid, 1), embed, False),
            },
            "up": {str(i): block_init(k, 2 * embed, attention) for i, k in enumerate(random.split(k_up, layers + 1))},
            "norm_out": nn.group_norm_init(key, embed),
            "conv_out": nn.conv_init(key, embed, channels, kernel_init=nn.zeros),
        }

    def apply(
        params: nn.Params,
        z: Tensor,
        gamma: Tensor,
        cond: Any = None,
        key: Tensor | None = None,
        x_hat: Tensor | None = None,
    ) -> Tensor:
        _checks.shaped("gamma", gamma, ())
        if z.ndim != 3:
            raise ValueError(f"z: vdm_unet expects (channels, height, width), got {_checks.describe(z)}")
        k_dropout, k_cond = _blocks.keys(key)
        given = _condition.read(kinds, params, cond, z, k_cond)
        context = _blocks.context(params, _blocks.level(gamma, low, high), embed, given.vector, given.label)
        keep = iter(_blocks.dropout_masks(k_dropout, rate, [(embed, *z.shape[1:])] * (2 * layers + 3)))

        def fresh(params: nn.Params, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
            x = _blocks.resnet(params, x, context, groups, mask, rate)
            return _blocks.attend(params["attn"], x, all_places, groups) if "attn" in params else x

        again = _blocks.rematerialised(fresh, remat)

        def block(params: nn.Params, x: Tensor) -> Tensor:
            return again(params, x, context, next(keep))

        dtype = params["dense0"]["kernel"].dtype
        h = nn.conv(params["conv_in"], _blocks.inputs(z, exponents, x_hat, self_condition, dtype))
        skips = [h]
        for i in range(layers):
            h = block(params["down"][str(i)], h)
            skips.append(h)
        h = block(params["mid"]["block1"], h)
        h = block(params["mid"]["block2"], h)
        for i in range(layers + 1):
            h = block(params["up"][str(i)], nn.concatenate([h, skips.pop()]))
        h = nn.conv(params["conv_out"], nn.swish(nn.group_norm(params["norm_out"], h, groups)))
        return z + h.to(z.dtype)

    return Network(init, apply, self_condition)
