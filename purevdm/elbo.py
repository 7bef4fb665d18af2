"""The variational bound: -log p(x) <= prior + reconstruction + diffusion (eq. 11), each term in nats, for ONE example.

The core is deterministic, its noise an argument; :func:`draw` makes the noise of a batch from a key. Batch the core by
``torch.func.vmap`` over the noise and the data.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm import _checks, process, random
from purevdm.decoder import Decoder, data_range
from purevdm.networks import Network
from purevdm.schedules import Schedule, gamma_and_slope

__all__ = [
    "ELBO",
    "Levels",
    "Noise",
    "diffusion_loss",
    "discretise",
    "draw",
    "draw_one",
    "draw_times",
    "elbo",
    "predict",
    "prior_loss",
    "reconstruction_loss",
    "terms",
]


class ELBO(NamedTuple):
    """The three terms of -ELBO, in nats; their sum bounds -log p(x) from above.

    Attributes:
        recon: E[-log p(x given z_0)], the reconstruction loss.
        prior: KL(q(z_1 given x) || N(0, I)), the latent or prior loss.
        diffusion: the diffusion loss, L_T(x) or L_infinity(x).
    """

    recon: Tensor
    prior: Tensor
    diffusion: Tensor

    @property
    def total(self) -> Tensor:
        """The bound on -log p(x), in nats."""
        return self.recon + self.prior + self.diffusion


class Noise(NamedTuple):
    """All that is random in one example's bound. A batch of them has a leading axis on each field.

    Attributes:
        t: the time, shape (), in [0, 1); at T >= 1 steps, one of 1/T, ..., 1.
        eps_0: the noise in z_0, shape ``event_shape``, standard normal.
        eps: the noise in z_t, shape ``event_shape``, standard normal.
        key: a key for the network's own randomness (dropout), or None for none.
    """

    t: Tensor
    eps_0: Tensor
    eps: Tensor
    key: Tensor | None = None


def prior_loss(f: Tensor, gamma_1: Tensor) -> Tensor:
    """KL(q(z_1 given x) || N(0, I)) in nats, summed over one encoded example f: shape ().

    Per dimension, (alpha_1**2 f**2 + sigma_1**2 - 1 - log sigma_1**2) / 2.
    """
    alpha2 = torch.sigmoid(-gamma_1)
    # sigma**2 - 1 - log sigma**2 = softplus(-gamma) - sigmoid(-gamma), about alpha**4 / 2: in float64, as the two nearly
    # cancel. One number an example, so it costs nothing.
    wide = -gamma_1.double()
    excess = (F.softplus(wide, threshold=700) - torch.sigmoid(wide)).to(gamma_1.dtype)
    return 0.5 * (alpha2 * f.square() + excess).sum()


def reconstruction_loss(decoder: Decoder, x: Tensor, eps_0: Tensor, gamma_0: Tensor) -> Tensor:
    """-log p(x given z_0) in nats, summed over one example x whose latent z_0 has the noise eps_0: shape ()."""
    return decoder.reconstruction(x, eps_0, gamma_0).sum()


def diffusion_loss(eps: Tensor, eps_hat: Tensor, weight: Tensor) -> Tensor:
    """weight |eps - eps_hat|**2 / 2 in nats, for one example: shape ().

    The weight is gamma'(t) in continuous time (eq. 17), T expm1(gamma(t) - gamma(s)) in T steps (eq. 14).
    """
    return 0.5 * weight * (eps - eps_hat).square().sum()


def elbo(
    network: Network,
    schedule: Schedule,
    decoder: Decoder,
    timesteps: int,
    params: dict[str, Any],
    x: Tensor,
    noise: Noise,
    cond: Any = None,
) -> ELBO:
    """The bound's three terms for one example, a deterministic function of its noise.

    Args:
        network, schedule, decoder: the model.
        timesteps: T, the number of discrete steps, or 0 for continuous time.
        params: ``{"network": ..., "schedule": ...}``.
        x: integers, shape ``event_shape``.
        noise: the example's noise.
        cond: the example's condition, as the network takes it.

    Returns:
        Three tensors of shape (), nats.
    """

    def gamma(t: Tensor) -> Tensor:
        return schedule.gamma(params["schedule"], t)

    if timesteps == 0:
        gamma_t, weight = gamma_and_slope(schedule, params["schedule"], noise.t)
    else:
        gamma_t, gamma_s = gamma(noise.t), gamma(noise.t - 1.0 / timesteps)
        weight = timesteps * torch.expm1(gamma_t - gamma_s)
    levels = Levels(gamma(torch.zeros_like(noise.t)), gamma(torch.ones_like(noise.t)), gamma_t, weight)
    return terms(network, decoder, params["network"], x, noise, levels, cond)


class Levels(NamedTuple):
    """All that one example's bound asks of the schedule: each of shape ().

    Attributes:
        gamma_0, gamma_1: the ends.
        gamma_t: gamma at the example's time.
        weight: the weight of its diffusion loss, see :func:`diffusion_loss`.
    """

    gamma_0: Tensor
    gamma_1: Tensor
    gamma_t: Tensor
    weight: Tensor


def terms(
    network: Network,
    decoder: Decoder,
    params: dict[str, Any],
    x: Tensor,
    noise: Noise,
    levels: Levels,
    cond: Any = None,
) -> ELBO:
    """:func:`elbo` with the schedule's values given; ``params`` are the network's."""
    f = decoder.encode(x, noise.eps.dtype)
    z_t = process.diffuse(f, levels.gamma_t, noise.eps)
    eps_hat = predict(network, decoder, params, z_t, levels.gamma_t, cond, noise.key)
    if eps_hat.shape != z_t.shape:
        raise ValueError(f"network: expected eps_hat of the latent's shape {tuple(z_t.shape)}, got {tuple(eps_hat.shape)}")
    return ELBO(
        recon=reconstruction_loss(decoder, x, noise.eps_0, levels.gamma_0),
        prior=prior_loss(f, levels.gamma_1),
        diffusion=diffusion_loss(noise.eps, eps_hat, levels.weight),
    )


def predict(
    network: Network,
    decoder: Decoder,
    params: dict[str, Any],
    z: Tensor,
    gamma: Tensor,
    cond: Any = None,
    key: Tensor | None = None,
) -> Tensor:
    """eps_hat of one latent, a function of the latent alone: what the bound asks for.

    A self-conditioned network is applied twice: first without an estimate of the data, then with the one that it gave,
    clamped to the data's range, which no gradient passes. A key leaves the estimate out half of the time, as training
    does (Chen, Zhang, Hinton 2022).
    """
    if not network.self_condition:
        return network.apply(params, z, gamma, cond=cond, key=key)
    k_first, k_second, k_coin = (None, None, None) if key is None else random.split(key, 3).unbind(0)
    first = network.apply(params, z, gamma, cond=cond, key=k_first).detach()
    x_hat = torch.clamp(process.x_from_eps(z, first, gamma), *data_range(decoder, z)).detach()
    if k_coin is not None:
        x_hat = torch.where(random.bernoulli(k_coin, 0.5, ()), x_hat, 0.0)
    return network.apply(params, z, gamma, cond=cond, key=k_second, x_hat=x_hat)


def discretise(t: Tensor, timesteps: int) -> Tensor:
    """The times of T discrete steps: t in [0, 1) goes to the end of its step, one of 1/T, ..., 1, each equally likely.

    T = 0 leaves t as it is. (The official code's ceil(t T) / T differs only where t T is an integer: it sends a drawn
    t = 0 to time 0, from where no step is left.)
    """
    if timesteps == 0:
        return t
    return ((t * timesteps).floor().clamp(max=timesteps - 1) + 1.0) / timesteps


def draw_times(
    key: Tensor, n: int, *, antithetic: bool = True, timesteps: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The times of a batch: shape (n,).

    Antithetic times (App. I) are evenly spread, t_i = (u + i / n) mod 1 with one uniform u: each is uniform, and
    together they leave the diffusion loss a smaller variance than n independent uniforms.

    Raises:
        TypeError, ValueError: a key of the wrong form, n < 1 or timesteps < 0.
    """
    _checks.key("key", key)
    n, timesteps = _checks.integer("n", n, 1), _checks.integer("timesteps", timesteps, 0)
    if antithetic:
        t = (random.uniform(key, (), dtype) + torch.arange(n, dtype=dtype, device=key.device) / n) % 1.0
    else:
        t = random.uniform(key, (n,), dtype)
    return discretise(t, timesteps)


def draw_one(
    key: Tensor, t: Tensor, event_shape: tuple[int, ...], dtype: torch.dtype = torch.float32, train: bool = True
) -> Noise:
    """The noise of one example at a given time, from the example's own key; ``train`` gives the network a key."""
    k_noise, k_network = random.split(key).unbind(0)
    eps_0, eps = random.normal(k_noise, (2, *event_shape), dtype).unbind(0)
    return Noise(t, eps_0, eps, k_network if train else None)


def draw(
    key: Tensor,
    n: int,
    event_shape: tuple[int, ...],
    *,
    antithetic: bool = True,
    timesteps: int = 0,
    dtype: torch.dtype = torch.float32,
    train: bool = True,
    part: tuple[Any, int] = (0, 1),
) -> Noise:
    """The noise of a batch of n examples: times drawn together, and for each example a key of its own.

    Example i's normals depend on the key and on i alone, not on n. ``part=(i, k)`` gives the noise of the i-th of k equal
    parts, n examples each, of a batch of k n: together they are what one draw for the whole batch is. i may be an
    integer tensor, for one graph to serve all parts.

    Raises:
        TypeError, ValueError: a key of the wrong form, n < 1 or timesteps < 0.
    """
    _checks.key("key", key)
    index, parts = part
    parts = _checks.integer("part[1]", parts, 1)
    if not isinstance(index, Tensor):
        index = _checks.integer("part[0]", index, 0, parts - 1)
    keys = random.split(key, parts * n + 1)
    t = draw_times(keys[0], parts * n, antithetic=antithetic, timesteps=timesteps, dtype=dtype)
    if parts > 1:
        rows = torch.arange(n, device=key.device) + index * n
        keys, t = keys[rows + 1], t[rows]
    else:
        keys = keys[1:]

    def one(key: Tensor, t: Tensor) -> Noise:
        return draw_one(key, t, event_shape, dtype, train)

    return torch.func.vmap(one, out_dims=axes(train))(keys, t)  # type: ignore[arg-type]


def axes(train: bool) -> Noise:
    """The batch axes of a batch's noise, for vmap's ``in_dims``."""
    return Noise(0, 0, 0, 0 if train else None)  # type: ignore[arg-type]
