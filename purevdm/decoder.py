"""Discrete data: integers to real numbers near [-1, 1], and p(x given z_0) back on the integers.

The decoder is p(x_i = v given z_0) proportional to exp(-(z_0,i / alpha_0 - f_v)**2 exp(-gamma_0) / 2), independently for
each dimension i, where f_v is the place of the value v on the real line. The latent enters divided by its alpha,
``z_0 / alpha_0`` (written ``z`` below), which is the data plus noise of scale exp(gamma_0 / 2).

All comes from differences between the logits of two values, (f_u - f_v) times a sum, never from differences of squares:
exact in float32 over gamma in [-30, 30].
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm._compile import settled

__all__ = ["Decoder", "data_range", "discrete"]


class Decoder(NamedTuple):
    """How integers become numbers and back. Functions are elementwise over an event (or a batch of them).

    Attributes:
        vocab_size: how many values; data are integers in [0, vocab_size).
        encode: ``encode(x, dtype=torch.float32) -> f``, the place of each integer on the real line.
        log_probs: ``log_probs(z, gamma_0)``, log p(v given z_0) in nats for every value v, on a new last axis.
        log_prob: ``log_prob(x, z, gamma_0)``, log p(x given z_0) in nats, elementwise.
        reconstruction: ``reconstruction(x, eps_0, gamma_0)``, -log p(x given z_0) in nats for the latent that is x with
            the noise eps_0, elementwise; never forms the latent, so no gamma_0 is too small for it.
        mode: ``mode(z)``, the likeliest integers, int64.
        sample: ``sample(key, z, gamma_0)``, integers drawn from p(x given z_0), int64.
    """

    vocab_size: int
    encode: Callable[..., Tensor]
    log_probs: Callable[[Tensor, Tensor], Tensor]
    log_prob: Callable[[Tensor, Tensor, Tensor], Tensor]
    reconstruction: Callable[[Tensor, Tensor, Tensor], Tensor]
    mode: Callable[[Tensor], Tensor]
    sample: Callable[[Tensor, Tensor, Tensor], Tensor]


def discrete(vocab_size: int = 256, *, loc: float | Sequence[Any] = 0.0, scale: float | Sequence[Any] = 1.0) -> Decoder:
    """Values evenly spaced: v goes to (u - loc) / scale, with u = (2 v + 1) / vocab_size - 1, in (-1, 1), the paper's.

    Args:
        vocab_size: how many values, at least 2.
        loc, scale: numbers, or (nested) sequences of numbers that broadcast against an event: give the mean and standard
            deviation of u over the data to standardise them, as the official 2D example does.

    Raises:
        TypeError, ValueError: a vocab_size below 2, or a scale that is not above 0.
    """
    vocab_size = _checks.integer("vocab_size", vocab_size, 2)
    if not isinstance(loc, (int, float)) or not isinstance(scale, (int, float)):
        shift, width = torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64)
        if not (shift.isfinite().all() and width.isfinite().all() and (width > 0).all()):
            raise ValueError(f"loc, scale: expected finite numbers, each scale above 0, got {loc} and {scale}")
    else:
        _checks.real("loc", loc)
        if _checks.real("scale", scale) <= 0:
            raise ValueError(f"scale: expected a number above 0, got {scale}")

    def affine(like: Tensor) -> tuple[Any, Any]:
        if isinstance(loc, (int, float)) and isinstance(scale, (int, float)):
            return loc, scale
        return (torch.tensor(a, dtype=like.dtype, device=like.device) for a in (loc, scale))  # type: ignore[return-value]

    def place(x: Tensor) -> Tensor:
        """The real number at floating-point index x."""
        shift, width = affine(x)
        return ((2.0 * x + (1.0 - vocab_size)) / vocab_size - shift) / width

    def encode(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return place(integers(x).to(dtype))

    def nearest(z: Tensor) -> Tensor:
        """The index, as a floating-point number, of the value nearest to z."""
        shift, width = affine(z)
        index = ((z * width + shift + 1.0) * vocab_size - 1.0) / 2.0
        return index.round().clamp(0, vocab_size - 1)

    def spacing(like: Tensor, gamma_0: Tensor) -> Tensor:
        """The distance between neighbouring values in units of the noise at time 0: one number, or one a dimension."""
        _, width = affine(like)
        return torch.exp(-0.5 * gamma_0) * (2.0 / vocab_size) / width  # type: ignore[no-any-return]

    def relative_logits(index: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """The logit of every value less that of the value at ``index``, from which z is ``noise`` standard deviations off:
        -((d + noise)**2 - noise**2) / 2 = -d (d + 2 noise) / 2, with d the distance to ``index``."""
        values = torch.arange(vocab_size, dtype=noise.dtype, device=noise.device)
        d = (index[..., None] - values) * step[..., None]
        return -0.5 * d * (d + 2.0 * noise[..., None])

    def log_probs(z: Tensor, gamma_0: Tensor) -> Tensor:
        _checks.floating("z", z)
        index = nearest(z)
        noise = (z - place(index)) * torch.exp(-0.5 * gamma_0)
        return torch.log_softmax(relative_logits(index, noise, spacing(z, gamma_0)), dim=-1)

    def reconstruction(x: Tensor, eps_0: Tensor, gamma_0: Tensor) -> Tensor:
        index = settled(integers(x).to(_checks.floating("eps_0", eps_0).dtype))
        # The largest logit is that of the value nearest to z_0: it keeps the exponentials within range, and finding it by
        # rounding saves a pass over all values. As a constant it drops out of the derivative.
        width = settled(spacing(eps_0, gamma_0) * torch.ones_like(eps_0))  # its gradient sums over values first
        step, noise = width.detach(), eps_0.detach()
        d = (index - (index + noise / step).round().clamp(0, vocab_size - 1)) * step
        largest = settled(-0.5 * d * (d + 2.0 * noise))
        # exp(-50) is below the last digit of the sum, 1 or more, even in float64, and exponentials are slow where they
        # underflow. Powers of two, as a compiler would store those of e for the backward pass, for every value.
        below = (relative_logits(index, eps_0, width) - largest[..., None]).clamp(min=-50.0)
        return largest + torch.exp2(below * math.log2(math.e)).sum(-1).log()

    def log_prob(x: Tensor, z: Tensor, gamma_0: Tensor) -> Tensor:
        z = _checks.floating("z", z)
        _checks.within("x", integers(x), 0, vocab_size - 1)
        return -reconstruction(x, (z - encode(x, z.dtype)) * torch.exp(-0.5 * gamma_0), gamma_0)

    def mode(z: Tensor) -> Tensor:
        return nearest(_checks.floating("z", z)).to(torch.int64)

    def sample(key: Tensor, z: Tensor, gamma_0: Tensor) -> Tensor:
        return random.categorical(key, log_probs(z, gamma_0))

    return Decoder(vocab_size, encode, log_probs, log_prob, reconstruction, mode, sample)


def data_range(decoder: Decoder, like: Tensor) -> tuple[Tensor, Tensor]:
    """The places of the least and the greatest value, each of the shape, dtype and device of an event (or a batch)."""
    least = torch.zeros(like.shape, dtype=torch.int64, device=like.device)
    return decoder.encode(least, like.dtype), decoder.encode(least + (decoder.vocab_size - 1), like.dtype)


def integers(x: Tensor) -> Tensor:
    """Data of an integer dtype (no bool).

    Raises:
        TypeError: any other x.
    """
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"x: expected a tensor of integers, got {_checks.describe(x)}")
    return x
