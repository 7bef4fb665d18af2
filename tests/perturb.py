"""Parameters off their initial values, so that no zero layer hides what comes after it."""

import optree

from purevdm import random


def perturbed(params, seed, scale):
    """Every leaf plus a normal of this scale."""
    leaves, spec = optree.tree_flatten(params)
    keys = random.split(random.key(seed), len(leaves))
    moved = [leaf + scale * random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return optree.tree_unflatten(spec, moved)
