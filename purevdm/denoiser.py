"""A network applied to a batch: mapped over it or whole, whatever it predicts, self-conditioned, guided, clamped.

Only :func:`output` calls ``network.apply``. All functions take a batch of latents z, (B, *event_shape), with gamma of shape
(B,) or (B, *event_shape), a condition whose tensors have a leading axis of B, and keys (B, 2), or None to be deterministic.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from purevdm import _apply, _sharding, process, random
from purevdm._door import batch_axes
from purevdm.decoders import Decoder
from purevdm.model import Model
from purevdm.networks import Network
from purevdm.parts import Subspace
from purevdm.types import Params

__all__ = ["Denoiser", "Prediction", "guide", "output"]

T = TypeVar("T")


class Prediction(NamedTuple):
    """What a network predicts of a latent, in both forms: z = alpha x + sigma eps. At a large gamma eps holds next to
    nothing of x, which is then exact where the network predicts x or v."""

    eps: Tensor
    x: Tensor


def output(
    network: Network,
    params: Params,
    z: Tensor,
    gamma: Tensor,
    cond: Any = None,
    key: Tensor | None = None,
    x_hat: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Applies the network, and adds z where it is residual: (B, *event_shape), with a last axis of ``outputs``
    where it has them, in z's dtype. A masked network is given ``mask``, bool, which broadcasts to z.

    Raises:
        TypeError, ValueError: a condition that is not one for each example, or an output of another shape.
        RuntimeError: what the network does and torch cannot do under these transforms; it says what to do instead.
    """
    axes = batch_axes(cond, z.shape[0])
    for_batch = _apply.for_batch(network, params, z, gamma, cond, x_hat)
    # A network of blocks makes sharded parameters whole block by block.
    params = (_sharding.entered if for_batch is None else _sharding.before_blocks)(params, network.dtype)
    apply = network.apply if for_batch is None else for_batch
    mask = mask.expand(len(z), *mask.shape[1:]) if network.masked and mask is not None else None

    def one(z: Tensor, gamma: Tensor, cond: Any, *optional: Tensor | None) -> Tensor:
        key, *others = optional
        given = {name: value for name, value in zip(("x_hat", "mask"), others, strict=True) if value is not None}
        return apply(params, z, gamma, cond=cond, key=key, **given)

    def whole() -> Tensor:
        optional = (key, x_hat, mask)
        if network.batched or for_batch is not None:
            return one(z, gamma, cond, *optional)
        in_dims = (0, 0, axes, *(None if value is None else 0 for value in optional))
        return torch.func.vmap(one, in_dims=in_dims)(z, gamma, cond, *optional)

    out = whole() if torch.compiler.is_compiling() else _or_explained(network, whole)
    shape = z.shape if network.outputs is None else (*z.shape, network.outputs)
    if out.shape != shape:
        got = tuple(out.shape[1:])
        raise ValueError(f"network: expected an output of shape {tuple(shape[1:])} an example, got {got}")
    out = out.to(z.dtype)
    return z + out if network.residual else out


def _or_explained(network: Network, run: Callable[[], T]) -> T:
    """Returns what a run of the network gives, or raises torch's error about it in our words."""
    try:
        return run()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        clear = _apply.explained(network, error)
        if clear is None:
            raise
        raise clear from error


def to_eps(network: Network, z: Tensor, out: Tensor, gamma: Tensor) -> Tensor:
    """Gives the noise that an output predicts; gamma broadcasts to z."""
    if network.predicts == "eps":
        return out
    return {"x": process.eps_from_x, "v": process.eps_from_v}[network.predicts](z, out, gamma)


def to_x(network: Network, z: Tensor, out: Tensor, gamma: Tensor) -> Tensor:
    """Gives the data that an output predicts, from it directly: by way of eps they would be lost at a large gamma, where z
    holds next to nothing of them."""
    if network.predicts == "x":
        return out
    return {"eps": process.x_from_eps, "v": process.x_from_v}[network.predicts](z, out, gamma)


def guide(eps: Tensor, eps_free: Tensor, guidance: float | Tensor) -> Tensor:
    """Guides without a classifier (Ho & Salimans 2022): eps_free + guidance (eps - eps_free), with the noise predicted
    under the condition and without one; the data or v are guided alike. 1 gives the condition's own, 0 none of it, more
    than 1 exaggerates it. One weight for all, or one for each example, (B,)."""
    if isinstance(guidance, Tensor) and guidance.ndim:
        guidance = process.align(guidance, eps)
    return eps_free + guidance * (eps - eps_free)


def split_key(key: Tensor | None) -> tuple[Tensor | None, ...]:
    """Splits the keys of a batch for a self-conditioned network: of its first application, of its second, of the coin."""
    return (None,) * 3 if key is None else torch.func.vmap(lambda k: random.split(k, 3))(key).unbind(1)


def left_out(x_hat: Tensor, k_coin: Tensor | None) -> Tensor:
    """Leaves an estimate out half of the time, by the examples' keys, as training does."""
    if k_coin is None:
        return x_hat
    coin = torch.func.vmap(lambda k: random.bernoulli(k, 0.5, ()))(k_coin)
    return torch.where(process.align(coin, x_hat), x_hat, 0.0)


class Denoiser(NamedTuple):
    """A network with all that it is given besides latents: a function of (z, gamma). ``model.denoiser`` makes one, and
    checks what goes in; each call is then that of a plain function.

    Attributes:
        network, decoder: a model's.
        params: the network's parameters.
        cond: a condition for each example, or None.
        key: keys (B, 2) for what is random in training, or None.
        mask: bool, which broadcasts to latents: what exists. Elsewhere predictions are 0.
        subspace: the one that predictions are projected to, or None.
        guidance: the weight of the condition against none, a number or (B,), or None for 1.
        clip: whether to clamp estimates of the data to their range.
    """

    network: Network
    decoder: Decoder
    params: Params
    cond: Any = None
    key: Tensor | None = None
    mask: Tensor | None = None
    subspace: Subspace | None = None
    guidance: float | Tensor | None = None
    clip: bool = False

    def __call__(self, z: Tensor, gamma: Tensor, x_hat: Tensor | None = None) -> Prediction:
        """Predicts the noise and the data in latents z, (B, *latent_shape), at gamma, (B,) or z's shape, as a sampler's step
        takes them. ``x_hat`` is the last step's estimate, for a self-conditioned network."""
        return self.with_range(z, gamma, x_hat)[0]

    def with_range(self, z: Tensor, gamma: Tensor, x_hat: Tensor | None = None) -> tuple[Prediction, Tensor | None]:
        """Predicts as a call does, and gives where a network of two outputs puts the variance of the reverse process:
        ``v``, of z's shape (:func:`purevdm.parts.learned_range`); None for others. Guidance leaves v as it is."""
        (out, v), level = self._output(z, gamma, self.cond, None, x_hat), process.align(gamma, z)
        if self.guidance is not None:
            out = guide(out, self._output(z, gamma, None, None, x_hat)[0], self.guidance)
        x = to_x(self.network, z, out, level)
        bounds = self.decoder.bounds(z) if self.clip else None
        if bounds is None:
            eps = to_eps(self.network, z, out, level)
        else:  # the noise that goes with the clamped data
            x = torch.clamp(x, *bounds)
            eps = process.eps_from_x(z, x, level)
        return Prediction(self.within(eps), self.within(x)), v

    def eps(self, z: Tensor, gamma: Tensor, *, detach: bool = True) -> Tensor:
        """Predicts the noise as a function of the latent only, which the bound asks for.

        A self-conditioned network is applied twice: first without an estimate of the data, then with the one that it gave,
        clamped to the data's range, which no gradient passes; with ``detach=False`` gradients do. Keys leave the estimate
        out half of the time, as training does (Chen, Zhang, Hinton 2022, arXiv 2208.04202).
        """
        return self.eps_and_range(z, gamma, detach=detach)[0]

    def eps_and_range(self, z: Tensor, gamma: Tensor, *, detach: bool = True) -> tuple[Tensor, Tensor | None]:
        """Predicts the noise as :meth:`eps` does, and gives v as :meth:`with_range` does."""
        out, v = self._of_latent(z, gamma, detach)
        return self.within(to_eps(self.network, z, out, process.align(gamma, z))), v

    def prediction_and_range(self, z: Tensor, gamma: Tensor) -> tuple[Prediction, Tensor | None]:
        """Predicts as :meth:`eps_and_range` does, the data, too."""
        (out, v), level = self._of_latent(z, gamma, True), process.align(gamma, z)
        eps, x = (self.within(to(self.network, z, out, level)) for to in (to_eps, to_x))
        return Prediction(eps, x), v

    def _of_latent(self, z: Tensor, gamma: Tensor, detach: bool) -> tuple[Tensor, Tensor | None]:
        """Computes the network's output as a function of the latent only."""
        key, x_hat, level = self.key, None, process.align(gamma, z)
        if self.network.self_condition:
            k_first, key, k_coin = split_key(key)
            x_hat = to_x(self.network, z, self._output(z, gamma, self.cond, k_first, None)[0], level)
            bounds = self.decoder.bounds(z)
            x_hat = x_hat if bounds is None else torch.clamp(x_hat, *bounds)
            x_hat = left_out(x_hat.detach() if detach else x_hat, k_coin)
        return self._output(z, gamma, self.cond, key, x_hat)

    def _output(
        self, z: Tensor, gamma: Tensor, cond: Any, key: Tensor | None, x_hat: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Computes :func:`output`, and v of a network that has a second output for each number of the latent."""
        if self.network.outputs not in (None, 2):
            wanted = "one output for each number of the latent, or two with a learned range"
            raise ValueError(f"network: expected {wanted}, got outputs={self.network.outputs}")
        out = output(self.network, self.params, z, gamma, cond, key, x_hat, self.mask)
        if self.network.outputs is None:
            return out, None
        return out[..., 0], 0.5 * (out[..., 1] + 1.0)

    def within(self, z: Tensor) -> Tensor:
        """Projects a prediction, or a latent, to the subspace; where nothing exists it is 0."""
        if self.subspace is not None:
            return self.subspace.project(z, self.mask)
        return z if self.mask is None else torch.where(self.mask, z, 0.0)


def of_model(
    model: Model, params: Params, cond: Any = None, key: Tensor | None = None, mask: Tensor | None = None
) -> Denoiser:
    """Makes the denoiser of a model's whole parameters, behind the door; ``mask`` is that of the latents."""
    return Denoiser(model.network, model.decoder, params["network"], cond, key, mask, model.subspace)


def last_step(model: Model, denoise: Denoiser, z_0: Tensor, gamma_0: Tensor) -> tuple[Tensor, Tensor]:
    """Gives what a decoder that takes the estimate sees of latents z_0, at gamma_0, (B,), or as it broadcasts
    against them: the logarithm of its variance in gamma_0's place, and the network's estimate of the data."""
    at = gamma_0.reshape(len(z_0)) if gamma_0[0].numel() == 1 else gamma_0
    prediction, v = denoise.with_range(z_0, at)
    return model.reverse.last(process.align(gamma_0, z_0), v), prediction.x


@torch.no_grad()
def update(
    network: Network,
    params: Params,
    z: Tensor,
    gamma: Tensor,
    cond: Any = None,
    key: Tensor | None = None,
    mask: Tensor | None = None,
) -> Params:
    """Gives the parameters with the statistics (a batch norm's) that one training pass over the latents leaves, without
    gradients; those of a network without any as they are. A self-conditioned one sees no estimate."""
    if network.update is None:
        return params
    batch_axes(cond, z.shape[0])
    run, options = network.update, {"mask": mask} if network.masked else {}
    return _or_explained(network, lambda: run(params, z, gamma, cond=cond, key=key, **options))
