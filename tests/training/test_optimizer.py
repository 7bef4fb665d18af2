"""AdamW against torch's own optimiser, rates by hand, masks, clipping, averages; nothing changes what goes in."""

import itertools
import math

import hypothesis.strategies as st
import optree
import pytest
import tiny
import torch
from hypothesis import given
from optree import tree_leaves, tree_map

from purevdm import random, training
from purevdm.training import optimizer


def trees(seed=0):
    params = tiny.model().init(random.key(seed))
    leaves, spec = optree.tree_flatten(params)
    grads = [
        [random.normal(k, leaf.shape) for leaf, k in zip(leaves, random.split(random.key(i), len(leaves)), strict=True)]
        for i in range(5)
    ]
    return params, [optree.tree_unflatten(spec, g) for g in grads]


def test_steps_are_those_of_torch_with_groups():
    params, grads = trees()
    settings = training.AdamW(lr=1e-2, warmup=0, weight_decay=0.1, schedule_lr=3.0)
    moments, new = optimizer.init(params), params
    theirs = tree_map(lambda leaf: leaf.clone().requires_grad_(), params)
    decays = tree_leaves(optimizer.decayed(params))
    n_network = len(tree_leaves(params["network"]))
    groups = [
        dict(params=[leaf], weight_decay=0.1 * decay, lr=1e-2 if i < n_network else 3e-2)
        for i, (leaf, decay) in enumerate(zip(tree_leaves(theirs), decays, strict=True))
    ]
    other = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    before = tree_map(torch.clone, (params, moments))
    for step, grad in enumerate(grads):
        new, moments = optimizer.apply(settings, step, new, grad, moments)
        for leaf, g in zip(tree_leaves(theirs), tree_leaves(grad), strict=True):
            leaf.grad = g
        other.step()
    for a, b in zip(tree_leaves(new), tree_leaves(theirs), strict=True):
        torch.testing.assert_close(a, b.detach())
    unchanged = zip(tree_leaves(before), tree_leaves((params, optimizer.init(params))), strict=True)
    assert all(torch.equal(a, b) for a, b in unchanged)


def test_what_decays():
    mask = optimizer.decayed(
        {"network": {"conv": {"kernel": torch.ones(1), "bias": torch.ones(1)}, "norm": {"scale": torch.ones(1)}}}
    )
    assert mask == {"network": {"conv": {"kernel": True, "bias": False}, "norm": {"scale": False}}}


@given(st.integers(0, 50), st.integers(1, 1000), st.sampled_from(["constant", "linear", "cosine"]))
def test_rates(warmup, more, decay):
    settings = training.AdamW(lr=0.5, warmup=warmup, steps=warmup + more, decay=decay)
    rates = [training.learning_rate(settings, step) for step in range(warmup + more + 2)]
    assert all(math.isclose(rates[i], 0.5 * i / warmup) for i in range(warmup))
    assert rates[warmup] == 0.5
    after = rates[warmup:]
    assert all(a >= b for a, b in itertools.pairwise(after))
    assert math.isclose(after[-1], {"constant": 0.5, "linear": 0.0, "cosine": 0.005}[decay], abs_tol=1e-12)


@given(st.floats(0.01, 100), st.integers(0, 2**31))
def test_clipping_bounds_the_norm_and_keeps_the_direction(most, seed):
    grads = {"a": random.normal(random.key(seed), (3, 4)), "b": {"c": random.normal(random.key(seed + 1), (5,))}}
    clipped = optimizer.clip(grads, most)
    norm = math.sqrt(sum(leaf.square().sum().item() for leaf in tree_leaves(grads)))
    torch.testing.assert_close(optimizer.global_norm(grads).item(), norm, rtol=1e-5, atol=1e-6)
    scale = min(1.0, most / norm)
    for a, b in zip(tree_leaves(clipped), tree_leaves(grads), strict=True):
        torch.testing.assert_close(a, b * scale)


def test_averages():
    settings = training.AdamW(ema_rate=0.9)
    average = optimizer.update_average(settings, 5, {"a": torch.ones(2)}, {"a": torch.zeros(2)})
    torch.testing.assert_close(average["a"], torch.full((2,), 0.9))
    early = optimizer.update_average(settings._replace(ema_warmup=True), 0, {"a": torch.ones(2)}, {"a": torch.zeros(2)})
    torch.testing.assert_close(early["a"], torch.full((2,), 0.1))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (dict(lr=-1.0), "lr"),
        (dict(lr=math.nan), "lr"),
        (dict(b2=1.0), "b2"),
        (dict(warmup=-1), "warmup"),
        (dict(steps=0), "steps"),
        (dict(decay="step"), "decay"),
        (dict(clip_norm=0.0), "clip_norm"),
        (dict(ema_rate=2.0), "ema_rate"),
    ],
)
def test_bad_settings_are_named(change, word):
    with pytest.raises(ValueError, match=f"^{word}: expected"):
        training.learning_rate(training.AdamW()._replace(**change), 0)
