"""What the library's networks are made of: the settings that all have, a ResNet block under a context, attention."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from purevdm import _checks, nn, random
from purevdm._compile import channels_last, constant, materialize, transformed
from purevdm.networks import _adapter, _condition
from purevdm.networks._network import PAPER as PAPER
from purevdm.networks._network import Network, checked_predicts
from purevdm.types import Key, Params


@dataclass(frozen=True, kw_only=True)
class Own(Network):
    """A network of the library: it takes conditions and an estimate of the data, and normalises gamma."""

    fourier: tuple[int, ...]
    condition: _condition.Kinds
    self_condition: bool
    predicts: str
    outputs: int | None
    endpoints: tuple[float, float] | None
    dtype: torch.dtype | None = None

    @constant
    def ends(self) -> tuple[float, float]:
        """Returns the endpoints, or those of a network outside of a model."""
        return self.endpoints or PAPER


def shared(
    fourier: Sequence[int],
    condition: tuple[int, int, int, int, float],
    self_condition: bool,
    predicts: str,
    outputs: int | None,
    *ends: float | None,
) -> dict[str, Any]:
    """Checks the arguments that all networks have, of which these are the fields of :class:`Own`."""
    return dict(
        fourier=exponents(fourier),
        condition=_condition.kinds(*condition),
        self_condition=_checks.boolean("self_condition", self_condition),
        predicts=checked_predicts(predicts),
        outputs=None if outputs is None else _checks.integer("outputs", outputs, 1),
        endpoints=endpoints(*ends),
    )


def exponents(fourier: Sequence[int]) -> tuple[int, ...]:
    """Checks the exponents of Fourier features; 2**n must be a float32."""
    return _checks.integers("fourier", fourier, -126, 126)


def endpoints(gamma_min: float | None, gamma_max: float | None) -> tuple[float, float] | None:
    """Checks a network's arguments: both, or None for neither."""
    if gamma_min is None and gamma_max is None:
        return None
    return _checks.increasing("gamma_min", gamma_min, "gamma_max", gamma_max)


def resnet_init(key: Key, n_in: int, n_out: int, hidden: int, rank: int = 2) -> Params:
    keys = random.split(key, 4)
    size = (3,) * rank
    params = {
        "norm1": nn.group_norm_init(key, n_in),
        "conv1": nn.conv_init(keys[0], n_in, n_out, size),
        "cond_proj": nn.dense_init(keys[1], hidden, n_out, bias=False, kernel_init=nn.zeros),
        "norm2": nn.group_norm_init(key, n_out),
        "conv2": nn.conv_init(keys[2], n_out, n_out, size, kernel_init=nn.zeros),
    }
    if n_in != n_out:
        params["nin_shortcut"] = nn.dense_init(keys[3], n_in, n_out)
    return params


def resnet(
    params: Params,
    x: Tensor,
    context: Tensor,
    groups: int,
    keep: Tensor | None,
    rate: float,
    padding: str | Sequence[str] = "zeros",
) -> Tensor:
    """Applies norm, swish and convolution twice, around a shift by the context, to one feature map or a batch of them;
    ``keep`` is dropout's mask."""
    rank = params["conv1"]["kernel"].ndim - 2
    h = nn.conv(params["conv1"], nn.swish(nn.group_norm(params["norm1"], x, groups, rank=rank)), padding=padding)
    h = h + nn.over_space(nn.dense(params["cond_proj"], context), h)
    h = nn.swish(nn.group_norm(params["norm2"], h, groups, rank=rank))
    if keep is not None:
        h = nn.dropout(keep, h, rate)
    h = nn.conv(params["conv2"], h, padding=padding)
    return (nn.pointwise(params["nin_shortcut"], x, rank) if "nin_shortcut" in params else x) + h


def attention_init(key: Key, channels: int, ctrl_dim: int = 0) -> Params:
    """Draws an attention of a map's positions to one another, or, with a ``ctrl_dim``, to a sequence of that width."""
    keys = random.split(key, 3)
    sources = {"q": channels, "k": ctrl_dim or channels, "v": ctrl_dim or channels}
    return {
        "norm": nn.group_norm_init(key, channels),
        **{name: nn.dense_init(k, n, channels) for (name, n), k in zip(sources.items(), keys, strict=True)},
        "proj_out": nn.dense_init(key, channels, channels, kernel_init=nn.zeros),
    }


def attend(params: Params, x: Tensor, adapter: str, groups: int, heads: int = 1, ctrl: Tensor | None = None) -> Tensor:
    """Lets the positions of a feature map, or of each in a batch, attend to one another or to a sequence."""
    rank = _adapter.axes_of_space(adapter)
    tokens = _adapter.tokens(adapter, nn.group_norm(params["norm"], x, groups, rank=rank))
    source = tokens if ctrl is None else ctrl.to(tokens.dtype)
    q, k, v = nn.dense(params["q"], tokens), nn.dense(params["k"], source), nn.dense(params["v"], source)
    out = nn.dense(params["proj_out"], nn.attention(q, k, v, heads))
    return x + _adapter.feature_map(adapter, out, tuple(x.shape[-rank:]))


def dropout_masks(key: Key | None, rate: float, shapes: Sequence[tuple[int, ...]]) -> list[Tensor] | None:
    """Draws a mask for each shape, all in one draw (it compiles faster); None without a key or a rate."""
    if key is None or rate == 0.0:
        return None
    sizes = [math.prod(shape) for shape in shapes]
    masks = materialize(random.bernoulli(key, 1.0 - rate, (sum(sizes),))).split(sizes)
    return [mask.reshape(*shape[1:], shape[0]).movedim(-1, 0) for mask, shape in zip(masks, shapes, strict=True)]


def rematerialised(block: Callable[..., Tensor], remat: bool) -> Callable[..., Tensor]:
    """Makes a block that keeps only its inputs for the backward pass, and is computed again there.

    This works where ``torch.autograd`` differentiates, as in ``training.gradients(..., remat=True)``. Within the transforms
    of ``torch.func``, which do not support checkpoints, the block stays as it is.
    """

    def again(*inputs: Any) -> Tensor:
        works = torch.compiler.is_compiling() or not transformed()
        return checkpoint(block, *inputs, use_reentrant=False) if works else block(*inputs)

    return again if remat else block


def normalised(gamma: Tensor, endpoints: tuple[float, float], z: Tensor) -> Tensor:
    """Normalises gamma between its endpoints to [0, 1], one number: the mean where each dimension has its own."""
    if gamma.ndim and gamma.shape != z.shape:
        raise ValueError(f"gamma: expected shape () or {tuple(z.shape)}, got {_checks.describe(gamma)}")
    low, high = endpoints
    return ((gamma.mean() if gamma.ndim else gamma) - low) / (high - low)


def context_init(keys: Tensor, embed: int, cond_dim: int) -> Params:
    hidden = 4 * embed
    return {"dense0": nn.dense_init(keys[0], embed + cond_dim, hidden), "dense1": nn.dense_init(keys[1], hidden, hidden)}


def context(
    params: Params, gamma: Tensor, time_scale: float, embed: int, vector: Tensor | None, label: Tensor | None
) -> Tensor:
    """Embeds the normalised gamma and the condition for the blocks: (4 * embed,)."""
    features = nn.timestep_embedding(time_scale * gamma, embed)
    features = (features if vector is None else nn.concatenate([features, vector])).to(params["dense0"]["kernel"].dtype)
    h = nn.dense(params["dense0"], features)
    h = nn.swish(h if label is None else h + label)
    return nn.swish(nn.dense(params["dense1"], h))


def split_key(key: Key | None) -> tuple[Tensor | None, Tensor | None]:
    """Splits a network's key in two: for the dropout of features, and for that of the condition."""
    return (None, None) if key is None else tuple(random.split(key).unbind(0))  # type: ignore[return-value]


def estimate(z: Tensor, x_hat: Tensor | None, self_condition: bool) -> Tensor | None:
    """Returns the earlier estimate of the data that a self-conditioned network takes, zeros for none; None for others."""
    if self_condition:
        return torch.zeros_like(z) if x_hat is None else _checks.shaped("x_hat", x_hat, z.shape)
    if x_hat is not None:
        raise ValueError(f"x_hat: this network takes none (self_condition=False), got {_checks.describe(x_hat)}")
    return None


def inputs(
    z: Tensor, exponents: Sequence[int], x_hat: Tensor | None, self_condition: bool, field: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Concatenates a network's input channels: z, its Fourier features, and an estimate of the data and a condition's map
    where the network takes them.

    They are made in z's dtype, as fine features need its digits, and then cast to the parameters' dtype.
    """
    features = nn.fourier_features(z, exponents) if exponents else None
    parts = [part for part in (z, features, estimate(z, x_hat, self_condition), field) if part is not None]
    return channels_last((nn.concatenate(parts) if len(parts) > 1 else z).to(dtype))
