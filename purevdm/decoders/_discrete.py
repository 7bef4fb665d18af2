"""Integers to real numbers near [-1, 1], and the probability of each value back from a latent.

The decoder is p(x_i = v given z_0) proportional to exp(-(z_0,i / alpha_0 - f_v)**2 exp(-gamma_0) / 2), independently for
each dimension i, where f_v is the position of the value v on the real line. All comes from differences between the logits of
two values, (f_u - f_v) times a sum, never from differences of squares: exact in float32 over gamma in [-30, 30].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, _facts, random
from purevdm._compile import fixed, materialize
from purevdm.decoders._decoder import FLOATS, Decoder, Elementwise, affine, checked_affine, data, finite, level
from purevdm.types import Key, Params

__all__ = ["discrete", "reconstruction_bits"]


def reconstruction_bits(vocab_size: int, gamma_0: float, scale: float = 1.0) -> float:
    """Gives what reconstruction costs at gamma_0, in bits per dimension: E[-log2 p(x given z_0)] over data x that take each
    of their values alike, with z_0 a latent of x.

    Let w = 2 exp(-gamma_0 / 2) / (vocab_size scale) be the distance of two values in units of the noise, and S(z) the sum
    of exp(-(z - v w)**2 / 2) over the values v. The cost is (1 / 2 + the integral of S log S / (vocab_size sqrt(2 pi))) /
    log 2, for small w about log2(4.13 / w).

    >>> from purevdm import decoders
    >>> [round(decoders.reconstruction_bits(*data), 3) for data in ((256, -13.3), (256, -8.0), (65536, -13.3))]
    [0.01, 3.253, 7.452]
    """
    vocab_size = _checks.integer("vocab_size", vocab_size, 2, 2**22)
    gamma_0, scale = _checks.real("gamma_0", gamma_0), _checks.real("scale", scale)
    if scale <= 0.0 or abs(gamma_0) > 1000.0:
        raise ValueError(f"gamma_0, scale: expected a size of at most 1000 and a number above 0, got {gamma_0} and {scale}")
    return _reconstruction_bits(vocab_size, gamma_0, scale)


@lru_cache(maxsize=256)
def _reconstruction_bits(vocab_size: int, gamma_0: float, scale: float) -> float:
    width, finest = 2.0 * math.exp(-0.5 * gamma_0) / (vocab_size * scale), 0.25
    if width > 40.0:
        return 0.0  # below 1e-80
    # Values closer than that are as good as a continuum: fewer of them, and the bits between.
    values = min(vocab_size, max(1, round(vocab_size * width / finest)))
    width = max(width, finest)

    def integral(n: int) -> float:
        z = torch.arange(-10.0, width * (n - 1) + 10.0, 0.02, dtype=torch.float64, device="cpu")
        at = width * torch.arange(n, dtype=torch.float64, device="cpu")
        total = torch.exp(-0.5 * (z[:, None] - at).square()).sum(1)
        return 0.02 * torch.special.xlogy(total, total).sum().item()

    few = min(values, math.ceil(40.0 / width))
    whole = integral(few)
    if values > few:  # each further value adds the same
        whole += (values - few) * (integral(few + 1) - whole)
    return (0.5 + whole / (values * math.sqrt(2.0 * math.pi))) / math.log(2.0) + math.log2(vocab_size / values)


# exp(-50) is below the last digit of a sum that is 1 or more, even in float64.
_LOWEST = 50.0
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def integers(x: Tensor) -> Tensor:
    """Gives data of an integer dtype (bool does not count)."""
    return data(x, INTEGERS, "integers")


@dataclass(frozen=True, kw_only=True)
class Discrete(Elementwise):
    """The decoder of :func:`discrete`; ``loc`` and ``scale`` are numbers or nested tuples of them."""

    vocab_size: int
    loc: Any
    scale: Any

    @property
    def support(self) -> str:  # type: ignore[override]
        return f"integers in [0, {self.vocab_size - 1}]"

    @property
    def values(self) -> int:
        """``vocab_size``, as a constant to a compiler."""
        return fixed(self.vocab_size)

    def check(self, x: Tensor) -> Tensor:
        wide = integers(x).to(torch.int64)  # a byte compared with 256 would wrap
        return (wide >= 0) & (wide < self.values)

    def _position(self, x: Tensor) -> Tensor:
        """Gives the real number at floating-point index x."""
        loc, scale = affine(self.loc, self.scale, x)
        return ((2.0 * x + (1.0 - self.values)) / self.values - loc) / scale

    def encode(self, params: Params, x: Tensor, cond: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._position(integers(x).to(_checks.dtype("dtype", dtype, FLOATS)))

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        least = torch.zeros_like(like)
        return self._position(least), self._position(least + (self.values - 1.0))

    def _nearest(self, z: Tensor) -> Tensor:
        """Gives the index, as a floating-point number, of the value nearest to z."""
        loc, scale = affine(self.loc, self.scale, z)
        index = ((z * scale + loc + 1.0) * self.values - 1.0) / 2.0
        return index.round().clamp(0, self.values - 1)

    def _spacing(self, like: Tensor, gamma_0: Tensor) -> Tensor:
        """Gives the distance between neighbouring values in units of the noise at time 0: one number, or one a dimension."""
        _, scale = affine(self.loc, self.scale, like)
        return torch.exp(-0.5 * gamma_0) * (2.0 / self.values) / scale  # type: ignore[no-any-return]

    def _relative_logits(self, index: Tensor, noise: Tensor, step: Tensor, values: Tensor | None = None) -> Tensor:
        """Gives the logit of every value minus that of the value at ``index``, from which z is ``noise`` standard deviations
        off: -((d + noise)**2 - noise**2) / 2 = -d (d + 2 noise) / 2, with d the distance to ``index``."""
        if values is None:
            values = torch.arange(self.values, dtype=noise.dtype, device=noise.device)
        d = (index[..., None] - values) * step[..., None]
        return -0.5 * d * (d + 2.0 * noise[..., None])

    def _reach(self, step: Tensor) -> int:
        """Gives how far from the nearest value others count, where that may be read; else all of them.

        Within the range z is at most half a step off the nearest, so the logit of the k-th value beside that one is at least
        k (k - 1) step**2 / 2 below. Beyond the ends it is lower still.
        """
        if step.device.type != "cpu" or not _facts.readable(step) or not step.numel():
            return self.values
        least = _facts.plain(step).min().item()
        if not least > 1e-6:
            return self.values
        return min(self.values, math.floor(0.5 + math.sqrt(0.25 + 2.0 * _LOWEST / least**2)))

    def log_probs(  # type: ignore[override]
        self, params: Params, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        gamma_0 = level(gamma_0, z)
        index = self._nearest(z)
        noise = (z - self._position(index)) * torch.exp(-0.5 * gamma_0)
        return torch.log_softmax(self._relative_logits(index, noise, self._spacing(z, gamma_0)), dim=-1)

    def reconstruction(
        self, params: Params, x: Tensor, eps_0: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        index = materialize(x.to(eps_0.dtype))
        # The largest logit is that of the value nearest to z_0: it keeps the exponentials within range, and finding it by
        # rounding saves a pass over all values. As a constant it drops out of the derivative.
        width = materialize(self._spacing(eps_0, gamma_0) * torch.ones_like(eps_0))  # its gradient sums over values first
        step, noise = width.detach(), eps_0.detach()
        nearest = (index + noise / step).round().clamp(0, self.values - 1)
        d = (index - nearest) * step
        largest = materialize(-0.5 * d * (d + 2.0 * noise))
        reach = self._reach(step)
        if 2 * reach + 1 < self.values:
            values = nearest[..., None] + torch.arange(-reach, reach + 1, dtype=step.dtype, device=step.device)
            below = self._relative_logits(index, eps_0, width, values) - largest[..., None]
            below = torch.where((values >= 0.0) & (values < self.values), below, -math.inf)
            return largest + torch.exp(below).sum(-1).log()
        # Exponentials are slow where they underflow. Powers of two, as a compiler would store those of e for the backward
        # pass, for every value.
        below = (self._relative_logits(index, eps_0, width) - largest[..., None]).clamp(min=-_LOWEST)
        return largest + torch.exp2(below * math.log2(math.e)).sum(-1).log()

    def mode(self, params: Params, z: Tensor, cond: Any = None, estimate: Tensor | None = None) -> Tensor:
        holds = finite(z)
        return torch.where(holds, self._nearest(z.nan_to_num()).to(torch.int64), -1)

    def sample(
        self, params: Params, key: Key, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        holds = finite(z)
        _checks.together("z", z, _checks.key("key", key).device)
        return torch.where(holds, random.categorical(key, self.log_probs(params, z.nan_to_num(), gamma_0)), -1)


def discrete(vocab_size: int = 256, *, loc: float | Sequence[Any] = 0.0, scale: float | Sequence[Any] = 1.0) -> Decoder:
    """Makes the decoder of integers v in [0, vocab_size): v goes to (u - loc) / scale, with u = (2 v + 1) / vocab_size - 1,
    in (-1, 1), the paper's.

    Args:
        vocab_size: how many values, at least 2 and at most 2**22: float32 holds the positions of no more.
        loc, scale: numbers, or (nested) sequences of numbers that broadcast against an event: give the mean and standard
            deviation of u over the data to standardise them, as the official 2D example does.
    """
    vocab_size = _checks.integer("vocab_size", vocab_size, 2, 2**22)
    loc, scale = checked_affine(loc, scale)
    return Discrete(vocab_size=vocab_size, loc=loc, scale=scale)
