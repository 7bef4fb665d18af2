"""The variance's gradient: that of the squared loss for the interior, that of the bound for all else."""

import math

import optree
import perturb
import pytest
import torch
from backends import every_backend
from compare import close
from optree import tree_leaves, tree_map

import purevdm
from purevdm import decoders, denoiser, networks, random, schedules, variance

SCHEDULES = {
    "line": schedules.learned_linear(),
    "drifting": schedules.monotone_mlp(hidden=4),
    "pinned": schedules.monotone_mlp(hidden=6, pin_endpoints=True),
    "constrained": schedules.constrained_monotone(hidden=(5, 5)),
}


def ready(schedule, dtype=torch.float64, n=5):
    """Parameters far enough off their start that every leaf of the schedule matters."""
    model = purevdm.vdm(networks.mlp(8, fourier=(0,)), schedule, (2,), 16, dtype=dtype)
    params = model.init(random.key(0))
    leaves, spec = optree.tree_flatten(params)
    keys = random.split(random.key(1), len(leaves))
    moved = [leaf + 0.3 * random.normal(k, leaf.shape, dtype) for k, leaf in zip(keys, leaves, strict=True)]
    params = optree.tree_unflatten(spec, moved)
    return model, params, random.randint(random.key(2), (n, 2), 0, 16)


def test_gradients_have_derivatives_where_a_tensor_asks_for_them():
    model, params, _ = ready(SCHEDULES["line"])
    model = model._replace(decoder=decoders.gaussian())
    x, key = random.normal(random.key(2), (5, 2), torch.float64), random.key(3)
    plain = tree_leaves(model.vlb_and_variance_grads(params, x, key)[0])
    assert not any(leaf.requires_grad for leaf in plain)
    for own, data in ((params, x.clone().requires_grad_()), (tree_map(lambda p: p.clone().requires_grad_(), params), x)):
        found = model.vlb_and_variance_grads(own, data, key)[0]
        close(tree_map(torch.detach, tree_leaves(found)), plain, 1e-12)
        wanted = data if data.requires_grad else own["network"]["dense1"]["kernel"]
        assert torch.autograd.grad(tree_leaves(found["network"])[0].sum(), wanted)[0].norm() > 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_interior_follows_the_squared_loss_and_the_ends_the_bound(name):
    """Where a parameter moves both, its gradient is the sum of the two, each with the other fixed."""
    model, params, x = ready(SCHEDULES[name])
    key = random.key(3)
    grads, loss = model.vlb_and_variance_grads(params, x, key)
    of_bound, want = torch.func.grad_and_value(model.loss_fn)(params, x, key)
    torch.testing.assert_close(loss, want)
    close(grads["network"], of_bound["network"], 1e-9)
    noise = model.draw(key, len(x))
    fixed = variance.curve(model.schedule, params["schedule"], noise.t)

    def bound(curve):
        denoise = denoiser.of_model(model, params, key=noise.key)
        terms = purevdm.bound.summed(purevdm.bound.terms(model, denoise, {}, x, noise, variance.levels(curve)))
        return tree_map(lambda term: term / (2 * math.log(2)), terms)

    def target(schedule):
        curve = variance.curve(model.schedule, schedule, noise.t)
        ends = bound(fixed._replace(gamma_0=curve.gamma_0, gamma_1=curve.gamma_1)).total.mean()
        return ends + bound(fixed._replace(r=curve.r, slope=curve.slope)).diffusion.square().mean()

    close(grads["schedule"], torch.func.grad(target)(params["schedule"]), 1e-9)
    assert all(g.norm() > 0 for g in tree_leaves(grads["schedule"]))


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


def test_discrete_time_is_refused():
    model = purevdm.vdm(networks.mlp(8), schedules.learned_linear(), (2,), 16, timesteps=10)
    with pytest.raises(ValueError, match="timesteps: expected 0"):
        model.vlb_and_variance_grads(model.init(random.key(0)), torch.zeros(1, 2, dtype=torch.int64), random.key(0))
