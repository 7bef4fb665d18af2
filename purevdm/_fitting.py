"""What the parts of a model must agree on: the schedule's endpoints, the data's levels, the structure of the parameters."""

import functools
import math
import warnings

import torch

from purevdm import _checks, _trees, _values, random, schedules
from purevdm._door import structure_of
from purevdm.codes import Code
from purevdm.decoders import Decoder, Gaussian, Product, fits, reconstruction_bits
from purevdm.networks import Network
from purevdm.parts import Encoder
from purevdm.schedules import Schedule
from purevdm.types import Key, Params

Parts = tuple[Network, Schedule, Decoder, Code | None, Encoder | None]


def init(parts: Parts, event_shape: tuple[int, ...], key: Key) -> Params:
    network, schedule, decoder, code, encoder = parts
    k_network, k_schedule = random.split(key).unbind(0)
    latent = decoder.latent_shape(event_shape)
    params = {"network": network.init(k_network, latent), "schedule": schedule.init(k_schedule)}
    others = {"decoder": decoder.init(random.fold_in(key, 2))}
    if code is not None:
        others["code"] = code.init(random.fold_in(key, 3))
    if encoder is not None:
        others["encoder"] = encoder.init(random.fold_in(key, 4), latent)
    return params | {name: own for name, own in others.items() if own or name == "code"}


@functools.lru_cache(maxsize=256)
def structure(
    network: _values.Same,
    schedule: _values.Same,
    decoder: _values.Same,
    subspace: _values.Same,
    reverse: _values.Same,
    code: _values.Same,
    encoder: _values.Same,
    event_shape: tuple[int, ...],
    dtype: torch.dtype,
) -> _trees.Structure:
    """Lists the leaves of a model's parameters, without computing them where their ``init`` runs on the meta device.

    Raises:
        TypeError, ValueError: parts that do not fit together.
    """
    for part, kind in ((network, Network), (schedule, Schedule), (decoder, Decoder)):
        _checks.instance(kind.__name__.lower(), part.value, kind, f"a purevdm {kind.__name__}")
    if 0 in event_shape:
        raise ValueError(f"event_shape: expected sizes of at least 1, got {event_shape}")
    fits(decoder.value, event_shape, dtype)
    if between(network.value, ends(schedule.value, dtype)) != network.value:
        raise ValueError("network: expected one that knows the schedule's endpoints; make the model by purevdm.vdm")

    if subspace.value is not None:
        own, columns = decoder.value, getattr(subspace.value, "columns", None)
        if isinstance(own, Product) and columns == own.parts[0].width:
            own = own.parts[0].decoder
        if not isinstance(own, Gaussian) or isinstance(own.scale, tuple):
            raise ValueError(f"subspace: expected a decoders.gaussian with one scale for its columns, got {own!r}")
        if schedule.value.contextual is False and ends(schedule.value, dtype) is None:
            raise ValueError("schedule: expected one gamma for all dimensions of a subspace")
    if network.value.outputs != (outputs := 2 if reverse.value.takes_range else None):
        wanted = f"outputs={outputs}, as the reverse process is {reverse.value!r}"
        raise ValueError(f"network: expected {wanted}, got outputs={network.value.outputs}")
    latent, own = decoder.value.latent_shape(event_shape), getattr(schedule.value, "event_shape", None)
    if own not in (None, latent):
        raise ValueError(f"schedule: expected one for latents of shape {latent}, got one for {own}")
    parts = (network.value, schedule.value, decoder.value, code.value, encoder.value)
    return structure_of(lambda key: init(parts, event_shape, key), dtype)


RECONSTRUCTION = 0.02
"""Bits per dimension of reconstruction from which a model warns that its gamma_0 is too large for its data."""


def suited(schedule: Schedule, step: float | None, network: Network, dtype: torch.dtype) -> Schedule:
    """Gives the schedule the gamma_min that suits data of this spacing where it was made without one, and so was the
    network."""
    gamma_min, high = schedules.GAMMA_MIN, math.inf if schedule.endpoints is None else schedule.endpoints[1]
    if step is not None and network.endpoints is None:
        suited = max(schedules.gamma_min_for(step), -schedules.limit(dtype))
        gamma_min = suited if suited < high else gamma_min
    return schedule.with_gamma_min(gamma_min)


def ends(schedule: Schedule, dtype: torch.dtype) -> tuple[float, float] | None:
    """Gives the schedule's endpoints, if they do not depend on a context. Those beyond the dtype's range are refused."""
    endpoints = schedule.endpoints
    if endpoints is None and not schedule.contextual:
        ends = torch.tensor([0.0, 1.0], dtype=torch.float32, device="cpu")
        ends = schedules.gamma(schedule, schedule.init(random.key(0, device="cpu")), ends)
        endpoints = tuple(ends.reshape(2, -1).double().mean(1).tolist())
    most = schedules.limit(dtype)
    if endpoints is not None and not all(-most <= end <= most for end in endpoints):
        raise ValueError(f"schedule: expected gamma in [{-most:g}, {most:g}], the range of {dtype}, got {endpoints}")
    return endpoints


def warn_of_reconstruction(values: int, step: float, gamma_0: float) -> None:
    """Warns where reconstruction alone costs much, which no training mends."""
    bits = reconstruction_bits(values, gamma_0, 2.0 / (values * step))
    if bits > RECONSTRUCTION:
        enough = f"leave gamma_min out, or take {schedules.gamma_min_for(step):.4g} or less"
        message = f"reconstruction alone costs {bits:.3g} bits/dim of data of {values} levels; {enough}"
        warnings.warn(f"schedule: at gamma_0 = {gamma_0:.4g} {message}", stacklevel=3)


def between(network: Network, endpoints: tuple[float, float] | None) -> Network:
    """Gives the network the schedule's endpoints, if it was given none."""
    return network if endpoints is None else network.between(endpoints)
