"""One step of a BFN's samplers, from nothing known at t = 0 to data at t = 1, of several kinds.

In the latent w = sqrt(snr) h + eps (:mod:`purevdm.bfn.flows`), and q = sqrt(snr), all of them take one line:

- The Bayesian update adds a message of the step's gain in snr to the sum q w. The paper's sampler draws what it sends from
  the output distribution (sec. 4 and 6). With the distribution's mean instead it is the first-order solver of the
  generative SDE, d(q w) = h_hat d snr + noise of variance d snr.
- The probability flow is dw / dq = h_hat(w, q). Nothing in it is singular, so it starts at q = 0 itself.

:func:`sde_1`, :func:`sde_2`, :func:`ode_1`, :func:`ode_2` and :func:`ode_2s` are SDE-BFN-Solver1 and 2 and ODE-BFN-Solver1
and 2 (Xue et al. 2024, arXiv 2404.15766; the last with two evaluations a step instead of the last step's memory). For real
data they are DPM-Solver's and its SDE's; :func:`ode_1` is DDIM. Started at t = 0, the second-order ones keep their order for
classes on even times, for real data on the grid "root" (:func:`ode_2` and :func:`sde_2` but for a logarithm).

A :class:`Solver` is a value: a pure step, and what it carries from step to step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from purevdm import random
from purevdm._values import Value
from purevdm.bfn.flows import Flow
from purevdm.types import Key

__all__ = ["Path", "Solver", "Step", "bayesian", "ode_1", "ode_2", "ode_2s", "sde_1", "sde_2"]

Carry: TypeAlias = tuple[Tensor, ...]


class Path(NamedTuple):
    """The generative process that a solver follows.

    Attributes:
        flow: the Bayesian flow.
        predict: ``predict(w, t) -> (h_hat, draw)`` for latents w of the batch at a time t, (): the mean of the output
            distribution, and ``draw(key)``, a draw of it.
    """

    flow: Flow
    predict: Callable[[Tensor, Tensor], tuple[Tensor, Callable[[Key], Tensor]]]


class Step(NamedTuple):
    """A solver's step: the next latents, the estimate h_hat that they were made from, and what the solver carries on."""

    w: Tensor
    h_hat: Tensor
    carry: Carry = ()


class Solver(Value):
    """Takes one step, from nothing known towards data. Derive from it and write :meth:`step`."""

    def init(self, w_0: Tensor) -> Carry:
        """Gives the tensors that the first step takes: none, unless a solver says otherwise."""
        return ()

    def step(self, path: Path, w: Tensor, s: Tensor, t: Tensor, key: Key, carry: Carry) -> Step:
        """Takes latents w, (B, *latent_shape), from the time s to a later t, both (). The key is the step's own."""
        raise NotImplementedError


def sde_step(flow: Flow, w: Tensor, h: Tensor, s: Tensor, t: Tensor, key: Key) -> Tensor:
    """Computes (q_s w + gain h + sqrt(gain) eps) / q_t, gain = snr_t - snr_s: one Bayesian update by a message about h."""
    gain, eps = flow.gain(s, t), random.normal(key, w.shape, w.dtype)
    return (torch.sqrt(flow.snr(s)) * w + gain * h + torch.sqrt(gain) * eps) / torch.sqrt(flow.snr(t))


def ode_step(flow: Flow, w: Tensor, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Computes w + (q_t - q_s) h: one step of the probability flow for an h that stays."""
    return w + (torch.sqrt(flow.snr(t)) - torch.sqrt(flow.snr(s))) * h


def _ahead(flow: Flow, s: Tensor, t: Tensor, last: Tensor) -> Tensor:
    """Computes the clock's step from s to t over that from ``last`` to s; 0 where there was no last step, or an infinite
    one."""
    u_s = flow.clock(s)
    ratio = (flow.clock(t) - u_s) / (u_s - flow.clock(last))
    return torch.where(ratio.isfinite(), ratio, 0.0)


@dataclass(frozen=True)
class Bayesian(Solver):
    """The solver of :func:`bayesian`."""

    def step(self, path: Path, w: Tensor, s: Tensor, t: Tensor, key: Key, carry: Carry) -> Step:
        k_draw, k_eps = random.split(key).unbind(0)
        h_hat, draw = path.predict(w, s)
        return Step(sde_step(path.flow, w, draw(k_draw), s, t, k_eps), h_hat)


@dataclass(frozen=True)
class OfMean(Solver):
    """The solvers that take the output distribution's mean, once a step: of order 1, or 2 by the last step's memory."""

    order: int
    stochastic: bool

    def init(self, w_0: Tensor) -> Carry:
        if self.order == 1:
            return ()
        return torch.zeros_like(w_0), torch.full((), torch.nan, dtype=w_0.dtype, device=w_0.device)

    def step(self, path: Path, w: Tensor, s: Tensor, t: Tensor, key: Key, carry: Carry) -> Step:
        flow, (h_hat, _) = path.flow, path.predict(w, s)
        h = h_hat
        if self.order == 2:
            h_last, last = carry
            lead = flow.lead(s, t) if self.stochastic else 0.5
            h, carry = h_hat + lead * _ahead(flow, s, t, last) * (h_hat - h_last), (h_hat, s.clone())
        moved = sde_step(flow, w, h, s, t, key) if self.stochastic else ode_step(flow, w, h, s, t)
        return Step(moved, h_hat, carry)


@dataclass(frozen=True)
class ODE2S(Solver):
    """The solver of :func:`ode_2s`."""

    def step(self, path: Path, w: Tensor, s: Tensor, t: Tensor, key: Key, carry: Carry) -> Step:
        flow, r = path.flow, 0.5 * (s + t)
        h_hat, _ = path.predict(w, s)
        h_mid, _ = path.predict(ode_step(flow, w, h_hat, s, r), r)
        q_s, q_r, q_t = (torch.sqrt(flow.snr(time)) for time in (s, r, t))
        h = h_hat + 0.5 * (q_t - q_s) / (q_r - q_s) * (h_mid - h_hat)
        return Step(ode_step(flow, w, h, s, t), h_mid)


def bayesian() -> Solver:
    """Makes the paper's sampler: it draws data from the output distribution, sends a message about them, and updates."""
    return Bayesian()


def sde_1() -> Solver:
    """Makes SDE-BFN-Solver1: a message about the output distribution's mean. For a point it is the paper's sampler."""
    return OfMean(1, stochastic=True)


def sde_2() -> Solver:
    """Makes SDE-BFN-Solver2: the mean extrapolated from this step's and the last's."""
    return OfMean(2, stochastic=True)


def ode_1() -> Solver:
    """Makes ODE-BFN-Solver1: the probability flow by Euler's steps in q, of order 1; DDIM for real data."""
    return OfMean(1, stochastic=False)


def ode_2() -> Solver:
    """Makes ODE-BFN-Solver2 in its multistep form, of order 2 with one evaluation a step; DPM-Solver++(2M) for real data."""
    return OfMean(2, stochastic=False)


def ode_2s() -> Solver:
    """Makes ODE-BFN-Solver2 in its single-step form, of order 2 with two evaluations a step: an Euler step to the middle of
    the time, and from the start along the line through both estimates."""
    return ODE2S()
