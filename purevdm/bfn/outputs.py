"""Output distributions: what a network's output says of the data, and what that costs.

The three are values, whose methods take one example. ``out`` is what ``read`` makes of a network's output: a tuple of
tensors. ``h`` are the data as numbers, which the latent is made of (:mod:`purevdm.bfn.flows`). An :data:`Output` is one of
the three.
"""

import math
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from purevdm import _normal, random
from purevdm._compile import fixed
from purevdm._stable import expm1
from purevdm.bfn import distributions
from purevdm.bfn.flows import Categorical, Normal
from purevdm.decoders import Decoder, is_class
from purevdm.types import Key

__all__ = ["Classes", "Normals", "Output", "Point"]

Out: TypeAlias = tuple[Tensor, ...]


def squared_loss(h: Tensor, h_hat: Tensor, weight: Tensor) -> Tensor:
    """Computes weight (h - h_hat)**2 / 2, nats: of each number, of h's shape.

    For h_hat the mean of the output distribution and the weight snr'(t), it is the integrand of the continuous-time loss:
    -log(sigma_1) sigma_1**(-2 t) |x - x_hat|**2 for real data (eq. 101), K beta_1 t |e_x - e_hat|**2 for classes (eq. 205).
    For a step's gain in snr it is KL(sender || receiver) of an output distribution that is a point.
    """
    return 0.5 * (weight * (h - h_hat).square())


def mixture_loss(log_p: Tensor, offsets: Tensor, sender: Tensor, gain: Tensor) -> Tensor:
    """Estimates KL(sender || receiver) of one step by draws of the sender's noise, the receiver being a mixture, nats:
    of each dimension, (*event_shape).

    Each dimension's receiver mixes the sender's normals of all values k with the weights p_k of the output distribution
    (eqs. 189 and 190 for classes). Their densities at the message, relative to the sender's, are
    exp(-gain |h - h_k|**2 / 2 - sqrt(gain) (h - h_k) . eps): the message never appears, and nothing cancels.

    Args:
        log_p: log probabilities of all values, (*event_shape, K).
        offsets: h - h_k, (*event_shape, K, d), where a value is d numbers.
        sender: the sender's noise, (draws, *event_shape, d).
        gain: the step's in snr.
    """

    def one(eps: Tensor) -> Tensor:
        along = (offsets * eps[..., None, :]).sum(-1)
        relative = -0.5 * gain * offsets.square().sum(-1) - torch.sqrt(gain) * along
        # log(1 + rise) where the step is short, as n steps multiply what rounding does to a sum near 1
        rise = (p * expm1(relative)).sum(-1)
        near = torch.log1p(rise.clamp(min=-0.5))
        return -torch.where(rise > -0.5, near, torch.logsumexp(log_p + relative, -1))

    p = log_p.exp()
    return torch.func.vmap(one)(sender).mean(0)


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

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Computes h, of one example or a batch."""
        return self.decoder.encode({}, x, dtype=dtype)

    def read(self, flow: Normal, raw: Tensor, w: Tensor, t: Tensor, predicts: str) -> Out:
        """Reads what the network returned for the latent w at time t."""
        offset, factor = flow.predicted(w, t, predicts)
        x_hat = offset + factor * raw
        return (x_hat if self.clip is None else x_hat.clamp(*map(fixed, self.clip)),)

    def mean(self, out: Out) -> Tensor:
        """Computes h_hat, the mean of h."""
        return out[0]

    def step_loss(self, out: Out, x: Tensor, h: Tensor, gain: Tensor, sender: Any) -> Tensor:
        """Computes KL(sender || receiver) of one step, nats: shape (). The other two, whose receivers are mixtures, average
        over draws of the sender's noise, (draws, *h.shape)."""
        return squared_loss(h, out[0], gain)

    def reconstruction(self, out: Out, x: Tensor) -> Tensor:
        """Computes -log p(x), nats: of each dimension, (*event_shape)."""
        eps = (out[0] - self.encode(x, out[0].dtype)) / fixed(self.recon_std)
        return self.decoder.reconstruction({}, x, eps, self._log_variance(eps))

    def draw(self, key: Key, out: Out) -> Tensor:
        """Draws h, for one example or a batch."""
        return out[0]

    def decode(self, key: Key | None, out: Out) -> Tensor:
        """Draws data, or gives the likeliest without a key, for one example or a batch."""
        if key is None:
            return self.decoder.mode({}, out[0])
        return self.decoder.sample({}, key, out[0], self._log_variance(out[0]))

    def _log_variance(self, like: Tensor) -> Tensor:
        return torch.full_like(like, 2.0 * math.log(fixed(self.recon_std)))


class Normals(NamedTuple):
    """Normals over the bins of discretised data (sec. 5): the network gives a mean and a log deviation a dimension. Methods
    are those of :class:`Point`.

    Attributes:
        decoder: of :func:`purevdm.bfn.binned`.
        std_bounds: what to clamp deviations to, or None.
    """

    decoder: Decoder
    std_bounds: tuple[float, float] | None

    @property
    def _bins(self) -> int:
        return fixed(self.decoder.vocab_size)  # type: ignore[type-var, return-value]

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return self.decoder.encode({}, x, dtype=dtype)

    def read(self, flow: Normal, raw: Tensor, w: Tensor, t: Tensor, predicts: str) -> Out:
        offset, factor = flow.predicted(w, t, predicts)
        std = torch.where(factor == 0.0, 1.0, factor.abs() * torch.exp(raw[..., 1]))
        std = std if self.std_bounds is None else std.clamp(*map(fixed, self.std_bounds))
        return offset + factor * raw[..., 0], std

    def mean(self, out: Out) -> Tensor:
        return _normal.bin_expectation(out[0], out[1], self._bins)

    def step_loss(self, out: Out, x: Tensor, h: Tensor, gain: Tensor, sender: Any) -> Tensor:
        values = self.encode(torch.arange(self._bins, device=h.device), h.dtype)
        return mixture_loss(self.log_probs(out), (h[..., None] - values)[..., None], sender[..., None], gain)

    def log_probs(self, out: Out) -> Tensor:
        """Computes the log probability of each bin, on a new last axis."""
        return distributions.bin_log_probs(out[0], out[1], self._bins)

    def reconstruction(self, out: Out, x: Tensor) -> Tensor:
        return -distributions.bin_log_prob(x, out[0], out[1], self._bins)

    def draw(self, key: Key, out: Out) -> Tensor:
        return self.encode(self.decode(key, out), out[0].dtype)

    def decode(self, key: Key | None, out: Out) -> Tensor:
        if key is None:
            return self.log_probs(out).argmax(-1)
        mean, std = out
        return self.decoder.mode({}, mean + std * random.normal(key, mean.shape, mean.dtype))


class Classes(NamedTuple):
    """Categoricals, for classes (sec. 6): the network gives logits. Methods are those of :class:`Point`. Of the decoder,
    what it says of its support is used."""

    decoder: Decoder

    @property
    def _k(self) -> int:
        return fixed(self.decoder.vocab_size)  # type: ignore[type-var, return-value]

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return is_class(x, self._k).to(dtype) - 1.0 / self._k

    def read(self, flow: Categorical, raw: Tensor, w: Tensor, t: Tensor, predicts: str) -> Out:
        return (torch.log_softmax(flow.logits(raw), -1),)

    def mean(self, out: Out) -> Tensor:
        return out[0].exp() - 1.0 / self._k

    def step_loss(self, out: Out, x: Tensor, h: Tensor, gain: Tensor, sender: Any) -> Tensor:
        values = torch.eye(self._k, dtype=h.dtype, device=h.device) - 1.0 / self._k
        return mixture_loss(out[0], h[..., None, :] - values, sender, gain)

    def reconstruction(self, out: Out, x: Tensor) -> Tensor:
        # not by an index, which compilers of symbolic sizes fail on under vmap
        return -torch.where(is_class(x, self._k), out[0], 0.0).sum(-1)

    def draw(self, key: Key, out: Out) -> Tensor:
        return self.encode(self.decode(key, out), out[0].dtype)

    def decode(self, key: Key | None, out: Out) -> Tensor:
        return out[0].argmax(-1) if key is None else random.categorical(key, out[0])


Output: TypeAlias = Point | Normals | Classes
