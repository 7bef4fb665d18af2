"""One step of a BFN's samplers, from nothing known at t = 0 to data at t = 1, of several kinds.

In the latent w = sqrt(snr) h + eps, and q = sqrt(snr), all of them take one line (:mod:`purevdm.bfn.process` says why):

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
        """The tensors that the first step is handed: none, unless a solver says otherwise."""
        return ()

    def step(self, path: Path, w: Tensor, s: Tensor, t: Tensor, key: Key, carry: Carry) -> Step:
        """Takes latents w, (B, *latent_shape), from the time s to a later t, both (). The key is the step's own."""
        raise NotImplementedError


# The mathematics


def sde_step(w: Tensor, h: Tensor, snr_s: Tensor, snr_t: Tensor, gain: Tensor, eps: Tensor) -> Tensor:
    """(q_s w + gain h + sqrt(gain) eps) / q_t, with gain = snr_t - snr_s: one Bayesian update by a message about h."""
    return (torch.sqrt(snr_s) * w + gain * h + torch.sqrt(gain) * eps) / torch.sqrt(snr_t)


def ode_step(w: Tensor, h: Tensor, snr_s: Tensor, snr_t: Tensor) -> Tensor:
    """w + (q_t - q_s) h: one step of the probability flow with h held."""
    return w + (torch.sqrt(snr_t) - torch.sqrt(snr_s)) * h


def _ahead(flow: Flow, s: Tensor, t: Tensor, last: Tensor) -> Tensor:
    """The clock's step from s to t over that from ``last`` to s; 0 where there was no last step, or an infinite one."""
    u_s = flow.clock(s)
    ratio = (flow.clock(t) - u_s) / (u_s - flow.clock(last))
    return torch.where(ratio.isfinite(), ratio, 0.0)


# The solvers


class _Multistep(Solver):
    """A solver that remembers the last estimate and its time."""

    def init(self, w_0: Tensor) -> Carry:
        return torch.zeros_like(w_0), torch.full((), torch.nan, dtype=w_0.dtype, device=w_0.device)


def _sde(path: Path, w: Tensor, h: Tensor, s: Tensor, t: Tensor, key: Key) -> Tensor:
    eps = random.normal(key, w.shape, w.dtype)
    return sde_step(w, h, path.flow.snr(s), path.flow.snr(t), path.flow.gain(s, t), eps)


@dataclass(frozen=True)
class Bayesian(Solver):
    """The solver of :func:`bayesian`."""

    def step(self, path: Path, w: Tensor, s: Tensor, t: Tensor, key: Key, carry: Carry) -> Step:
        k_draw, k_eps = random.split(key).unbind(0)
        h_hat, draw = path.predict(w, s)
        return Step(_sde(path, w, draw(k_draw), s, t, k_eps), h_hat)


def bayesian() -> Solver:
    """The paper's sampler: draws data from the output distribution, sends a message about them, and updates."""
    return Bayesian()


@dataclass(frozen=True)
class SDE1(Solver):
    """The solver of :func:`sde_1`."""

    def step(self, path: Path, w: Tensor, s: Tensor, t: Tensor, key: Key, carry: Carry) -> Step:
        h_hat, _ = path.predict(w, s)
        return Step(_sde(path, w, h_hat, s, t, key), h_hat)


def sde_1() -> Solver:
    """SDE-BFN-Solver1: a message about the output distribution's mean. For a point it is the paper's sampler."""
    return SDE1()


@dataclass(frozen=True)
class SDE2(_Multistep):
    """The solver of :func:`sde_2`."""

    def step(self, path: Path, w: Tensor, s: Tensor, t: Tensor, key: Key, carry: Carry) -> Step:
        h_hat, _ = path.predict(w, s)
        h_last, last = carry
        h = h_hat + path.flow.lead(s, t) * _ahead(path.flow, s, t, last) * (h_hat - h_last)
        return Step(_sde(path, w, h, s, t, key), h_hat, (h_hat, s.clone()))


def sde_2() -> Solver:
    """SDE-BFN-Solver2: the mean extrapolated from this step's and the last's."""
    return SDE2()


@dataclass(frozen=True)
class ODE1(Solver):
    """The solver of :func:`ode_1`."""

    def step(self, path: Path, w: Tensor, s: Tensor, t: Tensor, key: Key, carry: Carry) -> Step:
        h_hat, _ = path.predict(w, s)
        return Step(ode_step(w, h_hat, path.flow.snr(s), path.flow.snr(t)), h_hat)


def ode_1() -> Solver:
    """ODE-BFN-Solver1: the probability flow by Euler's steps in q, of order 1; DDIM for real data."""
    return ODE1()


@dataclass(frozen=True)
class ODE2(_Multistep):
    """The solver of :func:`ode_2`."""

    def step(self, path: Path, w: Tensor, s: Tensor, t: Tensor, key: Key, carry: Carry) -> Step:
        h_hat, _ = path.predict(w, s)
        h_last, last = carry
        h = h_hat + 0.5 * _ahead(path.flow, s, t, last) * (h_hat - h_last)
        return Step(ode_step(w, h, path.flow.snr(s), path.flow.snr(t)), h_hat, (h_hat, s.clone()))


def ode_2() -> Solver:
    """ODE-BFN-Solver2 in its multistep form, of order 2 with one evaluation a step; DPM-Solver++(2M) for real data."""
    return ODE2()


@dataclass(frozen=True)
class ODE2S(Solver):
    """The solver of :func:`ode_2s`."""

    def step(self, path: Path, w: Tensor, s: Tensor, t: Tensor, key: Key, carry: Carry) -> Step:
        h_hat, _ = path.predict(w, s)
        r = 0.5 * (s + t)
        snr_s, snr_r, snr_t = (path.flow.snr(time) for time in (s, r, t))
        h_mid, _ = path.predict(ode_step(w, h_hat, snr_s, snr_r), r)
        q_s, q_r, q_t = (torch.sqrt(snr) for snr in (snr_s, snr_r, snr_t))
        h = h_hat + 0.5 * (q_t - q_s) / (q_r - q_s) * (h_mid - h_hat)
        return Step(ode_step(w, h, snr_s, snr_t), h_mid)


def ode_2s() -> Solver:
    """ODE-BFN-Solver2 in its single-step form, of order 2 with two evaluations a step: an Euler step to the middle of the
    time, and from the start along the line through both estimates."""
    return ODE2S()
