"""Output distributions as values: what a network's output says of the data, and what that costs.

Methods take one example. ``out`` is what ``read`` makes of a network's output: a tuple of tensors. ``h`` are the data as
numbers, which the latent is made of.
"""

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from purevdm import random
from purevdm._compile import fixed
from purevdm.bfn import categorical, distributions, normal, process
from purevdm.bfn.flows import Categorical, Normal
from purevdm.decoders import Decoder
from purevdm.types import Key

__all__ = ["Classes", "Normals", "Output", "Point"]

Out = tuple[Tensor, ...]


class Output(Protocol):
    """What a model needs of an output distribution; :class:`Point`, :class:`Normals` and :class:`Classes` are the three."""

    @property
    def decoder(self) -> Decoder: ...

    @property
    def mixture(self) -> bool:
        """Whether receivers are mixtures, whose n-step loss is estimated by draws of the sender's noise."""

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """h, for one example or a batch."""

    def read(self, flow: Any, raw: Tensor, w: Tensor, t: Tensor, predicts: str) -> Out: ...

    def mean(self, out: Out) -> Tensor:
        """h_hat, the mean of h."""

    def step_loss(self, out: Out, x: Tensor, h: Tensor, gain: Tensor, sender: Tensor | None) -> Tensor:
        """KL(sender || receiver) of one step, nats: of each dimension, (*event_shape). For mixtures, its mean over draws of
        the sender's noise, (draws, *h.shape)."""

    def reconstruction(self, out: Out, x: Tensor) -> Tensor:
        """-log p(x), nats: of each dimension, (*event_shape)."""

    def draw(self, key: Key, out: Out) -> Tensor:
        """A draw of h; for one example or a batch."""

    def decode(self, key: Key | None, out: Out) -> Tensor:
        """Data: a draw of them, or the likeliest without a key; for one example or a batch."""


class Point(NamedTuple):
    """A point, for real numbers. Data are reconstructed by p(x given z) of the decoder at z = x_hat with the deviation
    ``recon_std``.

    Attributes:
        decoder: data to numbers and back.
        clip: what to clamp x_hat to, or None.
        recon_std: the deviation of the reconstruction.
    """

    decoder: Decoder
    clip: tuple[float, float] | None
    recon_std: float

    @property
    def mixture(self) -> bool:
        return False

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return self.decoder.encode({}, x, dtype=dtype)

    def read(self, flow: Normal, raw: Tensor, w: Tensor, t: Tensor, predicts: str) -> Out:
        offset, factor = normal.predicted(w, t, flow.sigma_1, predicts)
        x_hat = offset + factor * raw
        return (x_hat if self.clip is None else x_hat.clamp(*map(fixed, self.clip)),)

    def mean(self, out: Out) -> Tensor:
        return out[0]

    def step_loss(self, out: Out, x: Tensor, h: Tensor, gain: Tensor, sender: Tensor | None) -> Tensor:
        return process.sender_loss(h, out[0], gain)

    def reconstruction(self, out: Out, x: Tensor) -> Tensor:
        eps = (out[0] - self.encode(x, out[0].dtype)) / fixed(self.recon_std)
        return self.decoder.reconstruction({}, x, eps, self._log_variance(eps))

    def draw(self, key: Key, out: Out) -> Tensor:
        return out[0]

    def decode(self, key: Key | None, out: Out) -> Tensor:
        if key is None:
            return self.decoder.mode({}, out[0])
        return self.decoder.sample({}, key, out[0], self._log_variance(out[0]))

    def _log_variance(self, like: Tensor) -> Tensor:
        return torch.full_like(like, 2.0 * math.log(fixed(self.recon_std)))


class Normals(NamedTuple):
    """Normals over the bins of discretised data (sec. 5): the network gives a mean and a log deviation a dimension.

    Attributes:
        decoder: of :func:`purevdm.bfn.binned`.
        std_bounds: what to clamp deviations to, or None.
    """

    decoder: Decoder
    std_bounds: tuple[float, float] | None

    @property
    def bins(self) -> int:
        return fixed(self.decoder.vocab_size)  # type: ignore[type-var, return-value]

    @property
    def mixture(self) -> bool:
        return True

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return self.decoder.encode({}, x, dtype=dtype)

    def read(self, flow: Normal, raw: Tensor, w: Tensor, t: Tensor, predicts: str) -> Out:
        offset, factor = normal.predicted(w, t, flow.sigma_1, predicts)
        std = torch.where(factor == 0.0, 1.0, factor.abs() * torch.exp(raw[..., 1]))
        std = std if self.std_bounds is None else std.clamp(*map(fixed, self.std_bounds))
        return offset + factor * raw[..., 0], std

    def mean(self, out: Out) -> Tensor:
        return distributions.bin_expectation(out[0], out[1], self.bins)

    def step_loss(self, out: Out, x: Tensor, h: Tensor, gain: Tensor, sender: Tensor | None) -> Tensor:
        values = self.decoder.encode({}, torch.arange(self.bins, device=h.device), dtype=h.dtype)
        return _averaged(self.log_probs(out), (h[..., None] - values)[..., None], gain, sender, 1)

    def log_probs(self, out: Out) -> Tensor:
        """The log probability of each bin, on a new last axis."""
        return distributions.bin_log_probs(out[0], out[1], self.bins)

    def reconstruction(self, out: Out, x: Tensor) -> Tensor:
        return -distributions.bin_log_prob(x, out[0], out[1], self.bins)

    def draw(self, key: Key, out: Out) -> Tensor:
        mean, std = out
        drawn = self.decoder.mode({}, mean + std * random.normal(key, mean.shape, mean.dtype))
        return self.decoder.encode({}, drawn, dtype=mean.dtype)

    def decode(self, key: Key | None, out: Out) -> Tensor:
        if key is None:
            return self.log_probs(out).argmax(-1)
        return self.decoder.mode({}, out[0] + out[1] * random.normal(key, out[0].shape, out[0].dtype))


class Classes(NamedTuple):
    """Categoricals, for classes (sec. 6): the network gives logits. Of the decoder, what it says of its support is used."""

    decoder: Decoder

    @property
    def k(self) -> int:
        return fixed(self.decoder.vocab_size)  # type: ignore[type-var, return-value]

    @property
    def mixture(self) -> bool:
        return True

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return categorical.one_hot(x, self.k, dtype) - 1.0 / self.k

    def read(self, flow: Categorical, raw: Tensor, w: Tensor, t: Tensor, predicts: str) -> Out:
        return (torch.log_softmax(flow.logits(raw), -1),)

    def mean(self, out: Out) -> Tensor:
        return out[0].exp() - 1.0 / self.k

    def step_loss(self, out: Out, x: Tensor, h: Tensor, gain: Tensor, sender: Tensor | None) -> Tensor:
        values = torch.eye(self.k, dtype=h.dtype, device=h.device) - 1.0 / self.k
        return _averaged(out[0], h[..., None, :] - values, gain, sender, 0)

    def reconstruction(self, out: Out, x: Tensor) -> Tensor:
        # not by an index, which compilers of symbolic sizes fail on under vmap
        return -torch.where(categorical.one_hot(x, self.k, torch.bool), out[0], 0.0).sum(-1)

    def draw(self, key: Key, out: Out) -> Tensor:
        return self.encode(random.categorical(key, out[0]), out[0].dtype)

    def decode(self, key: Key | None, out: Out) -> Tensor:
        return out[0].argmax(-1) if key is None else random.categorical(key, out[0])


def _averaged(log_p: Tensor, offsets: Tensor, gain: Tensor, sender: Tensor | None, new_axes: int) -> Tensor:
    """:func:`purevdm.bfn.process.receiver_loss`, averaged over draws of the sender's noise."""
    assert sender is not None
    sender = sender[..., None] if new_axes else sender
    return torch.func.vmap(lambda eps: process.receiver_loss(log_p, offsets, eps, gain))(sender).mean(0)
