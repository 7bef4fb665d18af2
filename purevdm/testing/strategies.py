"""Hypothesis strategies for keys, noise levels, events and small models (extra ``test``)."""

import warnings
from typing import Any

import torch

from purevdm import decoders, networks, random, schedules
from purevdm._vdm import VDM, vdm
from purevdm.types import Shape

try:
    from hypothesis import strategies as st
    from hypothesis.strategies import SearchStrategy
except ImportError:
    raise ImportError("hypothesis: needed for purevdm.testing.strategies; pip install 'purevdm[test]'") from None

__all__ = ["events", "gammas", "keys", "models", "schedules_of_all_kinds"]


def keys() -> "SearchStrategy[torch.Tensor]":
    """Keys of :mod:`purevdm.random`."""
    return st.integers(0, 2**63 - 1).map(random.key)


def gammas(low: float = -30.0, high: float = 30.0) -> "SearchStrategy[torch.Tensor]":
    """Noise levels between low and high, float64, shape ()."""
    return st.floats(low, high).map(lambda g: torch.tensor(g, dtype=torch.float64))


def events(max_rank: int = 3, max_size: int = 5) -> "SearchStrategy[Shape]":
    """Event shapes of up to ``max_rank`` axes, each of 1 to ``max_size``."""
    return st.lists(st.integers(1, max_size), min_size=1, max_size=max_rank).map(tuple)


def schedules_of_all_kinds() -> "SearchStrategy[schedules.Schedule]":
    """The library's schedules between endpoints of all kinds."""
    makers = (schedules.fixed_linear, schedules.learned_linear, schedules.monotone_mlp, schedules.constrained_monotone)
    ends = st.tuples(st.floats(-15.0, -4.0), st.floats(1.0, 8.0))
    return st.builds(lambda make, pair: make(*pair), st.sampled_from(makers), ends)


def models(**fixed: Any) -> "SearchStrategy[VDM]":
    """Small models of discrete or real data in one axis, with an MLP. ``fixed`` sets arguments of :func:`purevdm.vdm`."""

    def build(schedule: Any, size: int, predicts: str, decoder: Any, timesteps: int) -> VDM:
        made = dict(
            network=networks.mlp(8, fourier=(), predicts=predicts),
            schedule=schedule,
            event_shape=(size,),
            decoder=decoder,
            timesteps=timesteps,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that gamma_0 is large for the data
            return vdm(**(made | fixed))

    kinds = st.one_of(st.integers(2, 300).map(decoders.discrete), st.just(decoders.gaussian()))
    steps = st.one_of(st.just(0), st.integers(1, 50))
    return st.builds(build, schedules_of_all_kinds(), st.integers(1, 4), st.sampled_from(["eps", "x", "v"]), kinds, steps)
