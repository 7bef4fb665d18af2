"""Small models and data for the codec's tests."""

import optree
import torch

import purevdm
from purevdm import decoders, networks, parts, process, random, schedules


def _apply(params, z, gamma, cond=None, key=None):
    """A network of a few operations on a whole batch, for tests that call it thousands of times."""
    return params["w"] * z * torch.sigmoid(process.align(gamma, z)) + 0.1 * torch.sin(5.0 * z)


def _init(key, event_shape):
    return {"w": random.uniform(key, tuple(event_shape), minval=0.7, maxval=1.1)}


quick = networks.Network.of(_init, _apply, batched=True)


def _ranged(params, z, gamma, cond=None, key=None):
    """A second output for each number, whose v is sometimes out of [0, 1], and now and then far out."""
    v = 1.3 * torch.sin(9.0 * z)
    return torch.stack([_apply(params, z, gamma), torch.where(v > 1.29, 60.0 * torch.cos(5e3 * z), v)], -1)


ranged = networks.Network.of(_init, _ranged, batched=True, outputs=2)
ESTIMATE = decoders.discretised_gaussian(16)
OTHERS = {
    "upper": (quick, dict(vocab_size=16, reverse=parts.upper())),
    "learned range": (ranged, dict(vocab_size=16, reverse=parts.learned_range())),
    "estimate": (quick, dict(decoder=ESTIMATE)),
    "estimate, fixed": (quick, dict(decoder=ESTIMATE, reverse=parts.upper(log_last=-5.0))),
    "estimate, learned range": (ranged, dict(decoder=ESTIMATE, reverse=parts.learned_range(log_last=(-7.0, -4.0)))),
    "mlp": (
        networks.mlp(8, fourier=(), outputs=2, self_condition=True),
        dict(decoder=ESTIMATE, reverse=parts.learned_range(log_last=(-7.0, -4.0))),
    ),
}
"""Models of 16 values with another reverse process or decoder: networks, and options of ``model_and_params``."""


def model_and_params(network=None, schedule=None, event_shape=(6,), seed=0, **options):
    """A model of 16 values, unless told otherwise, with parameters that make it see something."""
    network = quick if network is None else network
    schedule = schedules.learned_linear(-7.0, 4.0) if schedule is None else schedule
    options = options or {"vocab_size": 16}
    model = purevdm.vdm(network, schedule, event_shape, **options)
    params = model.init(random.key(seed))
    numbers = iter(range(10_000))

    def moved(leaf):
        noise = random.normal(random.fold_in(random.key(seed + 1), next(numbers)), leaf.shape)
        return leaf + 0.05 * noise.to(leaf.dtype)

    return model, params | {"network": optree.tree_map(moved, params["network"])}


def images(model, n, seed=0, dtype=torch.int64):
    shape = (n, *model.event_shape)
    return random.randint(random.key(seed), shape, 0, model.decoder.vocab_size).to(dtype)
