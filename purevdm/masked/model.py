"""Diffusion over tokens: a network, a schedule and a corruption, and the functions of parameters and keys that they make
together."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, _facts, _fitting, _sharding, _trees, _values, denoiser, schedules
from purevdm._classes import Layout
from purevdm._compile import constant
from purevdm._door import Batch, parse, seeded, seeds_of
from purevdm.bound import NLLBound, summed
from purevdm.decoders import Decoder, Discrete
from purevdm.masked import _parts, bound, sampling
from purevdm.masked.bound import Noise
from purevdm.masked.corruptions import Corruption, Masking, Uniform
from purevdm.networks import Network
from purevdm.noise import Seeds, draw_seeds
from purevdm.process import align
from purevdm.sampling import Options
from purevdm.schedules import Schedule
from purevdm.types import Key, Params, Shape

__all__ = ["MaskedDiffusion", "diffusion"]

KINDS: dict[str, Callable[[int], Corruption]] = {"masking": Masking, "uniform": Uniform}


class MaskedDiffusion(NamedTuple):
    """Diffusion over tokens: settings, and pure functions that read them. :func:`diffusion` makes one and checks its parts.

    ``model._replace(timesteps=100)`` is the same model with the bound in 100 steps. Models pickle, compare and print by
    content.

    In the methods, B is the batch size. ``params`` are nested dicts of tensors, ``{"network": ..., "schedule": ...}``, of
    the structure, shapes and dtypes that ``init`` gives. x holds tokens, integers in [0, K), (B, *event_shape). ``cond`` is
    a condition for each example, as the network takes it. ``key`` is a key, or the :class:`~purevdm.Seeds` of these examples
    where they are rows of a larger batch. ``mask`` says what exists of padded data, as a VDM takes it: padding is neither
    hidden nor predicted nor counted. ``train`` switches the network's dropout on. :mod:`purevdm.training` and
    :func:`purevdm.evaluation.evaluate` take a model as they take a VDM. The losses, ``nll_bound`` and ``sample`` compile
    with ``fullgraph=True``.

    Attributes:
        network: takes the symbols as unit vectors or numbers, and the level gamma; returns logits.
        schedule: gamma(t), of which alpha = sigmoid(-gamma) is the probability that a token is still itself.
        corruption: what noise does, of :mod:`purevdm.masked.corruptions`.
        event_shape: the shape of one example.
        timesteps: T, the number of steps of the bound, or 0 for continuous time.
        antithetic: whether a batch's times are spread evenly.
        classes_last: whether symbols lie on the last axis of what the network takes.
        dtype: of parameters, times and losses.

    Raises (every method):
        TypeError, ValueError: bad arguments, named, as :class:`purevdm.VDM` raises them.
    """

    network: Network
    schedule: Schedule
    corruption: Corruption
    event_shape: tuple[int, ...]
    timesteps: int = 0
    antithetic: bool = True
    classes_last: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def decoder(self) -> Decoder:
        """The data's support, and the unit of a bound on them."""
        return Discrete(vocab_size=self.corruption.classes, loc=0.0, scale=1.0)

    @property
    def layout(self) -> Layout:
        """Where the symbols lie in what the network takes."""
        return Layout(self.corruption.symbols, self.classes_last)

    # Parameters and noise

    def init(self, key: Key) -> Params:
        """Draws fresh parameters: ``{"network": ..., "schedule": ...}``."""
        self._structure()
        shape = self.event_shape if self.network.outputs else self.layout.shape(self.event_shape)
        params = _parts.init(self.network, self.schedule, shape, _checks.key("key", key))
        return optree.tree_map(lambda leaf: leaf.to(self.dtype) if leaf.is_floating_point() else leaf, params)  # type: ignore[arg-type, return-value]

    def seeds(self, key: Key, n: int) -> Seeds:
        """Draws the seeds of a batch of n: its times, and a key for each example; ``seeds.rows(...)`` are a part's."""
        return draw_seeds(key, n, antithetic=self.antithetic, timesteps=self.timesteps, dtype=self.dtype)

    def draw(self, key: Key | Seeds, n: int, *, train: bool = True) -> Noise:
        """Draws the noise that the losses draw for a batch of n, each field (n, ...)."""
        return bound.draw_noise(self, seeds_of(self, key, n), _checks.boolean("train", train))

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
        """Estimates the bound by Monte Carlo, the mean over the batch of bits a token that exists, shape ()."""
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
        """Gives :meth:`loss_fn` and its parts, for ``has_aux=True``: a dict of ``recon``, ``prior`` and ``diffusion``, bits
        a token, which sum to the loss. Under a schedule of :func:`purevdm.importance.warped` in continuous time, also
        ``schedule``: the branches of ``params["schedule"]`` that this batch moves."""
        terms, t, batch = self._terms(params, x, key, cond, mask, train)
        each = summed(terms)
        stats: dict[str, Any] = {name: (term / batch.dims).mean() / math.log(2.0) for name, term in each._asdict().items()}
        loss = stats["recon"] + stats["prior"] + stats["diffusion"]
        if self.schedule.observe is not None and self.timesteps == 0:
            stats["schedule"] = self.schedule.observe(batch.params["schedule"], t, each.diffusion)
        return loss, stats

    def nll_bound(
        self, params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, *, mask: Tensor | None = None
    ) -> NLLBound:
        """Estimates an upper bound on -log p(x), by its terms for each example: each (B,), nats."""
        return summed(self.terms(params, x, key, cond, mask=mask))

    def terms(
        self,
        params: Params,
        x: Tensor,
        key: Key | Seeds,
        cond: Any = None,
        *,
        mask: Tensor | None = None,
        train: bool = False,
    ) -> NLLBound:
        """Gives the terms of :meth:`nll_bound`, unsummed: of each token, (B, *event_shape), nats; padding has 0."""
        return self._terms(params, x, key, cond, mask, train)[0]

    def update(self, params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, *, mask: Tensor | None = None) -> Params:
        """Moves what a network keeps of the batches that it saw in training by this one; see :meth:`purevdm.VDM.update`."""
        batch = parse(self, params, x, key, cond, mask=mask)
        noise = self._noise(key, batch.n, True)
        if self.network.update is None:
            return params
        own = batch.params["network"]
        gamma_t = schedules.levels(self.schedule, batch.params["schedule"], noise.t, self.timesteps, cond).gamma_t
        z = self.corruption.noised(batch.x.to(torch.int64), align(gamma_t, batch.x), noise.u, noise.others)
        shown, there = bound.shown(self, z, batch.mask, self.dtype)
        level = gamma_t.reshape(batch.n, -1).mean(1)
        after = denoiser.update(self.network, own, shown, level, cond, noise.key, there)
        return params | {"network": _sharding.restored(after, own, params["network"])}

    # Prediction and samples

    def log_probs(self, params: Params, z: Tensor, gamma: Tensor, cond: Any = None, *, mask: Tensor | None = None) -> Tensor:
        """Computes the network's log probabilities of the classes of every token: (B, *event_shape, K).

        Args:
            z: symbols, (B, *event_shape) int64: classes, and K for a mask.
            gamma: their level, (B,). Of z it says with which probability sigmoid(gamma) tokens were noised.
        """
        shape = (*_checks.tensor("z", z).shape[:1], *self.event_shape)
        n = _checks.alike("z", z, shape, torch.int64).shape[0]
        _checks.within("z", z, 0, self.corruption.symbols - 1)
        _checks.shaped("gamma", _checks.floating("gamma", gamma), (n,))
        batch = parse(self, params, cond=cond, n=n, z=z, gamma=gamma, mask=mask)
        there = None if batch.there is None else batch.there.expand(shape)
        return bound.log_probs(self, batch.params["network"], z, gamma.to(self.dtype), cond, mask=there)

    def sample(
        self,
        params: Params,
        key: Key,
        n: int,
        *,
        steps: int | Tensor = 100,
        grid: str = "time",
        cond: Any = None,
        guidance: float | Tensor = 1.0,
        known: Tensor | None = None,
        x: Tensor | None = None,
        trajectory: bool = False,
        callback: Callable[[int, Tensor], None] | None = None,
        mask: Tensor | None = None,
    ) -> Any:
        """Draws n samples, (n, *event_shape) int64, by ancestral steps from time 1 to time 0: z_1 of p(z_1), each z_s of
        p(z_s given z_t), the tokens of a step independently, and x of p(x given z_0), the model that ``nll_bound`` with so
        many ``timesteps`` bounds, on the grid "time". Every step applies the network.

        Args:
            params, key, n: the parameters, a key, how many.
            steps: how many steps. In an integer tensor of shape (), one compiled graph serves every number.
            grid: "time" for even steps, or "cosine" for the times cos(pi / 2 i / steps), short steps at first (MD4's advice
                for a schedule that is a line).
            cond: a batch of n conditions.
            guidance: above 1, strengthens the condition, as for :meth:`purevdm.VDM.sample`, on logits.
            known: what is known of the samples, bool, which broadcasts to (n, *event_shape): those tokens of ``x`` show from
                the start. With masks only. An exact network then draws the rest from its law given these, as the steps are
                many.
            x: tokens, (n, *event_shape); what is not known may hold anything.
            trajectory: whether to return a :class:`~purevdm.masked.Sample`, with the symbols after each step.
            callback: in eager mode, called as ``callback(i, z)`` after each step.
            mask: what exists of each sample, bool, which broadcasts to (n, *event_shape); elsewhere samples are 0.

        >>> import torch
        >>> from purevdm import masked, networks, random
        >>> model = masked.diffusion(networks.transformer(16, 1, positions=True), None, (6,), 4, classes_last=True)
        >>> params, x = model.init(random.key(0)), torch.tensor([[3, 0, 0, 0, 0, 2]] * 5)
        >>> known = torch.tensor([[True, False, False, False, False, True]])
        >>> filled = model.sample(params, random.key(1), 5, steps=6, known=known, x=x)
        >>> filled[:, [0, 5]].unique(dim=0)
        tensor([[3, 2]])
        """
        batch = parse(self, params, key=_checks.key("key", key), cond=cond)
        given = dict(trajectory=trajectory, callback=callback, mask=mask)
        options = Options(steps, None, grid, cond, guidance, **given)  # type: ignore[arg-type]
        return sampling.sample(self, batch.params, key, n, options, known, x)

    # What the methods share

    @constant
    def _structure(self) -> _trees.Structure:
        """Gives the leaves of the parameters, once the settings fit together, those of ``_replace``, too."""
        shape = _checks.shape("event_shape", _checks.instance("event_shape", self.event_shape, tuple, "a tuple of integers"))
        _checks.dtype("dtype", self.dtype, (torch.float32, torch.float64))
        _checks.timesteps(self.timesteps, self.dtype)
        for name in ("antithetic", "classes_last"):
            _checks.boolean(name, getattr(self, name))
        parts = map(_values.Same, (self.network, self.schedule, self.corruption))
        return _parts.structure(*parts, shape, self.classes_last, self.dtype)

    def _noise(self, key: Key | Seeds, n: int, train: bool) -> Noise:
        """Draws the noise of a batch of n, behind the door."""
        return bound.draw_noise(self, seeded(self, key, n), _checks.boolean("train", train))

    def _terms(
        self, params: Params, x: Tensor, key: Key | Seeds, cond: Any, mask: Tensor | None, train: bool
    ) -> tuple[NLLBound, Tensor, Batch]:
        """Gives the bound's terms of each token, the times, and the batch."""
        batch = parse(self, params, x, key, cond, mask=mask, sharded=True)
        noise = self._noise(key, batch.n, train)
        levels = schedules.levels(self.schedule, batch.params["schedule"], noise.t, self.timesteps, cond)
        _facts.verify(schedules.rising(levels, self.timesteps))
        return bound.terms(self, batch.params["network"], batch.x, noise, levels, cond, batch.mask), noise.t, batch


def diffusion(
    network: Network,
    schedule: Schedule | None,
    event_shape: Shape,
    classes: int,
    *,
    corruption: str = "masking",
    classes_last: bool = False,
    timesteps: int | None = 0,
    antithetic: bool = True,
    dtype: torch.dtype = torch.float32,
) -> MaskedDiffusion:
    """Makes a diffusion over tokens, integers in [0, classes) without an order: masked diffusion, or with uniform noise.

    Args:
        network: takes 2 e - 1, for e the unit vectors of the symbols, which are the classes and, with masks, one more, the
            last; and gamma. It returns logits of the same shape, of which that of a mask is left out. For an event (C, ...)
            that shape is (C S, ...), S symbols; for two symbols it is the event's, with the logit of class 1. What it
            ``predicts`` does not matter. One with ``outputs=classes`` takes the symbols as numbers instead, in the event's
            shape, K for a mask, and returns K logits for each: for large vocabularies and modules that embed tokens.
        schedule: gamma(t), of which sigmoid(-gamma) is the probability alpha that a token is still itself. None for MD4's
            line, ``schedules.power()``. A schedule whose ends cost more than 0.02 bits a token is warned of. One that
            learns gets unbiased but noisy gradients (:mod:`purevdm.masked.bound`), and is of use in steps only: in
            continuous time the bound does not depend on its interior.
        event_shape: the shape of one example: (length,) for text, (C, height, width) for images.
        classes: K, at least 2.
        corruption: "masking" or "uniform".
        classes_last: whether the network takes (*event_shape, S) instead, as transformers over tokens do.
        timesteps: T, the number of steps of the bound, or 0 or None for continuous time.
        antithetic, dtype: as in :class:`MaskedDiffusion`.

    Raises:
        TypeError, ValueError: arguments out of range; a network with an axis of outputs or with self-conditioning, or made
            for other endpoints than the schedule's.

    >>> import torch
    >>> from purevdm import masked, networks, random
    >>> network = networks.transformer(16, 1, positions=True)
    >>> model = masked.diffusion(network, None, event_shape=(12,), classes=27, classes_last=True)
    >>> params, x = model.init(random.key(0)), random.randint(random.key(1), (4, 12), 0, 27)
    >>> model.loss_fn(params, x, random.key(2)).shape  # bits a token
    torch.Size([])
    """
    schedule = schedules.power() if schedule is None else schedule
    _checks.instance("network", network, Network, "a purevdm Network")
    _checks.instance("schedule", schedule, Schedule, "a purevdm Schedule")
    classes = _checks.integer("classes", classes, 2, 2**22)
    noise: Corruption = KINDS[_checks.choice("corruption", corruption, tuple(KINDS))](classes)
    _checks.dtype("dtype", dtype, (torch.float32, torch.float64))
    endpoints = _fitting.ends(schedule, dtype)
    if endpoints is not None:
        _parts.warn_of_ends(noise, endpoints)
    model = MaskedDiffusion(
        _fitting.between(network, endpoints),
        schedule,
        noise,
        _checks.shape("event_shape", event_shape),
        0 if timesteps is None else timesteps,
        antithetic,
        classes_last,
        dtype,
    )
    model._structure()  # refuses what does not fit; an init that does not take this event_shape says so here
    return model
