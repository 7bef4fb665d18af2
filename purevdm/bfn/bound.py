"""A BFN's bound: -log p(x) <= E[L(x)] + E[-log p(x at t = 1)] (sec. 3), with the noise of a batch explicit or from seeds.

L(x) is what the sender's messages cost: in n steps, n times the mean over steps of KL(sender || receiver); in continuous
time its limit. There is no prior term, as the flow starts from the prior itself.
"""

from typing import Any, NamedTuple, Protocol

import optree
import torch
from torch import Tensor

from purevdm import _checks, denoiser, process, random
from purevdm import noise as noises
from purevdm._compile import fixed
from purevdm.bfn.flows import Flow
from purevdm.bfn.outputs import Out, Output
from purevdm.bfn.process import continuous_loss, latent
from purevdm.bound import NLLBound, summed
from purevdm.model import checked, masked
from purevdm.networks import Network
from purevdm.noise import Seeds
from purevdm.types import Params, Shape

__all__ = ["Model", "Noise", "bound", "outputs"]


class Noise(NamedTuple):
    """All that is random in the bound of a batch; each field has a leading axis of B.

    Attributes:
        t: times (B,), as :class:`purevdm.Seeds` have them: in [0, 1), or in n steps the end of a step, one of 1/n, ..., 1.
        eps_1: the noise in the latent at t = 1, (B, *latent_shape).
        eps: the noise in the latent at time t.
        sender: the sender's noise, (B, draws, *latent_shape), for n-step losses of discretised and discrete data; else None.
        key: keys for the network's own randomness, or None.
    """

    t: Tensor
    eps_1: Tensor
    eps: Tensor
    sender: Tensor | None = None
    key: Tensor | None = None


class Model(Protocol):
    """What the bound and the sampler need of a model; :class:`purevdm.bfn.BFN` is one."""

    @property
    def network(self) -> Network: ...
    @property
    def flow(self) -> Flow: ...
    @property
    def output(self) -> Output: ...
    @property
    def event_shape(self) -> tuple[int, ...]: ...
    @property
    def timesteps(self) -> int: ...
    @property
    def draws(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...


def draw_noise(seeds: Seeds, latent_shape: Shape, draws: int = 0, train: bool = True) -> Noise:
    """The noise of a batch from its seeds, with ``draws`` pairs of the sender's noise and its opposite.

    To first order in a step's accuracy the loss is linear in the sender's noise. That part, whose variance would grow with
    the number of steps, cancels in a pair.
    """
    noise = noises.draw_noise(seeds, latent_shape, train)
    sender = None
    if draws:
        shape, dtype = (draws, *latent_shape), seeds.t.dtype
        sender = torch.func.vmap(lambda key: random.normal(random.fold_in(key, 2), shape, dtype))(seeds.key)
        sender = torch.cat([sender, -sender], 1)
    return Noise(noise.t, noise.eps_0, noise.eps, sender, noise.key)


def step_of(t: Tensor, timesteps: int) -> tuple[Tensor, Tensor]:
    """The times before and after the step that ends at t, one of 1/n, ..., 1: (i - 1) / n and i / n."""
    i = (t * timesteps).round()
    return (i - 1.0) / timesteps, i / timesteps


def seen(model: Model, w: Tensor, t: Tensor) -> Tensor:
    """What the network sees of latents w, (B, *latent_shape), at times t, (B,)."""
    return torch.func.vmap(lambda w, t: model.flow.shown(model.flow.parameters(w, t)))(w, t)


def _apply(
    model: Model,
    params: Params,
    w: Tensor,
    t: Tensor,
    cond: Any,
    key: Tensor | None,
    x_hat: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """The network's output for latents w, (B, *latent_shape), at times t, (B,). A masked network is given the events' mask
    as it broadcasts to what it sees."""
    there = None if mask is None else model.flow.shown_mask(mask)
    return denoiser.output(model.network, params, seen(model, w, t), t, cond, key, x_hat, there)


def read(model: Model, raw: Tensor, w: Tensor, t: Tensor) -> Out:
    """The output distributions of a batch from what the network returned."""
    predicts = model.network.predicts
    return torch.func.vmap(lambda raw, w, t: model.output.read(model.flow, raw, w, t, predicts))(raw, w, t)


def outputs(
    model: Model,
    params: Params,
    w: Tensor,
    t: Tensor,
    cond: Any = None,
    *,
    x_hat: Tensor | None = None,
    guidance: float | Tensor | None = None,
    mask: Tensor | None = None,
) -> Out:
    """The output distributions for latents w, (B, *latent_shape), at times t, (B,); ``params`` are the network's.

    Args:
        model, params, w, t, cond: the network and what it sees.
        x_hat: an earlier estimate, for a self-conditioned network.
        guidance: the weight of the condition against none, a number or (B,), on the network's output: logits, or the
            predicted noise. See :func:`purevdm.denoiser.guide`.
        mask: of the events, for a masked network.
    """
    raw = _apply(model, params, w, t, cond, None, x_hat, mask)
    if guidance is not None:
        raw = denoiser.guide(raw, _apply(model, params, w, t, None, None, x_hat, mask), guidance)
    return read(model, raw, w, t)


def shown(model: Model, h_hat: Tensor) -> Tensor:
    """What a self-conditioned network is shown of the means of output distributions, (B, *latent_shape)."""
    return torch.func.vmap(model.flow.estimate)(h_hat)


def in_bound(
    model: Model,
    params: Params,
    w: Tensor,
    t: Tensor,
    cond: Any = None,
    key: Tensor | None = None,
    mask: Tensor | None = None,
) -> Out:
    """The output distributions as a function of the latents alone, which the bound asks for. A self-conditioned network is
    applied twice, as :func:`purevdm.denoiser.in_bound` does."""
    if not model.network.self_condition:
        return read(model, _apply(model, params, w, t, cond, key, None, mask), w, t)
    k_first = k_second = k_coin = None
    if key is not None:
        k_first, k_second, k_coin = torch.func.vmap(lambda k: random.split(k, 3))(key).unbind(1)
    first = read(model, _apply(model, params, w, t, cond, k_first, None, mask), w, t)
    x_hat = shown(model, model.output.mean(first)).detach()
    if k_coin is not None:
        coin = torch.func.vmap(lambda k: random.bernoulli(k, 0.5, ()))(k_coin)
        x_hat = torch.where(process.align(coin, x_hat), x_hat, 0.0)
    return read(model, _apply(model, params, w, t, cond, k_second, x_hat, mask), w, t)


def bound(
    model: Model,
    params: Params,
    x: Tensor,
    noise: Noise,
    cond: Any = None,
    *,
    mask: Tensor | None = None,
    reconstruction: bool = True,
) -> NLLBound:
    """The bound's terms for a batch, a deterministic function of its noise: ``diffusion`` holds L(x), ``prior`` is 0.

    Args:
        model: the model.
        params: its parameters, the whole tree.
        x: data, (B, *event_shape).
        noise: the batch's noise.
        cond: the batch's condition.
        mask: bool, which broadcasts to x: what exists.
        reconstruction: False leaves ``recon`` at 0, and saves applying the network to a second batch of latents, at t = 1.

    Returns:
        Each term (B,), nats.

    Raises:
        TypeError, ValueError: bad arguments, as for :func:`purevdm.bound.bound`.
    """
    _checks.instance("noise", noise, Noise, "a purevdm.bfn.Noise")
    checked(model, params, x, noise, cond, mask=mask)
    if noise.sender is None and model.timesteps and model.output.mixture:
        raise ValueError("noise.sender: expected the sender's noise, which a loss in steps takes, got None")
    x, mask = masked(x, mask)
    return summed(terms(model, params["network"], x, noise, cond, mask, reconstruction=reconstruction))


def terms(
    model: Model,
    net_params: Params,
    x: Tensor,
    noise: Noise,
    cond: Any = None,
    mask: Tensor | None = None,
    *,
    reconstruction: bool,
) -> NLLBound:
    """The bound's terms of each dimension of an event, (B, *event_shape), by the network's parameters, behind the door."""
    flow, output, n = model.flow, model.output, fixed(model.timesteps)
    t, end = step_of(noise.t, n) if n else (noise.t, noise.t)
    h = output.encode(x, noise.eps.dtype)
    w, times, key, there = within(latent(h, process.align(flow.snr(t), h), noise.eps), mask), t, noise.key, mask
    if reconstruction:  # one batch of both latents
        last = torch.ones_like(t)
        w_1 = within(latent(h, process.align(flow.snr(last), h), noise.eps_1), mask)
        w, times = torch.cat([w, w_1]), torch.cat([t, last])
        cond, key, there = (_doubled(part) for part in (cond, key, mask))
    out = in_bound(model, net_params, w, times, cond, key, there)
    first = tuple(part[: len(x)] for part in out)

    def loss(out: Out, x: Tensor, h: Tensor, t: Tensor, end: Tensor, sender: Tensor | None) -> Tensor:
        if n == 0:
            return continuous_loss(h, output.mean(out), flow.slope(t)).reshape(*x.shape, -1).sum(-1)
        return n * output.step_loss(out, x, h, flow.gain(t, end), sender)

    in_dims = (0, 0, 0, 0, 0, None if noise.sender is None else 0)
    diffusion = torch.func.vmap(loss, in_dims)(first, x, h, t, end, noise.sender)
    recon = torch.zeros_like(diffusion)
    if reconstruction:
        recon = torch.func.vmap(output.reconstruction)(tuple(part[len(x) :] for part in out), x)
    return NLLBound(within(recon, mask), torch.zeros_like(diffusion), within(diffusion, mask))


def within(v: Tensor, mask: Tensor | None) -> Tensor:
    """Numbers of each dimension of a batch of events, one or several, where they exist; elsewhere 0."""
    if mask is None:
        return v
    return torch.where(mask[..., None] if v.ndim > mask.ndim else mask, v, 0.0)


def _doubled(tree: Any) -> Any:
    if tree is None:
        return None
    return optree.tree_map(lambda leaf: None if leaf is None else torch.cat([leaf, leaf]), tree, none_is_leaf=True)
