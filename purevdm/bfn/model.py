"""A Bayesian Flow Network: a network, a Bayesian flow and an output distribution, and the functions of parameters and keys
that they make together."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purevdm import _checks, _sharding, _trees, _values, denoiser
from purevdm._compile import constant
from purevdm._door import parse, seeded, seeds_of, structure_of
from purevdm.bfn import bound, sampling
from purevdm.bfn.bound import Noise
from purevdm.bfn.flows import Categorical, Flow, Normal, latent
from purevdm.bfn.outputs import Classes, Normals, Output, Point
from purevdm.bfn.solvers import Solver, bayesian
from purevdm.bound import NLLBound, summed
from purevdm.decoders import Decoder, fits
from purevdm.networks import Network
from purevdm.noise import Seeds, draw_seeds
from purevdm.process import align
from purevdm.sampling import Options
from purevdm.types import Key, Params, Shape

__all__ = ["BFN"]


class BFN(NamedTuple):
    """A Bayesian Flow Network: data, and pure functions that read it. :func:`continuous`, :func:`discretised` and
    :func:`discrete` make one and check its parts.

    ``model._replace(timesteps=100)`` is the same model with the loss of 100 steps. Models pickle, compare and print by
    content.

    In the methods, B is the batch size. ``params`` are nested dicts of tensors, ``{"network": ...}``, of the structure,
    shapes and dtypes that ``init`` gives. x holds data, (B, *event_shape), which the decoder checks. ``cond`` is a condition
    for each example, as the network takes it. ``key`` is a key, or the :class:`~purevdm.Seeds` of these examples where they
    are rows of a larger batch. ``mask`` says what exists, as a VDM takes it. ``train`` switches the network's dropout on.
    :mod:`purevdm.training` and
    :func:`purevdm.evaluation.evaluate` take a BFN as they take a VDM. The losses, ``nll_bound`` and ``sample`` compile with
    ``fullgraph=True``.

    Attributes:
        network: takes the input distribution's parameters and, in place of gamma, the time t; its endpoints are 0 and 1.
        flow: how the input distribution moves, of :mod:`purevdm.bfn.flows`.
        output: what the network's output says of the data, of :mod:`purevdm.bfn.outputs`.
        event_shape: the shape of one example.
        timesteps: n, the number of steps of the loss, or 0 for continuous time.
        draws: how many pairs of draws of the sender's noise estimate each n-step loss of discretised and discrete data.
        reconstruction: whether ``loss_fn`` holds the reconstruction loss too, and so bounds -log p(x). It applies the
            network to a second batch. The official code trains without it; ``nll_bound`` always holds it.
        antithetic: whether a batch's times are spread evenly.
        dtype: of parameters, latents and losses.

    Raises (every method):
        TypeError, ValueError: bad arguments, named, as :class:`purevdm.VDM` raises them.
    """

    network: Network
    flow: Flow
    output: Output
    event_shape: tuple[int, ...]
    timesteps: int = 0
    draws: int = 1
    reconstruction: bool = True
    antithetic: bool = True
    dtype: torch.dtype = torch.float32

    @property
    def decoder(self) -> Decoder:
        """Data to numbers and back: their support, and the unit of a bound on them."""
        return self.output.decoder

    # Parameters and noise

    def init(self, key: Key) -> Params:
        """Draws fresh parameters: ``{"network": ...}``."""
        self._structure()
        params = {"network": self.network.init(_checks.key("key", key), self.flow.network_shape(self.event_shape))}
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
        """Estimates the bound by Monte Carlo, the mean over the batch: bits per dimension that exists, shape ()."""
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
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Gives :meth:`loss_fn` and its parts, for ``has_aux=True``: a dict of ``recon`` (0 where the model leaves it out),
        ``prior``, which is 0, and ``diffusion``, the loss of the steps, bits/dim."""
        terms, dims = self._terms(params, x, key, cond, mask, train, self.reconstruction)
        stats = {name: (term / dims).mean() / math.log(2.0) for name, term in summed(terms)._asdict().items()}
        return stats["recon"] + stats["diffusion"], stats

    def nll_bound(
        self, params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, *, mask: Tensor | None = None
    ) -> NLLBound:
        """Estimates an upper bound on -log p(x), by its terms for each example: each (B,), nats (of a density, where data
        are real). ``diffusion`` is the loss of the steps, L_n(x) or L_infinity(x); ``prior`` is 0, as a flow starts from the
        prior itself."""
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
        """Gives the terms of :meth:`nll_bound`, unsummed: of each dimension, (B, *event_shape), nats."""
        return self._terms(params, x, key, cond, mask, train, True)[0]

    def update(self, params: Params, x: Tensor, key: Key | Seeds, cond: Any = None, *, mask: Tensor | None = None) -> Params:
        """Moves what a network keeps of the batches that it saw in training by this one; see :meth:`purevdm.VDM.update`."""
        batch = parse(self, params, x, key, cond, mask=mask)
        noise = self._noise(key, batch.n, True)
        if self.network.update is None:
            return params
        t, _ = bound.step_of(noise.t, self.timesteps)
        h = self.output.encode(batch.x, self.dtype)
        seen = bound.seen(self, bound.within(latent(h, align(self.flow.snr(t), h), noise.eps), batch.mask), t)
        there = None if batch.mask is None else self.flow.shown_mask(batch.mask)
        own = batch.params["network"]
        after = denoiser.update(self.network, own, seen, t, cond, noise.key, there)
        return params | {"network": _sharding.restored(after, own, params["network"])}

    # Samples

    def sample(
        self,
        params: Params,
        key: Key,
        n: int,
        *,
        steps: int | Tensor = 100,
        solver: Solver | None = None,
        grid: str = "time",
        cond: Any = None,
        guidance: float | Tensor = 1.0,
        decode: str = "argmax",
        z: Tensor | None = None,
        start: float | Tensor = 0.0,
        until: float | Tensor | None = None,
        trajectory: bool = False,
        callback: Callable[[int, Tensor], None] | None = None,
        differentiable: bool = False,
        mask: Tensor | None = None,
    ) -> Any:
        """Draws n samples, (n, *event_shape), by steps from t = 0 to t = 1.

        Arguments that are not explained are those of :meth:`purevdm.VDM.sample`, which also has ``project``, whose hooks
        take latents at a gamma, and ``clip``, which a BFN has as a setting. A self-conditioned network takes each step's
        estimate of the data in the next.

        Args:
            solver: a value of :mod:`purevdm.bfn.solvers`; the paper's sampler where left out.
            grid: "time" for even steps, or "root" for steps even in sqrt(t), small at first. There sqrt(snr) of real data is
                steep, and on even steps the first one leaves second-order solvers an error of order 1.
            guidance: as there, on logits or on the predicted noise.
            decode: "argmax" for the likeliest data under the last output distribution, as in the official code, or
                "sample" for a draw from it, as in the paper.
            z: the latents w to start from (:mod:`purevdm.bfn.flows`), (n, *latent_shape).
            start, until: z's time, in [0, 1), and the time to stop at, in (start, 1]: time runs from 0 to 1 here.
            trajectory: whether to return a :class:`~purevdm.bfn.Sample`, with the input distributions at each step (and,
                with ``until``, no data).
            differentiable: as there; derivatives pass to data that are real numbers, to latents and to ``theta``.
            mask: what exists of each sample, bool, which broadcasts to (n, *event_shape); elsewhere samples are 0.
        """
        batch = parse(self, params, key=_checks.key("key", key), cond=cond)
        solver = bayesian() if solver is None else solver
        if differentiable is True and trajectory is False and until is None and self.decoder.vocab_size is not None:
            raise ValueError(
                "differentiable: data that are integers have no gradient; ask for latents, by until or trajectory"
            )
        options = dict(trajectory=trajectory, callback=callback, differentiable=differentiable, mask=mask)
        how = Options(steps, solver, grid, cond, guidance, **options)  # type: ignore[arg-type]
        return sampling.sample(self, batch.params["network"], key, n, how, z=z, start=start, until=until, decode=decode)

    # What the methods share

    @constant
    def _structure(self) -> _trees.Structure:
        """Gives the leaves of the parameters, once the settings fit together, those of ``_replace``, too."""
        shape = _checks.shape("event_shape", _checks.instance("event_shape", self.event_shape, tuple, "a tuple of integers"))
        _checks.dtype("dtype", self.dtype, (torch.float32, torch.float64))
        _checks.timesteps(self.timesteps, self.dtype)
        _checks.integer("draws", self.draws, 1)
        for name in ("reconstruction", "antithetic"):
            _checks.boolean(name, getattr(self, name))
        return _structure(*map(_values.Same, (self.network, self.flow, self.output)), shape, self.dtype)

    def _noise(self, key: Key | Seeds, n: int, train: bool) -> Noise:
        """Draws the noise of a batch of n, behind the door."""
        return bound.draw_noise(self, seeded(self, key, n), _checks.boolean("train", train))

    def _terms(
        self,
        params: Params,
        x: Tensor,
        key: Key | Seeds,
        cond: Any,
        mask: Tensor | None,
        train: bool,
        reconstruction: bool,
    ) -> tuple[NLLBound, Tensor | float]:
        """Gives the bound's terms of each dimension, and how many each example has."""
        batch = parse(self, params, x, key, cond, mask=mask, sharded=True)
        noise = self._noise(key, batch.n, train)
        return bound.terms(self, batch.params["network"], batch.x, noise, cond, batch.mask, reconstruction), batch.dims


@functools.lru_cache(maxsize=256)
def _structure(
    network: _values.Same, flow: _values.Same, output: _values.Same, event_shape: Shape, dtype: torch.dtype
) -> _trees.Structure:
    """Gives the leaves of a model's parameters, without computing them where ``init`` runs on the meta device.

    Raises:
        TypeError, ValueError: parts that do not fit together.
    """
    own, kind, moving = _checks.instance("network", network.value, Network, "a purevdm Network"), output.value, flow.value
    _checks.instance("output", kind, (Point, Normals, Classes), "an output distribution of purevdm.bfn")
    outputs = 2 if isinstance(kind, Normals) else None
    if own.outputs != outputs:
        raise ValueError(f"network: expected one with outputs={outputs} for these data, got outputs={own.outputs}")
    if timed(own) != own:
        raise ValueError("network: expected one that knows that its levels are times; make the model by purevdm.bfn")
    if isinstance(kind, Classes):
        _checks.instance("flow", moving, Categorical, "a Categorical flow for these data")
        name, classes = "beta_1", kind.decoder.vocab_size
        _checks.positive(name, moving.beta_1)
        if moving.classes != classes:
            raise ValueError(f"flow, output: expected as many classes in both, got {moving.classes} and {classes}")
    else:
        _checks.instance("flow", moving, Normal, "a Normal flow for these data")
        name = "sigma_1"
        fraction(name, moving.sigma_1)
    if 0 in event_shape or not event_shape:
        raise ValueError(f"event_shape: expected one axis or more, of sizes of at least 1, got {event_shape}")
    fits(kind.decoder, event_shape, dtype)
    snr, most = moving.snr(torch.ones((), dtype=dtype, device="cpu")).item(), torch.finfo(dtype).max ** 0.5
    if not snr <= most:
        raise ValueError(f"{name}: expected a signal-to-noise ratio of at most {most:.2g} at t = 1, got {snr:.2g}")
    if isinstance(kind, Point):
        std = _checks.positive("recon_std", kind.recon_std)
        if not torch.tensor(std, dtype=dtype, device="cpu").square().reciprocal().isfinite():
            raise ValueError(f"recon_std: expected one whose square {dtype} holds, got {std}")
    shape = moving.network_shape(event_shape)
    return structure_of(lambda key: {"network": own.init(key, shape)}, dtype)


def timed(network: Network) -> Network:
    """Tells the network that its levels are times, from 0 to 1."""
    return network.between((0.0, 1.0))


def fraction(name: str, x: object) -> float:
    if not 0.0 < (value := _checks.real(name, x)) < 1.0:
        raise ValueError(f"{name}: expected a number in (0, 1), got {value}")
    return value
