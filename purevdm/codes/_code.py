"""What a code is."""

from typing import Any

import torch
from torch import Tensor

from purevdm import _checks
from purevdm._values import Value
from purevdm.types import Key, Params


class Code(Value):
    """A vector of m numbers for each example, and its encoder. Derive from it and write the methods below :meth:`encode`.

    In the methods, ``out`` is what the encoder gives for a batch, (B, outputs), and codes are (B, m).

    Attributes:
        encoder: a map with ``init(key) -> params`` and ``apply(params, f, keys=None) -> (B, outputs)``, from the encoded
            data f, (B, *latent_shape); keys (B, 2) switch on what is random in training. For instance
            :func:`purevdm.networks.unet_encoder`, or :func:`purevdm.decoders.perceptron`.
        size: m.
        outputs: how many numbers the encoder gives an example.
    """

    encoder: Any
    size: int

    @property
    def outputs(self) -> int:
        return self.size

    def init(self, key: Key) -> Params:
        """Draws the encoder's parameters."""
        return self.encoder.init(key)  # type: ignore[no-any-return]

    def encode(self, params: Params, f: Tensor, keys: Tensor | None = None) -> Tensor:
        """Applies the encoder: what q(c given x) is made of, (B, outputs), in f's dtype."""
        out = self.encoder.apply(params, f, keys)
        return _checks.shaped("code.encoder", out, (f.shape[0], self.outputs)).to(f.dtype)

    def noise(self, key: Key, dtype: torch.dtype) -> Tensor:
        """Draws one example's noise, (m,), of which :meth:`draw` makes a code."""
        raise NotImplementedError

    def draw(self, out: Tensor, noise: Tensor) -> Tensor:
        """Gives a draw of q(c given x), a function of the noise, (B, m), through which gradients pass to ``out``."""
        raise NotImplementedError

    def kl(self, out: Tensor) -> Tensor:
        """Gives KL(q(c given x) || p(c)), or a bound on it, nats: terms that add up to it over the second axis, (B, ...)."""
        raise NotImplementedError

    def log_ratio(self, out: Tensor, code: Tensor) -> Tensor:
        """Gives log p(c) - log q(c given x) of drawn codes, (B,), nats, or a lower bound on it: an importance weight."""
        raise NotImplementedError

    def prior(self, key: Key, dtype: torch.dtype) -> Tensor:
        """Draws one code from p(c), (m,)."""
        raise NotImplementedError


def mapped(encoder: Any) -> Any:
    """Checks an encoder's form."""
    if not callable(getattr(encoder, "init", None)) or not callable(getattr(encoder, "apply", None)):
        raise TypeError(f"encoder: expected a map with init and apply, got {_checks.describe(encoder)}")
    return encoder
