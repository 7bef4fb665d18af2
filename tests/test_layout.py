"""Every gradient lies in memory as its parameter does: fused optimisers go by memory order."""

import functools

import pytest
import torch
from optree import tree_leaves, tree_map
from perturb import perturbed
from versions import since_2_13

import purevdm
from purevdm import networks, random, schedules, training
from purevdm.module import Module


class Turned(torch.nn.Module):
    """A convolution of a map whose channels are neighbours in memory; a parameter whose gradient is one number expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.Conv2d(16, 1, 3, padding=1)
        self.shift = torch.nn.Parameter(torch.ones(5))
        self.register_buffer("kept", torch.ones(3, 2))

    def forward(self, z, gamma):
        h = torch.relu(self.into(z) + gamma[:, None, None, None])
        return self.out(h.contiguous(memory_format=torch.channels_last)) + self.shift.sum() + self.kept.sum()


def curve(params, t):
    return -8.0 + 12.0 * t + params["bend"].abs().sum() * t**2


SCHEDULE = schedules.Schedule.of(lambda key: {"bend": torch.full((3,), 0.1)}, curve, endpoints=(-8.0, 4.0))
TURNED = purevdm.vdm(networks.from_module(Turned), SCHEDULE, (1, 8, 8), vocab_size=17)
X = random.randint(random.key(1), (4, 1, 8, 8), 0, 17)


def by_module(model, params, x, key):
    """Of a module's parameters, as ``torch.autograd.grad`` gives them, by the place in the tree."""
    owner = Module(model.loss_fn, params)
    leaves = [leaf for leaf in tree_leaves(owner.tree()) if leaf.requires_grad]
    grads = iter(torch.autograd.grad(owner(x, key), leaves))
    return tree_map(lambda leaf: next(grads) if leaf.requires_grad else leaf, owner.tree())


def by(**options):
    return lambda model, params, x, key: training.gradients(model, **options)(params, x, key)[0]


WAYS = {
    "func": lambda model, params, x, key: torch.func.grad_and_value(model.loss_fn)(params, x, key)[0],
    "elbo": lambda model, *args: torch.func.grad(lambda *args: model.nll_bound(*args).total.sum())(*args),
    "module": by_module,
    "gradients": by(),
    "accumulate": by(accumulate=2),
    "variance": by(variance=True),
    "remat": by(remat=True),
    "compiled": by(compile=True, backend="aot_eager"),
    "compiled and remat": by(compile=True, remat=True, backend="aot_eager"),
}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=since_2_13) if way == "compiled and remat" else way for way in WAYS]
)
def test_gradients_have_the_strides_of_parameters(way):
    model = TURNED
    params = perturbed(model.init(random.key(0)), 3, 0.05)
    turned = {**params["network"]["params"]["into"]}  # and where a parameter's own strides are unusual
    turned["weight"] = turned["weight"].contiguous(memory_format=torch.channels_last)
    params["network"]["params"]["into"] = turned
    grads = WAYS[way](model, params, X, random.key(2))
    assert tree_map(lambda g: g.stride(), grads) == tree_map(lambda leaf: leaf.stride(), params)


def test_under_vmap_jvp_and_twice():
    """Gradients by example, of an ensemble, of gradients, and their directional derivatives stay what they were."""
    layer = purevdm._layout.laid_out

    def f(w, x):
        return (layer(w).sum(0) * x).sin().sum()

    def plain(w, x):
        return (w.sum(0) * x).sin().sum()

    w, x = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    vmap, grad, jvp = torch.func.vmap, torch.func.grad, torch.func.jvp
    ways = (
        lambda f: vmap(grad(f), (None, 0))(w, x),
        lambda f: grad(lambda ws: vmap(f)(ws, x).sum())(w.expand(5, 3, 4).clone()),
        lambda f: grad(lambda w: grad(f)(w, x[0]).square().sum())(w),
        lambda f: jvp(functools.partial(grad(f), x=x[0]), (w,), (w.cos(),))[1],
        lambda f: grad(lambda w: jvp(lambda w: f(w, x[0]), (w,), (w.cos(),))[1])(w),
        lambda f: torch.func.hessian(f)(w, x[0]),
    )
    for way in ways:
        torch.testing.assert_close(way(f), way(plain), rtol=0, atol=0)
    assert vmap(grad(f), (None, 0))(w, x)[0].stride() == w.stride()


def test_the_step_is_right_for_gradients_of_any_layout():
    params = {"network": {"kernel": torch.randn(4, 3, 2), "bias": torch.randn(4)}}
    grads = tree_map(torch.randn_like, params)
    other = {"network": {"kernel": grads["network"]["kernel"].mT.contiguous().mT, "bias": torch.ones(()).expand(4)}}
    grads["network"]["bias"] = torch.ones(4)
    settings, moments = training.AdamW(warmup=0), training.optimizer.init(params)
    one, two = (training.optimizer.apply(settings, 0, params, g, moments) for g in (grads, other))
    for a, b in zip(tree_leaves(one), tree_leaves(two), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
