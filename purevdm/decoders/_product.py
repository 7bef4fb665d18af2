"""Parts of different kinds in one tensor, each with its own decoder, such as an atom's position, type and charge."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, random
from purevdm._compile import fixed
from purevdm.decoders._decoder import Decoder
from purevdm.decoders._gaussian import _numbers
from purevdm.types import Key, Params, Shape

__all__ = ["product"]


class Part(NamedTuple):
    """A part of a product.

    Attributes:
        name: what messages and ``Product.split`` call it.
        decoder: its own.
        columns: how many entries of the data's last axis it takes; None for one, without an axis of its own when split.
    """

    name: str
    decoder: Decoder
    columns: int | None

    @property
    def width(self) -> int:
        """The number of its columns of data."""
        return 1 if self.columns is None else fixed(self.columns)

    @property
    def latent(self) -> tuple[int, ...]:
        """The shape of its latents at one place."""
        return tuple(self.decoder.latent_shape((self.width,)))

    def data(self, columns: Tensor) -> Tensor:
        """Gives columns as its decoder takes them; what is no number that it has becomes one that it refuses."""
        if not self.decoder.integral:
            return columns
        return columns.nan_to_num(nan=-(2.0**31)).clamp(-(2.0**31), 2.0**31).round().to(torch.int64)


@dataclass(frozen=True)
class Product(Decoder):
    """The decoder of :func:`product`. Data are (..., columns), latents (..., latent columns), part by part."""

    parts: tuple[Part, ...]

    @property
    def support(self) -> str:  # type: ignore[override]
        return "columns of " + ", ".join(f"{part.name} ({part.width}: {part.decoder.support})" for part in self.parts)

    @property
    def unit(self) -> str:  # type: ignore[override]
        return "nats" if any(part.decoder.unit == "nats" for part in self.parts) else "bits/dim"

    @property
    def takes_estimate(self) -> bool:  # type: ignore[override]
        return any(part.decoder.takes_estimate for part in self.parts)

    @property
    def learned(self) -> bool:
        return any(part.decoder.learned for part in self.parts)

    # The parts of trees

    def join(self, **tree: Tensor) -> Tensor:
        """Makes data of their parts by name, each (..., columns), or (...) for a part without columns: floating-point, of
        the dtype of the first part that is, or else float32.

        Raises:
            TypeError, ValueError: other names, something that is not a tensor, or parts of other shapes.
        """
        names = [part.name for part in self.parts]
        if set(tree) != set(names):
            raise ValueError(f"tree: expected the parts {', '.join(names)}, got {', '.join(tree) or 'none'}")
        given = [_checks.tensor(name, tree[name]) for name in names]
        dtype = next((x.dtype for x in given if x.is_floating_point()), torch.float32)
        columns = [x[..., None] if part.columns is None else x for part, x in zip(self.parts, given, strict=True)]
        lead = columns[0].shape[:-1]
        for part, x in zip(self.parts, columns, strict=True):
            _checks.shaped(part.name, x, (*lead, part.width))
        return torch.cat([x.to(dtype) for x in columns], -1)

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """Gives the parts of data, as :meth:`join` takes them; integers as int64."""
        found = {}
        for part, columns in self._data(_checks.tensor("x", x)):
            own = part.data(columns)
            found[part.name] = own[..., 0] if part.columns is None else own
        return found

    def _data(self, x: Tensor) -> Iterator[tuple[Part, Tensor]]:
        widths = [part.width for part in self.parts]
        if x.ndim == 0 or x.shape[-1] != sum(widths):
            raise ValueError(f"x: expected {sum(widths)} columns, {self.support}, got {_checks.describe(x)}")
        return zip(self.parts, x.split(widths, -1), strict=True)

    def _latents(self, *given: Tensor | None) -> Iterator[tuple[Any, ...]]:
        """Yields each part with its columns of latents, shaped as its decoder has them; one column stands for all."""
        sizes, at = [math.prod(part.latent) for part in self.parts], 0

        def columns(x: Tensor | None, part: Part, size: int) -> Tensor | None:
            if x is None or x.ndim == 0:
                return x
            if x.shape[-1] == 1:
                return x.reshape(*x.shape[:-1], *(1 for _ in part.latent))
            return x[..., at : at + size].unflatten(-1, part.latent)

        for part, size in zip(self.parts, sizes, strict=True):
            yield part, *(columns(x, part, size) for x in given)
            at += size

    # A decoder's methods

    def init(self, key: Key) -> Params:
        own = {part.name: part.decoder.init(random.fold_in(key, i)) for i, part in enumerate(self.parts)}
        return {name: params for name, params in own.items() if params}

    def latent_shape(self, event_shape: Shape) -> tuple[int, ...]:
        wanted = sum(part.width for part in self.parts)
        if not event_shape or event_shape[-1] != wanted:
            raise ValueError(f"event_shape: expected a last axis of {wanted}, {self.support}, got {tuple(event_shape)}")
        return (*event_shape[:-1], sum(math.prod(part.latent) for part in self.parts))

    def latent_mask(self, mask: Tensor) -> Tensor:
        if mask.shape[-1] == 1:
            return mask
        masks = [
            part.decoder.latent_mask(own).expand(*own.shape[:-1], *part.latent).flatten(mask.ndim - 1)
            for part, own in self._data(mask)
        ]
        return torch.cat(masks, -1)

    def check(self, x: Tensor) -> Tensor:
        holds = []
        for part, columns in self._data(_numbers(x)):
            own = part.decoder.check(part.data(columns))
            holds.append(own & (columns == columns.round()) if part.decoder.integral else own)
        return torch.cat(holds, -1)

    def encode(self, params: Params, x: Tensor, cond: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        latents = [
            part.decoder.encode(params.get(part.name, {}), part.data(columns), cond, dtype).flatten(x.ndim - 1)
            for part, columns in self._data(x)
        ]
        return torch.cat(latents, -1)

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        ends = [(own, part.decoder.bounds(own)) for part, own in self._latents(like)]
        if all(pair is None for _, pair in ends):
            return None
        infinite = [(torch.full_like(own, -math.inf), torch.full_like(own, math.inf)) for own, _ in ends]
        pairs = [pair or other for (_, pair), other in zip(ends, infinite, strict=True)]
        low, high = (torch.cat([end.flatten(like.ndim - 1) for end in side], -1) for side in zip(*pairs, strict=True))
        return low, high

    def log_prob(
        self, params: Params, x: Tensor, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        own = [
            part.decoder.log_prob(params.get(part.name, {}), part.data(columns), z_0, level, cond, hat)
            for (part, z_0, level, hat), (_, columns) in zip(self._latents(z, gamma_0, estimate), self._data(x), strict=True)
        ]
        return torch.cat(own, -1)

    def reconstruction(
        self, params: Params, x: Tensor, eps_0: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        own = [
            part.decoder.reconstruction(params.get(part.name, {}), part.data(columns), eps, level, cond, hat).expand_as(
                columns
            )
            for (part, eps, level, hat), (_, columns) in zip(
                self._latents(eps_0, gamma_0, estimate), self._data(x), strict=True
            )
        ]
        return torch.cat(own, -1)

    def mode(self, params: Params, z: Tensor, cond: Any = None, estimate: Tensor | None = None) -> Tensor:
        own = [
            part.decoder.mode(params.get(part.name, {}), z_0, cond, hat).to(z.dtype)
            for part, z_0, hat in self._latents(z, estimate)
        ]
        return torch.cat(own, -1)

    def sample(
        self, params: Params, key: Key, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        own = [
            part.decoder.sample(params.get(part.name, {}), random.fold_in(key, i), z_0, level, cond, hat).to(z.dtype)
            for i, (part, z_0, level, hat) in enumerate(self._latents(z, gamma_0, estimate))
        ]
        return torch.cat(own, -1)


def product(**parts: Any) -> Product:
    """Makes the decoder of data of several kinds, side by side along the last axis, each with its own decoder: p(x given
    z_0) is the product of theirs. So an atom is a position, a type and a charge, in one floating-point tensor, (atoms, 5).

    Where one kind is real, bounds are in nats. In a subspace of zero centre, the first part are the coordinates:
    ``subspace=parts.zero_centre(columns=3)``.

    Args:
        parts: by name, in order, a decoder and how many columns it takes, ``positions=(decoders.gaussian(), 3)``, or the
            decoder only, ``types=decoders.one_hot(5)``, for one column without an axis of its own in ``Product.split``.

    Returns:
        A decoder, with ``join(positions=..., types=...)``, which makes data of a tree, and ``split(x)``, its inverse.

    Raises:
        TypeError, ValueError: no part, another thing than a decoder, fewer than one column.

    >>> import torch
    >>> from purevdm import decoders
    >>> decoder = decoders.product(
    ...     positions=(decoders.gaussian(), 3), types=decoders.one_hot(5, scale=4.0), charges=decoders.integers(0, scale=8.0)
    ... )
    >>> x = decoder.join(positions=torch.zeros(9, 3), types=torch.arange(9) % 5, charges=torch.arange(9))
    >>> x.shape, decoder.latent_shape((9, 5)), decoder.split(x)["types"]
    (torch.Size([9, 5]), (9, 9), tensor([0, 1, 2, 3, 4, 0, 1, 2, 3]))
    """
    if not parts:
        raise ValueError("parts: expected at least one, got none")
    made = []
    for name, given in parts.items():
        decoder, columns = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        wanted = "a decoder, or a pair of a decoder and a number of columns"
        decoder = _checks.instance(name, decoder, Decoder, wanted)
        made.append(Part(name, decoder, None if columns is None else _checks.integer(f"{name}[1]", columns, 1)))
    return Product(tuple(made))
