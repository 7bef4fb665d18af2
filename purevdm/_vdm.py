"""A model: a network, a schedule and a decoder, and the functions of parameters and keys that they make together."""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, _values, bound, denoiser, process, random, schedules, variance
from purevdm._compile import constant
from purevdm.bound import NLLBound
from purevdm.decoders import Decoder, Gaussian, Product, discrete, fits, reconstruction_bits, spacing
from purevdm.denoiser import Denoiser
from purevdm.model import checked, dims, latent_shape, latents, masked, seeds_of, structure_of
from purevdm.networks import Network
from purevdm.networks._network import same
from purevdm.noise import Noise, Seeds, draw_noise, draw_seeds
from purevdm.parts import Reverse, Subspace, Weighting, posterior
from purevdm.sampling import Options, Sample, sample
from purevdm.schedules import Schedule
from purevdm.solvers import Solver, dpmpp_2m
from purevdm.types import Key, Params, Shape

__all__ = ["VDM", "Sample", "vdm"]

POSTERIOR = posterior()


class VDM(NamedTuple):
    """A variational diffusion model: data, and pure functions that read it. :func:`vdm` makes one and checks its parts.

    ``model._replace(timesteps=1000)`` is the same model in 1000 steps. Models pickle, compare and print by content.

    In the methods, B is the batch size. ``params`` are nested dicts of tensors, ``{"network": ..., "schedule": ...}``, of
    the structure, shapes and dtypes that ``init`` gives. x holds data, (B, *event_shape), which the decoder checks.
    ``cond`` is a condition for each example, as the network takes it. ``key`` is a key, or the :class:`~purevdm.Seeds` of
    these examples where they are rows of a larger batch. ``mask`` is bool, with as many axes as x, and broadcasts to it:
    what exists, where data of varying size are padded. An element that does not exist has latent 0, no noise, no term and no
    dimension; what x holds there does not count. ``train`` switches the network's dropout on; ``nll_bound`` and ``terms``
    are without it.

    The losses, ``nll_bound`` and ``sample`` compile with ``fullgraph=True``, in every mode of ``torch.compile`` (tested on a
    CPU) and, from PyTorch 2.13 on, with ``dynamic=True``. :mod:`purevdm.module` says what ``torch.export`` takes. Under
    ``torch.autocast`` the network alone computes in the shorter dtype. Take backward passes outside of it, as PyTorch asks
    for; ``training.gradients`` does.

    Attributes:
        network: predicts the noise in a latent.
        schedule: gamma(t).
        decoder: data to numbers and back.
        event_shape: the shape of one example.
        timesteps: T, the number of steps of the discrete-time bound, or 0 for continuous time.
        antithetic: whether a batch's times are spread evenly.
        reverse: the variance of p(z_s given z_t) in T steps: the posterior's (the paper's), or another of
            :mod:`purevdm.parts`. Solvers that draw noise have their own.
        weighting: of the diffusion loss in ``loss_fn``, or None for the bound; ``nll_bound`` and ``terms`` never have one.
        subspace: the one that data and latents lie in, or None.
        dtype: of parameters, latents and losses. Times and noise are drawn in it, and a key gives other numbers in another
            dtype; ``init`` gives the same parameters. To compare dtypes, give both one noise (:func:`purevdm.bound.bound`).

    Raises (every method):
        TypeError, ValueError: settings that do not fit together, those of ``_replace`` too; bad arguments, named: parameters
            of another structure or not finite (the leaf is named), a schedule that does not increase, data of another shape
            or outside of the decoder's support, an empty batch, a key of the wrong form, seeds or noise of another shape,
            dtype or kind of time, tensors on several devices, numbers that the model's dtype does not hold. Values in
            tensors are read in eager alone, in one transfer.
    """

    network: Network
    schedule: Schedule
    decoder: Decoder
    event_shape: tuple[int, ...]
    timesteps: int = 0
    antithetic: bool = True
    dtype: torch.dtype = torch.float32
    reverse: Reverse = POSTERIOR
    weighting: Weighting | None = None
    subspace: Subspace | None = None

    # Parameters and noise

    def init(self, key: Key) -> Params:
        """Fresh parameters: ``{"network": ..., "schedule": ...}``, and ``"decoder"`` for one that has any."""
        self._structure()
        params = _init(self.network, self.schedule, self.decoder, self.event_shape, _checks.key("key", key))
        return optree.tree_map(lambda leaf: leaf.to(self.dtype) if leaf.is_floating_point() else leaf, params)  # type: ignore[arg-type, return-value]

    def seeds(self, key: Key, n: int) -> Seeds:
        """The seeds of a batch of n: its times, and a key for each example. ``seeds.rows(...)`` are those of a part."""
        return draw_seeds(key, n, antithetic=self.antithetic, timesteps=self.timesteps, dtype=self.dtype)

    def draw(self, key: Key | Seeds, n: int, *, train: bool = True) -> Noise:
        """The noise that the losses draw for a batch of n, each field (n, ...)."""
        return draw_noise(seeds_of(self, key, n), latent_shape(self), _checks.boolean("train", train))

    # The bound

    def loss_fn(
        self,
        params: Params,
        x: Tensor,
        key: Key | Seeds,
        cond: Any = None,
        *,
        mask: Tensor | None = None,
        train: bool = True,
    ) -> Tensor:
        """The bound's Monte Carlo estimate, the mean over the batch of bits per dimension, shape (); each example's
        dimensions are those that exist. With a weighting it is no bound.

        For real data it bounds -log2 of a density, and may be negative.
        """
        return self.loss_and_stats(params, x, key, cond, mask=mask, train=train)[0]

    def loss_and_stats(
        self,
        params: Params,
        x: Tensor,
        key: Key | Seeds,
        cond: Any = None,
        *,
        mask: Tensor | None = None,
        train: bool = True,
    ) -> tuple[Tensor, dict[str, Any]]:
        """:meth:`loss_fn` and its parts, for ``has_aux=True``.

        Returns:
            The loss, and a dict of the bound's parts ``recon``, ``prior`` and ``diffusion`` (bits/dim; without a weighting
            they sum to the loss) and of the endpoints ``gamma_0`` and ``gamma_1`` (means, where dimensions or examples have
            their own). Under a schedule of :func:`purevdm.importance.warped` in continuous time, also ``schedule``: the
            branches of ``params["schedule"]`` that this batch moves.
        """
        terms, levels, t = self._terms(params, x, key, cond, mask, train)
        each = bound.summed(terms)
        size = dims(self, x.shape[0], None if mask is None else mask.expand_as(x), terms.diffusion)
        weighted = each
        if self.weighting is not None:
            gamma_t = process.align(levels.gamma_t, terms.diffusion)
            diffusion = self.weighting.weight(gamma_t) * terms.diffusion
            weighted = each._replace(diffusion=diffusion.reshape(x.shape[0], -1).sum(1))
        loss, stats = self._summary(params["schedule"], each, levels.gamma_0, levels.gamma_1, t, size)
        if self.weighting is not None:
            loss = sum(self._mean(term, size) for term in weighted)  # type: ignore[assignment]
        return loss, stats

    def vlb_and_variance_grads(
        self,
        params: Params,
        x: Tensor,
        key: Key | Seeds,
        cond: Any = None,
        *,
        train: bool = True,
        has_aux: bool = False,
    ) -> tuple[Params, Any]:
        """``(grads, loss)`` as ``torch.func.grad_and_value(loss_fn)`` gives them, in one pass, but with the schedule's
        interior following not the bound but the variance of its estimate: the mean of the squared diffusion losses,
        (bits/dim)**2 (App. I.2, :mod:`purevdm.variance`). In continuous time only.

        Returns:
            ``(grads, loss)``, or ``(grads, (loss, stats))`` with ``has_aux``.
        """
        if self.timesteps:
            raise ValueError(f"timesteps: expected 0, as in {self.timesteps} steps the bound depends on the interior")
        if self.weighting is not None or self.subspace is not None:
            raise ValueError("weighting, subspace: expected None, as the variance is taken of the bound's loss an example")
        noise = self._noise(key, checked(self, params, x, key, cond), train)
        grads, terms, curve = variance.gradients(self, params, x, noise, self._bits_per_nat, cond)
        _checks.verify(schedules.rising(variance.levels(curve)))
        size = dims(self, x.shape[0], None, terms.diffusion)
        loss, stats = self._summary(params["schedule"], terms, curve.gamma_0, curve.gamma_1, noise.t, size)
        return grads, (loss, stats) if has_aux else loss

    def nll_bound(
        self, params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, *, mask: Tensor | None = None
    ) -> NLLBound:
        """An upper bound on -log p(x), by its three terms for each example: each (B,), nats (of a density, where data are
        real).

        To compare an example's bounds, as under each class in a classifier, give all the same key; see
        :mod:`purevdm.evaluation`.
        """
        return bound.summed(self.terms(params, x, key, cond, mask=mask))

    def terms(
        self, params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, *, mask: Tensor | None = None
    ) -> NLLBound:
        """The terms of :meth:`nll_bound`, unsummed: of each element, nats. A loss of one's own weighs and adds them up."""
        return self._terms(params, x, key, cond, mask, False)[0]

    def update(self, params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, *, mask: Tensor | None = None) -> Params:
        """The parameters with what a network keeps of the batches that it saw in training, such as batch norms' means and
        variances, moved by this batch; all else as it is, and all of it for a network that keeps nothing.

        One pass without gradients over the latents that ``loss_fn`` makes of this key. ``training.train_step`` takes this as
        ``update=model.update``. Averaged parameters have statistics of their own: before evaluation, set them by some
        batches, ``params = model.update(params, x, key)`` for each.
        """
        noise = self._noise(key, checked(self, params, x, key, cond, mask=mask), True)
        if self.network.update is None:
            return params
        x, mask = masked(x, mask)
        gamma_t = schedules.levels(self.schedule, params["schedule"], noise.t, self.timesteps, cond).gamma_t
        there = None if mask is None else self.decoder.latent_mask(mask)
        within = denoiser.of_model(self, params, mask=there).within
        f, eps = within(self.decoder.encode({}, x, cond, self.dtype)), within(noise.eps)
        z_t = process.diffuse(f, process.align(gamma_t, f), eps)
        return params | {"network": denoiser.update(self.network, params["network"], z_t, gamma_t, cond, noise.key, there)}

    def nll_bound_of_one(self, params: Params, x: Tensor, noise: Noise, cond: Any = None) -> NLLBound:
        """The bound's three terms for one example x, (event_shape), with explicit noise: each (), nats."""
        _checks.instance("noise", noise, Noise, "a purevdm.Noise")
        _checks.shaped("x", x, self.event_shape)
        _checks.shaped("noise.t", noise.t, ())
        _checks.shaped("noise.eps_0", noise.eps_0, self.event_shape)
        _checks.shaped("noise.eps", noise.eps, self.event_shape)

        def batch(leaf: Tensor | None) -> Tensor | None:
            return None if leaf is None else _checks.tensor("cond", leaf)[None]

        cond = None if cond is None else optree.tree_map(batch, cond, none_is_leaf=True)
        terms = bound.bound(self, params, x[None], Noise(*map(batch, noise)), cond)  # type: ignore[arg-type]
        return NLLBound(*(term[0] for term in terms))

    # Prediction and samples

    def gamma(self, params: Params, t: Tensor, cond: Any = None) -> Tensor:
        """The schedule at times of any shape; see :func:`purevdm.schedules.gamma`."""
        if _checks.floating("t", t).numel() == 0:
            raise ValueError(f"t: expected at least one time, got {_checks.describe(t)}")
        checked(self, params, cond=cond, t=t)
        return schedules.gamma(self.schedule, params["schedule"], t, cond)

    def eps_hat(
        self,
        params: Params,
        z: Tensor,
        gamma: Tensor,
        cond: Any = None,
        x_hat: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The predicted noise in latents z, (B, *latent_shape) of the model's dtype, at gamma, (B,) or z's shape.

        A self-conditioned network makes its own estimate x_hat of the data where none is given.
        """
        n = latents("z", z, self).shape[0]
        if _checks.floating("gamma", gamma).shape != z.shape:
            _checks.shaped("gamma", gamma, (n,))
        if x_hat is not None:
            _checks.alike("x_hat", x_hat, z.shape, z.dtype)
        checked(self, params, cond=cond, n=n, z=z, gamma=gamma, x_hat=x_hat, mask=mask)
        denoise = denoiser.of_model(self, params, cond, mask=mask)
        return denoise.eps(z, gamma) if x_hat is None else denoise(z, gamma, x_hat).eps

    def denoiser(
        self,
        params: Params,
        cond: Any = None,
        key: Tensor | None = None,
        *,
        n: int,
        mask: Tensor | None = None,
        guidance: float | Tensor | None = None,
        clip: bool = False,
    ) -> Denoiser:
        """The network for one batch, for a sampler or an estimate of one's own: checked here, and then a plain function.

        Args:
            params, cond, mask: the parameters, the batch's condition, and what exists of its latents.
            key: keys (n, 2) for what is random in training, or None.
            n: the batch size.
            guidance, clip: as in :meth:`sample`.

        >>> import torch, purevdm
        >>> from purevdm import networks, process, random, schedules
        >>> model = purevdm.vdm(networks.mlp(hidden=8), schedules.fixed_linear(), event_shape=(2,))
        >>> denoise = model.denoiser(model.init(random.key(0)), n=4)
        >>> z, gamma = random.normal(random.key(1), (4, 2)), torch.linspace(5.0, -13.3, 11)
        >>> for t in range(10):  # DDIM
        ...     eps, x = denoise(z, gamma[t].expand(4))
        ...     z = process.diffuse(x, gamma[t + 1], eps)
        >>> z.shape
        torch.Size([4, 2])
        """
        n = _checks.integer("n", n, 1)
        if key is not None:
            _checks.alike("key", key, (n, 2), torch.int32)
        given = guidance if isinstance(guidance, Tensor) else None
        checked(self, params, cond=cond, n=n, mask=mask, key=key, guidance=given)
        denoise = denoiser.of_model(self, params, cond, key, mask)
        return denoise._replace(guidance=guidance, clip=_checks.boolean("clip", clip))

    def sample(
        self,
        params: Params,
        key: Key,
        n: int,
        *,
        steps: int | Tensor = 250,
        solver: Solver | None = None,
        grid: str = "gamma",
        cond: Any = None,
        guidance: float | Tensor = 1.0,
        decode: str = "argmax",
        clip: bool = False,
        z: Tensor | None = None,
        start: float | Tensor = 1.0,
        until: float | Tensor | None = None,
        project: Callable[[Tensor, Tensor, Tensor, Key], Tensor] | None = None,
        trajectory: bool = False,
        callback: Callable[[int, Tensor], None] | None = None,
        differentiable: bool = False,
        mask: Tensor | None = None,
    ) -> Any:
        """n samples, (n, *event_shape), by steps from noise at time 1 to data at time 0.

        A self-conditioned network takes each step's estimate of the data, clamped to their range, in the next.

        Where solver and grid are left out, samples are a deterministic function of the latents at time 1
        (:func:`purevdm.sampling.invert` is its inverse). The paper's sampler is ``solver=solvers.ancestral(), grid="time"``.

        Args:
            params, key, n: the parameters, a key, how many.
            steps: how many steps. In an integer tensor of shape (), one compiled graph serves every number.
            solver: a value of :mod:`purevdm.solvers`; ``dpmpp_2m()`` where left out; ``ancestral()`` is eq. 34.
            grid: the variable in which steps are evenly spaced, "gamma" or "time".
            cond: a batch of n conditions.
            guidance: above 1, strengthens the condition, for a network with ``cond_drop`` > 0 (classifier-free,
                Ho & Salimans 2022): a number, or a tensor of shape () or (n,). See :func:`purevdm.denoiser.guide`.
            decode: "argmax" for the likeliest data, or "sample" to draw from p(x given z_0).
            clip: whether to clamp every estimate of the data to their range; real data have none.
            z: the latents to start from, (n, *latent_shape) of the model's dtype; standard normal noise where left out.
            start: z's time, in (0, 1]: a number, or a floating-point tensor of shape (), for which one compiled graph
                serves every value. Data diffused to a start below 1 come back changed a little (SDEdit, Meng et al. 2022).
            until: the time to stop at, in [0, start), as ``start``: the latents at that time are returned, not data.
            project: a hook, ``project(i, z, gamma, key) -> z`` after each step: i an int32 tensor of shape (), z the latents
                at their new gamma, (n, 1, ..., 1) or (n, *event_shape), the key its own. See
                :func:`purevdm.sampling.inpaint`.
            trajectory: whether to return a :class:`Sample`, with all latents (and, with ``until``, no data).
            callback: in eager, called as ``callback(i, z)`` after each step.
            differentiable: whether derivatives pass, from latents (or data that are real numbers) to params, z, cond,
                guidance and times. A compiled graph then holds every step, for a Python integer of them. Where it is False,
                no autograd graph is built, and ``torch.func`` transforms that want derivatives are refused.
            mask: what exists of each sample, bool, which broadcasts to (n, *event_shape); elsewhere samples are 0.

        >>> import torch, purevdm
        >>> from purevdm import networks, random, schedules, solvers
        >>> model = purevdm.vdm(networks.mlp(hidden=8), schedules.learned_linear(), event_shape=(2,))
        >>> params, options = model.init(random.key(0)), dict(steps=10, solver=solvers.ddim())
        >>> half = model.sample(params, random.key(1), 3, until=0.5, **options)  # latents at time 1/2
        >>> model.sample(params, random.key(2), 3, z=half, start=0.5, **options).shape
        torch.Size([3, 2])
        >>> def shrink(i, z, gamma, key):
        ...     return 0.9 * z
        >>> model.sample(params, random.key(1), 3, project=shrink, **options).shape
        torch.Size([3, 2])
        >>> def energy(z):
        ...     return model.sample(params, random.key(1), 3, z=z, until=0.0, differentiable=True, **options).square().sum()
        >>> torch.func.grad(energy)(random.normal(random.key(3), (3, 2))).shape
        torch.Size([3, 2])
        """
        checked(self, params, key=_checks.key("key", key), cond=cond)
        solver = dpmpp_2m() if solver is None else solver
        options = Options(steps, solver, grid, cond, guidance, clip, project, trajectory, callback, differentiable, mask)
        return sample(self, params, key, n, options, z=z, start=start, until=until, decode=decode)

    # What the methods share

    @property
    def _bits_per_nat(self) -> float:
        """From nats an example to bits per dimension, where all is there."""
        return 1.0 / (math.prod(self.event_shape) * math.log(2.0))

    @constant
    def _structure(self) -> _checks.Structure:
        """The leaves of the parameters, of settings that are held against one another, those of ``_replace``, too."""
        shape = _checks.shape("event_shape", _checks.instance("event_shape", self.event_shape, tuple, "a tuple of integers"))
        _checks.dtype("dtype", self.dtype, (torch.float32, torch.float64))
        _checks.timesteps(self.timesteps, self.dtype)
        _checks.boolean("antithetic", self.antithetic)
        for name, kind in (("reverse", Reverse), ("weighting", Weighting), ("subspace", Subspace)):
            if getattr(self, name) is not None or name == "reverse":
                _checks.instance(name, getattr(self, name), kind, f"a purevdm.parts.{kind.__name__}")
        parts = (self.network, self.schedule, self.decoder, self.subspace)
        return _structure(*map(_values.Same, parts), shape, self.dtype)

    def _noise(self, key: Key | Seeds, n: int, train: bool) -> Noise:
        """The noise of a batch of n, behind the door."""
        seeds = key if isinstance(key, Seeds) else self.seeds(key, n)
        return draw_noise(seeds, latent_shape(self), _checks.boolean("train", train))

    def _terms(
        self, params: Params, x: Tensor, key: Key | Seeds, cond: Any, mask: Tensor | None, train: bool
    ) -> tuple[NLLBound, schedules.Levels, Tensor]:
        noise = self._noise(key, checked(self, params, x, key, cond, mask=mask), train)
        levels = schedules.levels(self.schedule, params["schedule"], noise.t, self.timesteps, cond)
        _checks.verify(schedules.rising(levels, self.timesteps))
        x, mask = masked(x, mask)
        return bound.at(self, params, x, noise, levels, cond, mask), levels, noise.t

    def _mean(self, term: Tensor, size: Tensor | float) -> Tensor:
        """The mean over examples of a term, bits/dim."""
        if isinstance(size, Tensor):
            return (term / size).mean() / math.log(2.0)
        return term.mean() * (1.0 / (size * math.log(2.0)))

    def _summary(
        self, of_schedule: Params, terms: NLLBound, gamma_0: Tensor, gamma_1: Tensor, t: Tensor, size: Tensor | float
    ) -> tuple[Tensor, dict[str, Any]]:
        stats: dict[str, Any] = {name: self._mean(term, size) for name, term in terms._asdict().items()}
        loss = stats["recon"] + stats["prior"] + stats["diffusion"]
        stats |= {"gamma_0": gamma_0.mean(), "gamma_1": gamma_1.mean()}
        if self.schedule.observe is not None and self.timesteps == 0:
            stats["schedule"] = self.schedule.observe(of_schedule, t, terms.diffusion)
        return loss, stats


def _init(network: Network, schedule: Schedule, decoder: Decoder, event_shape: tuple[int, ...], key: Key) -> Params:
    k_network, k_schedule = random.split(key).unbind(0)
    params = {"network": network.init(k_network, decoder.latent_shape(event_shape)), "schedule": schedule.init(k_schedule)}
    own = decoder.init(random.fold_in(key, 2))
    return params | ({"decoder": own} if own else {})


@functools.lru_cache(maxsize=256)
def _structure(
    network: _values.Same,
    schedule: _values.Same,
    decoder: _values.Same,
    subspace: _values.Same,
    event_shape: tuple[int, ...],
    dtype: torch.dtype,
) -> _checks.Structure:
    """The leaves of a model's parameters, without computing them where their ``init`` runs on the meta device.

    Raises:
        TypeError, ValueError: parts that do not fit together.
    """
    for part, kind in ((network, Network), (schedule, Schedule), (decoder, Decoder)):
        _checks.instance(kind.__name__.lower(), part.value, kind, f"a purevdm {kind.__name__}")
    if 0 in event_shape:
        raise ValueError(f"event_shape: expected sizes of at least 1, got {event_shape}")
    fits(decoder.value, event_shape, dtype)
    if _told(network.value, _ends(schedule.value, dtype)) != network.value:
        raise ValueError("network: expected one that knows the schedule's endpoints; make the model by purevdm.vdm")

    if subspace.value is not None:
        own, columns = decoder.value, getattr(subspace.value, "columns", None)
        if isinstance(own, Product) and columns == own.parts[0].width:
            own = own.parts[0].decoder
        if not isinstance(own, Gaussian) or isinstance(own.scale, tuple):
            raise ValueError(f"subspace: expected a decoders.gaussian with one scale for its columns, got {own!r}")
        if schedule.value.contextual is False and _ends(schedule.value, dtype) is None:
            raise ValueError("schedule: expected one gamma for all dimensions of a subspace")
    parts = (network.value, schedule.value, decoder.value)
    return structure_of(lambda key: _init(*parts, event_shape, key), dtype)


def vdm(
    network: Network,
    schedule: Schedule,
    event_shape: Shape,
    vocab_size: int | None = None,
    *,
    decoder: Decoder | None = None,
    timesteps: int | None = 0,
    antithetic: bool = True,
    dtype: torch.dtype = torch.float32,
    reverse: Reverse = POSTERIOR,
    weighting: Weighting | None = None,
    subspace: Subspace | None = None,
) -> VDM:
    """A variational diffusion model of a network, a schedule and a decoder.

    Data of varying size are padded, and their losses given a mask. Without it padded elements are data like the rest: they
    are noised, predicted and counted. The same sets padded to 60 gave -266.9 nats and to 40 -66.9, under one network that
    masked its attention. Masks go through losses, bounds, samples, inversion and likelihoods; files hold whole events. A
    network gets the mask if it says that it is ``masked``, as :func:`purevdm.networks.transformer` does.

    Args:
        network: predicts the noise, the data or v; see :mod:`purevdm.networks`.
        schedule: gamma(t); see :mod:`purevdm.schedules`. A network that normalises gamma takes its endpoints. One made
            without ``gamma_min`` gets the one that suits the number of levels of the data, -13.3 for 256. Another at which
            reconstruction alone costs more than 0.02 bits/dim (:func:`purevdm.decoders.reconstruction_bits`) is warned of.
        event_shape: the shape of one example, of any rank: (3, 32, 32) for images, (2,) for points, (length,) for series.
        vocab_size: how many values the data take, 256 unless a decoder is given.
        decoder: another decoder than ``purevdm.decoders.discrete(vocab_size)``: ``decoders.gaussian()`` for real data.
        timesteps: T, the number of steps of the discrete-time bound (eq. 14), or 0 or None for continuous time (eq. 17). At
            most 100,663 in float32, which does not resolve more.
        antithetic: whether a batch's times are spread evenly (App. I) or independent.
        dtype: of parameters, latents and losses: float32, or float64 for proofs.
        reverse, weighting, subspace: of :mod:`purevdm.parts`; see :class:`VDM`.

    Returns:
        A :class:`VDM`.

    Raises:
        TypeError, ValueError: arguments out of range, a network made for other endpoints of gamma than the schedule's, or
            a decoder whose loc and scale do not broadcast against the event, or from which data do not come back in dtype.

    >>> import torch, purevdm
    >>> from purevdm import random
    >>> model = purevdm.vdm(purevdm.networks.mlp(hidden=32), purevdm.schedules.learned_linear(), event_shape=(2,))
    >>> params = model.init(random.key(0))
    >>> x = random.randint(random.key(1), (16, 2), 0, 256)
    >>> grads, loss = torch.func.grad_and_value(model.loss_fn)(params, x, random.key(2))
    >>> model.sample(params, random.key(3), 5, steps=10).shape
    torch.Size([5, 2])
    """
    _checks.instance("network", network, Network, "a purevdm Network")
    _checks.instance("schedule", schedule, Schedule, "a purevdm Schedule")
    if decoder is None:
        decoder = discrete(256 if vocab_size is None else vocab_size)
    elif vocab_size is not None:
        _checks.instance("decoder", decoder, Decoder, "a purevdm Decoder")
        own = "takes real numbers" if decoder.vocab_size is None else f"has its own, {decoder.vocab_size}"
        raise ValueError(f"vocab_size: the decoder {own}; leave this one out")
    event_shape = _checks.shape("event_shape", event_shape)
    _checks.dtype("dtype", dtype, (torch.float32, torch.float64))
    fits(_checks.instance("decoder", decoder, Decoder, "a purevdm Decoder"), event_shape, dtype)
    step = spacing(decoder, event_shape)
    schedule = _suited(schedule, step, network, dtype)
    endpoints = _ends(schedule, dtype)
    if step is not None and decoder.vocab_size is not None and endpoints is not None:
        _warn_of_reconstruction(decoder.vocab_size, step, endpoints[0])
    timesteps = 0 if timesteps is None else timesteps
    network = _told(network, endpoints)
    model = VDM(network, schedule, decoder, event_shape, timesteps, antithetic, dtype, reverse, weighting, subspace)
    model._structure()  # refuses what does not fit; an init that does not take this event_shape says so here
    return model


RECONSTRUCTION = 0.02
"""Bits per dimension of reconstruction from which a model warns that its gamma_0 is too large for its data."""


def _suited(schedule: Schedule, step: float | None, network: Network, dtype: torch.dtype) -> Schedule:
    """The schedule, with the gamma_min that suits data of this spacing where it was made without one, and so was the
    network."""
    gamma_min, high = schedules.GAMMA_MIN, math.inf if schedule.endpoints is None else schedule.endpoints[1]
    if step is not None and network.endpoints is None:
        suited = max(schedules.gamma_min_for(step), -schedules.limit(dtype))
        gamma_min = suited if suited < high else gamma_min
    return schedule.with_gamma_min(gamma_min)


def _ends(schedule: Schedule, dtype: torch.dtype) -> tuple[float, float] | None:
    """The schedule's endpoints, if they do not depend on a context. Those beyond the dtype's range are refused."""
    endpoints = schedule.endpoints
    if endpoints is None and not schedule.contextual:
        ends = torch.tensor([0.0, 1.0], dtype=torch.float32, device="cpu")
        ends = schedules.gamma(schedule, schedule.init(random.key(0, device="cpu")), ends)
        endpoints = tuple(ends.reshape(2, -1).double().mean(1).tolist())
    most = schedules.limit(dtype)
    if endpoints is not None and not all(-most <= end <= most for end in endpoints):
        raise ValueError(f"schedule: expected gamma in [{-most:g}, {most:g}], the range of {dtype}, got {endpoints}")
    return endpoints


def _warn_of_reconstruction(values: int, step: float, gamma_0: float) -> None:
    """Warns where reconstruction alone costs much, which no training mends."""
    bits = reconstruction_bits(values, gamma_0, 2.0 / (values * step))
    if bits > RECONSTRUCTION:
        enough = f"leave gamma_min out, or take {schedules.gamma_min_for(step):.4g} or less"
        message = f"reconstruction alone costs {bits:.3g} bits/dim of data of {values} levels; {enough}"
        warnings.warn(f"schedule: at gamma_0 = {gamma_0:.4g} {message}", stacklevel=3)


def _told(network: Network, endpoints: tuple[float, float] | None) -> Network:
    """The network with the schedule's endpoints, if it was given none."""
    if endpoints is None:
        return network
    network = network.between(endpoints)
    if network.endpoints is not None and not same(network.endpoints, endpoints):
        raise ValueError(
            f"network: it normalises gamma between {network.endpoints[0]} and {network.endpoints[1]}, but the schedule "
            f"starts from {endpoints[0]} to {endpoints[1]}; leave the network's gamma_min and gamma_max out, and make "
            "the model by purevdm.vdm"
        )
    return network
