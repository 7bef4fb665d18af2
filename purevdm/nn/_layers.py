"""Dense layers, convolutions, norms, attention, tables, dropout and sinusoids."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm import _checks, random
from purevdm._compile import materialize
from purevdm.nn._batching import concatenate, convolve
from purevdm.nn._batching import group_norm as batched_group_norm
from purevdm.nn._initialisers import Initialiser, lecun_normal
from purevdm.types import Key, Params, Shape


def dense_init(key: Key, n_in: int, n_out: int, bias: bool = True, kernel_init: Initialiser = lecun_normal) -> Params:
    """Makes ``{"kernel": (n_in, n_out), "bias": (n_out,)}``, the bias zero."""
    _checks.key("key", key)
    n_in, n_out = _checks.integer("n_in", n_in, 1), _checks.integer("n_out", n_out, 1)
    return _with_bias(key, kernel_init(key, (n_in, n_out), n_in), n_out, bias)


def _with_bias(key: Key, kernel: Tensor, n_out: int, bias: bool) -> Params:
    return {"kernel": kernel} | ({"bias": torch.zeros(n_out, dtype=torch.float32, device=key.device)} if bias else {})


def dense(params: Params, x: Tensor) -> Tensor:
    """Maps the last axis affinely: (..., n_in) to (..., n_out)."""
    y = x @ params["kernel"]
    return y + params["bias"] if "bias" in params else y


def pointwise(params: Params, x: Tensor, rank: int | None = None) -> Tensor:
    """Applies :func:`dense` at each position of a feature map, along its channels: (n_in, *space) to (n_out, *space), or a
    batch of them, where ``rank`` is how many axes of space there are."""
    axis = -x.ndim if rank is None else -rank - 1
    return dense(params, x.movedim(axis, -1)).movedim(-1, axis)  # channels are neighbours in memory


def over_space(per_channel: Tensor, x: Tensor) -> Tensor:
    """Shapes one number a channel, (channels,), to broadcast over the positions of a feature map (channels, *space), or of
    each in a batch (B, channels) over those of a batch of maps."""
    return per_channel.reshape(*per_channel.shape, *(1 for _ in range(x.ndim - per_channel.ndim)))


def embedding_init(key: Key, n: int, dim: int) -> Params:
    """Makes ``{"embedding": (n, dim)}``, normal of variance 1 / dim."""
    _checks.key("key", key)
    n, dim = _checks.integer("n", n, 1), _checks.integer("dim", dim, 1)
    return {"embedding": random.normal(key, (n, dim)) / math.sqrt(dim)}


def embedding(params: Params, index: Tensor) -> Tensor:
    """Takes the rows of a table at integers: (...) to (..., dim)."""
    return F.embedding(index, params["embedding"])


def conv_init(
    key: Key,
    n_in: int,
    n_out: int,
    kernel_size: Shape = (3, 3),
    bias: bool = True,
    kernel_init: Initialiser = lecun_normal,
) -> Params:
    """Makes ``{"kernel": (n_out, n_in, *kernel_size), "bias": (n_out,)}``, the bias zero; ``kernel_size`` is of one to three
    odd integers."""
    _checks.key("key", key)
    n_in, n_out = _checks.integer("n_in", n_in, 1), _checks.integer("n_out", n_out, 1)
    size = _checks.shape("kernel_size", kernel_size)
    if not 1 <= len(size) <= 3 or any(s % 2 == 0 for s in size):
        raise ValueError(f"kernel_size: expected one to three odd integers, got {size}")
    return _with_bias(key, kernel_init(key, (n_out, n_in, *size), n_in * math.prod(size)), n_out, bias)


def conv(params: Params, x: Tensor, stride: int = 1, padding: str | Sequence[str] = "zeros") -> Tensor:
    """Convolves: (n_in, *space) to (n_out, *space), space of rank 1 to 3, or a batch of such maps.

    A stride of 1 keeps each size n; a stride of s leaves ceil(n / s). An axis of space is padded by "zeros", or, "circular",
    goes on at its other end.
    """
    kernel = params["kernel"]
    margins = [size // 2 for size in kernel.shape[2:]]
    for axis, kind in enumerate(paddings(padding, len(margins))):
        if kind == "circular":
            x, margins[axis] = _wrapped(x, axis - len(margins), margins[axis]), 0
    return convolve(x, kernel, params.get("bias"), stride, margins)


def paddings(padding: str | Sequence[str], rank: int) -> tuple[str, ...]:
    """Checks how the axes of space are padded, "zeros" or "circular", one for all or one for each; returns one for each."""
    kinds = (padding,) * rank if isinstance(padding, str) else padding
    wanted = f"padding: expected 'zeros' or 'circular', or one of them for each of {rank} axes of space"
    if not isinstance(kinds, (tuple, list)) or not all(isinstance(kind, str) for kind in kinds):
        raise TypeError(f"{wanted}, got {_checks.describe(padding)}")
    if len(kinds) != rank or not {"zeros", "circular"}.issuperset(kinds):
        raise ValueError(f"{wanted}, got {padding!r}")
    return tuple(kinds)


def _wrapped(x: Tensor, axis: int, margin: int) -> Tensor:
    """Adds to both ends of an axis as many positions of the other end."""
    size = x.shape[axis]
    if margin > size:
        raise ValueError(
            f"kernel: expected at most {2 * size + 1} positions along a circular axis of {size}, got {2 * margin + 1}"
        )
    if not margin:
        return x
    return concatenate([x.narrow(axis, size - margin, margin), x, x.narrow(axis, 0, margin)], axis)


def upsample(x: Tensor, space: Shape) -> Tensor:
    """Repeats each position of a feature map, or of a batch of them, twice along each axis, and cuts to ``space``, the sizes
    before a convolution of stride 2."""
    halves = x.shape[1:] if len(space) >= x.ndim else x.shape[x.ndim - len(space) :]
    if len(space) != len(halves) or any((size + 1) // 2 != n for size, n in zip(space, halves, strict=True)):
        raise ValueError(f"space: expected sizes whose halves, rounded up, are {tuple(halves)}, got {tuple(space)}")
    for axis, size in enumerate(space, start=-len(space)):
        x = x.repeat_interleave(2, axis).narrow(axis, 0, size)
    return x


def group_norm_init(key: Key, channels: int) -> Params:
    """Makes ``{"scale": ones (channels,), "bias": zeros (channels,)}``."""
    _checks.key("key", key)
    channels = _checks.integer("channels", channels, 1)
    scale = torch.ones(channels, dtype=torch.float32, device=key.device)
    return {"scale": scale, "bias": torch.zeros_like(scale)}


def group_norm(params: Params, x: Tensor, groups: int = 32, eps: float = 1e-6, rank: int | None = None) -> Tensor:
    """Normalises each group of channels of one feature map (channels, *space) over its channels and positions; of each in a
    batch, where ``rank`` is how many axes of space there are."""
    batched = rank is not None and x.ndim == rank + 2
    channels = x.shape[int(batched)]
    if channels % groups:
        raise ValueError(f"groups: expected a divisor of the {channels} channels, got {groups}")
    if torch.compiler.is_compiling():
        return _group_norm_by_channel(params, x, groups, eps, x.ndim - 1 - batched)
    y = batched_group_norm(x if batched else x.unsqueeze(0), groups, params["scale"], params["bias"], eps)
    return y if batched else y.squeeze(0)


def _group_norm_by_channel(params: Params, x: Tensor, groups: int, eps: float, rank: int) -> Tensor:
    """Does :func:`group_norm` for a compiler: one number a channel wherever possible, so that its loops run along channels
    that are neighbours in memory, and gradients are sums over positions only."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    scale, bias = params["scale"].to(wide.dtype), params["bias"].to(wide.dtype)
    var, mean = (materialize(s) for s in torch.var_mean(wide, tuple(range(-rank, 0)), correction=0))

    def over_group(s: Tensor) -> Tensor:
        """Computes the mean over each group, for each of its channels."""
        means = s.unflatten(-1, (groups, -1)).mean(-1, keepdim=True)
        return means.expand(*means.shape[:-1], s.shape[-1] // groups).flatten(-2)

    centre = over_group(mean)
    slope = materialize(scale * torch.rsqrt(over_group(var + (mean - centre).square()) + eps))
    # wide - centre first, which is exact for large means; the centre's derivative goes by the shift, which is the bias.
    fixed = materialize(centre.detach())
    shift = materialize(bias + (fixed - centre) * slope)
    return ((wide - over_space(fixed, x)) * over_space(slope, x) + over_space(shift, x)).to(x.dtype)


def swish(x: Tensor) -> Tensor:
    """Computes x sigmoid(x), elementwise, also called SiLU."""
    # As a product, the backward pass of a compiled graph reuses the sigmoid instead of storing one of its own.
    return x * torch.sigmoid(x) if torch.compiler.is_compiling() else F.silu(x)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int = 1) -> Tensor:
    """Computes scaled dot-product attention, softmax(q k^T / sqrt(dim / heads)) v, each head with its part of the channels.

    Args:
        q: queries, (..., tokens, dim).
        k, v: keys and values, (..., other tokens, dim); leading axes broadcast.
        heads: how many heads.

    Returns:
        (..., tokens, dim).
    """
    if q.shape[-1] % heads:
        raise ValueError(f"heads: expected a divisor of the {q.shape[-1]} channels, got {heads}")
    q, k, v = (x.unflatten(-1, (heads, -1)).movedim(-3, -2) for x in (q, k, v))
    q = q / math.sqrt(q.shape[-1])

    # Written out, as F.scaled_dot_product_attention has no batching rule on the CPU: vmap would loop over the examples.
    # A CPU takes the queries in parts: matrices of a mebibyte stay in its cache, and are not given back to the system.
    parts = min(16, q.shape[:-1].numel() * k.shape[-2] // 2**18) if q.device.type == "cpu" else 1
    pieces = q.chunk(parts, -2) if parts > 1 else (q,)
    if torch.compiler.is_compiling():
        out = _attend_compiled(pieces, k, v)
    else:
        out = concatenate([torch.softmax(piece @ k.movedim(-2, -1), -1) @ v for piece in pieces], -2)
    return out.movedim(-3, -2).flatten(-2)


def _attend_compiled(pieces: Sequence[Tensor], k: Tensor, v: Tensor) -> Tensor:
    """Attends for a compiler: weights are normalised after they are applied, one pass less over a (tokens, other tokens)
    matrix, and all pieces are divided at once, one loop to compile."""

    def attend(q: Tensor) -> tuple[Tensor, Tensor]:
        logits = q @ k.movedim(-2, -1)
        weights = torch.exp(logits - logits.detach().amax(-1, keepdim=True))
        return weights @ v, weights.sum(-1, keepdim=True)

    outs = [attend(q) for q in pieces]
    weighted, total = outs[0] if len(outs) == 1 else (concatenate(parts, -2) for parts in zip(*outs, strict=True))
    return weighted / total


def dropout(keep: Tensor, x: Tensor, rate: float) -> Tensor:
    """Zeroes x where the mask ``keep`` is false and scales the rest by 1 / (1 - rate), so that the mean stays.

    The mask is ``random.bernoulli(key, 1 - rate, x.shape)``; one draw for all layers of a network compiles sooner.
    """
    return torch.where(keep, x / (1.0 - rate), 0.0)


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Computes sinusoids of one number at ``dim // 2`` frequencies from 1 down to 1 / 10000, sines then cosines.

    Args:
        t: shape (); networks of the paper give 1000 times the normalised gamma.
        dim: how many features; an odd one is filled with a zero.

    Returns:
        (dim,), dim at least 4.
    """
    half = _checks.integer("dim", dim, 4) // 2
    frequencies = torch.exp(torch.arange(half, dtype=t.dtype, device=t.device) * (-math.log(10000.0) / (half - 1)))
    angles = t * frequencies
    return concatenate([angles.sin(), angles.cos(), angles.new_zeros(dim % 2)])


def fourier_features(x: Tensor, exponents: Sequence[int]) -> Tensor:
    """Computes base-2 Fourier features, sin and cos of 2 pi 2**n x, of each channel (sec. 4.5).

    Args:
        x: (channels, *space).
        exponents: the n's.

    Returns:
        (2 * channels * len(exponents), *space): all sines, then all cosines; within each, channel by channel.
    """
    # 2 pi as a literal: under dynamic=True a compiler makes a symbol of math.pi, and fails on it in a loop.
    scales = torch.tensor([2.0**n * 6.283185307179586 for n in exponents], dtype=x.dtype, device=x.device)
    angles = (x.unsqueeze(1) * scales.reshape(-1, *(1 for _ in x.shape[1:]))).flatten(0, 1)
    return concatenate([angles.sin(), angles.cos()])
