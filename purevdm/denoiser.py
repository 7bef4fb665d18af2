"""A network applied to a batch: mapped over it or whole, whatever it predicts, self-conditioned, guided, clamped.

Nobody else calls ``network.apply``. All functions take a batch of latents z, (B, *event_shape), with gamma of shape (B,) or
(B, *event_shape), a condition whose tensors have a leading axis of B, and keys (B, 2), or None to be deterministic.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import optree
import torch
from torch import Tensor

from purevdm import process, random
from purevdm._layout import laid_out
from purevdm.decoders import Decoder
from purevdm.model import Model, batch_axes
from purevdm.networks import Network, _regions
from purevdm.networks._explain import explained
from purevdm.parts import Subspace
from purevdm.types import Params

__all__ = ["Denoiser", "Prediction", "eps_hat", "guide", "output"]

T = TypeVar("T")


class Prediction(NamedTuple):
    """What a network says of a latent, in both forms: z = alpha x + sigma eps. At a large gamma eps holds next to nothing of
    x, which is then exact where the network predicts x or v."""

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
    """What the network returns, with z added where it is residual: (B, *event_shape), with a last axis of ``outputs``
    where it has them, in z's dtype. A masked network is given ``mask``, bool, which broadcasts to z.

    Raises:
        TypeError, ValueError: a condition that is not one for each example, or an output of another shape.
        RuntimeError: what the network does and torch cannot do under these transforms; it says what to do instead.
    """
    axes = batch_axes(cond, z.shape[0])
    params = laid_out(params)
    if network.dtype is not None:
        dtype = network.dtype
        params = optree.tree_map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, params)  # type: ignore[arg-type, assignment]

    by_regions = _regions.for_batch(network, params, z, gamma, cond, x_hat)
    apply = by_regions or network.apply
    mask = mask.expand(len(z), *mask.shape[1:]) if network.masked and mask is not None else None

    def one(z: Tensor, gamma: Tensor, cond: Any, *optional: Tensor | None) -> Tensor:
        key, *others = optional
        given = {name: value for name, value in zip(("x_hat", "mask"), others, strict=True) if value is not None}
        return apply(params, z, gamma, cond=cond, key=key, **given)

    def whole() -> Tensor:
        optional = (key, x_hat, mask)
        if network.batched or by_regions is not None:
            return one(z, gamma, cond, *optional)
        in_dims = (0, 0, axes, *(None if value is None else 0 for value in optional))
        return torch.func.vmap(one, in_dims=in_dims)(z, gamma, cond, *optional)

    found = whole() if torch.compiler.is_compiling() else _or_explained(network, whole)
    wanted = z.shape if network.outputs is None else (*z.shape, network.outputs)
    if found.shape != wanted:
        got = tuple(found.shape[1:])
        raise ValueError(f"network: expected an output of shape {tuple(wanted[1:])} an example, got {got}")
    found = found.to(z.dtype)
    return z + found if network.residual else found


def _or_explained(network: Network, run: Callable[[], T]) -> T:
    """What a run of the network gives, or torch's error about it in our words."""
    try:
        return run()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        clear = explained(network, error)
        if clear is None:
            raise
        raise clear from error


def eps_hat(
    network: Network,
    params: Params,
    z: Tensor,
    gamma: Tensor,
    cond: Any = None,
    key: Tensor | None = None,
    x_hat: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The noise that the network sees in z, whatever it predicts; arguments as :func:`output`.

    Raises:
        ValueError: besides, a network with several outputs, which predicts a distribution and not the noise.
    """
    found = _single(network, params, z, gamma, cond, key, x_hat, mask)
    return _to_eps(network, z, found, process.align(gamma, z))


def _single(network: Network, *given: Any) -> Tensor:
    """:func:`output` of a network that has one output for each number of the latent."""
    if network.outputs is not None:
        raise ValueError(f"network: expected one output for each number of the latent, got outputs={network.outputs}")
    return output(network, *given)


def _to_eps(network: Network, z: Tensor, found: Tensor, gamma: Tensor) -> Tensor:
    if network.predicts == "eps":
        return found
    return {"x": process.eps_from_x, "v": process.eps_from_v}[network.predicts](z, found, gamma)


def _to_x(network: Network, z: Tensor, found: Tensor, gamma: Tensor) -> Tensor:
    """The data that an output says, from it directly: by way of eps they would be lost at a large gamma, where z holds next
    to nothing of them."""
    if network.predicts == "x":
        return found
    return {"eps": process.x_from_eps, "v": process.x_from_v}[network.predicts](z, found, gamma)


def predict(
    network: Network,
    params: Params,
    z: Tensor,
    gamma: Tensor,
    cond: Any = None,
    *,
    x_hat: Tensor | None = None,
    guidance: float | Tensor | None = None,
    bounds: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
) -> Prediction:
    """The noise and the data that a sampler's step works with.

    Args:
        network, params, z, gamma, cond: the network and its latents.
        x_hat: the last step's estimate, for a self-conditioned network.
        guidance: the weight of the condition against none, a number or (B,): see :func:`guide`. None applies the network
            once, with the condition.
        bounds: what to clamp the data to, or None; the noise is then the one that goes with the clamped data.
        mask: for a masked network.
    """
    found = _single(network, params, z, gamma, cond, None, x_hat, mask)
    if guidance is not None:
        found = guide(found, _single(network, params, z, gamma, None, None, x_hat, mask), guidance)
    level = process.align(gamma, z)
    x = _to_x(network, z, found, level)
    if bounds is None:
        return Prediction(_to_eps(network, z, found, level), x)
    x = torch.clamp(x, *bounds)
    return Prediction(process.eps_from_x(z, x, level), x)


def guide(eps: Tensor, eps_free: Tensor, guidance: float | Tensor) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): eps_free + guidance (eps - eps_free), with the noise seen under the
    condition and without one; the data or v are guided alike. 1 gives the condition's own, 0 none of it, more than 1
    exaggerates it. One weight for all, or one for each example, (B,)."""
    if isinstance(guidance, Tensor) and guidance.ndim:
        guidance = process.align(guidance, eps)
    return eps_free + guidance * (eps - eps_free)


def in_bound(
    network: Network,
    decoder: Decoder,
    params: Params,
    z: Tensor,
    gamma: Tensor,
    cond: Any = None,
    key: Tensor | None = None,
    *,
    detach: bool = True,
    mask: Tensor | None = None,
) -> Tensor:
    """eps_hat as a function of the latent alone, which the bound asks for.

    A self-conditioned network is applied twice: first without an estimate of the data, then with the one that it gave,
    clamped to the data's range, which no gradient passes; with ``detach=False`` gradients do. Keys leave the estimate out
    half of the time, as training does (Chen, Zhang, Hinton 2022).
    """
    if not network.self_condition:
        return eps_hat(network, params, z, gamma, cond, key, None, mask)
    k_first = k_second = k_coin = None
    if key is not None:
        k_first, k_second, k_coin = torch.func.vmap(lambda k: random.split(k, 3))(key).unbind(1)
    x_hat = _to_x(network, z, _single(network, params, z, gamma, cond, k_first, None, mask), process.align(gamma, z))
    bounds = decoder.bounds(z)
    x_hat = x_hat if bounds is None else torch.clamp(x_hat, *bounds)
    x_hat = x_hat.detach() if detach else x_hat
    if k_coin is not None:
        coin = torch.func.vmap(lambda k: random.bernoulli(k, 0.5, ()))(k_coin)
        x_hat = torch.where(process.align(coin, z), x_hat, 0.0)
    return eps_hat(network, params, z, gamma, cond, k_second, x_hat, mask)


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
        """The noise and the data that the network sees in latents z, (B, *latent_shape), at gamma, (B,) or z's shape: what a
        sampler's step takes. ``x_hat`` is the last step's estimate, for a self-conditioned network."""
        bounds = self.decoder.bounds(z) if self.clip else None
        options: Any = dict(x_hat=x_hat, guidance=self.guidance, bounds=bounds, mask=self.mask)
        found = predict(self.network, self.params, z, gamma, self.cond, **options)
        return Prediction(*map(self.within, found))

    def eps(self, z: Tensor, gamma: Tensor, *, detach: bool = True) -> Tensor:
        """The noise as a function of the latent only, which the bound asks for; see :func:`in_bound`."""
        options: Any = dict(detach=detach, mask=self.mask)
        network, decoder = self.network, self.decoder
        return self.within(in_bound(network, decoder, self.params, z, gamma, self.cond, self.key, **options))

    def within(self, found: Tensor) -> Tensor:
        """A prediction, or a latent, where something exists, projected to the subspace; elsewhere 0."""
        if self.subspace is not None:
            return self.subspace.project(found, self.mask)
        return found if self.mask is None else torch.where(self.mask, found, 0.0)


def of_model(
    model: Model, params: Params, cond: Any = None, key: Tensor | None = None, mask: Tensor | None = None
) -> Denoiser:
    """The denoiser of a model's whole parameters, behind the door; ``mask`` is that of the latents."""
    return Denoiser(model.network, model.decoder, params["network"], cond, key, mask, model.subspace)


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
    """The parameters with the statistics (a batch norm's) that one training pass over the latents leaves, without gradients;
    a network without any gives them as they are. A self-conditioned one sees no estimate."""
    if network.update is None:
        return params
    batch_axes(cond, z.shape[0])
    run, options = network.update, {"mask": mask} if network.masked else {}
    return _or_explained(network, lambda: run(params, z, gamma, cond=cond, key=key, **options))
