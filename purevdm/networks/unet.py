"""A U-Net of several resolutions (Ronneberger et al. 2015, with the ResNet blocks and skips of Ho et al. 2020)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from purevdm import _checks, nn, random
from purevdm.networks import _adapter, _blocks, _condition
from purevdm.networks._network import Network


def unet(
    embed: int = 64,
    multipliers: Sequence[int] = (1, 2, 4),
    blocks: int = 2,
    *,
    attention: Sequence[int] = (),
    adapter: str | Sequence[str] = _adapter.DEFAULTS[2],
    heads: int = 4,
    fourier: Sequence[int] = (),
    dropout: float = 0.0,
    cond_dim: int = 0,
    classes: int = 0,
    ctrl_dim: int = 0,
    cond_drop: float = 0.0,
    self_condition: bool = False,
    groups: int = 8,
    remat: bool = False,
    gamma_min: float = -13.3,
    gamma_max: float = 5.0,
) -> Network:
    """A U-Net over signals, images or volumes: ``blocks`` ResNet blocks at each resolution on the way down, two in the
    middle around an attention, ``blocks + 1`` at each on the way up with skips from down, and z added to the output.

    Args:
        embed: the base width.
        multipliers: the width at each resolution, in multiples of ``embed``, the full resolution first. From each to the
            next every size is halved, rounded up; so any size goes, odd ones too.
        blocks: blocks at each resolution.
        attention: at which resolutions (0 is the full one) attention follows every block. The middle always has one.
        adapter: how a feature map becomes tokens, an einops pattern: ``"c h w -> (h w) c"`` lets all places attend to
            all. The channels come first on the left and last on the right; the group before them attends to one
            another, and axes before that are kept apart. Several patterns make several attentions, one after another:
            ``("c h w -> h w c", "c h w -> w h c")`` attends along rows, then along columns. Their axes say how many axes
            of space events have, one to three.
        heads: the heads of each attention.
        fourier: the exponents n of the base-2 Fourier features that go in beside z; () for none.
        dropout: the rate in every block, when ``apply`` is given a key.
        cond_dim: how many numbers the condition's vector holds, appended to the embedding of gamma; 0 for none.
        classes: how many classes its label takes, embedded and added there; 0 for none.
        ctrl_dim: the width of its control sequence, to which every attention is followed by a cross-attention; 0 for none.
        cond_drop: the rate at which training drops the condition for guidance, when ``apply`` is given a key.
        self_condition: whether an earlier estimate of the data goes in beside z.
        groups: the groups of each group norm.
        remat: whether blocks are computed again in the backward pass of ``training.gradients(..., remat=True)``, for less
            memory.
        gamma_min, gamma_max: what the network takes for 0 and 1 when it embeds gamma. They are constants: give the ends
            that the schedule starts from.

    Returns:
        A :class:`~purevdm.networks.Network` for events (channels, *space) of any size, which takes a
        :class:`~purevdm.networks.Condition`.

    Raises:
        TypeError, ValueError: an argument out of its range, widths that the groups or the heads do not divide, patterns
            that are not invertible or of different ranks.

    >>> import torch
    >>> from purevdm import networks, random
    >>> network = networks.unet(16, (1, 2), 1, adapter="c l -> l c", classes=10)
    >>> params = network.init(random.key(0), (2, 45))
    >>> z = random.normal(random.key(1), (2, 45))
    >>> network.apply(params, z, torch.tensor(0.0), cond=torch.tensor(3)).shape
    torch.Size([2, 45])
    """
    embed, blocks = _checks.integer("embed", embed, 4), _checks.integer("blocks", blocks, 1)
    widths = [embed * _checks.integer(f"multipliers[{i}]", m, 1) for i, m in enumerate(multipliers)]
    if not widths:
        raise ValueError("multipliers: expected at least one, got none")
    last = len(widths) - 1
    attended = {_checks.integer("attention", i, 0, last) for i in attention}
    groups, heads = _checks.integer("groups", groups, 1), _checks.integer("heads", heads, 1)
    if embed % groups:
        raise ValueError(f"embed: expected a multiple of the {groups} groups, got {embed}")
    for i in sorted(attended | {last}):
        if widths[i] % heads:
            raise ValueError(f"heads: expected a divisor of the {widths[i]} channels at resolution {i}, got {heads}")
    views = [_adapter.parse(pattern) for pattern in ((adapter,) if isinstance(adapter, str) else adapter)]
    if len({view.rank for view in views}) != 1:
        raise ValueError(f"adapter: expected patterns of as many axes, at least one, got {adapter!r}")
    rank = views[0].rank
    kinds = _condition.kinds(cond_dim, classes, ctrl_dim, cond_drop)
    exponents = tuple(_checks.integer("fourier", n) for n in fourier)
    rate = _checks.probability("dropout", dropout)
    low, high = _checks.increasing("gamma_min", gamma_min, "gamma_max", gamma_max)
    hidden, size = 4 * embed, (3,) * rank
    everywhere = _adapter.parse(_adapter.DEFAULTS[rank])

    def block_init(key: Tensor, n_in: int, n_out: int, with_attention: bool) -> nn.Params:
        k_resnet, k_attn, k_cross = random.split(key, 3)
        params = {"resnet": _blocks.resnet_init(k_resnet, n_in, n_out, hidden, rank)}
        if with_attention:
            keys = random.split(k_attn, len(views))
            params["attn"] = {str(i): _blocks.attention_init(k, n_out) for i, k in enumerate(keys)}
            if kinds.ctrl_dim:
                params["cross"] = _blocks.attention_init(k_cross, n_out, kinds.ctrl_dim)
        return params

    def init(key: Tensor, event_shape: Sequence[int]) -> nn.Params:
        _checks.key("key", key)
        event_shape = _checks.shape("event_shape", event_shape)
        if len(event_shape) != 1 + rank:
            raise ValueError(
                f"event_shape: expected channels and {rank} axes of space, as the adapter has, got {event_shape}"
            )
        channels = event_shape[0]
        n_in = channels * (1 + 2 * len(exponents) + self_condition)
        keys = random.split(key, 7)
        k_in, k_down, k_mid, k_up, k_cond = keys[2:]
        down, up, skips, n = {}, {}, [embed], embed
        for i, (width, k) in enumerate(zip(widths, random.split(k_down, len(widths)), strict=True)):
            k_blocks, k_sample = random.split(k)
            level = {}
            for j, k_block in enumerate(random.split(k_blocks, blocks)):
                level[str(j)] = block_init(k_block, n, width, i in attended)
                n = width
                skips.append(n)
            if i < last:
                level["sample"] = nn.conv_init(k_sample, n, n, size)
                skips.append(n)
            down[str(i)] = level
        mid = {
            "block1": block_init(random.fold_in(k_mid, 0), n, n, True),
            "block2": block_init(random.fold_in(k_mid, 1), n, n, False),
        }
        for i, k in zip(range(last, -1, -1), random.split(k_up, len(widths)), strict=True):
            k_blocks, k_sample = random.split(k)
            level = {}
            for j, k_block in enumerate(random.split(k_blocks, blocks + 1)):
                level[str(j)] = block_init(k_block, n + skips.pop(), widths[i], i in attended)
                n = widths[i]
            if i > 0:
                level["sample"] = nn.conv_init(k_sample, n, n, size)
            up[str(i)] = level
        return {
            **_blocks.context_init(keys[:2], embed, kinds.cond_dim),
            **_condition.init(kinds, k_cond, hidden),
            "conv_in": nn.conv_init(k_in, n_in, embed, size),
            "down": down,
            "mid": mid,
            "up": up,
            "norm_out": nn.group_norm_init(key, n),
            "conv_out": nn.conv_init(key, n, channels, size, kernel_init=nn.zeros),
        }

    def mask_shapes(space: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The shapes that dropout meets, in the order of the forward pass."""
        spaces = [space]
        while len(spaces) < len(widths):
            spaces.append(tuple((n + 1) // 2 for n in spaces[-1]))
        maps = [(width, *space) for width, space in zip(widths, spaces, strict=True)]
        down = [shape for shape in maps for _ in range(blocks)]
        return [*down, maps[-1], maps[-1], *(shape for shape in reversed(maps) for _ in range(blocks + 1))]

    def apply(
        params: nn.Params,
        z: Tensor,
        gamma: Tensor,
        cond: Any = None,
        key: Tensor | None = None,
        x_hat: Tensor | None = None,
    ) -> Tensor:
        _checks.shaped("gamma", gamma, ())
        if z.ndim != 1 + rank:
            raise ValueError(f"z: expected channels and {rank} axes of space, got {_checks.describe(z)}")
        k_dropout, k_cond = _blocks.keys(key)
        given = _condition.read(kinds, params, cond, z, k_cond)
        context = _blocks.context(params, _blocks.level(gamma, low, high), embed, given.vector, given.label)
        keep = iter(_blocks.dropout_masks(k_dropout, rate, mask_shapes(tuple(z.shape[1:]))))

        def fresh(params: nn.Params, x: Tensor, context: Tensor, mask: Tensor | None, ctrl: Tensor | None) -> Tensor:
            x = _blocks.resnet(params["resnet"], x, context, groups, mask, rate)
            if "attn" in params:
                for i, view in enumerate(views):
                    x = _blocks.attend(params["attn"][str(i)], x, view, groups, heads)
            if "cross" in params:
                x = _blocks.attend(params["cross"], x, everywhere, groups, heads, ctrl)
            return x

        again = _blocks.rematerialised(fresh, remat)

        def block(params: nn.Params, x: Tensor) -> Tensor:
            return again(params, x, context, next(keep), given.ctrl)

        dtype = params["dense0"]["kernel"].dtype
        h = nn.conv(params["conv_in"], _blocks.inputs(z, exponents, x_hat, self_condition, dtype))
        skips = [h]
        for i in range(len(widths)):
            level = params["down"][str(i)]
            for j in range(blocks):
                h = block(level[str(j)], h)
                skips.append(h)
            if i < last:
                h = nn.conv(level["sample"], h, stride=2)
                skips.append(h)
        h = block(params["mid"]["block1"], h)
        h = block(params["mid"]["block2"], h)
        for i in range(last, -1, -1):
            level = params["up"][str(i)]
            for j in range(blocks + 1):
                h = block(level[str(j)], nn.concatenate([h, skips.pop()]))
            if i > 0:
                h = nn.conv(level["sample"], nn.upsample(h, skips[-1].shape[1:]))
        h = nn.conv(params["conv_out"], nn.swish(nn.group_norm(params["norm_out"], h, groups)))
        return z + h.to(z.dtype)

    return Network(init, apply, self_condition)
