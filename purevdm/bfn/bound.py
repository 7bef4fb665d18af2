"""A BFN's bound: -log p(x) <= E[L(x)] + E[-log p(x at t = 1)] (sec. 3), with the noise of a batch explicit or from seeds.

L(x) is what the sender's messages cost: in n steps, n times the mean over steps of KL(sender || receiver); in continuous
time its limit. There is no prior term, as the flow starts from the prior itself.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import optree
import torch
from torch import Tensor
from torch.func import vmap

from purevdm import _checks, denoiser, random
from purevdm import noise as noises
from purevdm._compile import fixed
from purevdm._door import parse
from purevdm.bfn.flows import latent
from purevdm.bfn.outputs import Out, Point, squared_loss
from purevdm.bound import NLLBound, summed
from purevdm.noise import Seeds
from purevdm.process import align
from purevdm.types import Params

if TYPE_CHECKING:
    from purevdm.bfn.model import BFN

__all__ = ["Noise", "bound"]


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


def draw_noise(model: "BFN", seeds: Seeds, train: bool) -> Noise:
    """Draws the noise of a batch from its seeds. For the sender's it draws pairs of a noise and its opposite.

    To first order in a step's accuracy the loss is linear in the sender's noise. That part, whose variance would grow with
    the number of steps, cancels in a pair.
    """
    shape = model.flow.latent_shape(model.event_shape)
    noise, sender = noises.draw_noise(seeds, shape, train), None
    if fixed(model.timesteps) and not isinstance(model.output, Point):
        several = (fixed(model.draws), *shape)
        sender = vmap(lambda key: random.normal(random.fold_in(key, 2), several, seeds.t.dtype))(seeds.key)
        sender = torch.cat([sender, -sender], 1)
    return Noise(noise.t, noise.eps_0, noise.eps, sender, noise.key)


def step_of(t: Tensor, timesteps: int) -> tuple[Tensor, Tensor]:
    """Gives the times before and after the step that ends at t, one of 1/n, ..., 1; in continuous time t twice."""
    if timesteps == 0:
        return t, t
    i = (t * timesteps).round()
    return (i - 1.0) / timesteps, i / timesteps


def seen(model: "BFN", w: Tensor, t: Tensor) -> Tensor:
    """Gives what the network takes of latents w, (B, *latent_shape), at times t, (B,)."""
    return vmap(lambda w, t: model.flow.shown(model.flow.parameters(w, t)))(w, t)


def read(model: "BFN", raw: Tensor, w: Tensor, t: Tensor) -> Out:
    """Reads the output distributions of a batch from what the network returned."""
    read, predicts = model.output.read, model.network.predicts
    return vmap(lambda raw, w, t: read(model.flow, raw, w, t, predicts))(raw, w, t)  # type: ignore[arg-type]


def outputs(
    model: "BFN",
    net_params: Params,
    w: Tensor,
    t: Tensor,
    cond: Any = None,
    key: Tensor | None = None,
    x_hat: Tensor | None = None,
    guidance: float | Tensor | None = None,
    mask: Tensor | None = None,
) -> Out:
    """Gives the output distributions for latents w, (B, *latent_shape), at times t, (B,).

    ``x_hat`` is an earlier estimate, for a self-conditioned network. ``guidance`` weighs the network's output (logits, or
    the predicted noise) under the condition against that without: a number or (B,), see :func:`purevdm.denoiser.guide`. A
    masked network is given the events' ``mask`` as it broadcasts to what it takes.
    """
    shown, there = seen(model, w, t), None if mask is None else model.flow.shown_mask(mask)
    raw = denoiser.output(model.network, net_params, shown, t, cond, key, x_hat, there)
    if guidance is not None:
        free = denoiser.output(model.network, net_params, shown, t, None, key, x_hat, there)
        raw = denoiser.guide(raw, free, guidance)
    return read(model, raw, w, t)


def in_bound(
    model: "BFN",
    net_params: Params,
    w: Tensor,
    t: Tensor,
    cond: Any = None,
    key: Tensor | None = None,
    mask: Tensor | None = None,
) -> Out:
    """Gives the output distributions as a function of the latents only, which the bound asks for. A self-conditioned network
    is applied twice, as :meth:`purevdm.denoiser.Denoiser.eps` does."""
    if not model.network.self_condition:
        return outputs(model, net_params, w, t, cond, key, mask=mask)
    k_first, k_second, k_coin = denoiser.split_key(key)
    first = outputs(model, net_params, w, t, cond, k_first, mask=mask)
    x_hat = denoiser.left_out(vmap(model.flow.estimate)(model.output.mean(first)).detach(), k_coin)
    return outputs(model, net_params, w, t, cond, k_second, x_hat, mask=mask)


def bound(model: "BFN", params: Params, x: Tensor, noise: Noise, cond: Any = None, mask: Tensor | None = None) -> NLLBound:
    """Computes the bound's terms for a batch, given its noise: ``diffusion`` holds L(x), ``prior`` is 0.

    Args:
        model: the model.
        params: its parameters, the whole tree.
        x: data, (B, *event_shape).
        noise: the batch's noise.
        cond: the batch's condition.
        mask: bool, which broadcasts to x: what exists.

    Returns:
        Each term (B,), nats.

    Raises:
        TypeError, ValueError: bad arguments, as for :func:`purevdm.bound.bound`.
    """
    batch = parse(model, params, x, _checks.instance("noise", noise, Noise, "a purevdm.bfn.Noise"), cond, mask=mask)
    if noise.sender is None and model.timesteps and not isinstance(model.output, Point):
        raise ValueError("noise.sender: expected the sender's noise, which a loss in steps takes, got None")
    return summed(terms(model, batch.params["network"], batch.x, noise, cond, batch.mask))


def terms(
    model: "BFN",
    net_params: Params,
    x: Tensor,
    noise: Noise,
    cond: Any = None,
    mask: Tensor | None = None,
    reconstruction: bool = True,
) -> NLLBound:
    """Computes the bound's terms of each dimension, (B, *event_shape), behind the door. Without the reconstruction, which
    applies the network to a second batch of latents, at t = 1, ``recon`` is 0."""
    flow, output, n = model.flow, model.output, fixed(model.timesteps)
    t, _ = step_of(noise.t, n)
    # in float64, as a step's gain would cancel in the difference of two rounded times
    weight = flow.slope(t) if n == 0 else flow.gain(*step_of(noise.t.double(), n)).to(t.dtype)
    h = output.encode(x, noise.eps.dtype)
    w, times, key, there = within(latent(h, align(flow.snr(t), h), noise.eps), mask), t, noise.key, mask
    if reconstruction:  # one batch of both latents
        last = torch.ones_like(t)
        w_1 = within(latent(h, align(flow.snr(last), h), noise.eps_1), mask)
        w, times = torch.cat([w, w_1]), torch.cat([t, last])
        cond, key, there = (_doubled(part) for part in (cond, key, mask))
    out = in_bound(model, net_params, w, times, cond, key, there)

    def loss(out: Out, x: Tensor, h: Tensor, weight: Tensor, sender: Tensor | None) -> Tensor:
        if n == 0:
            return squared_loss(h, output.mean(out), weight).reshape(*x.shape, -1).sum(-1)
        return n * output.step_loss(out, x, h, weight, sender)

    in_dims = (0, 0, 0, 0, None if noise.sender is None else 0)
    diffusion = vmap(loss, in_dims)(tuple(part[: len(x)] for part in out), x, h, weight, noise.sender)
    recon = torch.zeros_like(diffusion)
    if reconstruction:
        recon = vmap(output.reconstruction)(tuple(part[len(x) :] for part in out), x)
    return NLLBound(within(recon, mask), torch.zeros_like(diffusion), within(diffusion, mask))


def within(v: Tensor, mask: Tensor | None) -> Tensor:
    """Gives numbers of each dimension of a batch of events, one or several, where they exist; elsewhere 0."""
    if mask is None:
        return v
    return torch.where(mask[..., None] if v.ndim > mask.ndim else mask, v, 0.0)


def _doubled(tree: Any) -> Any:
    if tree is None:
        return None
    return optree.tree_map(lambda leaf: None if leaf is None else torch.cat([leaf, leaf]), tree, none_is_leaf=True)
