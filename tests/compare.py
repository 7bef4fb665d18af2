"""Comparisons that hold on every CPU: by norm, leaf by leaf."""

import optree


def close(a, b, tolerance):
    """Trees of tensors whose leaves differ by at most this part of their norm."""
    for path, x, y in zip(optree.tree_paths(b), optree.tree_leaves(a), optree.tree_leaves(b), strict=True):
        off, size = (x.double() - y.double()).norm(), y.double().norm()
        assert off <= tolerance * (size + 1e-3), f"{'.'.join(map(str, path))}: off by {off:.3g} of {size:.3g}"


def decoded_alike(a, b):
    """Integers decoded from latents that differ by rounding: neighbours where a latent lies between two values."""
    assert a.shape == b.shape
    assert (a - b).abs().max() <= 1
    assert (a != b).double().mean() <= 0.1


def moved_alike(a, b, start):
    """Parameters after the same steps of training by sums in another order. By norm, and no closer, as AdamW divides a
    gradient near zero by its size: its rounding may move one parameter by a whole step."""
    for path, x, y, z in zip(optree.tree_paths(start), *map(optree.tree_leaves, (a, b, start)), strict=True):
        assert (x - y).norm() <= 0.02 * (y - z).norm() + 1e-6, path
