"""The reverse process, from a key to data. A hook between the steps may change the latents: :func:`inpaint` makes one that
fills in what is not known of data. :func:`repaint` does so by a solver, slower and nearer to draws given what is known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purevdm import _checks, _facts, _trees, process, random
from purevdm._compile import fixed
from purevdm._masks import inside, of_events, zeroed
from purevdm.denoiser import last_step, of_model
from purevdm.model import Model, latent_shape
from purevdm.sampling.trajectory import Options, checked, solve, started, times
from purevdm.solvers import Carry, Denoise, Solver, Step, ancestral
from purevdm.types import Key, Params

__all__ = ["Sample", "inpaint", "repaint", "sample"]


class Sample(NamedTuple):
    """Samples and the trajectory that led to them.

    Attributes:
        x: data, (n, *event_shape); None where sampling stops at latents.
        z: the latents from the first to the last, (steps + 1, n, *event_shape).
    """

    x: Tensor | None
    z: Tensor


def sample(
    model: Model,
    params: Params,
    key: Key,
    n: int,
    options: Options,
    *,
    z: Tensor | None = None,
    start: float | Tensor = 1.0,
    until: float | Tensor | None = None,
    decode: str = "argmax",
) -> Any:
    """Samples as :meth:`purevdm.VDM.sample` says, which checks the parameters and the key first.

    The sampling key is split in four: the first draws z_1, step i draws from ``fold_in`` of the second and i, the third
    decodes, and the hook after step i gets ``fold_in`` of the fourth and i.
    """
    options = checked(options, Solver, "purevdm.solvers.ddim()", ("time", "gamma"))
    k_z, k_steps, k_decode, k_project = random.split(key, 4).unbind(0)
    n, decoder, cond, mask = _checks.integer("n", n, 1, 2**31 - 1), model.decoder, options.cond, options.mask
    _checks.choice("decode", decode, ("argmax", "sample"))
    if options.differentiable and until is None and not options.trajectory and decoder.vocab_size is not None:
        raise ValueError("differentiable: data that are integers have no gradient; ask for latents, by until or trajectory")
    there = of_events(model, mask, n, key.device)
    given, z = z, started(z, start, 1.0, (n, *latent_shape(model)), model.dtype, k_z)
    denoise = of_model(model, params, cond, mask=there)
    z = denoise.within(z) if given is None else inside("z", z, denoise.within(z))
    end, begin = times("until", 0.0 if until is None else until, "start", start, z)
    # A copy, as a compiled loop may not take two views of one tensor.
    latents, gamma = solve(model, params, z, begin, end, options, k_steps, k_project.clone())
    if until is not None:
        _facts.verify(_trees.finite("latents", {(): latents}))
        return Sample(None, latents) if options.trajectory else latents
    z_0 = latents[-1] if options.trajectory else latents
    level, x_hat = gamma, None
    if decoder.takes_estimate:
        level, x_hat = last_step(model, denoise, z_0, gamma)
    own, z_0 = params.get("decoder", {}), z_0 / process.alpha(gamma)
    x = mode = decoder.mode(own, z_0, cond, x_hat)
    if decode == "sample":
        x = decoder.sample(own, k_decode, z_0, level, cond, x_hat)
        x = x if model.subspace is None else mode + model.subspace.project(x - mode, mask)
    x = zeroed(x, mask)
    return Sample(x, latents) if options.trajectory else x


def inpaint(x: Tensor, known: Tensor) -> Callable[[Tensor, Tensor, Tensor, Key], Tensor]:
    """Makes a hook for ``sample(project=...)`` that draws what is not known of data given the rest, by replacement (Song et
    al. 2021, arXiv 2011.13456, app. I.2): after each step the known dimensions become a draw of q(z_s given x).

    These draws are biased, also with an exact network: too little of what is known reaches the rest. Of two numbers with a
    correlation of 0.8, the second has a mean of 0.30 where the first is 0.6, not 0.48, and a deviation of 0.68, not 0.6, by
    ancestral sampling; 0.20 and 0.77 by the deterministic default. More steps do not mend it; :func:`repaint` is nearer.
    The last latents are still those of noisy data: take the known part of the result from x.

    Args:
        x: the encoded data, (n, *event_shape), of the latents' dtype; what is not known may hold any finite number.
        known: which are known, bool, of x's shape.

    >>> import torch, purevdm
    >>> from purevdm import networks, random, sampling, schedules, solvers
    >>> model = purevdm.vdm(networks.mlp(hidden=8), schedules.learned_linear(), event_shape=(4,))
    >>> params = model.init(random.key(0))
    >>> x, known = torch.tensor([[10, 200, 0, 0]] * 3), torch.tensor([[True, True, False, False]] * 3)
    >>> hook = sampling.inpaint(model.decoder.encode({}, x), known)
    >>> drawn = model.sample(params, random.key(1), 3, steps=20, solver=solvers.ancestral(), project=hook)
    >>> (drawn - x)[:, :2].abs().max() <= 1
    tensor(True)
    """
    return partial(_replace, *_partly(x, known))


def _partly(x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Gives finite data, and which of them are known."""
    shape = _checks.floating("x", x).shape
    _facts.verify(_trees.finite("x", {(): x}))
    return x, _checks.alike("known", known, shape, torch.bool)


def repaint(x: Tensor, known: Tensor, repeats: int = 10, solver: Solver | None = None) -> Solver:
    """Makes a solver that draws what is not known of data given the rest, by replacement and resampling (RePaint, Lugmayr et
    al. 2022, arXiv 2201.09865): after each step and its replacement, as by :func:`inpaint`, noise takes the latents back to
    where the step began, and the step is taken again, so that the rest comes to fit what is known.

    In the example of :func:`inpaint`, 100 steps with 2, 5 and 10 repeats give means of 0.39, 0.45 and 0.47 for 0.48, and
    deviations of 0.63, 0.61 and 0.59 for 0.6. The network is applied ``repeats`` times as often.

    Args:
        x, known: as for :func:`inpaint`.
        repeats: how often each step is taken, the paper's r at its jump length 1; 1 is only replacement.
        solver: what takes a step; ``purevdm.solvers.ancestral()`` where left out.
    """
    x, known = _partly(x, known)
    base = _checks.instance("solver", ancestral() if solver is None else solver, Solver, "a Solver such as ancestral()")
    return Repaint(x, known, _checks.integer("repeats", repeats, 1), base)


@dataclass(frozen=True, eq=False)
class Repaint(Solver):
    """The solver of :func:`repaint`."""

    x: Tensor
    known: Tensor
    repeats: int
    base: Solver

    def init(self, z_1: Tensor, gamma_1: Tensor) -> Carry:
        return self.base.init(z_1, gamma_1)

    def step(self, denoise: Denoise, z_t: Tensor, gamma_t: Tensor, gamma_s: Tensor, key: Key | None, carry: Carry) -> Step:
        if key is None:
            raise ValueError("solver: expected a deterministic one, such as purevdm.solvers.ddim(), got repaint()")
        repeats = fixed(self.repeats)
        for i in range(repeats):
            k_step, k_known, k_back = random.split(random.fold_in(key, i), 3).unbind(0)
            done = self.base.step(denoise, z_t, gamma_t, gamma_s, k_step, carry)
            z_s = _replace(self.x, self.known, i, done[0], gamma_s, k_known)
            if i < repeats - 1:
                q = process.transition(z_s, gamma_s, gamma_t)
                z_t = q.mean + q.std * random.normal(k_back, z_s.shape, z_s.dtype)
        return Step(z_s, *done[1:])


def _replace(x: Tensor, known: Tensor, i: Any, z: Tensor, gamma: Tensor, key: Key) -> Tensor:
    """Gives latents whose known dimensions are a draw of q(z given x)."""
    _checks.alike("x", x, z.shape, z.dtype)
    return torch.where(known, process.diffuse(x, gamma, random.normal(key, z.shape, z.dtype)), z)
