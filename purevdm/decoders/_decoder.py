"""What a decoder is, and what the decoders share."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._compile import fixed, untraced
from purevdm._values import Value
from purevdm.types import Key, Params, Shape

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Decoder(Value):
    """The model of the data given a latent: data to real numbers, f, and p(x given z_0) back. Derive from it and write at
    least :meth:`check`, :meth:`encode`, :meth:`log_prob`, :meth:`mode` and :meth:`sample`.

    In the methods, x holds data, (B, *event_shape); those of this library are elementwise, and take any shape. z holds
    latents at time 0 divided by alpha_0, so z = f + exp(gamma_0 / 2) eps_0, (B, *latent_shape). ``params`` are the decoder's
    own, {} where it has none. ``cond`` is the batch's condition. ``estimate`` is the data that the network sees in z_0,
    (B, *latent_shape), for a decoder that takes it.

    Attributes:
        support: what the data are, for messages: "integers in [0, 255]", "finite numbers".
        vocab_size: how many values, or None where data are not discrete.
        unit: what a bound on these data is reported in: "bits/dim", or "nats" an example for a density.
        takes_estimate: whether p(x given z_0) depends on the network's estimate, as in the last step of a DDPM. It costs the
            network once more in each bound.
        log_probs: ``log_probs(params, z, gamma_0, cond=None, estimate=None)``: log p(v given z_0) for every value v, on a
            new last axis, nats. None where data are not discrete.
    """

    support: str = "data"
    vocab_size: int | None = None
    unit: str = "bits/dim"
    takes_estimate: bool = False
    log_probs: Callable[..., Tensor] | None = None

    @property
    def integral(self) -> bool:
        """Whether data are of an integer dtype."""
        return self.vocab_size is not None

    @property
    def learned(self) -> bool:
        """Whether a decoder may have parameters."""
        return type(self).init is not Decoder.init

    def init(self, key: Key) -> Params:
        """Fresh parameters: {}, unless a decoder says otherwise; then a model has no branch for them."""
        return {}

    def latent_shape(self, event_shape: Shape) -> tuple[int, ...]:
        """The shape of one example's latent: that of its data, unless a decoder says otherwise."""
        return tuple(event_shape)

    def latent_mask(self, mask: Tensor) -> Tensor:
        """A mask of the data as it broadcasts to latents: as it is, unless latents have another shape."""
        return mask

    def check(self, x: Tensor) -> Tensor:
        """Whether each element is in the support, a bool tensor of x's shape.

        Raises:
            TypeError: x is not a tensor of such data at all.
        """
        raise NotImplementedError

    def encode(self, params: Params, x: Tensor, cond: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """The data's position f in the latent space, (B, *latent_shape), in that dtype."""
        raise NotImplementedError

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """The least and the greatest f, each a tensor like ``like``; None where data have no bounds."""
        return None

    def log_prob(
        self, params: Params, x: Tensor, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        """log p(x given z_0), a probability or a density of x, for each element of x, nats."""
        raise NotImplementedError

    def reconstruction(
        self, params: Params, x: Tensor, eps_0: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        """-log p(x given z_0) for the latent that is x with the noise eps_0, for each element of x, nats. A decoder that
        does not form the latent here takes gamma_0 as small as may be."""
        z = self.encode(params, x, cond, eps_0.dtype) + torch.exp(0.5 * gamma_0) * eps_0
        return -self.log_prob(params, x, z, gamma_0, cond, estimate)

    def mode(self, params: Params, z: Tensor, cond: Any = None, estimate: Tensor | None = None) -> Tensor:
        """The likeliest data. A latent that is not finite is refused in eager mode; a compiled graph, which reads no values,
        gives -1 for it, or what is not finite where data are real."""
        raise NotImplementedError

    def sample(
        self, params: Params, key: Key, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        """Data drawn from p(x given z_0); latents that are not finite as in :meth:`mode`."""
        raise NotImplementedError


def checked_affine(loc: Any, scale: Any) -> tuple[Any, Any]:
    """The arguments ``loc`` and ``scale`` of a decoder: finite numbers, or nested tuples of them.

    Raises:
        TypeError, ValueError: anything else, a ragged sequence, or a scale that is not above 0.
    """
    loc, scale = _numbers("loc", loc), _numbers("scale", scale)
    for name, numbers in (("loc", loc), ("scale", scale)):
        try:
            held = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        except ValueError:
            raise ValueError(f"{name}: expected sequences of one length at each level, got {numbers}") from None
        if name == "scale" and not (held > 0).all():
            raise ValueError(f"scale: expected numbers above 0, got {scale}")
    return loc, scale


def _numbers(name: str, x: Any) -> Any:
    if name.count("[") > 8:
        raise ValueError(f"{name.split('[')[0]}: expected sequences of at most 8 levels, got more")
    if isinstance(x, (tuple, list)):
        return tuple(_numbers(f"{name}[{i}]", part) for i, part in enumerate(x))
    return _checks.real(name, x)


def affine(loc: Any, scale: Any, like: Tensor) -> tuple[Any, Any]:
    """A decoder's ``loc`` and ``scale`` as numbers, or as tensors like ``like``."""
    loc, scale = (
        torch.tensor(a, dtype=like.dtype, device=like.device) if isinstance(a, tuple) else fixed(a) for a in (loc, scale)
    )
    return loc, scale


def level(gamma_0: Tensor, z: Tensor) -> Tensor:
    """A noise level that broadcasts against latents; in eager, both must be finite."""
    _checks.broadcasting("gamma_0", _checks.floating("gamma_0", gamma_0), _checks.floating("z", z).shape)
    _checks.together("gamma_0", gamma_0, z.device)
    _checks.verify([*_checks.finite("gamma_0", {(): gamma_0}), *_checks.finite("z", {(): z})])
    return gamma_0


def finite(z: Tensor) -> Tensor:
    """Whether each latent is finite; in eager, all must be."""
    holds = _checks.floating("z", z).isfinite()
    if _checks.readable(z):
        _checks.verify(
            [_checks.Fact(holds, lambda: ValueError("z: expected finite latents to decode, got NaN or infinity"))]
        )
    return holds


def fits(decoder: Decoder, event_shape: Shape, dtype: torch.dtype) -> None:
    """Refuses a decoder that gives an event another shape, or from whose numbers in this dtype data do not come back:
    integers exactly, real numbers to a hundredth of their scale."""
    if plain(decoder, event_shape):
        with untraced():
            _fits(decoder, event_shape, dtype)


def _fits(decoder: Decoder, event_shape: Shape, dtype: torch.dtype) -> None:
    one = (1,) * len(event_shape)
    if _shape(decoder, one, dtype) == one:  # the same for every element, and an event may be larger than the memory
        event_shape = one
    shape = _shape(decoder, event_shape, dtype)
    if shape != event_shape:
        got = "which these do not" if shape is None else f"which these turn into events {shape}"
        raise ValueError(f"decoder: expected a loc and scale that broadcast against events {event_shape}, {got}")
    values = decoder.vocab_size
    if decoder.integral and values is None:
        return  # without ends, any latent is near one
    least, most, n = (-1.0, 1.0, 7) if values is None else (0, values - 1, min(values, 2 + 10**6 // math.prod(event_shape)))
    each = torch.linspace(least, most, n, dtype=torch.float64, device="cpu").reshape(-1, *[1] * len(event_shape))
    if values is None:
        x = decoder.mode({}, each.to(dtype).expand(n, *event_shape))
        f = decoder.encode({}, x, dtype=dtype)
        back, wanted = f, each
    else:
        x = each.round().to(torch.int64).expand(n, *event_shape)
        f = decoder.encode({}, x, dtype=dtype)
        back, wanted = decoder.mode({}, f.nan_to_num()), x
    held = f.isfinite() & ((back - wanted).abs() <= (0.01 if values is None else 0))
    if not held.all():
        of = "numbers" if values is None else f"{values} values"
        raise ValueError(
            f"decoder: expected a loc and scale from which data come back in {dtype}, got ones whose {of} come back as "
            f"others, such as {wanted.expand_as(back)[~held][0]:g} as {back[~held][0]:g}"
        )


def plain(decoder: Decoder, event_shape: Shape) -> bool:
    """Whether a decoder has nothing to learn, and latents of its data's shape."""
    return not decoder.learned and decoder.latent_shape(event_shape) == tuple(event_shape)


def _shape(decoder: Decoder, event_shape: Shape, dtype: torch.dtype) -> tuple[int, ...] | None:
    """The shape of decoded latents of this shape."""
    try:
        return tuple(decoder.mode({}, torch.zeros(event_shape, dtype=dtype, device="cpu")).shape)
    except RuntimeError:  # torch's, of shapes that do not broadcast
        return None


def spacing(decoder: Decoder, event_shape: Shape) -> float | None:
    """The least distance, over an event, of neighbouring values that are spaced evenly; None for real data."""
    if decoder.vocab_size is None or not plain(decoder, event_shape):
        return None
    one = (1,) * len(event_shape)
    event_shape = one if _shape(decoder, one, torch.float64) == one else event_shape
    ends = torch.tensor([0, decoder.vocab_size - 1], device="cpu").reshape(2, *[1] * len(event_shape))
    f = decoder.encode({}, ends.expand(2, *event_shape), dtype=torch.float64)
    return ((f[1] - f[0]) / (decoder.vocab_size - 1)).min().item()
