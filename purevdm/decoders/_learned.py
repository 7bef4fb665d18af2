"""A latent diffusion: a learned encoding map, the diffusion of what it gives, a learned decoding map.

q(z_0 given x) is normal about alpha_0 f(x), with the variance sigma_0**2 that the schedule gives. So the encoder's entropy
is in the bound as it stands: reconstruction, prior and diffusion bound -log p(x). The maps, the observation's own
parameters, the diffusion and gamma_0 train together on it, from the start.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, nn, random
from purevdm._values import Value
from purevdm.decoders._decoder import Decoder
from purevdm.decoders._observation import Observation
from purevdm.types import Key, Params, Shape

__all__ = ["Map", "learned", "perceptron"]


class Map(NamedTuple):
    """A learned map of a batch.

    Attributes:
        init: ``init(key) -> params``.
        apply: ``apply(params, x) -> y``, each (B, ...). A ``torch.nn.Module`` is
            ``lambda params, x: torch.func.functional_call(module, params, (x,))``.
    """

    init: Callable[[Key], Params]
    apply: Callable[[Params, Tensor], Tensor]


@dataclass(frozen=True)
class Perceptron(Value):
    """The map of :func:`perceptron`."""

    shape: tuple[int, ...]
    hidden: tuple[int, ...]
    out: tuple[int, ...]

    def init(self, key: Key) -> Params:
        sizes = [torch.Size(self.shape).numel(), *self.hidden, torch.Size(self.out).numel()]
        keys = random.split(key, len(sizes) - 1)
        pairs = pairwise(sizes)
        return {f"dense{i}": nn.dense_init(k, *pair) for i, (k, pair) in enumerate(zip(keys, pairs, strict=True), 1)}

    def apply(self, params: Params, x: Tensor, keys: Tensor | None = None) -> Tensor:
        h = x.flatten(1)
        for i in range(1, len(self.hidden) + 1):
            h = nn.swish(nn.dense(params[f"dense{i}"], h))
        return nn.dense(params[f"dense{len(self.hidden) + 1}"], h).reshape(x.shape[0], *self.out)


def perceptron(shape: Shape, hidden: Sequence[int], out: Shape) -> Any:
    """Makes a map by dense layers: from (B, *shape) to (B, *out), through hidden layers of these widths with swish between.

    Raises:
        TypeError, ValueError: sizes below 1.
    """
    shapes = (_checks.integers(name, x, 1) for name, x in (("shape", shape), ("hidden", hidden), ("out", out)))
    return Perceptron(*shapes)


@dataclass(frozen=True)
class Learned(Decoder):
    """The decoder of :func:`learned`."""

    observation: Observation
    encoder: Any
    decoder: Any
    latent: tuple[int, ...]
    event: tuple[int, ...]

    @property
    def support(self) -> str:  # type: ignore[override]
        return self.observation.support

    @property
    def vocab_size(self) -> int | None:  # type: ignore[override]
        return self.observation.vocab_size

    @property
    def unit(self) -> str:  # type: ignore[override]
        return self.observation.unit

    def init(self, key: Key) -> Params:
        k_encoder, k_decoder, k_own = random.split(key, 3).unbind(0)
        own = self.observation.init(k_own, self.event)
        return {"encoder": self.encoder.init(k_encoder), "decoder": self.decoder.init(k_decoder), "observation": own}

    def latent_shape(self, event_shape: Shape) -> tuple[int, ...]:
        if tuple(event_shape) != self.event:
            raise ValueError(f"event_shape: expected {self.event}, as the decoder's, got {tuple(event_shape)}")
        return self.latent

    def latent_mask(self, mask: Tensor) -> Tensor:
        raise ValueError("mask: expected None, as a learned encoder has no place in its latent for an element")

    def check(self, x: Tensor) -> Tensor:
        return self.observation.check(x)

    def encode(self, params: Params, x: Tensor, cond: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        f = self.encoder.apply(params["encoder"], self.observation.features(x, dtype))
        return _checks.shaped("decoder.encoder", f, (x.shape[0], *self.latent)).to(dtype)

    def log_prob(
        self, params: Params, x: Tensor, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        return self.observation.log_prob(params["observation"], x, self._out(params, z), cond)

    def mode(self, params: Params, z: Tensor, cond: Any = None, estimate: Tensor | None = None) -> Tensor:
        return self.observation.mode(params["observation"], self._out(params, z), cond)

    def sample(
        self, params: Params, key: Key, z: Tensor, gamma_0: Tensor, cond: Any = None, estimate: Tensor | None = None
    ) -> Tensor:
        return self.observation.sample(params["observation"], key, self._out(params, z), cond)

    def _out(self, params: Params, z: Tensor) -> Tensor:
        outputs = self.observation.outputs
        shape = self.event if outputs is None else (*self.event, outputs)
        return _checks.shaped("decoder.decoder", self.decoder.apply(params["decoder"], z), (z.shape[0], *shape))


def learned(observation: Observation, encoder: Any, decoder: Any, *, latent: Shape, event_shape: Shape) -> Decoder:
    """Makes a learned encoder and decoder around the diffusion, trained with it on the bound.

    Take a schedule whose endpoints learn: gamma_0 is then the noise that the encoder leaves in its codes.

    Args:
        observation: p(x given what the decoding map returns): :func:`negative_binomial`, :func:`normal`,
            :func:`categorical`.
        encoder: a map, such as :func:`perceptron` or a :class:`Map`, from the observation's features of the data,
            (B, *event_shape), with a last axis of its outputs if it has several, to (B, *latent).
        decoder: a map from (B, *latent) to what the observation takes, of the same shape as those features.
        latent: the shape of one latent.
        event_shape: the shape of one example.

    Raises:
        TypeError, ValueError: what is no observation or map, or shapes that are none.

    >>> import torch, purevdm
    >>> from purevdm import decoders, networks, random, schedules
    >>> maps = decoders.perceptron((20,), (32,), (4,)), decoders.perceptron((4,), (32,), (20,))
    >>> decoder = decoders.learned(decoders.negative_binomial(), *maps, latent=(4,), event_shape=(20,))
    >>> model = purevdm.vdm(networks.mlp(32), schedules.learned_linear(-4.0, 4.0), (20,), decoder=decoder)
    >>> params, x = model.init(random.key(0)), random.randint(random.key(1), (8, 20), 0, 50)
    >>> model.nll_bound(params, x, random.key(2)).total.shape
    torch.Size([8])
    """
    _checks.instance("observation", observation, Observation, "an Observation, as of decoders.normal()")
    for name, part in (("encoder", encoder), ("decoder", decoder)):
        if not callable(getattr(part, "init", None)) or not callable(getattr(part, "apply", None)):
            raise TypeError(f"{name}: expected a map with init and apply, got {_checks.describe(part)}")
    shapes = _checks.integers("latent", latent, 1), _checks.integers("event_shape", event_shape, 1)
    return Learned(observation, encoder, decoder, *shapes)
