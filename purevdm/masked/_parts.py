"""The parts of a diffusion over tokens: their parameters, and whether they fit together."""

import functools
import math
import warnings
from typing import Any

import torch

from purevdm import _checks, _fitting, _trees, _values, random
from purevdm._classes import Layout
from purevdm._door import structure_of
from purevdm.masked.corruptions import Corruption, Masking, Uniform
from purevdm.networks import Network
from purevdm.schedules import Schedule
from purevdm.types import Key, Params, Shape

ENDS = 0.02
"""Bits a token of reconstruction and prior from which a model warns of its schedule's ends."""


def init(network: Network, schedule: Schedule, shape: tuple[int, ...], key: Key) -> Params:
    """Draws the parameters of a network and a schedule."""
    k_network, k_schedule = random.split(key).unbind(0)
    return {"network": network.init(k_network, shape), "schedule": schedule.init(k_schedule)}


@functools.lru_cache(maxsize=256)
def structure(
    network: _values.Same,
    schedule: _values.Same,
    corruption: _values.Same,
    event_shape: Shape,
    classes_last: bool,
    dtype: torch.dtype,
) -> _trees.Structure:
    """Gives the leaves of a model's parameters, without computing them where ``init`` runs on the meta device.

    Raises:
        TypeError, ValueError: parts that do not fit together.
    """
    for part, kind in ((network, Network), (schedule, Schedule)):
        _checks.instance(kind.__name__.lower(), part.value, kind, f"a purevdm {kind.__name__}")
    kinds = "a Masking or Uniform of purevdm.masked.corruptions"
    noise: Any = _checks.instance("corruption", corruption.value, (Masking, Uniform), kinds)
    _checks.integer("classes", noise.classes, 2, 2**22)
    if (outputs := network.value.outputs) not in (None, noise.classes):
        wanted = f"one of logits in its input's shape (outputs=None), or of tokens (outputs={noise.classes}, the classes)"
        raise ValueError(f"network: expected {wanted}, got outputs={outputs}")
    if network.value.self_condition:
        raise ValueError("network: expected one with self_condition=False, as tokens are not estimated by numbers")
    if 0 in event_shape or not event_shape:
        raise ValueError(f"event_shape: expected one axis or more, of sizes of at least 1, got {event_shape}")
    if _fitting.between(network.value, _fitting.ends(schedule.value, dtype)) != network.value:
        raise ValueError("network: expected one that knows the schedule's endpoints; make the model by purevdm.masked")
    shape = tuple(event_shape) if outputs else Layout(noise.symbols, classes_last).shape(event_shape)
    return structure_of(lambda key: init(network.value, schedule.value, shape, key), dtype)


def warn_of_ends(noise: Corruption, endpoints: tuple[float, float]) -> None:
    """Warns where reconstruction and prior alone cost much, which no training mends."""
    low, high = (torch.tensor(end, dtype=torch.float64, device="cpu") for end in endpoints)
    bits = (noise.reconstruction(low) + noise.prior(high)).item() / math.log(2.0)
    if bits > ENDS:
        message = f"its ends alone cost {bits:.3g} bits a token; take wider ones, as schedules.power() has"
        warnings.warn(f"schedule: at gamma_0 = {endpoints[0]:.4g}, gamma_1 = {endpoints[1]:.4g} {message}", stacklevel=3)
