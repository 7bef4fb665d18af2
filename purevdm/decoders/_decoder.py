"""The form of a decoder, and what the decoders share."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, _values
from purevdm._compile import fixed, untraced
from purevdm.types import Key, Shape

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@_values.by_content
class Decoder(NamedTuple):
    """How data become real numbers and back. Functions are elementwise over an event (or a batch of them).

    Attributes:
        support: what the data are, for messages: "integers in [0, 255]", "finite numbers".
        check: ``check(x) -> holds``: whether each element is in the support, a bool tensor of x's shape.

            Raises:
                TypeError: x is not a tensor of such data at all.
        encode: ``encode(x, dtype=torch.float32) -> f``, the position of each value on the real line, in that dtype.
        bounds: ``bounds(like) -> (low, high)``: the least and the greatest f, each a tensor like ``like``; None where data
            have no bounds.
        log_prob: ``log_prob(x, z, gamma_0)``, log p(x given z_0), a probability or a density of x, elementwise, nats.
        reconstruction: ``reconstruction(x, eps_0, gamma_0)``, -log p(x given z_0) for the latent that is x with the noise
            eps_0, elementwise, nats. It never forms the latent, so no gamma_0 is too small for it.
        mode: ``mode(z)``, the likeliest data. A latent that is not finite is refused in eager; a compiled graph, which
            reads no values, gives -1 for it, or what is not finite where data are real.
        sample: ``sample(key, z, gamma_0)``, data drawn from p(x given z_0); latents that are not finite as in ``mode``.
        log_probs: ``log_probs(z, gamma_0)``, log p(v given z_0) for every value v, on a new last axis, nats; None where
            data are not discrete.
        vocab_size: how many values, or None.
        unit: what a bound on these data is reported in: "bits/dim", or "nats" an example for a density.
    """

    support: str
    check: Callable[[Tensor], Tensor]
    encode: Callable[..., Tensor]
    bounds: Callable[[Tensor], tuple[Tensor, Tensor]] | None
    log_prob: Callable[[Tensor, Tensor, Tensor], Tensor]
    reconstruction: Callable[[Tensor, Tensor, Tensor], Tensor]
    mode: Callable[[Tensor], Tensor]
    sample: Callable[[Key, Tensor, Tensor], Tensor]
    log_probs: Callable[[Tensor, Tensor], Tensor] | None = None
    vocab_size: int | None = None
    unit: str = "bits/dim"


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
    least, most, n = (-1.0, 1.0, 7) if values is None else (0, values - 1, min(values, 2 + 10**6 // math.prod(event_shape)))
    each = torch.linspace(least, most, n, dtype=torch.float64, device="cpu").reshape(-1, *[1] * len(event_shape))
    if values is None:
        x = decoder.mode(each.to(dtype).expand(n, *event_shape))
        f = decoder.encode(x, dtype)
        back, wanted = f, each
    else:
        x = each.round().to(torch.int64).expand(n, *event_shape)
        f = decoder.encode(x, dtype)
        back, wanted = decoder.mode(f.nan_to_num()), x
    held = f.isfinite() & ((back - wanted).abs() <= (0.01 if values is None else 0))
    if not held.all():
        of = "numbers" if values is None else f"{values} values"
        raise ValueError(
            f"decoder: expected a loc and scale from which data come back in {dtype}, got ones whose {of} come back as "
            f"others, such as {wanted.expand_as(back)[~held][0]:g} as {back[~held][0]:g}"
        )


def _shape(decoder: Decoder, event_shape: Shape, dtype: torch.dtype) -> tuple[int, ...] | None:
    """The shape of decoded latents of this shape."""
    try:
        return tuple(decoder.mode(torch.zeros(event_shape, dtype=dtype, device="cpu")).shape)
    except RuntimeError:  # torch's, of shapes that do not broadcast
        return None


def spacing(decoder: Decoder, event_shape: Shape) -> float | None:
    """The least distance, over an event, of neighbouring values that are spaced evenly; None for real data."""
    if decoder.vocab_size is None:
        return None
    one = (1,) * len(event_shape)
    event_shape = one if _shape(decoder, one, torch.float64) == one else event_shape
    ends = torch.tensor([0, decoder.vocab_size - 1], device="cpu").reshape(2, *[1] * len(event_shape))
    f = decoder.encode(ends.expand(2, *event_shape), torch.float64)
    return ((f[1] - f[0]) / (decoder.vocab_size - 1)).min().item()
