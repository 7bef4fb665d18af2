"""The variational bound: -log p(x) <= prior + reconstruction + diffusion (eq. 11), each term in nats.

The mathematics of one example takes all that is random, and the predicted noise, as arguments. :func:`bound` puts it
together for a batch. :func:`draw_seeds` and :func:`draw_noise` make the noise from a key.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from purevdm import _checks, denoiser, process, random, schedules
from purevdm._compile import OLD, exact, untraced
from purevdm.decoders import Decoder
from purevdm.networks import Network
from purevdm.schedules import Levels, Schedule
from purevdm.types import Key, Params, Shape

__all__ = [
    "ELBO",
    "Model",
    "Noise",
    "Seeds",
    "bound",
    "diffusion_loss",
    "discretise",
    "draw_noise",
    "draw_seeds",
    "draw_times",
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


class Seeds(NamedTuple):
    """What the noise of a batch is made from, one row an example. Rows of a batch's seeds are the seeds of those examples,
    so a process or a piece takes its rows and computes what the whole would.

    Attributes:
        t: the times, (B,), in [0, 1); at T >= 1 steps, each one of 1/T, ..., 1.
        key: a key for each example, int32 (B, 2).
        timesteps: T of the model that drew them, int32 (B,), or 0; another model refuses them. None if unknown.
    """

    t: Tensor
    key: Tensor
    timesteps: Tensor | None = None

    def rows(self, index: slice | Tensor) -> "Seeds":
        """The seeds of some examples."""
        return Seeds(*(None if field is None else field[index] for field in self))  # type: ignore[arg-type]


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


class Model(Protocol):
    """What the bound and the sampler need of a model; :class:`purevdm.VDM` is one."""

    @property
    def network(self) -> Network: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def decoder(self) -> Decoder: ...
    @property
    def event_shape(self) -> tuple[int, ...]: ...
    @property
    def timesteps(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...


# The door


def device_of(params: Params) -> torch.device | None:
    """Where the parameters are, if there are any."""
    leaf = _checks.first("params", params)
    return None if leaf is None else leaf.device


def structure_of(init: Callable[[Key], Params], dtype: torch.dtype) -> _checks.Structure:
    """The leaves that an ``init`` gives a model of this dtype, without computing them where it runs on the meta device."""
    with untraced():
        try:
            params = init(random.key(0, device="meta"))
        except (NotImplementedError, RuntimeError, OverflowError) as error:  # an init that reads its key or mixes devices
            if isinstance(error, OverflowError) or "overflow" in str(error):  # and not one whose sizes no memory holds
                raise ValueError(f"init: expected parameters that a memory holds, got: {error}") from None
            params = init(random.key(0, device="cpu"))
    leaves = _checks.structure(params)
    return tuple((path, shape, dtype if kind.is_floating_point else kind) for path, shape, kind in leaves)


def checked(
    model: Any, params: Params, x: Any = ..., key: Any = None, cond: Any = None, *, n: int = 0, **given: Tensor | None
) -> int:
    """The door of a model's functions: holds its settings, its parameters and what else they are given against one another,
    and reads what values must be in one transfer from the device.

    Args:
        model: a VDM or a BFN.
        params: parameters of the model's structure.
        x: data, (B, *event_shape); left out by a function that takes none.
        key: a key, or the seeds or the noise of these examples.
        cond: a condition for each example.
        n: the number of examples, where there are no data that say it; 0 for any number.
        given: further tensors by name, whose shapes and dtypes the caller checks; they must be finite.

    Returns:
        The number of examples.

    Raises:
        TypeError, ValueError: whatever is not so, by its name, and tensors on other devices than the parameters'.
    """
    names = [name for name in ("network", "schedule") if hasattr(model, name)]
    tracing = OLD and torch.compiler.is_compiling()  # it would trace init
    structure = () if tracing else model._structure()
    facts = [] if x is ... else _data(model, x)
    n = n if x is ... else x.shape[0]
    if not isinstance(params, dict) or any(name not in params for name in names):
        found = f"the keys {sorted(map(str, params))[:4]}" if isinstance(params, dict) else _checks.describe(params)
        keys = f"the keys {' and '.join(map(repr, names))}" if len(names) > 1 else f"the key {names[0]!r}"
        raise ValueError(f"params: expected a dict with {keys}, as init makes it, got {found}")
    if not tracing:
        facts += _checks.matches("params", params, structure)
    if n:
        denoiser.batch_axes(cond, n)
    explicit = isinstance(key, tuple) and hasattr(key, "t")  # seeds or noise
    if explicit:
        facts += drawn(model, key, n)
    trees = {"noise" if explicit and not isinstance(key, Seeds) else "key": key, "cond": cond, **given}
    device = device_of(params) or device_of({"x": x, **trees})
    if device is not None:
        if x is not ...:
            _checks.together("x", x, device)
        for name, tree in trees.items():
            dtype = model.network.dtype if name == "cond" else None  # what a network in mixed precision casts it to
            facts += _checks.sound(name, _checks.leaves(tree, name), device, dtype or model.dtype)
    if hasattr(model, "schedule") and not torch.compiler.is_compiling():
        like = torch.empty((), dtype=model.dtype, device=device or torch.device("cpu"))
        facts += schedules.increasing(model.schedule, params["schedule"], like, cond)
    _checks.verify(facts)
    return n


def _data(model: Any, x: Any) -> list[_checks.Fact]:
    """That x is a batch of at least one example; that it is in the decoder's support, and that the model's dtype holds real
    numbers and the sum of their squares once encoded, comes back as facts."""
    decoder, shape = model.decoder, model.event_shape
    holds = decoder.check(x)
    if x.ndim == 0 or tuple(x.shape[1:]) != shape:
        last = x.ndim > 2 and (x.shape[-1], *x.shape[1:-1]) == shape
        hint = "; channels come first: x.movedim(-1, 1)" if last else ""
        wanted = ", ".join(map(str, ("B", *shape))) if shape else "B,"
        raise ValueError(f"x: expected shape ({wanted}), got {_checks.describe(x)}{hint}")
    nonempty("x", x)
    if not _checks.readable(x):
        return []
    facts = [_checks.Fact(holds, lambda: _checks.outside(decoder.support, "x", x))]
    if decoder.vocab_size is None:
        squares = decoder.encode({}, x, dtype=model.dtype).square().sum(tuple(range(1, x.ndim)))
        wanted = f"numbers whose latents {model.dtype} holds"
        facts.append(_checks.Fact(squares.isfinite(), lambda: _checks.outside(wanted, "x", x)))
    return facts


def nonempty(name: str, x: Tensor) -> Tensor:
    """A batch of at least one example."""
    if x.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one example, got an empty batch of shape {tuple(x.shape)}")
    return x


def latents(name: str, z: Any, model: Any) -> Tensor:
    """Latents of at least one example, (B, *event_shape), of the model's dtype."""
    z = _checks.tensor(name, z)
    return nonempty(name, _checks.alike(name, z, (*z.shape[:1], *model.event_shape), model.dtype))


def drawn(model: Any, noise: Any, n: int) -> list[_checks.Fact]:
    """That seeds or noise are those of n examples of a model; that their times are the model's comes back as a fact."""
    name, t, steps = "key" if isinstance(noise, Seeds) else "noise", noise.t, model.timesteps
    latent = model.flow.latent_shape(model.event_shape) if hasattr(model, "flow") else model.event_shape
    for field, value in noise._asdict().items():
        if value is not None or field not in ("timesteps" if name == "key" else "key", "sender"):
            count = _checks.tensor(f"{name}.{field}", value).shape[1:2] if field == "sender" else ()
            shape = {"t": (n,), "key": (n, 2), "timesteps": (n,)}.get(field, (n, *count, *latent))
            dtype = torch.int32 if field in ("key", "timesteps") else model.dtype
            _checks.alike(f"{name}.{field}", value, shape, dtype)
    if not _checks.readable(t):
        return []
    if steps == 0:
        wanted, holds = "times in [0, 1), as time is continuous", (t >= 0.0) & (t < 1.0)
    else:
        i = (t * steps).round()
        wanted = f"times of {steps} steps, each one of 1/{steps}, ..., 1"
        near = (i / steps - t).abs() <= torch.finfo(torch.float32).eps * t  # times that were float32's once
        holds = (i >= 1) & (i <= steps) & near
    facts = [_checks.Fact(holds, lambda: _checks.outside(wanted, f"{name}.t", t))]
    own = getattr(noise, "timesteps", None)
    if own is not None:
        of = f"{steps}, as the model's (0 is continuous time)"
        facts.append(_checks.Fact(own == steps, lambda: _checks.outside(of, f"{name}.timesteps", own)))
    return facts


def seeds(model: Any, key: Any, n: int) -> Seeds:
    """The seeds of n examples: those that a key makes, or those given, checked."""
    if not isinstance(key, Seeds):
        return model.seeds(key, n)  # type: ignore[no-any-return]
    _checks.verify(drawn(model, key, _checks.integer("n", n, 1)))
    return key


# The mathematics, for one example


def prior_loss(f: Tensor, gamma_1: Tensor) -> Tensor:
    """KL(q(z_1 given x) || N(0, I)) in nats, summed over one encoded example f: shape ().

    Per dimension, (alpha_1**2 f**2 + sigma_1**2 - 1 - log sigma_1**2) / 2. gamma_1 is of shape () or of f's.
    """
    alpha2 = torch.sigmoid(-gamma_1)
    # sigma**2 - 1 - log sigma**2 = softplus(-gamma) - sigmoid(-gamma), about alpha**4 / 2: in float64, as the two nearly
    # cancel. Most often one number an example.
    wide = -gamma_1.double()
    excess = (F.softplus(wide, threshold=700) - torch.sigmoid(wide)).to(gamma_1.dtype)
    return 0.5 * (alpha2 * f.square() + excess).sum()


def reconstruction_loss(decoder: Decoder, x: Tensor, eps_0: Tensor, gamma_0: Tensor) -> Tensor:
    """-log p(x given z_0) in nats, summed over one example x whose latent z_0 has the noise eps_0: shape ()."""
    return decoder.reconstruction({}, x, eps_0, gamma_0).sum()


def diffusion_loss(eps: Tensor, eps_hat: Tensor, weight: Tensor) -> Tensor:
    """weight |eps - eps_hat|**2 / 2 in nats, summed over one example: shape ().

    The weight, of shape () or of eps', is gamma'(t) in continuous time (eq. 17), T expm1(gamma(t) - gamma(s)) in T steps
    (eq. 14).
    """
    return 0.5 * (weight * (eps - eps_hat).square()).sum()


def terms(decoder: Decoder, x: Tensor, eps_0: Tensor, eps: Tensor, eps_hat: Tensor, levels: Levels) -> ELBO:
    """The bound's three terms for one example, each of shape (), from its noise and the noise that a network saw in z_t."""
    return ELBO(
        recon=reconstruction_loss(decoder, x, eps_0, levels.gamma_0),
        prior=prior_loss(decoder.encode({}, x, dtype=eps.dtype), levels.gamma_1),
        diffusion=diffusion_loss(eps, eps_hat, levels.weight),
    )


# A batch


def bound(model: Model, params: Params, x: Tensor, noise: Noise, cond: Any = None) -> ELBO:
    """The bound's three terms for a batch, a deterministic function of its noise.

    Args:
        model: the model.
        params: ``{"network": ..., "schedule": ...}``.
        x: data, (B, *event_shape).
        noise: the batch's noise.
        cond: the batch's condition, as the network takes it.

    Returns:
        Each term (B,), nats.

    Raises:
        TypeError, ValueError: bad arguments, as for :meth:`purevdm.VDM.elbo`; noise of another shape, dtype or device than
            the model's, or that is not finite; times out of range, or that are none of the model's steps.
    """
    checked(model, params, x, _checks.instance("noise", noise, Noise, "a purevdm.Noise"), cond)
    levels = schedules.levels(model.schedule, params["schedule"], noise.t, model.timesteps, cond)
    return bound_at(model, params["network"], x, noise, levels, cond)


def bound_at(model: Model, params: Params, x: Tensor, noise: Noise, levels: Levels, cond: Any = None) -> ELBO:
    """:func:`bound` with the schedule's values given; ``params`` are the network's."""
    f = model.decoder.encode({}, x, cond, noise.eps.dtype)
    z_t = process.diffuse(f, process.align(levels.gamma_t, f), noise.eps)
    eps_hat = denoiser.in_bound(model.network, model.decoder, params, z_t, levels.gamma_t, cond, noise.key)
    each = Levels(*(level.expand_as(levels.gamma_t) for level in levels))

    def one(x: Tensor, eps_0: Tensor, eps: Tensor, eps_hat: Tensor, levels: Levels) -> ELBO:
        return terms(model.decoder, x, eps_0, eps, eps_hat, levels)

    with exact(z_t.device):
        return torch.func.vmap(one)(x, noise.eps_0, noise.eps, eps_hat, each)


# Noise from a key


def discretise(t: Tensor, timesteps: int) -> Tensor:
    """The times of T discrete steps: t in [0, 1) goes to the end of its step, one of 1/T, ..., 1, each equally likely.

    T = 0 leaves t as it is. (The official code's ceil(t T) / T differs only where t T is an integer: it sends a drawn
    t = 0 to time 0, from where no step is left.)
    """
    if timesteps == 0:
        return t
    return ((t * timesteps).floor().clamp(max=timesteps - 1) + 1.0) / timesteps


def draw_times(
    key: Key, n: int, *, antithetic: bool = True, timesteps: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The times of a batch: shape (n,).

    Antithetic times (App. I) are evenly spread, t_i = (u + i / n) mod 1 with one uniform u: each is uniform, and
    together they leave the diffusion loss a smaller variance than n independent uniforms.

    Raises:
        TypeError, ValueError: a key of the wrong form, n < 1 or timesteps < 0.
    """
    _checks.key("key", key)
    n, timesteps = _checks.integer("n", n, 1), _checks.timesteps(timesteps, dtype)
    if antithetic:
        t = (random.uniform(key, (), dtype) + torch.arange(n, dtype=dtype, device=key.device) / n) % 1.0
    else:
        t = random.uniform(key, (n,), dtype)
    return discretise(t, timesteps)


def draw_seeds(
    key: Key, n: int, *, antithetic: bool = True, timesteps: int = 0, dtype: torch.dtype = torch.float32
) -> Seeds:
    """The seeds of a batch of n examples: times drawn together, and a key for each example.

    Example i's key depends on the batch's key and on i alone, not on n. The times depend on the dtype, too, as every draw.

    Raises:
        TypeError, ValueError: a key of the wrong form, n < 1 or timesteps < 0.
    """
    _checks.key("key", key)
    keys = random.split(key, _checks.integer("n", n, 1, 2**31 - 1) + 1)
    t = draw_times(keys[0], n, antithetic=antithetic, timesteps=timesteps, dtype=dtype)
    return Seeds(t, keys[1:], torch.full((n,), timesteps, dtype=torch.int32, device=key.device))


def draw_noise(seeds: Seeds, event_shape: Shape, train: bool = True) -> Noise:
    """The noise of a batch from its seeds, in the dtype of its times; ``train`` gives the network keys.

    The same keys give other noise in another dtype.
    """
    dtype = seeds.t.dtype

    def one(key: Key) -> tuple[Tensor, Tensor, Tensor]:
        k_noise, k_network = random.split(key).unbind(0)
        eps_0, eps = random.normal(k_noise, (2, *event_shape), dtype).unbind(0)
        return eps_0, eps, k_network

    eps_0, eps, keys = torch.func.vmap(one)(seeds.key)
    return Noise(seeds.t, eps_0, eps, keys if train else None)
