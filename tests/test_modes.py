"""A model's numbers depend on the model alone: not on the caller's autocast, and not on the default dtype."""

from contextlib import contextmanager

import pytest
import torch
from compare import close
from optree import tree_leaves
from versions import since_2_13

import purevdm
from purevdm import bfn, decoders, importance, likelihood, networks, ode, random, schedules, solvers, training


@contextmanager
def default(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "bfloat16": lambda: default(torch.bfloat16),
    "float64": lambda: default(torch.float64),
}


def init(key, shape):
    return {name: torch.full(shape, value, dtype=torch.float32) for name, value in (("w", 0.3), ("b", 0.1))}


def apply(params, z, gamma, cond=None, key=None):
    """Nothing here is cast by autocast: numbers that change are not the network's."""
    return torch.tanh(params["w"] * z + params["b"] * gamma)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.norm, self.out = torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)

    def forward(self, z, gamma):
        return self.out(self.norm(self.into(z)))


MODULE = Net()
SCHEDULES = {
    "linear": schedules.learned_linear,
    "mlp": lambda: schedules.monotone_mlp(hidden=16),
    "constrained": lambda: schedules.constrained_monotone(hidden=(8,)),
    "warped": lambda: importance.warped(schedules.monotone_mlp(hidden=16), bins=4),
}


def of_schedule(name):
    model = purevdm.vdm(networks.Network.of(init, apply), SCHEDULES[name](), (3,), decoder=decoders.gaussian(loc=0.3))
    params, x, key = model.init(random.key(0)), random.normal(random.key(1), (5, 3)), random.key(2)
    state = training.init(model, random.key(0))._replace(step=1001)
    yield params, model.nll_bound(params, x, key), model._replace(timesteps=10).nll_bound(params, x, key)
    for solver in (solvers.ancestral(), solvers.ddim()):
        yield model.sample(params, key, 4, steps=3, solver=solver)
    if name != "warped":  # whose gradients by variance are none
        yield model.vlb_and_variance_grads(params, x, key)
        yield likelihood.log_prob(model, params, x, key, integrator=ode.dopri5(1e-3, 1e-3)).log_prob
    for remat in (False, True):
        yield training.train_step(training.AdamW(warmup=0), training.gradients(model, remat=remat), state, x, key)


def of_bfn():
    model = bfn.discrete(networks.Network.of(init, apply), (3,), 3, 1.0)
    params, x, key = model.init(random.key(0)), random.randint(random.key(1), (5, 3), 0, 3), random.key(2)
    yield model.nll_bound(params, x, key), model._replace(timesteps=10).nll_bound(params, x, key)
    yield model.sample(params, key, 4, steps=3, trajectory=True).theta
    yield training.gradients(model)(params, x, key)


def of_inits():
    key = random.key(0)
    yield networks.from_module(Net).init(key, (3,)), networks.from_module(MODULE).init(key, (3,))
    yield networks.mlp(8, cond_dim=2, cond_drop=0.1).init(key, (3,))
    yield networks.unet(8, (1, 2), 1, groups=4, classes=3, cond_drop=0.1).init(key, (1, 8, 8))


NUMBERS = {name: lambda name=name: of_schedule(name) for name in SCHEDULES} | {"bfn": of_bfn, "inits": of_inits}


@pytest.mark.parametrize("what", NUMBERS)
def test_numbers_are_the_models_alone(what):
    want = tree_leaves(tuple(NUMBERS[what]()))
    for name, mode in MODES.items():
        with mode():
            found = tree_leaves(tuple(NUMBERS[what]()))
        for a, b in zip(found, want, strict=True):
            same = torch.equal(a.nan_to_num(), b.nan_to_num()) and a.dtype == b.dtype if torch.is_tensor(b) else a == b
            assert same, name


def test_a_network_follows_autocast_and_a_compiled_loss_does_too():
    model = purevdm.vdm(networks.mlp(8, fourier=(0,)), schedules.monotone_mlp(hidden=8), (2,), 16)
    params, x = model.init(random.key(0)), random.randint(random.key(1), (4, 2), 0, 16)
    compiled = torch.compile(model.nll_bound, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        found, eager = compiled(params, x, random.key(2)), model.nll_bound(params, x, random.key(2))
    want = model.nll_bound(params, x, random.key(2))
    assert torch.equal(eager.prior, want.prior)
    assert torch.equal(found.diffusion, eager.diffusion)
    assert found.diffusion.dtype == torch.float32


@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=since_2_13)])
def test_backward_passes_are_not_cast(remat):
    """The schedule's backward pass, in a compiled graph."""
    model = purevdm.vdm(networks.Network.of(init, apply), SCHEDULES["constrained"](), (3,), 16)
    params, x = model.init(random.key(0)), random.randint(random.key(1), (4, 3), 0, 16)
    want = training.gradients(model)(params, x, random.key(2))
    grad_fn = training.gradients(model, compile=True, remat=remat, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        close(grad_fn(params, x, random.key(2)), want, 1e-4)


def test_a_file_is_read_under_any_autocast():
    pytest.importorskip("constriction")
    from purevdm import codec

    model = purevdm.vdm(networks.mlp(8, 1, fourier=()), schedules.learned_linear(-6.0, 4.0), (3,), 8, timesteps=4)
    params, x = model.init(random.key(0)), random.randint(random.key(1), (5, 3), 0, 8)
    for portable in (False, True):
        plain = codec.encode(model, params, x, portable=portable)
        with torch.autocast("cpu", torch.bfloat16):
            assert codec.encode(model, params, x, portable=portable) == plain
