"""The U-Net: its parameters, and its application to one example and to a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from purevdm import _apply, _checks, _sharding, nn, random
from purevdm._compile import fixed, materialize
from purevdm.networks import _adapter, _blocks, _condition
from purevdm.types import Key, Params, Shape


class Inside(NamedTuple):
    """The settings of a block, as a region takes them: numbers and strings. Patterns, and paddings, are joined by ";"."""

    groups: int
    heads: int
    dropout: float
    rank: int
    adapter: str
    padding: str


@dataclass(frozen=True, kw_only=True)
class UNet(_blocks.Own):
    """The network of :func:`unet`.

    Attributes:
        owned_buffers: whether a compiler was told not to reuse buffers, so that regions work under gradients.
    """

    embed: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    adapter: tuple[str, ...]
    heads: int
    dropout: float
    groups: int
    remat: bool
    time_scale: float
    padding: tuple[str, ...]
    add_z: bool = False
    owned_buffers: bool = False

    @property
    def residual(self) -> bool:  # type: ignore[override]
        return self.outputs is None and (self.add_z or self.predicts == "eps")

    def init(self, key: Key, event_shape: Shape) -> Params:
        return _init(self, key, event_shape)

    def apply(
        self, params: Params, z: Tensor, gamma: Tensor, cond: Any = None, key: Key | None = None, x_hat: Tensor | None = None
    ) -> Tensor:
        return _forward(self, partial(_enter, self), (_resnet, _attend), params, z, gamma, cond, key, x_hat)

    def apply_to_batch(
        self, params: Params, z: Tensor, gamma: Tensor, cond: Any = None, key: Key | None = None, x_hat: Tensor | None = None
    ) -> Tensor:
        """Does :meth:`apply` for a batch without mapping blocks over it; see :mod:`purevdm._apply`."""
        enter = _apply.over_batch(partial(_enter, self))
        return _forward(self, enter, (_resnet, _attend), params, z, gamma, cond, key, x_hat)

    def apply_by_regions(
        self, params: Params, z: Tensor, gamma: Tensor, cond: Any = None, key: Key | None = None, x_hat: Tensor | None = None
    ) -> Tensor:
        """Does :meth:`apply_to_batch` with blocks as regions of a compiled graph."""
        enter = _apply.over_batch(partial(_enter, self))
        return _forward(self, enter, (_resnet_region, _attend_region), params, z, gamma, cond, key, x_hat)

    @property
    def widths(self) -> list[int]:
        """The channels at each resolution."""
        return [self.embed * m for m in self.multipliers]

    @property
    def rank(self) -> int:
        """How many axes of space."""
        return _adapter.axes_of_space(self.adapter[0])

    @property
    def inside(self) -> Inside:
        return Inside(self.groups, self.heads, self.dropout, self.rank, ";".join(self.adapter), ";".join(self.padding))


# Parameters


def _block_init(settings: UNet, key: Key, n_in: int, n_out: int, with_attention: bool) -> Params:
    k_resnet, k_attn, k_cross = random.split(key, 3)
    params = {"resnet": _blocks.resnet_init(k_resnet, n_in, n_out, 4 * settings.embed, settings.rank)}
    if with_attention:
        keys = random.split(k_attn, len(settings.adapter))
        params["attn"] = {str(i): _blocks.attention_init(k, n_out) for i, k in enumerate(keys)}
        if settings.condition.ctrl_dim:
            params["cross"] = _blocks.attention_init(k_cross, n_out, settings.condition.ctrl_dim)
    return params


def _init(settings: UNet, key: Key, event_shape: Shape) -> Params:
    _checks.key("key", key)
    event_shape = _checks.shape("event_shape", event_shape)
    rank, embed, blocks, widths = settings.rank, settings.embed, settings.blocks, settings.widths
    if len(event_shape) != 1 + rank:
        raise ValueError(f"event_shape: expected channels and {rank} axes of space, as the adapter has, got {event_shape}")
    channels, last, size = event_shape[0], len(widths) - 1, (3,) * rank
    n_in = channels * (1 + 2 * len(settings.fourier) + settings.self_condition) + settings.condition.map_channels
    keys = random.split(key, 7)
    k_in, k_down, k_mid, k_up, k_cond = keys[2:]
    down, up, skips, n = {}, {}, [embed], embed
    for i, (width, k) in enumerate(zip(widths, random.split(k_down, len(widths)), strict=True)):
        k_blocks, k_sample = random.split(k)
        resolution = {}
        for j, k_block in enumerate(random.split(k_blocks, blocks)):
            resolution[str(j)] = _block_init(settings, k_block, n, width, i in settings.attention)
            n = width
            skips.append(n)
        if i < last:
            resolution["sample"] = nn.conv_init(k_sample, n, n, size)
            skips.append(n)
        down[str(i)] = resolution
    mid = {
        "block1": _block_init(settings, random.fold_in(k_mid, 0), n, n, True),
        "block2": _block_init(settings, random.fold_in(k_mid, 1), n, n, False),
    }
    for i, k in zip(range(last, -1, -1), random.split(k_up, len(widths)), strict=True):
        k_blocks, k_sample = random.split(k)
        resolution = {}
        for j, k_block in enumerate(random.split(k_blocks, blocks + 1)):
            resolution[str(j)] = _block_init(settings, k_block, n + skips.pop(), widths[i], i in settings.attention)
            n = widths[i]
        if i > 0:
            resolution["sample"] = nn.conv_init(k_sample, n, n, size)
        up[str(i)] = resolution
    return {
        **_blocks.context_init(keys[:2], embed, settings.condition.cond_dim),
        **_condition.init(settings.condition, k_cond, 4 * embed),
        "conv_in": nn.conv_init(k_in, n_in, embed, size),
        "down": down,
        "mid": mid,
        "up": up,
        "norm_out": nn.group_norm_init(key, n),
        "conv_out": nn.conv_init(key, n, channels * (settings.outputs or 1), size, kernel_init=nn.zeros),
    }


# Application


def _mask_shapes(settings: UNet, space: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Lists the shapes of the dropout masks, in the order of the forward pass."""
    widths, blocks, spaces = settings.widths, settings.blocks, [space]
    while len(spaces) < len(widths):
        spaces.append(tuple((n + 1) // 2 for n in spaces[-1]))
    maps = [(width, *space) for width, space in zip(widths, spaces, strict=True)]
    down = [shape for shape in maps for _ in range(blocks)]
    return [*down, maps[-1], maps[-1], *(shape for shape in reversed(maps) for _ in range(blocks + 1))]


def _resnet(settings: Inside, params: Params, context: Tensor, mask: Tensor | None, *maps: Tensor) -> Tensor:
    x = nn.concatenate(maps, -settings.rank - 1) if len(maps) > 1 else maps[0]
    padding = settings.padding.split(";")
    return _blocks.resnet(params, x, context, settings.groups, mask, fixed(settings.dropout), padding)


def _attend(settings: Inside, params: Params, x: Tensor, ctrl: Tensor | None) -> Tensor:
    groups, heads = settings.groups, settings.heads
    for i, pattern in enumerate(settings.adapter.split(";")):
        x = _blocks.attend(params["attn"][str(i)], x, pattern, groups, heads)
    if "cross" in params:
        x = _blocks.attend(params["cross"], x, _adapter.DEFAULTS[settings.rank], groups, heads, ctrl)
    return x


@_apply.region(Inside)
def _resnet_region(settings: Inside, params: Params, context: Tensor, mask: Tensor | None, *maps: Tensor) -> Tensor:
    if len(maps) > 1:  # the derivative of a concatenation is two strided parts of one tensor, which would be another region
        maps = tuple(materialize(x) for x in maps)
    return _resnet(settings, params, context, mask, *maps)


_attend_region = _apply.region(Inside)(_attend)


def _block(
    resnet: Callable[..., Tensor],
    attend: Callable[..., Tensor],
    params: Params,
    settings: Inside,
    context: Tensor,
    mask: Tensor | None,
    ctrl: Tensor | None,
    *maps: Tensor,
) -> Tensor:
    """Applies a ResNet block, and attention where there are parameters for it: two regions, as most blocks share only the
    first."""
    x = resnet(settings, params["resnet"], context, mask, *maps)
    rest = {name: params[name] for name in ("attn", "cross") if name in params}
    return attend(settings, rest, x, ctrl) if rest else x


def _enter(
    settings: UNet, params: Params, z: Tensor, gamma: Tensor, cond: Any, key: Key | None, x_hat: Tensor | None
) -> dict[str, Any]:
    """Computes the first feature map, and the blocks' further inputs: the context, a dropout mask for each, and the control
    sequence, where there is one."""
    if z.ndim != 1 + settings.rank:
        raise ValueError(f"z: expected channels and {settings.rank} axes of space, got {_checks.describe(z)}")
    level = _blocks.normalised(gamma, settings.ends(), z)
    k_dropout, k_cond = _blocks.split_key(key)
    given = _condition.read(settings.condition, params, cond, z, k_cond)
    context = _blocks.context(params, level, fixed(settings.time_scale), settings.embed, given.vector, given.label)
    masks = _blocks.dropout_masks(k_dropout, fixed(settings.dropout), _mask_shapes(settings, tuple(z.shape[1:])))
    dtype = params["dense0"]["kernel"].dtype
    x = _blocks.inputs(z, settings.fourier, x_hat, settings.self_condition, given.map, dtype)
    h = nn.conv(params["conv_in"], x, padding=settings.padding)
    start = {"h": h, "context": context, "masks": masks, "ctrl": given.ctrl}
    return {name: value for name, value in start.items() if value is not None}


def _down(settings: UNet, params: Params, h: Tensor) -> Tensor:
    return nn.conv(params, h, 2, settings.padding)


def _up(settings: UNet, params: Params, h: Tensor, skip: Tensor) -> Tensor:
    return nn.conv(params, nn.upsample(h, skip.shape[-settings.rank :]), padding=settings.padding)


def _leave(settings: UNet, params: Params, h: Tensor) -> Tensor:
    channels = -settings.rank - 1
    h = nn.swish(nn.group_norm(params["norm_out"], h, settings.groups, rank=settings.rank))
    h = nn.conv(params["conv_out"], h, padding=settings.padding)
    return h if settings.outputs is None else h.unflatten(channels, (-1, settings.outputs)).movedim(channels, -1)


def _forward(
    settings: UNet,
    enter: Callable[..., dict[str, Any]],
    kinds: tuple[Callable[..., Tensor], Callable[..., Tensor]],
    params: Params,
    *given: Any,
) -> Tensor:
    """Goes down, through the middle and up, for one example or a batch, whichever ``enter`` takes; ``kinds`` are the two
    parts of a block."""
    ends = {name: branch for name, branch in params.items() if name not in ("down", "mid", "up")}
    ends, in_blocks = _sharding.block(ends, settings.dtype), partial(_sharding.in_blocks, dtype=settings.dtype)
    start = enter(ends, *given)
    h, masks, inside = start["h"], iter(start.get("masks", ())), settings.inside
    apply_block = _blocks.rematerialised(in_blocks(partial(_block, *kinds), keep=settings.remat), settings.remat)
    down, up = (in_blocks(partial(f, settings), keep=False) for f in (_down, _up))

    def block(params: Params, *maps: Tensor) -> Tensor:
        return apply_block(params, inside, start["context"], next(masks, None), start.get("ctrl"), *maps)

    last = len(settings.multipliers) - 1
    skips = [h]
    for i in range(last + 1):
        resolution = params["down"][str(i)]
        for j in range(settings.blocks):
            h = block(resolution[str(j)], h)
            skips.append(h)
        if i < last:
            h = down(resolution["sample"], h)
            skips.append(h)
    h = block(params["mid"]["block1"], h)
    h = block(params["mid"]["block2"], h)
    for i in range(last, -1, -1):
        resolution = params["up"][str(i)]
        for j in range(settings.blocks + 1):
            h = block(resolution[str(j)], h, skips.pop())
        if i > 0:
            h = up(resolution["sample"], h, skips[-1])
    return _leave(settings, ends, h)
