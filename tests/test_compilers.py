"""The modes of torch.compile and torch.export: they give a model's functions what eager mode computes, or an error."""

import functools
import io

import perturb
import pytest
import torch
from compare import close, decoded_alike
from torch.export import Dim
from versions import since_2_13

import purevdm
from purevdm import bound, networks, random, schedules, solvers
from purevdm._fitting import structure
from purevdm.module import Module

MODEL = purevdm.vdm(networks.mlp(8, fourier=(0,)), schedules.learned_linear(-8.0, 4.0), (2,), 16)
PARAMS = perturb.perturbed(MODEL.init(random.key(0)), 1, 0.05)
X, KEY = random.randint(random.key(1), (4, 2), 0, 16), random.key(2)
slow = pytest.mark.slow


def gradients(module):
    return {name: leaf.grad for name, leaf in module.named_parameters()}


def named(grads):
    """A tree of gradients by the names of a module's parameters."""
    return dict(Module(len, grads).named_parameters())


def test_a_compiled_module_trains():
    """Of the bound with explicit noise: making noise is most of what a loss's graph takes to compile."""
    noise = MODEL.draw(KEY, len(X))

    def loss_fn(params):
        return bound.bound(MODEL, params, X, noise).total.mean()

    module = Module(functools.partial(bound.bound, MODEL), PARAMS)
    loss = torch.compile(module, fullgraph=True, mode="reduce-overhead")(X, noise).total.mean()
    loss.backward()
    grads, value = torch.func.grad_and_value(loss_fn)(PARAMS)
    torch.testing.assert_close(loss, value)
    close(gradients(module), named(grads), 1e-4)


@slow
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"])
def test_functions_in_every_mode(mode):
    """On a CPU, where there are no CUDA graphs. Other files have the default mode."""

    def losses(params, x, key):
        return torch.func.grad_and_value(MODEL.loss_fn)(params, x, key), MODEL.nll_bound(params, x, key)

    close(torch.compile(losses, fullgraph=True, mode=mode)(PARAMS, X, KEY), losses(PARAMS, X, KEY), 1e-4)
    sample = torch.compile(MODEL.sample, fullgraph=True, mode=mode)
    decoded_alike(sample(PARAMS, KEY, 3, steps=torch.tensor(4)), MODEL.sample(PARAMS, KEY, 3, steps=4))


def reloaded(program):
    """A program after a way through a file."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@since_2_13
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=slow)])
def test_an_exported_loss_serves_batches_and_trains(strict):
    shapes = {"args": ({0: Dim("B", max=1024)}, None)}
    structure.cache_clear()  # as after many other models
    program = torch.export.export(Module(MODEL.loss_fn, PARAMS), (X, KEY), dynamic_shapes=shapes, strict=strict)
    module = reloaded(program)
    for n in (1, 7):
        x = random.randint(random.key(n), (n, 2), 0, 16)
        torch.testing.assert_close(module(x, KEY), MODEL.loss_fn(PARAMS, x, KEY))
    module(X, KEY).backward()
    want = torch.func.grad(MODEL.loss_fn)(PARAMS, X, KEY)
    close(gradients(module), named(want), 1e-4)


@since_2_13
def test_an_exported_bound_is_saved_as_a_tuple():
    given = (X, *MODEL.draw(KEY, len(X), train=False)[:3])

    def nll_bound(params, x, *noise):
        return bound.bound(MODEL, params, x, purevdm.Noise(*noise))

    program, want = torch.export.export(Module(nll_bound, PARAMS), given), nll_bound(PARAMS, *given)
    close(program.module()(*given), want, 1e-6)
    with pytest.raises(NotImplementedError, match=r"namedtuple class .*NLLBound"):
        torch.export.save(program, io.BytesIO())
    plain = torch.export.export(Module(lambda *args: tuple(nll_bound(*args)), PARAMS), given)
    close(reloaded(plain)(*given), tuple(want), 1e-6)


@since_2_13
def test_an_exported_prediction_serves_any_batch():
    z, gamma = torch.ones(4, 2), torch.zeros(4)
    batch = {0: Dim("B")}
    program = torch.export.export(Module(MODEL.eps_hat, PARAMS), (z, gamma), dynamic_shapes={"args": (batch, batch)})
    z, gamma = random.normal(KEY, (9, 2)), torch.linspace(-8, 4, 9)
    torch.testing.assert_close(reloaded(program)(z, gamma), MODEL.eps_hat(PARAMS, z, gamma))


@since_2_13
def test_an_exported_sampler_has_its_own_number_of_steps():
    options = dict(steps=3, solver=solvers.dpmpp_2m(), trajectory=True)
    module = Module(lambda params, key: tuple(MODEL.sample(params, key, 3, **options)), PARAMS)
    x, z = reloaded(torch.export.export(module, (KEY,)))(random.key(5))
    want = MODEL.sample(PARAMS, random.key(5), 3, **options)
    decoded_alike(x, want.x)
    close(z, want.z, 1e-5)
    with pytest.raises(TypeError, match="steps: an exported program has its own number of steps; give a Python integer"):
        torch.export.export(Module(MODEL.sample, PARAMS), (KEY, 3), {"steps": torch.tensor(3)})
