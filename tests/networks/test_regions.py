"""Networks by regions: what they compute is what the network of one example does, and a block is made once."""

from collections import Counter

import optree
import pytest
import torch
from compare import close
from parts import changed
from perturb import perturbed
from torch.func import vmap
from versions import since_2_13

import purevdm
from purevdm import _apply, networks, random, schedules, solvers, training
from purevdm.networks import Condition

OPTIONS = dict(groups=2, heads=1, dropout=0.25)
SMALL = networks.unet(4, (1,), 1, **OPTIONS)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(classes=3, cond_dim=2, ctrl_dim=2, map_channels=1, cond_drop=0.5, attention=(0,)),
        dict(self_condition=True, fourier=(1,), outputs=2),
        dict(remat=True),
        dict(padding=("circular", "zeros"), attention=(1,)),
    ],
    ids=["plain", "conditions", "outputs", "remat", "padding"],
)
@pytest.mark.parametrize("way", ["whole", "regions"])
def test_for_a_batch_it_computes_what_it_does_for_each_example(options, way):
    network = networks.unet(4, (1, 2), 1, **OPTIONS, **options)
    params = perturbed(network.init(random.key(0), (2, 5, 3)), 1, 0.1)
    keys = random.split(random.key(2), 4)
    z, x_hat = random.normal(random.key(3), (2, 4, 2, 5, 3)).unbind(0)
    gamma = torch.linspace(-3.0, 2.0, 4)
    cond, estimate = None, {}
    if "classes" in options:
        vector, ctrl = random.normal(random.key(4), (4, 2)), random.normal(random.key(5), (4, 3, 2))
        cond = Condition(vector, torch.tensor([0, 2, 1, 1]), ctrl, random.normal(random.key(6), (4, 1, 5, 3)))
    if "self_condition" in options:
        estimate = {"x_hat": x_hat}
    batch = network.apply_to_batch if way == "whole" else network.apply_by_regions
    for key in (None, keys):

        def one(z, gamma, cond, key, estimate):
            return network.apply(params, z, gamma, cond=cond, key=key, **estimate)

        axes = (0, 0, None if cond is None else 0, None if key is None else 0, 0)
        want = vmap(one, in_dims=axes)(z, gamma, cond, key, estimate)
        close(batch(params, z, gamma, cond=cond, key=key, **estimate), want, 1e-5)


@since_2_13
def test_a_compiler_makes_each_kind_of_block_once_and_the_gradients_are_the_eager_ones():
    """Of nine ResNet blocks five are of one kind, down and in the middle, and three are of another kind, up."""
    network = networks.vdm_unet(4, 3, fourier=(), **OPTIONS)
    model = purevdm.vdm(network, schedules.learned_linear(), (1, 3, 4), 16)
    params = perturbed(model.init(random.key(0)), 1, 0.1)
    x = random.randint(random.key(1), (3, 1, 3, 4), 0, 16)
    made = []

    def backend(graph, inputs):
        made.extend(node.args[1] for node in graph.graph.nodes if "invoke_subgraph" in str(node.target))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    got = training.gradients(model, compile=True, backend=backend)(params, x, random.key(2))
    close(got, training.gradients(model)(params, x, random.key(2)), 1e-4)
    assert not any(leaf.requires_grad for leaf in optree.tree_leaves(got))
    assert sorted(Counter(made).values()) == [3, 5]


@since_2_13
def test_compiled_gradients_are_the_eager_ones_and_parameters_stay_what_they_are():
    """A compiler that writes over what regions save writes over parameters, too."""
    network = networks.unet(4, (1,), 1, groups=2, heads=1)
    model = purevdm.vdm(network, schedules.learned_linear(-8.0, 4.0), (1, 4, 4), 16)
    params = perturbed(model.init(random.key(0)), 1, 0.1)
    x = random.randint(random.key(1), (4, 1, 4, 4), 0, 16)
    before = optree.tree_map(torch.clone, params)
    got = training.gradients(model, compile=True)(params, x, random.key(2))
    assert all(map(torch.equal, optree.tree_leaves(params), optree.tree_leaves(before)))
    close(got, training.gradients(model)(params, x, random.key(2)), 1e-4)


@since_2_13
def test_a_compiled_sampler_takes_blocks_with_attention():
    """A region inside a loop is not decomposed: inductor itself must know each of its operations."""
    network = networks.unet(4, (1,), 1, groups=2, heads=1, attention=(0,))
    model = purevdm.vdm(network, schedules.learned_linear(-8.0, 4.0), (1, 4, 4), 16)
    params, key = perturbed(model.init(random.key(0)), 1, 0.05), random.key(1)
    given = dict(z=random.normal(key, (2, 1, 4, 4)), start=1.0, until=0.0, solver=solvers.ddim())
    sample = torch.compile(model.sample, fullgraph=True)
    close(sample(params, key, 2, steps=torch.tensor(3), **given), model.sample(params, key, 2, steps=3, **given), 1e-4)


@since_2_13
def test_what_users_differentiate_has_no_regions_and_what_they_do_not_has():
    model = purevdm.vdm(SMALL, schedules.learned_linear(), (1, 3, 4), 16)
    params = perturbed(model.init(random.key(0)), 1, 0.1)
    x, found = random.randint(random.key(1), (3, 1, 3, 4), 0, 16), []

    def backend(graph, inputs):
        found.append(any("invoke_subgraph" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    loss = torch.compile(model.loss_fn, fullgraph=True, backend=backend)
    loss(params, x, random.key(2))
    leaves = optree.tree_map(lambda leaf: leaf.clone().requires_grad_(), params)
    loss(leaves, x, random.key(2)).backward()
    with torch.no_grad():
        loss(leaves, x, random.key(2))
    assert found == [True, False, True]
    want = torch.func.grad(model.loss_fn)(params, x, random.key(2))
    close(optree.tree_map(lambda leaf: leaf.grad, leaves), want, 1e-4)


def test_nothing_is_written_twice_whatever_the_options():
    never = {"allow_buffer_reuse": False, "inplace_buffers": False}
    for given, want in (
        ({}, {"options": never}),
        ({"mode": "default", "dynamic": True}, {"dynamic": True, "options": never}),
        ({"mode": "reduce-overhead"}, {"options": {"triton.cudagraphs": True} | never}),
        ({"options": {"max_autotune": True}}, {"options": {"max_autotune": True} | never}),
        ({"backend": "aot_eager"}, {"backend": "aot_eager"}),  # options that are not inductor's stay
        ({"mode": "default", "options": {}}, {"mode": "default", "options": {}}),
    ):
        assert _apply.without_reuse(given) == want


def test_gradients_by_a_backend_for_debugging():
    model = purevdm.vdm(SMALL, schedules.learned_linear(), (1, 3, 4), 16)
    params, x = model.init(random.key(0)), random.randint(random.key(1), (3, 1, 3, 4), 0, 16)
    got = training.gradients(model, compile=True, backend="eager")(params, x, random.key(2))
    close(got, training.gradients(model)(params, x, random.key(2)), 1e-4)


@since_2_13
def test_a_network_may_have_blocks_of_many_kinds():
    network = networks.unet(4, (1, 2, 3, 4), 1, groups=2, heads=1)
    model = purevdm.vdm(network, schedules.learned_linear(), (1, 8, 8), 16)
    params = perturbed(model.init(random.key(0)), 1, 0.1)
    x = random.randint(random.key(1), (2, 1, 8, 8), 0, 16)
    compiled = torch.compile(model.nll_bound, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        close(compiled(params, x, random.key(2)), model.nll_bound(params, x, random.key(2)), 1e-5)


def test_a_network_of_ones_own_around_it_is_applied():
    """What wraps ``apply`` is never passed by."""
    assert _apply.has_regions(SMALL) or torch.__version__ < "2.13"
    assert not _apply.has_regions(changed(SMALL, apply=lambda *args, **kwargs: -SMALL.apply(*args, **kwargs)))
    assert not _apply.has_regions(networks.Wrapped(SMALL))


class Minus(networks.Wrapped):
    def around(self, apply, *args, **kwargs):
        return -apply(*args, **kwargs)


class Zero(Minus):
    def apply(self, params, z, gamma, *args, **kwargs):
        return torch.zeros_like(z)


def test_a_network_around_another_has_its_forms():
    z, gamma = random.normal(random.key(3), (2, 1, 4, 4)), torch.tensor([-1.0, 1.0])
    params = perturbed(SMALL.init(random.key(0), (1, 4, 4)), 1, 0.1)
    whole = _apply.for_batch(Minus(SMALL), params, z, gamma)
    assert torch.equal(whole(params, z, gamma), -SMALL.apply_to_batch(params, z, gamma))
    assert _apply.for_batch(Zero(SMALL), params, z, gamma) is None
    assert _apply.for_batch(Minus(networks.mlp(4)), params, z, gamma) is None
