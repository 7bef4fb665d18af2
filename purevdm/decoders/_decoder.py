"""What a decoder is, and what the decoders share."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from purevdm import _checks, _facts, _trees
from purevdm._compile import fixed, untraced
from purevdm._values import Value
from purevdm.types import Key, Params, Shape

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Decoder(Value):
    """The model of the data given a latent: data to real numbers, f, and p(x given z_0) back. Derive from it and write at
    least :meth:`check`, :meth:`encode`, :meth:`log_prob`, :meth:`mode` and :meth:`sample`.

    In the methods, x holds data, (B, *event_shape), and z latents at time 0 divided by alpha_0, (B, *latent_shape): z = f +
    exp(gamma_0 / 2) eps_0. The library's own are elementwise, and take any shape. ``params`` are the decoder's, {} where it
    has none. ``cond`` is the batch's condition. ``estimate`` is the data that the network predicts from z_0, of z's shape,
    for a decoder that takes it; gamma_0 is then the logarithm of the variance of p(x given z_0) around it, in the encoded
    data's units, which the model's reverse process says: gamma_0 of z_0 itself by default.

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
        """Makes fresh parameters: {}, for which a model has no branch, unless a decoder says otherwise."""
        return {}

    def latent_shape(self, event_shape: Shape) -> tuple[int, ...]:
        """Gives the shape of one example's latent: that of its data, unless a decoder says otherwise."""
        return tuple(event_shape)

    def latent_mask(self, mask: Tensor) -> Tensor:
        """Gives a mask of the data as it broadcasts to latents: as it is, unless latents have another shape."""
        return mask

    def check(self, x: Tensor) -> Tensor:
        """Says whether each element is in the support, a bool tensor of x's shape.

        Raises:
            TypeError: x is not a tensor of such data at all.
        """
        raise NotImplementedError

    def encode(self, params: Params, x: Tensor, cond: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Gives the data's position f in the latent space, (B, *latent_shape), in that dtype."""
        raise NotImplementedError

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Gives the least and the greatest f, each a tensor like ``like``; None where data have no bounds."""
        return None

    def log_prob(
        self, params: Params, x: Tensor, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        """Computes log p(x given z_0), a probability or a density of x, for each element of x, nats."""
        raise NotImplementedError

    def reconstruction(
        self, params: Params, x: Tensor, eps_0: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        """Computes -log p(x given z_0) for the latent that is x with the noise eps_0, for each element of x, nats."""
        z = self.encode(params, x, cond, eps_0.dtype) + torch.exp(0.5 * gamma_0) * eps_0
        return -self.log_prob(params, x, z, gamma_0, cond, estimate)

    def mode(self, params: Params, z: Tensor, cond: Any = None, estimate: Tensor | None = None) -> Tensor:
        """Gives the likeliest data. A latent that is not finite is refused in eager mode; a compiled graph, which reads no
        values, gives -1 for it, or what is not finite where data are real."""
        raise NotImplementedError

    def sample(
        self, params: Params, key: Key, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        """Draws data from p(x given z_0); latents that are not finite as in :meth:`mode`."""
        raise NotImplementedError


class Elementwise(Decoder):
    """A decoder whose ``reconstruction`` is a formula of the noise, and whose latents have the data's shape."""

    def log_prob(
        self, params: Params, x: Tensor, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        gamma_0, holds = level(gamma_0, z), self.check(x)
        _checks.together("x", _checks.broadcasting("x", x, z.shape), z.device)
        f = self.encode(params, x, cond, z.dtype)
        if _facts.readable(x):
            wanted = f"{self.support} whose latents {z.dtype} holds"
            _facts.verify([_facts.Fact(holds & f.isfinite(), lambda: _checks.outside(wanted, "x", x))])
        return -self.reconstruction(params, x, (z - f) * torch.exp(-0.5 * gamma_0), gamma_0)


def checked_affine(loc: Any, scale: Any) -> tuple[Any, Any]:
    """Gives a decoder's ``loc`` and ``scale``, finite numbers or nested tuples of them, and refuses others."""
    return checked_numbers("loc", loc), checked_numbers("scale", scale, positive=True)


def checked_numbers(name: str, x: Any, *, positive: bool = False) -> Any:
    """Gives an argument as a finite number or nested tuples of them, above 0 if ``positive``, and refuses others."""
    numbers = _numbers(name, x)
    try:
        values = torch.tensor(numbers, dtype=torch.float64, device="cpu")
    except ValueError:
        raise ValueError(f"{name}: expected sequences of one length at each level, got {numbers}") from None
    if positive and not (values > 0).all():
        raise ValueError(f"{name}: expected numbers above 0, got {numbers}")
    return numbers


def _numbers(name: str, x: Any) -> Any:
    if isinstance(x, (tuple, list)):
        return tuple(_numbers(f"{name}[{i}]", part) for i, part in enumerate(x))
    return _checks.real(name, x)


def affine(loc: Any, scale: Any, like: Tensor) -> tuple[Any, Any]:
    """Gives a decoder's ``loc`` and ``scale`` as numbers, or as tensors like ``like``."""

    def one(a: Any) -> Any:
        return torch.tensor(a, dtype=like.dtype, device=like.device) if isinstance(a, tuple) else fixed(a)

    return one(loc), one(scale)


def data(x: Tensor, dtypes: Sequence[torch.dtype], wanted: str, hint: str = "") -> Tensor:
    """Gives data of one of some dtypes, and refuses others with a TypeError."""
    if isinstance(x, Tensor) and x.layout == torch.strided and x.dtype in dtypes:
        return x
    raise TypeError(f"x: expected a tensor of {wanted}, got {_checks.describe(x)}{hint}")


def is_class(x: Tensor, classes: int) -> Tensor:
    """Tells which class each integer is, on a new last axis."""
    return x[..., None].to(torch.int64) == torch.arange(classes, device=x.device)


def level(gamma_0: Tensor, z: Tensor) -> Tensor:
    """Gives a noise level that broadcasts against latents; in eager mode, both must be finite."""
    _checks.broadcasting("gamma_0", _checks.floating("gamma_0", gamma_0), _checks.floating("z", z).shape)
    _checks.together("gamma_0", gamma_0, z.device)
    _facts.verify([*_trees.finite("gamma_0", {(): gamma_0}), *_trees.finite("z", {(): z})])
    return gamma_0


def finite(z: Tensor) -> Tensor:
    """Says whether each latent is finite; in eager mode, all must be."""
    holds = _checks.floating("z", z).isfinite()
    if _facts.readable(z):
        error = ValueError("z: expected finite latents to decode, got NaN or infinity")
        _facts.verify([_facts.Fact(holds, lambda: error)])
    return holds


def fits(decoder: Decoder, event_shape: Shape, dtype: torch.dtype) -> None:
    """Refuses a decoder that gives an event another shape, or from whose numbers in this dtype data do not come back:
    integers exactly, real numbers to a hundredth of their scale."""
    if not plain(decoder, event_shape):
        return
    with untraced():
        event_shape = _smallest(decoder, event_shape, dtype)
        shape = _shape(decoder, event_shape, dtype)
        if shape != event_shape:
            got = "which these do not" if shape is None else f"which these turn into events {shape}"
            numbers = "a loc and scale" if getattr(decoder, "noise", None) is None else "a loc, scale and noise"
            raise ValueError(f"decoder: expected {numbers} that broadcast against events {event_shape}, {got}")
        n = decoder.vocab_size
        if n is None and decoder.integral:
            return  # without ends, any latent is near one
        ends = (-1.0, 1.0, 7) if n is None else (0, n - 1, min(n, 2 + 10**6 // math.prod(event_shape)))
        wanted = torch.linspace(*ends, dtype=torch.float64, device="cpu").reshape(-1, *[1] * len(event_shape))
        wanted = wanted.expand(-1, *event_shape)
        if n is None:
            back = f = decoder.encode({}, decoder.mode({}, wanted.to(dtype)), dtype=dtype)
        else:
            wanted = wanted.round()
            f = decoder.encode({}, wanted.to(torch.int64), dtype=dtype)
            back = decoder.mode({}, f.nan_to_num())
        holds = f.isfinite() & ((back - wanted).abs() <= (0.01 if n is None else 0))
        if not holds.all():
            of, pair = "numbers" if n is None else f"{n} values", (wanted[~holds][0], back[~holds][0])
            raise ValueError(
                f"decoder: expected a loc and scale from which data come back in {dtype}, got ones whose {of} come back as "
                f"others, such as {pair[0]:g} as {pair[1]:g}"
            )


def spacing(decoder: Decoder, event_shape: Shape) -> float | None:
    """Gives the least distance, over an event, of neighbouring values that are spaced evenly; None for real data."""
    if decoder.vocab_size is None or not plain(decoder, event_shape):
        return None
    event_shape = _smallest(decoder, event_shape, torch.float64)
    ends = torch.tensor([0, decoder.vocab_size - 1], device="cpu").reshape(2, *[1] * len(event_shape))
    f = decoder.encode({}, ends.expand(2, *event_shape), dtype=torch.float64)
    return ((f[1] - f[0]) / (decoder.vocab_size - 1)).min().item()


def plain(decoder: Decoder, event_shape: Shape) -> bool:
    """Says whether a decoder has nothing to learn, and latents of its data's shape."""
    return not decoder.learned and decoder.latent_shape(event_shape) == tuple(event_shape)


def _smallest(decoder: Decoder, event_shape: Shape, dtype: torch.dtype) -> Shape:
    """Gives an event of one element for a decoder that treats all alike, as an event may be larger than the memory."""
    one = (1,) * len(event_shape)
    return one if _shape(decoder, one, dtype) == one else event_shape


def _shape(decoder: Decoder, event_shape: Shape, dtype: torch.dtype) -> Shape | None:
    """Gives the shape of data decoded from latents of this shape."""
    try:
        x = decoder.mode({}, torch.zeros(event_shape, dtype=dtype, device="cpu"))
        noise = getattr(decoder, "noise", None)
        shape = torch.tensor(0.0 if noise is None else noise, device="cpu").shape
        return tuple(torch.broadcast_shapes(x.shape, shape))
    except RuntimeError:  # torch's, of shapes that do not broadcast
        return None
