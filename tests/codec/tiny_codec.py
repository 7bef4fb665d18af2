"""Small models and data for the codec's tests."""

import optree
import torch

import purevdm
from purevdm import networks, random, schedules


def model_and_params(network=None, schedule=None, event_shape=(6,), seed=0, **options):
    """A model of 16 values, unless told otherwise, with parameters that make it see something."""
    network = networks.mlp(16, fourier=()) if network is None else network
    schedule = schedules.learned_linear(-7.0, 4.0) if schedule is None else schedule
    options = {"vocab_size": 16} if not options else options
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
