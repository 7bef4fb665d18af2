"""A U-Net of several resolutions (Ronneberger et al. 2015, with the ResNet blocks and skips of Ho et al. 2020), and the
paper's, which is one of a single resolution."""

from collections.abc import Sequence
from typing import Any

from purevdm import _checks, nn
from purevdm.networks import _adapter, _blocks, _unet
from purevdm.networks._network import Network

__all__ = ["unet", "vdm_unet"]


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
    map_channels: int = 0,
    cond_drop: float = 0.0,
    self_condition: bool = False,
    groups: int = 8,
    remat: bool = False,
    padding: str | Sequence[str] = "zeros",
    predicts: str = "eps",
    outputs: int | None = None,
    gamma_min: float | None = None,
    gamma_max: float | None = None,
    time_scale: float = 1000.0,
    add_z: bool = False,
) -> Network:
    """Makes a U-Net over signals, images or volumes: ``blocks`` ResNet blocks at each resolution on the way down, two in the
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
        map_channels: how many channels its map has, numbers over the event's own space that go in beside z; 0 for none.
        cond_drop: the rate at which training drops the condition for guidance, when ``apply`` is given a key. Learned
            numbers stand for a dropped vector, label, token or position of a map.
        self_condition: whether an earlier estimate of the data goes in beside z.
        groups: the groups of each group norm.
        remat: whether blocks are computed again in the backward pass of ``training.gradients(..., remat=True)``, for less
            memory.
        padding: what convolutions take for what lies beyond the ends of an axis of space: "zeros", or, "circular", what
            lies at its other end, for fields that are periodic. One for all axes, or a tuple with one for each. Along a
            circular axis whose size 2 ** (len(multipliers) - 1) divides, events that are moved by multiples of it give
            outputs that are moved alike.
        predicts: what the output is: "eps", "x" or "v".
        outputs: how many numbers the network returns for each of z's, on a new last axis; None for one, of z's shape.
        gamma_min, gamma_max: the endpoints between which the network normalises gamma, constants. Left out, those that the
            model's schedule starts from (outside of a model, the paper's).
        time_scale: what the normalised gamma is multiplied by before its sinusoids, whose fastest goes through
            ``time_scale / (2 pi)`` periods. The paper's is 1000. A smaller one, such as 20, makes the probability flow
            smoother in gamma, and log p by it cheaper and more accurate.
        add_z: whether z is added to an output of the data or of v, too, as MuLAN's official network does.

    Returns:
        A :class:`~purevdm.networks.Network` for events (channels, *space) of any size, which takes a
        :class:`~purevdm.networks.Condition`.

    Raises:
        TypeError, ValueError: an argument out of its range, widths that the groups or the heads do not divide, patterns
            that are not invertible or of different ranks, an unknown padding, or paddings of another rank.

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
        if (width := embed * multipliers[i]) % heads:
            raise ValueError(f"heads: expected a divisor of the {width} channels at resolution {i}, got {heads}")
    listed = _adapter.patterns(adapter)
    condition = (cond_dim, classes, ctrl_dim, map_channels, cond_drop)
    return _unet.UNet(
        embed=embed,
        multipliers=multipliers,
        blocks=blocks,
        attention=attended,
        adapter=listed,
        heads=heads,
        dropout=_checks.probability("dropout", dropout),
        groups=groups,
        remat=_checks.boolean("remat", remat),
        padding=nn.paddings(padding, _adapter.rank(listed[0])),
        time_scale=_checks.positive("time_scale", time_scale),
        add_z=_checks.boolean("add_z", add_z),
        **_blocks.shared(fourier, condition, self_condition, predicts, outputs, gamma_min, gamma_max),
    )


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
    """Makes the U-Net of the paper (App. B, and the official code): :func:`unet` at the full resolution only.

    ResNet blocks, ``layers`` down, two in the middle around an attention, ``layers + 1`` up with skips from down, and z
    added to the output. It computes what the official network computes; :mod:`purevdm.interop` reads its parameters.

    Args:
        embed: the width.
        layers: the depth of each half.
        attention: whether attention follows every block, or only the first of the middle.
        fourier, dropout, groups, options: arguments of :func:`unet`.

    Returns:
        A :class:`~purevdm.networks.Network` for events (channels, height, width) of any size.

    Raises:
        TypeError, ValueError: as :func:`unet`.
    """
    blocks = _checks.integer("layers", layers, 1)
    attended = (0,) if _checks.boolean("attention", attention) else ()
    own: dict[str, Any] = dict(heads=1, attention=attended, fourier=fourier, dropout=dropout, groups=groups)
    return unet(embed, (1,), blocks, **(own | options))
