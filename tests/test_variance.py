"""The variance's gradient: that of the squared loss for the interior, that of the bound for all else."""

import functools
import math
import operator

import optree
import perturb
import pytest
import torch
from backends import every_backend
from compare import close
from optree import tree_leaves, tree_map

import purevdm
from purevdm import denoiser, networks, random, schedules, variance
from purevdm.bound import bound as diffusion_of

SCHEDULES = {
    "pinned": schedules.monotone_mlp(hidden=6, pin_endpoints=True),
    "constrained": schedules.constrained_monotone(hidden=(5, 5)),
}
# The paths of the ends, and of what shapes the interior alone. (The pinned network's w does both.)
ENDS = {"pinned": [("l1", "bias")], "constrained": [("w",), ("b",)]}
INTERIOR = {"pinned": [("l2",), ("l3",)], "constrained": [("layers",)]}


def ready(schedule, dtype=torch.float64, n=5):
    """Parameters far enough off their start that every leaf of the schedule matters."""
    model = purevdm.vdm(networks.mlp(8, fourier=(0,)), schedule, (2,), 16, dtype=dtype)
    params = model.init(random.key(0))
    leaves, spec = optree.tree_flatten(params)
    keys = random.split(random.key(1), len(leaves))
    moved = [leaf + 0.3 * random.normal(k, leaf.shape, dtype) for k, leaf in zip(keys, leaves, strict=True)]
    params = optree.tree_unflatten(spec, moved)
    return model, params, random.randint(random.key(2), (n, 2), 0, 16)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_interior_follows_the_squared_loss_and_the_rest_the_bound(name):
    model, params, x = ready(SCHEDULES[name])
    key = random.key(3)
    grads, loss = model.vlb_and_variance_grads(params, x, key)
    bound, want = torch.func.grad_and_value(model.loss_fn)(params, x, key)
    torch.testing.assert_close(loss, want)
    close(grads["network"], bound["network"], 1e-9)

    def squared(params):
        diffusion = diffusion_of(model, params, x, model.draw(key, len(x))).diffusion / (2 * math.log(2))
        return diffusion.square().mean()

    square = torch.func.grad(squared)(params)

    def at(tree, path):
        return functools.reduce(operator.getitem, path, tree["schedule"])

    for path, want in [*((p, bound) for p in ENDS[name]), *((p, square) for p in INTERIOR[name])]:
        close(at(grads, path), at(want, path), 1e-9)
        assert all(g.norm() > 0 for g in tree_leaves(at(grads, path)))


@pytest.mark.parametrize("make", [schedules.learned_linear, schedules.fixed_linear])
def test_a_line_follows_the_bound_alone(make):
    model, params, x = ready(make())
    close(
        model.vlb_and_variance_grads(params, x, random.key(3))[0],
        torch.func.grad(model.loss_fn)(params, x, random.key(3)),
        1e-9,
    )


def test_ends_that_drift_are_told_from_the_interior():
    """The official network's every parameter moves both: its gradient is the sum of the two, each with the other held."""
    model, params, x = ready(schedules.monotone_mlp(hidden=4))
    grads, _ = model.vlb_and_variance_grads(params, x, random.key(3))
    t = model.draw(random.key(3), len(x)).t
    held = variance.curve(model.schedule, params["schedule"], t)

    def bound(curve):
        noise = model.draw(random.key(3), len(x))
        denoise = denoiser.of_model(model, params, key=noise.key)
        terms = purevdm.bound.summed(purevdm.bound.terms(model, denoise, {}, x, noise, variance.levels(curve)))
        return tree_map(lambda term: term / (2 * math.log(2)), terms)

    def target(schedule):
        curve = variance.curve(model.schedule, schedule, t)
        ends = bound(held._replace(gamma_0=curve.gamma_0, gamma_1=curve.gamma_1)).total.mean()
        return ends + bound(held._replace(r=curve.r, slope=curve.slope)).diffusion.square().mean()

    close(grads["schedule"], torch.func.grad(target)(params["schedule"]), 1e-9)


def test_aux_dropout_and_conditions():
    network = networks.mlp(8, fourier=(0,), classes=2, cond_drop=0.5, self_condition=True)
    model = purevdm.vdm(network, schedules.constrained_monotone(hidden=(4,)), (2,), 16)
    params, x, label = model.init(random.key(0)), torch.zeros(3, 2, dtype=torch.int64), torch.tensor([0, 1, 1])
    for train in (True, False):
        _, (loss, stats) = model.vlb_and_variance_grads(params, x, random.key(1), label, train=train, has_aux=True)
        want, parts = model.loss_and_stats(params, x, random.key(1), label, train=train)
        torch.testing.assert_close(loss, want)
        close(stats, parts, 1e-5)


@every_backend
@pytest.mark.parametrize("self_condition", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_compiles_in_one_graph(self_condition, backend):
    """Under the constrained schedule, with classes that are dropped."""
    network = networks.mlp(8, fourier=(0,), classes=2, cond_drop=0.5, self_condition=self_condition)
    model = purevdm.vdm(network, SCHEDULES["constrained"], (2,), 16)
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.3)
    x, label = random.randint(random.key(2), (5, 2), 0, 16), torch.tensor([0, 1, 1, 0, 1])
    compiled = torch.compile(model.vlb_and_variance_grads, fullgraph=True, backend=backend)
    got, want = (grads(params, x, random.key(3), label) for grads in (compiled, model.vlb_and_variance_grads))
    close(got, want, 3e-4)  # the gradient of a schedule's shift is a tenth of what it sums


def test_descent_lowers_the_variance_and_keeps_the_bound():
    """A network that is blind: its loss is |eps|**2 gamma' / 2, least varied under a line. From a bent start, back to it."""
    blind = networks.Network.of(lambda key, shape: {}, lambda params, z, gamma, cond=None, key=None: torch.zeros_like(z))
    schedule = schedules.constrained_monotone(-5.0, 5.0, hidden=(8,))
    model = purevdm.vdm(blind, schedule, (4,), 16, dtype=torch.float64)
    params = model.init(random.key(0))
    params["schedule"]["layers"]["1"]["kernel"] += 3.0
    x = torch.zeros(256, 4, dtype=torch.int64)

    def deviation(params):
        t = torch.linspace(0, 1, 99, dtype=torch.float64)
        return (schedules.gamma_and_slope(schedule, params["schedule"], t)[1] - 10.0).abs().mean()

    before = deviation(params)
    layers = tree_leaves(params["schedule"]["layers"])
    optimizer = torch.optim.Adam(layers, lr=0.03)
    for i in range(120):
        grads, _ = model.vlb_and_variance_grads(params, x, random.key(i))
        for leaf, grad in zip(layers, tree_leaves(grads["schedule"]["layers"]), strict=True):
            leaf.grad = grad
        optimizer.step()
    assert deviation(params) < 0.5 * before


def test_discrete_time_is_refused():
    model = purevdm.vdm(networks.mlp(8), schedules.learned_linear(), (2,), 16, timesteps=10)
    with pytest.raises(ValueError, match="timesteps: expected 0"):
        model.vlb_and_variance_grads(model.init(random.key(0)), torch.zeros(1, 2, dtype=torch.int64), random.key(0))
