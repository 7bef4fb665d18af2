"""A model: a network, a schedule and a decoder bound into pure functions of parameters and keys."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, elbo, random, variance
from purevdm.decoder import Decoder, discrete, integers
from purevdm.elbo import ELBO, Noise
from purevdm.networks import Network
from purevdm.nn import Params
from purevdm.sampler import Sample, sampler
from purevdm.schedules import Schedule

__all__ = ["VDM", "Sample", "vdm"]


Part = tuple[Any, int]
"""(i, k): the i-th of k equal parts of a batch; i may be an integer tensor."""


class VDM(NamedTuple):
    """A variational diffusion model. Every function is pure; B is the batch size.

    Attributes:
        init: ``init(key) -> params``, nested dicts of tensors: ``{"network": ..., "schedule": ...}``.
        loss_fn: ``loss_fn(params, x, key, cond=None, *, train=True)``: the bound's Monte Carlo estimate, the mean over the
            batch, in bits per dimension, shape (). x holds integers (B, *event_shape). ``train=False`` switches
            dropout off. ``part=(i, k)`` says that x is the i-th of k equal parts of a batch, whose noise is drawn for the
            whole: the parts' losses and gradients average to the whole's, over processes or pieces. (All four functions
            of a batch take it, and ``draw``.)
        loss_and_stats: like ``loss_fn``, but ``(loss, stats)`` for ``has_aux=True``: a dict of the parts ``recon``,
            ``prior`` and ``diffusion`` (bits/dim, they sum to the loss) and the ends ``gamma_0`` and ``gamma_1``.
        vlb_and_variance_grads: ``vlb_and_variance_grads(params, x, key, cond=None, *, train=True, has_aux=False)``: in one
            pass, ``(grads, loss)`` as ``torch.func.grad_and_value(loss_fn)`` gives them, or ``(grads, (loss, stats))``, but
            with the schedule's interior following not the bound but the variance of its estimate, the mean of the squared
            diffusion losses in (bits/dim)**2 (App. I.2, :mod:`purevdm.variance`). In continuous time only.
        elbo: ``elbo(params, x, key, cond=None, *, train=False) -> ELBO``: the three terms, each (B,), nats.
        elbo_core: ``elbo_core(params, x, noise, cond=None) -> ELBO``: one example with explicit noise, each (), nats.
        draw: ``draw(key, n, *, train=True) -> Noise``: the noise that ``elbo`` draws for a batch of n.
        sample: ``sample(params, key, n, *, steps=1000, method="ancestral", grid="time", cond=None, guidance=1.0,
            decode="argmax", clip=False, trajectory=False, callback=None)``: n samples, int64 (n, *event_shape); see
            :func:`purevdm.sampler.sampler`.
        eps_hat: ``eps_hat(params, z, gamma, cond=None, x_hat=None)``: the predicted noise in a batch of latents, gamma of
            shape (B,); a self-conditioned network makes its own estimate of the data where none is given.
        gamma: ``gamma(params, t)``: the schedule, elementwise.
        network, schedule, decoder, event_shape, timesteps, dtype: what the model was made of.
    """

    init: Callable[[Tensor], Params]
    loss_fn: Callable[..., Tensor]
    loss_and_stats: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    vlb_and_variance_grads: Callable[..., tuple[Params, Any]]
    elbo: Callable[..., ELBO]
    elbo_core: Callable[..., ELBO]
    draw: Callable[..., Noise]
    sample: Callable[..., Any]
    eps_hat: Callable[..., Tensor]
    gamma: Callable[[Params, Tensor], Tensor]
    network: Network
    schedule: Schedule
    decoder: Decoder
    event_shape: tuple[int, ...]
    timesteps: int
    dtype: torch.dtype


def batched(cond: Any, n: int) -> Any:
    """The batch axes of a condition for vmap's ``in_dims``: the first of every tensor in it, n long.

    Raises:
        ValueError: a tensor of another length.
    """
    if cond is None:
        return None

    def axis(leaf: Any) -> int | None:
        if leaf is None:
            return None
        if _checks.tensor("cond", leaf).ndim == 0 or leaf.shape[0] != n:
            raise ValueError(f"cond: expected a condition for each of the {n} examples, got {_checks.describe(leaf)}")
        return 0

    return optree.tree_map(axis, cond, none_is_leaf=True)


def vdm(
    network: Network,
    schedule: Schedule,
    event_shape: Sequence[int],
    vocab_size: int | None = None,
    *,
    decoder: Decoder | None = None,
    timesteps: int | None = 0,
    antithetic: bool = True,
    dtype: torch.dtype = torch.float32,
) -> VDM:
    """Binds a network, a schedule and a decoder into a variational diffusion model.

    Args:
        network: predicts the noise; see :mod:`purevdm.networks`.
        schedule: gamma(t); see :mod:`purevdm.schedules`.
        event_shape: the shape of one example, of any rank: (3, 32, 32) for images, (2,) for points, (length,) for series.
        vocab_size: how many values the data take, 256 unless a decoder is given.
        decoder: another decoder than ``purevdm.decoder.discrete(vocab_size)``.
        timesteps: T, the number of steps of the discrete-time bound (eq. 14), or 0 or None for continuous time (eq. 17).
        antithetic: whether a batch's times are spread evenly (App. I) or independent.
        dtype: of parameters, latents and losses: float32, or float64 for proofs.

    Returns:
        A :class:`VDM`.

    Raises:
        TypeError, ValueError: here, arguments out of range; in the model's functions, floats or out-of-range integers as
            x, a wrong event shape, an empty batch, a key of the wrong form, steps < 1, NaN in the parameters (the leaf is
            named). Values are looked at in eager only; no check breaks a compiled graph.

    >>> import torch, purevdm
    >>> from purevdm import random
    >>> model = purevdm.vdm(purevdm.networks.mlp(hidden=32), purevdm.schedules.learned_linear(), event_shape=(2,))
    >>> params = model.init(random.key(0))
    >>> x = random.randint(random.key(1), (16, 2), 0, 256)
    >>> grads, loss = torch.func.grad_and_value(model.loss_fn)(params, x, random.key(2))
    >>> model.sample(params, random.key(3), 5, steps=10).shape
    torch.Size([5, 2])
    """
    for name, part, form in (("network", network, ("init", "apply")), ("schedule", schedule, ("init", "gamma"))):
        if not all(callable(getattr(part, f, None)) for f in form):
            raise TypeError(f"{name}: expected a NamedTuple with {' and '.join(form)}, got {_checks.describe(part)}")
    event_shape = _checks.shape("event_shape", event_shape)
    if 0 in event_shape:
        raise ValueError(f"event_shape: expected sizes of at least 1, got {event_shape}")
    if decoder is not None and vocab_size is not None:
        raise ValueError(f"vocab_size: the decoder has its own, {decoder.vocab_size}; leave this one out")
    decoder = discrete(256 if vocab_size is None else vocab_size) if decoder is None else decoder
    timesteps = 0 if timesteps is None else _checks.integer("timesteps", timesteps, 0)
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}")
    nats_to_bits_per_dim = 1.0 / (math.prod(event_shape) * math.log(2.0))

    def init(key: Tensor) -> Params:
        k_network, k_schedule = random.split(_checks.key("key", key)).unbind(0)
        params = {"network": network.init(k_network, event_shape), "schedule": schedule.init(k_schedule)}
        return optree.tree_map(lambda leaf: leaf.to(dtype), params)  # type: ignore[arg-type, return-value]

    def check_batch(x: Tensor) -> int:
        integers(x)
        if x.ndim == 0 or tuple(x.shape[1:]) != event_shape:
            raise ValueError(f"x: expected shape (B, {', '.join(map(str, event_shape))}), got {_checks.describe(x)}")
        if x.shape[0] == 0:
            raise ValueError(f"x: expected at least one example, got an empty batch of shape {tuple(x.shape)}")
        _checks.within("x", x, 0, decoder.vocab_size - 1)
        return x.shape[0]

    def draw(key: Tensor, n: int, *, train: bool = True, part: Part = (0, 1)) -> Noise:
        options = dict(antithetic=antithetic, timesteps=timesteps, dtype=dtype, train=train, part=part)
        return elbo.draw(key, n, event_shape, **options)  # type: ignore[arg-type]

    def elbo_core(params: Params, x: Tensor, noise: Noise, cond: Any = None) -> ELBO:
        _checks.params("params", params)
        _checks.shaped("x", integers(x), event_shape)
        _checks.within("x", x, 0, decoder.vocab_size - 1)
        _checks.shaped("noise.t", noise.t, ())
        _checks.shaped("noise.eps_0", noise.eps_0, event_shape)
        _checks.shaped("noise.eps", noise.eps, event_shape)
        return elbo.elbo(network, schedule, decoder, timesteps, params, x, noise, cond)

    def batch_elbo(
        params: Params, x: Tensor, key: Tensor, cond: Any = None, *, train: bool = False, part: Part = (0, 1)
    ) -> ELBO:
        _checks.params("params", params)
        n = check_batch(x)
        noise = draw(key, n, train=train, part=part)

        def one(x: Tensor, noise: Noise, cond: Any) -> ELBO:
            return elbo.elbo(network, schedule, decoder, timesteps, params, x, noise, cond)

        return torch.func.vmap(one, in_dims=(0, elbo.axes(train), batched(cond, n)))(x, noise, cond)

    def loss_and_stats(
        params: Params, x: Tensor, key: Tensor, cond: Any = None, *, train: bool = True, part: Part = (0, 1)
    ) -> tuple[Tensor, dict[str, Tensor]]:
        terms = batch_elbo(params, x, key, cond, train=train, part=part)
        ends = schedule.gamma(params["schedule"], torch.tensor([0.0, 1.0], dtype=dtype, device=x.device))
        return summarise(terms, ends[0], ends[1])

    def summarise(terms: ELBO, gamma_0: Tensor, gamma_1: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        stats = {name: term.mean() * nats_to_bits_per_dim for name, term in terms._asdict().items()}
        loss = stats["recon"] + stats["prior"] + stats["diffusion"]
        return loss, stats | {"gamma_0": gamma_0, "gamma_1": gamma_1}

    def loss_fn(
        params: Params, x: Tensor, key: Tensor, cond: Any = None, *, train: bool = True, part: Part = (0, 1)
    ) -> Tensor:
        return loss_and_stats(params, x, key, cond, train=train, part=part)[0]

    def vlb_and_variance_grads(
        params: Params,
        x: Tensor,
        key: Tensor,
        cond: Any = None,
        *,
        train: bool = True,
        part: Part = (0, 1),
        has_aux: bool = False,
    ) -> tuple[Params, Any]:
        if timesteps:
            raise ValueError(f"timesteps: in {timesteps} steps the bound depends on the schedule's interior; expected 0")
        _checks.params("params", params)
        n = check_batch(x)
        noise = draw(key, n, train=train, part=part)
        axes = (0, elbo.axes(train), 0, batched(cond, n))

        def bound(params: Params, curve: variance.Curve) -> tuple[Tensor, tuple[dict[str, Tensor], Tensor]]:
            def one(x: Tensor, noise: Noise, levels: elbo.Levels, cond: Any) -> ELBO:
                return elbo.terms(network, decoder, params, x, noise, levels, cond)

            terms = torch.func.vmap(one, in_dims=axes)(x, noise, variance.levels(curve), cond)
            loss, stats = summarise(terms, curve.gamma_0, curve.gamma_1)
            return loss, (stats, terms.diffusion * nats_to_bits_per_dim)

        curve = variance.curve(schedule, params["schedule"], noise.t)
        grads, (loss, (stats, diffusion)) = torch.func.grad_and_value(bound, argnums=(0, 1), has_aux=True)(
            params["network"], curve
        )
        cotangent = variance.variance_cotangent(grads[1], diffusion)
        both = {
            "network": grads[0],
            "schedule": variance.pull_back(schedule, params["schedule"], noise.t, cotangent),
        }
        return both, (loss, stats) if has_aux else loss

    def gamma(params: Params, t: Tensor) -> Tensor:
        return schedule.gamma(params["schedule"], t)

    def eps_hat(params: Params, z: Tensor, gamma: Tensor, cond: Any = None, x_hat: Tensor | None = None) -> Tensor:
        _checks.floating("z", z)
        _checks.shaped("z", z, (*z.shape[:1], *event_shape))
        _checks.shaped("gamma", gamma, z.shape[:1])

        def one(z: Tensor, gamma: Tensor, cond: Any, x_hat: Tensor | None) -> Tensor:
            if x_hat is None:
                return elbo.predict(network, decoder, params["network"], z, gamma, cond)
            return network.apply(params["network"], z, gamma, cond=cond, x_hat=x_hat)

        axes = (0, 0, batched(cond, z.shape[0]), None if x_hat is None else 0)
        return torch.func.vmap(one, in_dims=axes)(z, gamma, cond, x_hat)

    return VDM(
        init=init,
        loss_fn=loss_fn,
        loss_and_stats=loss_and_stats,
        vlb_and_variance_grads=vlb_and_variance_grads,
        elbo=batch_elbo,
        elbo_core=elbo_core,
        draw=draw,
        sample=sampler(eps_hat, gamma, decoder, event_shape, dtype, network.self_condition),
        eps_hat=eps_hat,
        gamma=gamma,
        network=network,
        schedule=schedule,
        decoder=decoder,
        event_shape=event_shape,
        timesteps=timesteps,
        dtype=dtype,
    )
