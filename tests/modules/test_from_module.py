"""Any module as a network: its tree, its draws by key, its losses and gradients by every road, our own errors."""

import copy
import functools
import math
import pickle

import kinds
import optree
import pytest
import torch
from compare import close
from kinds import KEY, KINDS, made
from torch import nn
from versions import since_2_13

import purevdm
from purevdm import denoiser, networks, random, schedules, training
from purevdm.module import Module

partial = functools.partial


def equal(a, b):
    return all(map(torch.equal, optree.tree_leaves(a), optree.tree_leaves(b)))


def state(module):
    return dict(module.named_parameters()) | dict(module.named_buffers())


# The tree


def test_a_tree_of_parameters_and_buffers():
    network = networks.from_module(partial(kinds.DiT, depth=1))
    params = network.init(random.key(0), (2,))
    shapes = {
        ".".join(path): tuple(leaf.shape) for path, leaf in zip(*optree.tree_flatten_with_path(params)[:2], strict=True)
    }
    assert shapes["params.heads.0.out_proj.weight"] == (8, 8)
    assert shapes["buffers.order"] == (2,)
    assert "buffers.mask" not in shapes  # infinite: a constant
    assert all(leaf.dtype == torch.float32 for leaf in optree.tree_leaves(params))
    meta = network.init(random.key(0, device="meta"), (2,))
    assert [leaf.is_meta for leaf in optree.tree_leaves(meta)] == [True] * len(shapes)
    assert optree.tree_map(lambda leaf: leaf.shape, meta) == optree.tree_map(lambda leaf: leaf.shape, params)


class Repeated(kinds.Base):
    """A block under two names, a layer twice in a row, tied weights, statistics, and attributes that a call writes."""

    def __init__(self):
        super().__init__()
        self.block, layer = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), nn.Linear(8, 8)
        self.again, self.row, self.tied = self.block, nn.Sequential(layer, nn.Tanh(), layer), nn.Linear(8, 8)
        self.tied.weight = layer.weight
        self.calls, self.last, self.all, self.sum = 0, None, [], torch.zeros(8)

    def body(self, h):
        self.calls, self.last, self.new = self.calls + 1, h, h
        self.all.append(h)
        return self.calls * self.tied(self.again(torch.tanh(self.row(self.block(h))))) + self.sum


@since_2_13
def test_no_call_leaves_a_trace():
    """In any way: what a call computes depends only on its arguments, whatever came before. Tied weights are one leaf."""
    model, params, x = made(Repeated)
    assert "weight" not in params["network"]["params"]["tied"]
    module, given = Repeated(), (random.normal(random.key(3), (5, 2)), torch.linspace(-3, 3, 5))
    networks.load_module(model.network, params["network"], module).eval()
    assert torch.equal(denoiser.output(model.network, params["network"], *given), module(*given))
    other = model.init(random.key(9))
    wanted = [model.loss_fn(p, x, KEY, train=train) for p in (params, other) for train in (False, True)]
    moved = torch.func.grad(model.loss_fn)(other, x, KEY)
    assert moved["network"]["params"]["block"]["0"]["weight"].norm() > 0
    program = Module(model.loss_fn, params)
    compiled = torch.compile(model.nll_bound, fullgraph=True, backend="eager")
    for way in (
        lambda: torch.compile(torch.func.grad(model.loss_fn), fullgraph=True, backend="eager")(params, x, KEY),
        lambda: torch.no_grad()(compiled)(params, x, KEY),
        lambda: torch.export.export(program, (x, KEY)),
        lambda: model.update(params, x, KEY),
    ):
        way()
        found = [model.loss_fn(p, x, KEY, train=train) for p in (params, other) for train in (False, True)]
        assert equal(found, wanted)
        assert equal(torch.func.grad(model.loss_fn)(other, x, KEY), moved)
    bits = torch.no_grad()(compiled)(other, x, KEY).total.mean() / (x[0].numel() * math.log(2))
    close(bits, wanted[2], 1e-5)


def test_a_pretrained_module_and_back():
    model, params, _ = made(kinds.DiT)
    module = kinds.DiT().eval()
    z, gamma, label = random.normal(random.key(3), (5, 2)), torch.linspace(-3, 3, 5), torch.tensor([0, 1, 2, 3, 0])
    own = networks.module_params(model.network, module)
    torch.testing.assert_close(denoiser.output(model.network, own, z, gamma, label), module(z, gamma, label))
    held = networks.load_module(model.network, params["network"], module)
    assert held is module
    assert equal(networks.module_params(model.network, module), params["network"])
    with pytest.raises(ValueError, match=r"module: expected a DiT with position of \(2, 8\)"):
        networks.module_params(model.network, kinds.DiT(width=4))
    with pytest.raises(TypeError, match=r"network: expected one of networks\.from_module"):
        networks.module_params(networks.mlp(4), module)


def test_a_pretrained_module_is_where_training_starts():
    module = kinds.DiT()
    network = networks.from_module(module, pretrained=True)
    for seed in (0, 1):
        assert equal(network.init(random.key(seed), (2,)), networks.module_params(network, module))
    assert not equal(networks.from_module(module).init(random.key(0), (2,)), networks.module_params(network, module))
    assert pickle.loads(pickle.dumps(network)) == network != networks.from_module(module)
    networks.from_module(nn.ParameterList([torch.randn(3)]), pretrained=True)  # nothing that could be drawn


class Counted(kinds.Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.tensor([3]))


def test_trees_of_a_float64_model_and_its_module_are_one():
    network = networks.from_module(Counted)
    model = purevdm.vdm(network, schedules.fixed_linear(), (2,), 16, dtype=torch.float64)
    params, module = model.init(random.key(0)), Counted().double()
    networks.load_module(network, params["network"], module)
    own = networks.module_params(network, module)
    assert equal(own, params["network"])
    assert {leaf.dtype for leaf in optree.tree_leaves(own)} == {torch.float64}
    assert module.count.dtype == torch.int64
    assert model.loss_fn({**params, "network": own}, torch.zeros(3, 2, dtype=torch.int64), KEY).isfinite()
    with pytest.raises(TypeError, match=r"params\..*: expected torch.float32, got a float64"):
        networks.load_module(network, params["network"], Counted())


class Normed(kinds.Base):
    def __init__(self):
        super().__init__()
        self.out = torch.nn.utils.weight_norm(self.out)


class Frozen(kinds.Base):
    def __init__(self):
        super().__init__()
        self.into.requires_grad_(False)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_old_weight_norm():
    for source in (Normed, Normed()):
        model, params, x = made(source)
        module = networks.load_module(model.network, params["network"], Normed()).eval()
        z, gamma = random.normal(random.key(3), (5, 2)), torch.linspace(-3, 3, 5)
        assert torch.equal(denoiser.output(model.network, params["network"], z, gamma), module(z, gamma))
        wanted = torch.func.grad(model.loss_fn)(params, x, KEY)
        compiled = torch.compile(torch.func.grad(model.loss_fn), fullgraph=True, backend="eager")
        close(compiled(params, x, KEY), wanted, 1e-5)
        assert equal(torch.func.grad(model.loss_fn)(params, x, KEY), wanted)
    assert wanted["network"]["params"]["out"]["weight_g"].norm() > 0


def test_modules_are_made_within_transforms_and_inference_mode():
    model, params, x = made(Frozen)
    wanted, sent = torch.func.grad(model.loss_fn)(params, x, KEY), pickle.dumps(model)
    assert equal(torch.func.grad(pickle.loads(sent).loss_fn)(params, x, KEY), wanted)
    assert equal(torch.func.grad(lambda p: pickle.loads(sent).loss_fn(p, x, KEY))(params), wanted)
    with torch.inference_mode():
        same, other = pickle.loads(sent), model.init(random.key(0))
    assert equal(torch.func.grad(same.loss_fn)(params, x, KEY), wanted)
    assert torch.equal(model.nll_bound(other, x, KEY).total, model.nll_bound(params, x, KEY).total)
    assert torch.equal(model.loss_fn(other, x, KEY), model.loss_fn(params, x, KEY))


def test_networks_pickle_and_compare_by_content():
    module = kinds.DiT()
    for source in (partial(kinds.DiT, width=4), kinds.BatchNorm, module):
        model = made(source)[0]
        assert pickle.loads(pickle.dumps(model)) == model
        assert hash(pickle.loads(pickle.dumps(model))) == hash(model)
    assert networks.from_module(partial(kinds.DiT, width=4)) == networks.from_module(partial(kinds.DiT, width=4))
    assert networks.from_module(module) == networks.from_module(copy.deepcopy(module))
    assert networks.from_module(module) != networks.from_module(kinds.DiT())
    assert networks.from_module(kinds.DiT) != networks.from_module(partial(kinds.DiT, width=4))
    assert "kinds.DiT'>, width=4)" in repr(networks.from_module(partial(kinds.DiT, width=4)))


# Initialisation


@pytest.mark.parametrize("instance", [False, True])
def test_parameters_are_drawn_by_key(instance):
    module = kinds.DiT()
    before, generator = {name: leaf.clone() for name, leaf in state(module).items()}, torch.get_rng_state()
    network = networks.from_module(module if instance else kinds.DiT)
    a, b, again = (network.init(random.key(seed), (2,)) for seed in (1, 2, 1))
    assert equal(a, again)
    for params in (a, b):
        assert not params["params"]["gate"]["weight"].any()  # set to zero on purpose
    one, other = a["params"], b["params"]
    assert not torch.equal(one["label"]["weight"], other["label"]["weight"])
    assert not torch.equal(one["heads"]["0"]["in_proj_weight"], other["heads"]["0"]["in_proj_weight"])
    # a parameter of a module without reset_parameters is drawn only with its module
    assert torch.equal(one["position"], module.position if instance else other["position"]) == instance
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(leaf, before[name]) for name, leaf in state(module).items())
    words = [torch.tensor([high, 7], dtype=torch.int32) for high in (0, 1)]  # keys that differ in the high word alone
    assert not equal(*(network.init(key, (2,)) for key in words))


@pytest.mark.parametrize(
    ("source", "error", "word"),
    [
        (3, TypeError, "module: expected a torch.nn.Module or a function"),
        (lambda: 3, TypeError, "module: expected a torch.nn.Module of the function, got 3"),
        (nn.ParameterList([torch.randn(3)]), ValueError, "module: expected one with layers to draw anew.*give the class"),
        (partial(kinds.Recurrent, 0.5), ValueError, r"module: expected recurrent layers with dropout=0\.0,.* got layers"),
        (nn.Sequential(nn.LazyLinear(3)), ValueError, r"module: .* got a lazy 0\.weight"),
        (lambda: nn.ParameterList([torch.ones(2, dtype=torch.complex64)]), TypeError, "module: expected floating-point"),
    ],
)
def test_what_is_no_network_is_refused(source, error, word):
    with pytest.raises(error, match=word):
        networks.from_module(source)


# Losses and gradients, by every road


@pytest.mark.parametrize("name", KINDS)
def test_losses_gradients_and_samples_in_eager(name):
    """By torch.func, from outside and example by example, they are those of the module itself; the model is pure."""
    model, params, x = made(KINDS[name])
    before, generator = optree.tree_map(torch.clone, params), torch.get_rng_state()
    outside, (loss, _) = training.gradients(model, remat=True)(params, x, KEY)
    torch.testing.assert_close(loss, model.loss_fn(params, x, KEY))
    assert all(leaf.norm() > 0 for leaf in optree.tree_leaves(outside["network"]["params"]["out"]))
    for grad_fn in (torch.func.grad(model.loss_fn), lambda *args: model.vlb_and_variance_grads(*args)[0]):
        close(grad_fn(params, x, KEY)["network"], outside["network"], 1e-5)
    for train in (True, False):
        if name == "GRU" or (train and name == "batch norm"):  # the kernel has no batching rule
            continue

        def one(params, x, noise):
            return model.nll_bound_of_one(params, x, noise).total

        noise = model.draw(KEY, 5, train=train)
        axes = type(noise)(0, 0, 0, 0 if train else None)
        each = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, axes))(params, x, noise)
        whole = torch.func.grad(partial(model.loss_fn, train=train))(params, x, KEY)
        whole = optree.tree_map(lambda leaf: leaf * x[0].numel() * math.log(2), whole)
        close(optree.tree_map(lambda leaf: leaf.mean(0), each), whole, 1e-4)
    assert model.nll_bound(params, x, KEY).total.isfinite().all()
    assert model.sample(params, random.key(3), 3, steps=3).shape == (3, 2)
    assert equal(params, before)
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("name", KINDS)
def test_evaluation_is_the_module_in_eval_mode(name):
    model, params, _ = made(KINDS[name])
    module = networks.load_module(model.network, params["network"], KINDS[name]()).eval()
    z, gamma = random.normal(random.key(3), (5, 2)), torch.linspace(-3, 3, 5)
    torch.testing.assert_close(denoiser.output(model.network, params["network"], z, gamma), module(z, gamma))


@pytest.mark.parametrize(
    "reentrant",
    [None, pytest.param(False, marks=since_2_13), pytest.param(True, marks=[pytest.mark.slow, since_2_13])],
)
def test_compiled_gradients_through_all_kinds_are_those_of_eager(reentrant):
    """The same masks, by torch.func and from outside, in checkpoints too, which eager mode refuses under gradients."""
    model, params, x = made(kinds.Everything)
    wanted = training.gradients(model)(params, x, KEY)
    model = made(partial(kinds.Everything, reentrant))[0]
    backend = "eager" if reentrant is None else "aot_eager"  # torch.func's gradients are in the graph as it is traced
    got = training.gradients(model, compile=True, remat=reentrant is not None, backend=backend)(params, x, KEY)
    close(got[0], wanted[0], 1e-4)
    torch.testing.assert_close(got[1][0], wanted[1][0])


def test_compiled_samples_bounds_and_statistics_of_all_kinds():
    model, params, x = made(partial(kinds.Everything, False))

    def all_three(params, x, key):
        samples = model.sample(params, key, 3, steps=torch.tensor(3))
        return samples, model.nll_bound(params, x, key), model.update(params, x, key)

    samples, bound, moved = torch.compile(all_three, fullgraph=True, backend="eager")(params, x, KEY)
    with torch.no_grad():
        assert (samples - model.sample(params, KEY, 3, steps=3)).abs().max() <= 1
        close(bound, model.nll_bound(params, x, KEY), 1e-5)
        close(moved, model.update(params, x, KEY), 1e-5)
    assert moved["network"]["buffers"]["norm"]["num_batches_tracked"] == 1


@pytest.mark.slow
def test_a_compiled_dit_by_the_default_backend():
    model, params, x = made(partial(kinds.DiT, depth=1))
    label = torch.tensor([0, 1, 2, 3, 0])
    got = torch.compile(torch.func.grad_and_value(model.loss_fn), fullgraph=True)(params, x, KEY, label)
    close(got, torch.func.grad_and_value(model.loss_fn)(params, x, KEY, label), 1e-4)


# Statistics


def test_batch_norms_train_in_the_librarys_loop_as_in_torch():
    model, params, x = made(kinds.BatchNorm)
    module = networks.load_module(model.network, params["network"], kinds.BatchNorm()).train()
    noise = model.draw(KEY, 5)
    gamma = model.gamma(params, noise.t)
    module(purevdm.process.diffuse(model.decoder.encode({}, x, dtype=torch.float32), gamma[:, None], noise.eps), gamma)
    moved = model.update(params, x, KEY)
    torch.testing.assert_close(moved["network"]["buffers"], networks.module_params(model.network, module)["buffers"])
    assert equal(moved["network"]["params"], params["network"]["params"])
    start, grad_fn = training.init(model, random.key(0)), training.gradients(model)
    settings = training.AdamW(warmup=0, weight_decay=0.5)
    done, _ = training.train_step(settings, grad_fn, start, x, KEY, update=model.update)
    expected = model.update(params, x, random.fold_in(KEY, 0))["network"]["buffers"]
    assert equal(done.params["network"]["buffers"], expected)
    left, _ = training.train_step(settings, grad_fn, start, x, KEY)
    assert equal(left.params["network"]["buffers"], params["network"]["buffers"])
    assert equal(left.params["network"]["params"], done.params["network"]["params"])


def test_a_network_that_keeps_nothing_is_updated_to_itself():
    model = purevdm.vdm(networks.mlp(4), schedules.learned_linear(), (2,), 16)
    params = model.init(random.key(0))
    assert model.update(params, torch.zeros(3, 2, dtype=torch.int64), KEY) is params


def test_matrices_decay_and_neither_norms_nor_biases_nor_buffers():
    decays = training.optimizer.decayed(made(kinds.Everything)[1])["network"]
    assert decays["params"]["into"] == {"weight": True, "bias": False}
    assert decays["params"]["norm"] == {"weight": False, "bias": False}
    assert decays["params"]["heads"]["in_proj_weight"]
    assert not any(optree.tree_leaves(decays["buffers"]))


# Signatures and precision


def swapped(module, z, gamma, cond, x_hat):
    return module(torch.cat([z, x_hat, gamma[:, None]], 1)).reshape(*z.shape, -1)


def test_another_signature_and_self_conditioning():
    model, params, x = made(
        lambda: nn.Linear(5, 2), call=lambda *args, x_hat: swapped(*args, x_hat)[..., 0], self_condition=True
    )
    assert model.loss_fn(params, x, KEY).isfinite()
    assert model.sample(params, KEY, 2, steps=2).shape == (2, 2)
    network = networks.from_module(partial(nn.Linear, 5, 4), call=swapped, self_condition=True, outputs=2, predicts="x")
    assert pickle.loads(pickle.dumps(network)) == network
    z = random.normal(random.key(3), (5, 2))
    assert denoiser.output(network, network.init(KEY, (2,)), z, torch.zeros(5)).shape == (5, 2, 2)


class Padded(kinds.Base):
    def forward(self, z, gamma, cond=None, *, mask):
        out = super().forward(z, gamma, cond)
        return out if mask is None else torch.where(mask, out, 0.0)


def test_a_masked_module_takes_the_mask():
    network = networks.from_module(Padded, masked=True)
    params, z, gamma = network.init(KEY, (2,)), random.normal(random.key(3), (5, 2)), torch.zeros(5)
    mask = torch.tensor([[True, False]] * 5)
    assert network.masked
    assert networks.Wrapped(network).masked
    assert not networks.from_module(Padded).masked
    whole, part = network.apply(params, z, gamma), network.apply(params, z, gamma, mask=mask)
    assert torch.equal(part, torch.where(mask, whole, 0.0))
    compiled = torch.compile(network.apply, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(params, z, gamma, mask=mask), part)
    assert equal(network.update(params, z, gamma, key=random.split(KEY, 5), mask=mask), params)
    own = networks.Network.of(network.init, network.apply, batched=True, masked=True)
    assert torch.equal(own.apply(params, z, gamma, mask=mask), part)


def test_a_module_in_a_time_of_its_own():
    """A DDPM's: with the index of its betas for gamma, a module that predicts by it exactly is exact."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    levels = torch.log(torch.expm1(-torch.log1p(-betas).cumsum(0))).float()

    def index(gamma):
        above = torch.searchsorted(levels, gamma.detach().contiguous()).clamp(1, 999)
        return above - 1 + (gamma - levels[above - 1]) / (levels[above] - levels[above - 1])

    class Table(nn.Module):
        def forward(self, z, time):
            return time[:, None].expand_as(z)

    network = networks.from_module(Table, time=index)
    at = torch.tensor([0, 1, 500, 999])
    found = denoiser.output(network, {}, torch.zeros(4, 2), levels[at])
    assert torch.equal(found, at[:, None].float().expand(4, 2))
    compiled = torch.compile(denoiser.output, fullgraph=True, backend="eager")
    assert torch.equal(compiled(network, {}, torch.zeros(4, 2), levels[at]), found)
    with pytest.raises(ValueError, match=r"time: expected shape \(4,\)"):
        denoiser.output(networks.from_module(Table, time=torch.sum), {}, torch.zeros(4, 2), levels[at])
    with pytest.raises(TypeError, match="time: expected a function"):
        networks.from_module(Table, time=1000)


@pytest.mark.parametrize("name", ["batch norm", "dropout", "attention with dropout", "GRU", "DiT"])
def test_mixed_precision_leaves_buffers_exact(name):
    model, params, x = made(KINDS[name])
    short = model._replace(network=networks.mixed(model.network))
    full, less = (torch.func.grad_and_value(m.loss_fn)(params, x, KEY) for m in (model, short))
    assert {leaf.dtype for leaf in optree.tree_leaves(less)} == {torch.float32}
    assert full[1] != less[1]
    assert abs(full[1] - less[1]) < 0.02 * full[1]
    table = torch.arange(300)

    class Table(kinds.Base):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", table)
            self.register_buffer("used", torch.ones(300, dtype=torch.bool))

        def body(self, h):
            assert torch.equal(self.table, table)
            assert self.used.dtype == torch.bool
            assert self.used.all()
            return h

    network = networks.mixed(networks.from_module(Table))
    denoiser.output(network, network.init(KEY, (2,)), torch.zeros(2, 2), torch.zeros(2))
