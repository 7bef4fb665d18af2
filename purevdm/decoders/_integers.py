"""Integers without a vocabulary, such as charges, and classes as unit vectors, such as types of atoms.

Both go by unit bins: p(v given z) is the mass of a normal around the latent, in the data's units, within 1/2 of v.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm._compile import fixed
from purevdm._normal import log_ndtr
from purevdm._stable import expm1
from purevdm.decoders._decoder import FLOATS, Decoder, finite, is_class, level
from purevdm.decoders._discrete import integers as whole
from purevdm.types import Key, Params, Shape

__all__ = ["integers", "one_hot"]

LARGEST = 2**22


def _log_bin(distance: Tensor, std: Tensor, floor: float) -> Tensor:
    """Computes the log mass of a normal within 1/2 of a number at this distance from its mean, in float64."""
    d, s = distance.double().abs(), std.double()  # by symmetry, and so never a difference of numbers close to 1
    near, far = log_ndtr((0.5 - d) / s), log_ndtr((-0.5 - d) / s)
    mass = near + torch.log(-expm1(far - near))
    mass = mass if floor == 0.0 else torch.logaddexp(mass, torch.full_like(mass, math.log(floor)))
    return mass.to(distance.dtype)


def log_mass(x: Tensor, distance: Tensor, std: Tensor, ends: tuple[int | None, int | None], floor: float = 0.0) -> Tensor:
    """Computes the log mass of x's bin, at this distance from the normal's mean; the ends, if any, hold the tails."""
    mass = _log_bin(distance, std, floor)
    for end, sign in zip(ends, (-1.0, 1.0), strict=True):
        if end is not None:
            tail = log_ndtr((0.5 - sign * distance.double()) / std.double()).to(mass.dtype)
            mass = torch.where(x == end, tail, mass)
    return mass


def _checked(loc: Any, scale: Any, floor: Any) -> tuple[float, float, float]:
    return _checks.real("loc", loc), _checks.positive("scale", scale), _checks.probability("floor", floor)


@dataclass(frozen=True, kw_only=True)
class Integers(Decoder):
    """The decoder of :func:`integers`."""

    least: int | None
    most: int | None
    loc: float
    scale: float
    floor: float

    integral = True

    @property
    def support(self) -> str:  # type: ignore[override]
        low, high = self._ends()
        return f"integers in [{low}, {high}]"

    def _ends(self) -> tuple[int, int]:
        return (-LARGEST if self.least is None else self.least), (LARGEST if self.most is None else self.most)

    def check(self, x: Tensor) -> Tensor:
        wide, (low, high) = whole(x).to(torch.int64), self._ends()
        return (wide >= low) & (wide <= high)

    def encode(self, params: Params, x: Tensor, cond: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        return (whole(x).to(_checks.dtype("dtype", dtype, FLOATS)) - fixed(self.loc)) / fixed(self.scale)

    def _log_mass(self, x: Tensor, distance: Tensor, std: Tensor) -> Tensor:
        return log_mass(x, distance, std, (self.least, self.most), self.floor)

    def reconstruction(
        self, params: Params, x: Tensor, eps_0: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        std = fixed(self.scale) * torch.exp(0.5 * gamma_0)
        return -self._log_mass(whole(x), -std * eps_0, std)

    def log_prob(
        self, params: Params, x: Tensor, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        std = fixed(self.scale) * torch.exp(0.5 * level(gamma_0, z))
        return self._log_mass(whole(x), x - (z * fixed(self.scale) + fixed(self.loc)), std)

    def mode(self, params: Params, z: Tensor, cond: Any = None, estimate: Tensor | None = None) -> Tensor:
        holds = finite(z)
        nearest = (z.nan_to_num() * fixed(self.scale) + fixed(self.loc)).round().clamp(*self._ends())
        return torch.where(holds, nearest.to(torch.int64), -1)

    def sample(
        self, params: Params, key: Key, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        return self.mode(params, z + torch.exp(0.5 * level(gamma_0, z)) * random.normal(key, z.shape, z.dtype))


def integers(
    least: int | None = None, most: int | None = None, *, loc: float = 0.0, scale: float = 1.0, floor: float = 0.0
) -> Decoder:
    """Makes a decoder of integers v, such as charges, that go to (v - loc) / scale. p(v given z) is the mass of N(z,
    exp(gamma_0)) in v's unit bin (Hoogeboom et al. 2022, arXiv 2203.17003, app. B); the first and last value hold the tails.

    Args:
        least, most: the first and the last value, or None for no end (2**22 either way, as float32 holds no more of them).
            Data beyond them are refused.
        loc, scale: numbers. A larger scale makes the latents smaller, so that they are made later than the rest.
        floor: is added to each probability. 1e-10 gives the published code's numbers, and probabilities that add up to more
            than 1.

    Raises:
        TypeError, ValueError: ends out of order, a scale that is not above 0, a floor out of [0, 1).

    >>> import torch
    >>> from purevdm import decoders
    >>> charges = decoders.integers(0, scale=8.0)
    >>> charges.log_prob({}, torch.tensor([0, 1, 2]), torch.tensor(0.1).expand(3), torch.tensor(-4.0)).exp()
    tensor([0.3909, 0.3502, 0.2008])
    """
    ends = [
        None if end is None else _checks.integer(name, end, -LARGEST, LARGEST)
        for name, end in zip(("least", "most"), (least, most), strict=True)
    ]
    if ends[0] is not None and ends[1] is not None and ends[0] >= ends[1]:
        raise ValueError(f"least, most: expected least < most, got {least} and {most}")
    loc, scale, floor = _checked(loc, scale, floor)
    return Integers(least=ends[0], most=ends[1], loc=loc, scale=scale, floor=floor)


@dataclass(frozen=True, kw_only=True)
class OneHot(Decoder):
    """The decoder of :func:`one_hot`."""

    vocab_size: int
    form: str
    loc: float
    scale: float
    floor: float

    @property
    def support(self) -> str:  # type: ignore[override]
        return f"integers in [0, {self.vocab_size - 1}]"

    @property
    def classes(self) -> int:
        """``vocab_size``, a constant to a compiler."""
        return fixed(self.vocab_size)

    def latent_shape(self, event_shape: Shape) -> tuple[int, ...]:
        return (*event_shape, self.classes)

    def latent_mask(self, mask: Tensor) -> Tensor:
        return mask[..., None]

    def check(self, x: Tensor) -> Tensor:
        wide = whole(x).to(torch.int64)
        return (wide >= 0) & (wide < self.classes)

    def _unit(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return is_class(whole(x), self.classes).to(dtype)

    def encode(self, params: Params, x: Tensor, cond: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        return (self._unit(x, _checks.dtype("dtype", dtype, FLOATS)) - fixed(self.loc)) / fixed(self.scale)

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        low, high = ((at - self.loc) / self.scale for at in (0.0, 1.0))
        return torch.full_like(like, low), torch.full_like(like, high)

    def _normalised(self, distance: Tensor, std: Tensor) -> Tensor:
        """Computes the log probability of each class from the distances of 1 to its number in the latent."""
        bins = self.form == "bins"
        return torch.log_softmax(_log_bin(distance, std, self.floor) if bins else -distance / std.square(), dim=-1)

    def _std(self, gamma_0: Tensor) -> Tensor:
        return fixed(self.scale) * torch.exp(0.5 * gamma_0)  # type: ignore[no-any-return]

    def reconstruction(
        self, params: Params, x: Tensor, eps_0: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        unit, std = self._unit(x, eps_0.dtype), self._std(gamma_0)
        return -(unit * self._normalised((1.0 - unit) - std * eps_0, std)).sum(-1)

    def log_probs(  # type: ignore[override]
        self, params: Params, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        return self._normalised(1.0 - (z * fixed(self.scale) + fixed(self.loc)), self._std(level(gamma_0, z)))

    def log_prob(
        self, params: Params, x: Tensor, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        _checks.within("x", whole(x), 0, self.classes - 1)
        return self.log_probs(params, z, gamma_0).gather(-1, x[..., None].to(torch.int64))[..., 0]

    def mode(self, params: Params, z: Tensor, cond: Any = None, estimate: Tensor | None = None) -> Tensor:
        return torch.where(finite(z).all(-1), z.nan_to_num().argmax(-1), -1)

    def sample(
        self, params: Params, key: Key, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        holds = finite(z).all(-1)
        return torch.where(holds, random.categorical(key, self.log_probs(params, z.nan_to_num(), gamma_0)), -1)


def one_hot(classes: int, *, form: str = "softmax", loc: float = 0.0, scale: float = 1.0, floor: float = 0.0) -> Decoder:
    """Makes the decoder of classes in [0, classes), such as types of atoms, as unit vectors: a latent has a last axis of
    ``classes`` more than the data, (unit - loc) / scale.

    Args:
        classes: how many, at least 2.
        form: of p(x given z_0). "softmax" is the posterior of classes that are equally likely. "bins" takes the mass of each
            number's normal within 1/2 of 1, and normalises over the classes (Hoogeboom et al. 2022, app. B).
        loc, scale: numbers. A larger scale makes the latents smaller, so that they are made later than the rest.
        floor: with "bins", is added to each mass before they are normalised; 1e-10 in the published code.

    Raises:
        TypeError, ValueError: fewer than 2 classes, another form, a scale that is not above 0, a floor out of [0, 1).

    >>> import torch
    >>> from purevdm import decoders
    >>> types = decoders.one_hot(3, scale=4.0)
    >>> types.latent_shape((9,)), types.encode({}, torch.tensor([[0, 2]]))
    ((9, 3), tensor([[[0.2500, 0.0000, 0.0000],
             [0.0000, 0.0000, 0.2500]]]))
    """
    classes, form = _checks.integer("classes", classes, 2, 2**22), _checks.choice("form", form, ("softmax", "bins"))
    loc, scale, floor = _checked(loc, scale, floor)
    if floor and form == "softmax":
        raise ValueError(f"floor: expected 0 with form='softmax', got {floor}")
    return OneHot(vocab_size=classes, form=form, loc=loc, scale=scale, floor=floor)
