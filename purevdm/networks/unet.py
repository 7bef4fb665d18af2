"""A U-Net of several resolutions (Ronneberger et al. 2015, with the ResNet blocks and skips of Ho et al. 2020), and the
paper's, which is one of a single resolution."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from purevdm import _checks, nn, random
from purevdm._compile import constant, fixed
from purevdm.networks import _adapter, _blocks, _condition
from purevdm.networks._network import Network, made_of
from purevdm.types import Key, Params, Shape

__all__ = ["unet", "vdm_unet"]


class UNet(NamedTuple):
    """The settings of :func:`unet`."""

    embed: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    adapter: tuple[str, ...]
    heads: int
    fourier: tuple[int, ...]
    dropout: float
    condition: _condition.Kinds
    self_condition: bool
    groups: int
    remat: bool
    outputs: int | None
    endpoints: tuple[float, float] | None
    time_scale: float

    @constant
    def ends(self) -> tuple[float, float]:
        """The endpoints, or those of a network outside of a model."""
        return self.endpoints or _blocks.PAPER

    @property
    def widths(self) -> list[int]:
        """The channels at each resolution."""
        return [self.embed * m for m in self.multipliers]

    @property
    def rank(self) -> int:
        """How many axes of space."""
        return _adapter.rank(self.adapter[0])


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
    predicts: str = "eps",
    outputs: int | None = None,
    gamma_min: float | None = None,
    gamma_max: float | None = None,
    time_scale: float = 1000.0,
) -> Network:
    """A U-Net over signals, images or volumes: ``blocks`` ResNet blocks at each resolution on the way down, two in the
    middle around an attention, ``blocks + 1`` at each on the way up with skips from down, and z added to a noise output.

    Args:
        embed: the base width.
        multipliers: the width at each resolution, in multiples of ``embed``, the full resolution first. From each to the
            next every size is halved, rounded up; so any size goes, odd ones too.
        blocks: blocks at each resolution.
        attention: at which resolutions (0 is the full one) attention follows every block. The middle always has one.
        adapter: how a feature map becomes tokens, an einops pattern: ``"c h w -> (h w) c"`` lets all positions attend to
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
        predicts: what the output is: "eps", "x" or "v".
        outputs: how many numbers the network returns for each of z's, on a new last axis; None for one, of z's shape.
        gamma_min, gamma_max: the endpoints between which the network normalises gamma, constants. Left out, those that the
            model's schedule starts from (outside of a model, the paper's).
        time_scale: what the normalised gamma is multiplied by before its sinusoids, whose fastest goes through
            ``time_scale / (2 pi)`` periods. The paper's is 1000. A smaller one, such as 20, makes the probability flow
            smoother in gamma, and log p by it cheaper and more accurate.

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
    multipliers = _checks.integers("multipliers", multipliers, 1, 2**20)
    if not multipliers:
        raise ValueError("multipliers: expected at least one, got none")
    last = len(multipliers) - 1
    attended = tuple(sorted(set(_checks.integers("attention", attention, 0, last))))
    groups, heads = _checks.integer("groups", groups, 1), _checks.integer("heads", heads, 1)
    if embed % groups:
        raise ValueError(f"embed, groups: expected embed to be a multiple of groups, got {embed} and {groups}")
    for i in sorted({*attended, last}):
        if embed * multipliers[i] % heads:
            width = embed * multipliers[i]
            raise ValueError(f"heads: expected a divisor of the {width} channels at resolution {i}, got {heads}")
    patterns = _adapter.patterns(adapter)
    if len({_adapter.rank(pattern) for pattern in patterns}) != 1:
        raise ValueError(f"adapter: expected patterns of as many axes, at least one, got {adapter!r}")
    settings = UNet(
        embed=embed,
        multipliers=multipliers,
        blocks=blocks,
        attention=attended,
        adapter=patterns,
        heads=heads,
        fourier=_blocks.exponents(fourier),
        dropout=_checks.probability("dropout", dropout),
        condition=_condition.kinds(cond_dim, classes, ctrl_dim, cond_drop),
        self_condition=_checks.boolean("self_condition", self_condition),
        groups=groups,
        remat=_checks.boolean("remat", remat),
        outputs=None if outputs is None else _checks.integer("outputs", outputs, 1),
        endpoints=_blocks.endpoints(gamma_min, gamma_max),
        time_scale=_blocks.time_scale(time_scale),
    )
    residual = isinstance(predicts, str) and predicts == "eps" and outputs is None
    return made_of(settings, _init, _apply, predicts, residual)


def vdm_unet(
    embed: int = 128,
    layers: int = 32,
    *,
    attention: bool = False,
    fourier: Sequence[int] = (6, 7),
    dropout: float = 0.1,
    groups: int = 32,
    **options: Any,
) -> Network:
    """The U-Net of the paper (App. B, and the official code): :func:`unet` at the full resolution alone.

    ResNet blocks, ``layers`` down, two in the middle around an attention, ``layers + 1`` up with skips from down, and z
    added to the output. It computes what the official network computes; :mod:`purevdm.interop` reads its parameters.

    Args:
        embed: the width.
        layers: the depth of each half.
        attention: whether attention follows every block, or the first of the middle's alone.
        fourier: the exponents n of the base-2 Fourier features that go in beside z; () for none.
        dropout: the rate in every block, when ``apply`` is given a key.
        groups: the groups of each group norm.
        options: any other argument of :func:`unet`, such as ``cond_dim`` or ``gamma_min``.

    Returns:
        A :class:`~purevdm.networks.Network` for events (channels, height, width) of any size.

    Raises:
        TypeError, ValueError: as :func:`unet`.
    """
    blocks = _checks.integer("layers", layers, 1)
    attended = (0,) if _checks.boolean("attention", attention) else ()
    own: dict[str, Any] = dict(heads=1, attention=attended, fourier=fourier, dropout=dropout, groups=groups)
    return unet(embed, (1,), blocks, **(own | options))


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
    n_in = channels * (1 + 2 * len(settings.fourier) + settings.self_condition)
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
    """The shapes that dropout meets, in the order of the forward pass."""
    widths, blocks, spaces = settings.widths, settings.blocks, [space]
    while len(spaces) < len(widths):
        spaces.append(tuple((n + 1) // 2 for n in spaces[-1]))
    maps = [(width, *space) for width, space in zip(widths, spaces, strict=True)]
    down = [shape for shape in maps for _ in range(blocks)]
    return [*down, maps[-1], maps[-1], *(shape for shape in reversed(maps) for _ in range(blocks + 1))]


def _block(settings: UNet, params: Params, x: Tensor, context: Tensor, mask: Tensor | None, ctrl: Tensor | None) -> Tensor:
    groups, heads = settings.groups, settings.heads
    x = _blocks.resnet(params["resnet"], x, context, groups, mask, fixed(settings.dropout))
    if "attn" in params:
        for i, pattern in enumerate(settings.adapter):
            x = _blocks.attend(params["attn"][str(i)], x, pattern, groups, heads)
    if "cross" in params:
        x = _blocks.attend(params["cross"], x, _adapter.DEFAULTS[settings.rank], groups, heads, ctrl)
    return x


def _apply(
    settings: UNet,
    params: Params,
    z: Tensor,
    gamma: Tensor,
    cond: Any = None,
    key: Key | None = None,
    x_hat: Tensor | None = None,
) -> Tensor:
    if z.ndim != 1 + settings.rank:
        raise ValueError(f"z: expected channels and {settings.rank} axes of space, got {_checks.describe(z)}")
    level = _blocks.normalised(gamma, settings.ends(), z)
    k_dropout, k_cond = _blocks.split_key(key)
    given = _condition.read(settings.condition, params, cond, z, k_cond)
    context = _blocks.context(params, level, fixed(settings.time_scale), settings.embed, given.vector, given.label)
    keep = iter(_blocks.dropout_masks(k_dropout, fixed(settings.dropout), _mask_shapes(settings, tuple(z.shape[1:]))))
    apply_block = _blocks.rematerialised(partial(_block, settings), settings.remat)

    def block(params: Params, x: Tensor) -> Tensor:
        return apply_block(params, x, context, next(keep), given.ctrl)

    last, dtype = len(settings.multipliers) - 1, params["dense0"]["kernel"].dtype
    h = nn.conv(params["conv_in"], _blocks.inputs(z, settings.fourier, x_hat, settings.self_condition, dtype))
    skips = [h]
    for i in range(last + 1):
        resolution = params["down"][str(i)]
        for j in range(settings.blocks):
            h = block(resolution[str(j)], h)
            skips.append(h)
        if i < last:
            h = nn.conv(resolution["sample"], h, stride=2)
            skips.append(h)
    h = block(params["mid"]["block1"], h)
    h = block(params["mid"]["block2"], h)
    for i in range(last, -1, -1):
        resolution = params["up"][str(i)]
        for j in range(settings.blocks + 1):
            h = block(resolution[str(j)], nn.concatenate([h, skips.pop()]))
        if i > 0:
            h = nn.conv(resolution["sample"], nn.upsample(h, skips[-1].shape[1:]))
    h = nn.conv(params["conv_out"], nn.swish(nn.group_norm(params["norm_out"], h, settings.groups)))
    return h if settings.outputs is None else h.unflatten(0, (z.shape[0], settings.outputs)).movedim(1, -1)
