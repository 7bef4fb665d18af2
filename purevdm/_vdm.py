"""The model: a network, a schedule and a decoder, and the functions of parameters and keys that they make together."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, _fitting, _sharding, _values, bound, coded, denoiser, process, schedules, variance
from purevdm._compile import constant
from purevdm._door import Batch, latents, parse, seeded, seeds_of
from purevdm._facts import verify
from purevdm._summary import summary
from purevdm._trees import Structure
from purevdm.bound import Terms
from purevdm.codes import Code
from purevdm.decoders import Decoder, discrete, fits, spacing
from purevdm.denoiser import Denoiser
from purevdm.model import latent_shape
from purevdm.networks import Network
from purevdm.noise import CodedNoise, Noise, Seeds, draw_noise, draw_seeds, kind_of
from purevdm.parts import Encoder, Reverse, Subspace, Weighting, posterior
from purevdm.sampling import Options, Sample, sample
from purevdm.schedules import Schedule
from purevdm.solvers import Solver, dpmpp_2m
from purevdm.types import Key, Params, Shape

__all__ = ["VDM", "Sample", "vdm"]

POSTERIOR = posterior()


class VDM(NamedTuple):
    """A variational diffusion model: settings, and pure functions that read them. :func:`vdm` makes one and checks its
    parts.

    ``model._replace(timesteps=1000)`` is the same model in 1000 steps. Models pickle, compare and print by content.

    In the methods, B is the batch size. ``params`` are nested dicts of tensors, ``{"network": ..., "schedule": ...}``, of
    the structure, shapes and dtypes that ``init`` gives. x holds data, (B, *event_shape), which the decoder checks.
    ``cond`` is a condition for each example, as the network takes it. ``key`` is a key, or the :class:`~purevdm.Seeds` of
    these examples where they are rows of a larger batch. ``mask`` is bool, with as many axes as x, and broadcasts to it:
    what exists, where data of varying size are padded. An element that does not exist has latent 0, no noise, no term and no
    dimension; what x holds there does not count. ``train`` switches the network's dropout on; ``nll_bound``
    is without it.

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
        code: of :mod:`purevdm.codes`, or None. With one, ``cond`` is numbers (B, d) or None, and network and schedule are
            given (B, d + m), the code behind them; ``gamma``, ``eps_hat``, ``denoiser`` and ``sampling.invert`` take that as
            their ``cond``.
        encoder: of :mod:`purevdm.encoders`, whose means move with time, or None.
        dtype: of parameters, latents and losses. Times and noise are drawn in it, and a key gives other numbers in another
            dtype; ``init`` gives the same parameters. To compare dtypes, give both one noise (:func:`purevdm.bound.bound`).

    Raises (every method):
        TypeError, ValueError: settings that do not fit together, those of ``_replace`` too; bad arguments, named: parameters
            of another structure or not finite (the leaf is named), a schedule that does not increase, data of another shape
            or outside of the decoder's support, an empty batch, a key of the wrong form, seeds or noise of another shape,
            dtype or kind of time, tensors on several devices, numbers that the model's dtype does not hold. Values in
            tensors are read only in eager mode, in one transfer.
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
    code: Code | None = None
    encoder: Encoder | None = None

    # Parameters and noise

    def init(self, key: Key) -> Params:
        """Draws fresh parameters: ``{"network": ..., "schedule": ...}``, and ``"decoder"``, ``"code"`` and ``"encoder"`` for
        those that have any."""
        self._structure()
        parts = (self.network, self.schedule, self.decoder, self.code, self.encoder)
        params = _fitting.init(parts, self.event_shape, _checks.key("key", key))
        return optree.tree_map(lambda leaf: leaf.to(self.dtype) if leaf.is_floating_point() else leaf, params)  # type: ignore[arg-type, return-value]

    def seeds(self, key: Key, n: int) -> Seeds:
        """Draws the seeds of a batch of n: its times, and a key for each example. ``seeds.rows(...)`` are those of a
        part."""
        return draw_seeds(key, n, antithetic=self.antithetic, timesteps=self.timesteps, dtype=self.dtype)

    def draw(self, key: Key | Seeds, n: int, *, train: bool = True) -> Any:
        """Draws the noise of the losses for a batch of n, each field (n, ...): a :class:`Noise`, or a
        :class:`~purevdm.noise.CodedNoise` of a model with a code."""
        return draw_noise(seeds_of(self, key, n), latent_shape(self), _checks.boolean("train", train), self.code)

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
        """Estimates the bound by Monte Carlo, the mean over the batch of bits per dimension, shape (); each example's
        dimensions are those that exist. With a weighting it is no bound.

        For real data it bounds -log2 of a density, and may be negative.
        """
        return summary(self, *self._terms(params, x, key, cond, mask, train))[0]

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
        """Gives :meth:`loss_fn` and its parts, for ``has_aux=True``.

        Returns:
            The loss, and a dict of the bound's parts ``recon``, ``prior``, ``diffusion`` and, of a model with a code,
            ``code`` (bits/dim; without a weighting they sum to the loss), and of the endpoints ``gamma_0`` and ``gamma_1``
            (means, where dimensions or examples have their own). Under a schedule of :func:`purevdm.importance.warped` in
            continuous time, also ``schedule``: the branches of ``params["schedule"]`` that this batch moves.
        """
        return summary(self, *self._terms(params, x, key, cond, mask, train))

    def vlb_and_variance_grads(
        self,
        params: Params,
        x: Tensor,
        key: Key | Seeds,
        cond: Any = None,
        *,
        mask: Tensor | None = None,
        train: bool = True,
        has_aux: bool = False,
    ) -> tuple[Params, Any]:
        """Gives ``(grads, loss)`` as ``torch.func.grad_and_value(loss_fn)`` does, in one pass, but with the schedule's
        interior following not the bound but the variance of its estimate: the mean of the squared diffusion losses,
        (bits/dim)**2 (App. I.2, :mod:`purevdm.variance`). In continuous time only.

        Returns:
            ``(grads, loss)``, or ``(grads, (loss, stats))`` with ``has_aux``.
        """
        if self.timesteps:
            raise ValueError(f"timesteps: expected 0, as in {self.timesteps} steps the bound depends on the interior")
        if any(part is not None for part in (self.weighting, self.subspace, self.code)):
            raise ValueError("weighting, subspace, code: expected None, as the variance is of the bound's loss an example")
        batch = parse(self, params, x, key, cond, mask=mask, sharded=True)
        noise = self._noise(key, batch.n, train)
        dims = batch.dims.to(self.dtype) if isinstance(batch.dims, Tensor) else batch.dims  # a count would give float32
        per_dim = 1.0 / (dims * math.log(2.0))
        grads, terms, curve = variance.gradients(self, batch, noise, per_dim, cond)
        levels = variance.levels(curve)
        verify(schedules.rising(levels))
        loss, stats = summary(self, terms, levels, noise, batch)
        grads = _sharding.like(grads, params, mean=True)
        return grads, (loss, stats) if has_aux else loss

    def nll_bound(self, params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, *, mask: Tensor | None = None) -> Any:
        """Estimates an upper bound on -log p(x), by its terms for each example: each (B,), nats (of a density, where data
        are real), an :class:`NLLBound`, or a :class:`~purevdm.bound.CodedNLLBound` of a model with a code.

        To compare an example's bounds, as under each class in a classifier, give all the same key; see
        :mod:`purevdm.evaluation`.
        """
        return bound.summed(self.terms(params, x, key, cond, mask=mask))

    def terms(
        self,
        params: Params,
        x: Tensor,
        key: Key | Seeds,
        cond: Any = None,
        *,
        mask: Tensor | None = None,
        train: bool = False,
    ) -> Any:
        """Gives the terms of :meth:`nll_bound`, unsummed: of each element, nats, for a loss of one's own.

        Here beta weighs the diffusion against the rest, and the first of three channels counts twice:

        >>> import torch, purevdm
        >>> from purevdm import networks, random, schedules
        >>> model = purevdm.vdm(networks.unet(8, (1,), 1, groups=4), schedules.learned_linear(), (3, 4, 4), 256)
        >>> params, x = model.init(random.key(0)), random.randint(random.key(1), (2, 3, 4, 4), 0, 256)
        >>> channels = torch.tensor([2.0, 1.0, 1.0])[:, None, None]
        >>> def loss(params, x, key, beta=0.5):
        ...     terms = model.terms(params, x, key, train=True)
        ...     return (channels * (terms.recon + terms.prior + beta * terms.diffusion)).sum((1, 2, 3)).mean()
        >>> grads, value = torch.func.grad_and_value(loss)(params, x, random.key(2))
        """
        return self._terms(params, x, key, cond, mask, train)[0]

    def update(self, params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, *, mask: Tensor | None = None) -> Params:
        """Moves by this batch what a network keeps of the batches that it saw in training, such as batch norms' means and
        variances. All other parameters stay as they are.

        One pass without gradients over the latents that ``loss_fn`` makes of this key. ``training.train_step`` takes this as
        ``update=model.update``. Averaged parameters have statistics of their own: before evaluation, set them by some
        batches, ``params = model.update(params, x, key)`` for each.
        """
        batch = parse(self, params, x, key, cond, mask=mask)
        noise = self._noise(key, batch.n, True)
        if self.network.update is None:
            return params
        own = batch.params
        cond, _ = coded.of_data(self, own, batch.x, noise, cond)
        gamma_t = schedules.levels(self.schedule, own["schedule"], noise.t, self.timesteps, cond).gamma_t
        within = denoiser.of_model(self, own, mask=batch.there).within
        f = within(self.decoder.encode(own.get("decoder", {}), batch.x, cond, self.dtype))
        if self.encoder is not None:
            f = f + within(self.encoder.shift(own.get("encoder", {}), f, gamma_t, cond))
        z_t = process.diffuse(f, process.align(gamma_t, f), within(noise.eps))
        given = (z_t, gamma_t, cond, noise.key, batch.there)
        after = denoiser.update(self.network, own["network"], *given)
        return params | {"network": _sharding.restored(after, own["network"], params["network"])}

    def nll_bound_of_one(self, params: Params, x: Tensor, noise: Noise | CodedNoise, cond: Any = None) -> Terms:
        """Gives the bound's terms for one example x, (event_shape), with explicit noise: each (), nats."""
        _checks.instance("noise", noise, *kind_of(self.code))
        _checks.shaped("x", x, self.event_shape)
        _checks.shaped("noise.t", noise.t, ())
        _checks.shaped("noise.eps_0", noise.eps_0, latent_shape(self))
        _checks.shaped("noise.eps", noise.eps, latent_shape(self))

        def batch(leaf: Tensor | None) -> Tensor | None:
            return None if leaf is None else _checks.tensor("cond", leaf)[None]

        cond = None if cond is None else optree.tree_map(batch, cond, none_is_leaf=True)
        terms = bound.bound(self, params, x[None], type(noise)(*map(batch, noise)), cond)  # type: ignore[arg-type]
        return type(terms)(*(term[0] for term in terms))

    # Prediction and samples

    def gamma(self, params: Params, t: Tensor, cond: Any = None) -> Tensor:
        """Computes the schedule at times of any shape; see :func:`purevdm.schedules.gamma`."""
        if _checks.floating("t", t).numel() == 0:
            raise ValueError(f"t: expected at least one time, got {_checks.describe(t)}")
        batch = parse(self, params, cond=cond, t=t)
        return schedules.gamma(self.schedule, batch.params["schedule"], t, cond)

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
        """Predicts the noise in latents z, (B, *latent_shape) of the model's dtype, at gamma, (B,) or z's shape.

        A self-conditioned network makes its own estimate x_hat of the data where none is given.
        """
        n = latents("z", z, self).shape[0]
        if _checks.floating("gamma", gamma).shape != z.shape:
            _checks.shaped("gamma", gamma, (n,))
        if x_hat is not None:
            _checks.alike("x_hat", x_hat, z.shape, z.dtype)
        batch = parse(self, params, cond=cond, n=n, z=z, gamma=gamma, x_hat=x_hat, mask=mask)
        denoise = denoiser.of_model(self, batch.params, cond, mask=batch.there)
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
        """Makes the network a function of (z, gamma) for one batch, for a sampler or an estimate of one's own: checked
        here, and then a plain function.

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
        batch = parse(self, params, cond=cond, n=n, mask=mask, key=key, guidance=given)
        denoise = denoiser.of_model(self, batch.params, cond, key, batch.there)
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
        """Draws n samples, (n, *event_shape), by steps from noise at time 1 to data at time 0.

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
            callback: in eager mode, called as ``callback(i, z)`` after each step.
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
        batch = parse(self, params, key=_checks.key("key", key), cond=cond)
        solver = dpmpp_2m() if solver is None else solver
        cond = coded.of_prior(self, key, n, cond)
        options = Options(steps, solver, grid, cond, guidance, clip, project, trajectory, callback, differentiable, mask)
        return sample(self, batch.params, key, n, options, z=z, start=start, until=until, decode=decode)

    # What the methods share

    @constant
    def _structure(self) -> Structure:
        """Lists the parameters' leaves, and holds the settings, those of ``_replace``, too, against one another."""
        shape = _checks.shape("event_shape", _checks.instance("event_shape", self.event_shape, tuple, "a tuple of integers"))
        _checks.dtype("dtype", self.dtype, (torch.float32, torch.float64))
        _checks.timesteps(self.timesteps, self.dtype)
        _checks.boolean("antithetic", self.antithetic)
        kinds = dict(reverse=Reverse, weighting=Weighting, subspace=Subspace, code=Code, encoder=Encoder)
        for name, kind in kinds.items():
            if getattr(self, name) is not None or name == "reverse":
                room = "codes" if kind is Code else "parts"
                _checks.instance(name, getattr(self, name), kind, f"a purevdm.{room}.{kind.__name__}")
        parts = (self.network, self.schedule, self.decoder, self.subspace, self.reverse, self.code, self.encoder)
        return _fitting.structure(*map(_values.Same, parts), shape, self.dtype)

    def _noise(self, key: Key | Seeds, n: int, train: bool) -> Any:
        """Draws the noise of a batch of n, behind the door."""
        return draw_noise(seeded(self, key, n), latent_shape(self), _checks.boolean("train", train), self.code)

    def _terms(
        self, params: Params, x: Tensor, key: Key | Seeds, cond: Any, mask: Tensor | None, train: bool
    ) -> tuple[Terms, schedules.Levels, Noise, Batch]:
        """Computes the bound's terms of each element, with the schedule's levels, the noise, and the batch."""
        batch = parse(self, params, x, key, cond, mask=mask, sharded=True)
        own, noise = batch.params, self._noise(key, batch.n, train)
        cond, code = coded.of_data(self, own, batch.x, noise, cond)
        levels = schedules.levels(self.schedule, own["schedule"], noise.t, self.timesteps, cond)
        verify(schedules.rising(levels, self.timesteps))
        denoise = denoiser.of_model(self, own, cond, noise.key, batch.there)
        terms = bound.with_code(bound.terms(self, denoise, own, batch.x, noise, levels, batch.mask), code)
        return terms, levels, noise, batch


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
    code: Code | None = None,
    encoder: Encoder | None = None,
) -> VDM:
    """Makes a variational diffusion model of a network, a schedule and a decoder.

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
        reverse, weighting, subspace, code, encoder: of :mod:`purevdm.parts`, :mod:`purevdm.codes` and
            :mod:`purevdm.encoders`; see :class:`VDM`.

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
    schedule = _fitting.suited(schedule, step, network, dtype)
    endpoints = _fitting.ends(schedule, dtype)
    if step is not None and decoder.vocab_size is not None and not decoder.takes_estimate and endpoints is not None:
        _fitting.warn_of_reconstruction(decoder.vocab_size, step, endpoints[0])
    timesteps = 0 if timesteps is None else timesteps
    network = _fitting.between(network, endpoints)
    rest = (timesteps, antithetic, dtype, reverse, weighting, subspace, code, encoder)
    model = VDM(network, schedule, decoder, event_shape, *rest)
    model._structure()  # refuses what does not fit; an init that does not take this event_shape says so here
    return model
