"""The assembled model: composition through torch.func, compiled graphs, bad input at the door."""

import functools
import math
import operator
import pickle
import re
import subprocess
import sys
import warnings

import hypothesis.strategies as st
import optree
import perturb
import pytest
import torch
from backends import every_backend
from compare import close, decoded_alike
from hypothesis import given, settings
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code
from versions import since_2_13

import purevdm
from purevdm import bound, decoders, importance, networks, nn, random, schedules
from purevdm.decoders._discrete import INTEGERS

seeds = st.integers(0, 2**31)
tree_map = optree.tree_map
tree_leaves = optree.tree_leaves


def perturbed(model):
    return perturb.perturbed(model.init(random.key(0)), 1, 0.05)


def points(**options):
    return purevdm.vdm(networks.mlp(16, fourier=(0,)), schedules.learned_linear(), (2,), **options)


def images():
    network = networks.vdm_unet(8, 1, groups=4, dropout=0.1, fourier=(0,), cond_dim=1)
    return purevdm.vdm(network, schedules.learned_linear(), (1, 4, 4), 16)


@settings(max_examples=8)
@given(seeds, st.integers(1, 5))
def test_the_loss_is_the_mean_bound_in_bits(seed, n):
    model = points()
    params, x = perturbed(model), random.randint(random.key(seed), (n, 2), 0, 256)
    loss, stats = model.loss_and_stats(params, x, random.key(seed))
    terms = model.nll_bound(params, x, random.key(seed))
    torch.testing.assert_close(loss, terms.total.mean() / (2 * math.log(2)))
    torch.testing.assert_close(loss, stats["recon"] + stats["prior"] + stats["diffusion"])
    assert torch.equal(loss, model.loss_fn(params, x, random.key(seed)))
    assert terms.recon.shape == terms.prior.shape == terms.diffusion.shape == (n,)
    torch.testing.assert_close(stats["gamma_1"] - stats["gamma_0"], params["schedule"]["w"].abs())
    assert (terms.recon >= 0).all()
    assert (terms.prior >= 0).all()


@pytest.mark.parametrize("make", [points, images], ids=["points", "images"])
def test_batch_is_a_loop_over_examples(make):
    model = make()
    params, n = perturbed(model), 3
    x = random.randint(random.key(1), (n, *model.event_shape), 0, model.decoder.vocab_size)
    cond = torch.tensor([0.0, 1.0, 2.0]) if make is images else None
    noise = model.draw(random.key(2), n)
    batch = bound.bound(model, params, x, noise, cond)
    for i in range(n):
        one = model.nll_bound_of_one(params, x[i], type(noise)(*(f[i] for f in noise)), None if cond is None else cond[i])
        close(one, tree_map(lambda term, i=i: term[i], batch), 1e-4)


def test_per_example_gradients_sum_to_the_batch_gradient():
    model = points()
    params, n = perturbed(model), 4
    x, noise = random.randint(random.key(1), (n, 2), 0, 256), model.draw(random.key(2), n)

    def one(params, x, noise):
        return model.nll_bound_of_one(params, x, noise).total

    each = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))(params, x, noise)
    whole = torch.func.grad(lambda p: torch.func.vmap(one, in_dims=(None, 0, 0))(p, x, noise).sum())(params)
    close(tree_map(lambda g: g.sum(0), each), whole, 1e-4)
    # and through the loss itself, by the same keys: the mean in bits
    batch = torch.func.grad(model.loss_fn)(params, x, random.key(2))
    close(tree_map(lambda g: g.mean(0) / (2 * math.log(2)), each), batch, 1e-4)


def test_vmap_over_keys_and_batches():
    """A loss under vmap over examples, each with its key: values are still checked, and named."""
    model = points()
    params, keys = perturbed(model), random.split(random.key(0), 4)
    x = random.randint(random.key(1), (4, 1, 2), 0, 256)
    mapped = torch.func.vmap(model.loss_fn, in_dims=(None, 0, 0))(params, x, keys)
    looped = torch.stack([model.loss_fn(params, a, k) for a, k in zip(x, keys, strict=True)])
    torch.testing.assert_close(mapped, looped, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match=r"x: .*300"):
        torch.func.vmap(model.loss_fn, in_dims=(None, 0, 0))(params, x * 0 + 300, keys)


@since_2_13
def test_the_compiled_step_is_the_eager_one():
    """Two convolutions, a norm, dropout and a condition: one graph for every key and, where asked for, every batch. Whole
    U-Nets are in their files."""

    def init(key, shape):
        k_into, k_context, k_out = random.split(key, 3)
        return {
            "into": nn.conv_init(k_into, 1, 4, (3, 3)),
            "context": nn.dense_init(k_context, 2, 4),
            "norm": nn.group_norm_init(key, 4),
            "out": nn.conv_init(k_out, 4, 1, (3, 3)),
        }

    def apply(params, z, gamma, cond=None, key=None):
        h = nn.conv(params["into"], z)
        h = h + nn.over_space(nn.dense(params["context"], torch.stack([gamma / 10.0, cond])), h)
        h = nn.swish(nn.group_norm(params["norm"], h, 2))
        h = h if key is None else nn.dropout(random.bernoulli(key, 0.9, h.shape), h, 0.1)
        return nn.conv(params["out"], h)

    model = purevdm.vdm(networks.Network.of(init, apply), schedules.learned_linear(), (1, 4, 4), 16)
    params = perturbed(model)
    eager = torch.func.grad_and_value(model.loss_fn)
    counters.clear()
    step = torch.compile(eager, fullgraph=True)
    for i, n in enumerate((20, 17, 33)):
        x, cond = random.randint(random.key(i), (n, 1, 4, 4), 0, 16), torch.arange(n) / n
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(cond, 0)
        got, want = step(params, x, random.key(9 + i), cond), eager(params, x, random.key(9 + i), cond)
        close(got, want, 1e-4)
        # fused optimisers take a gradient to lie in memory as its parameter does
        same = tree_map(lambda grad, leaf: grad.stride() == leaf.stride(), got[0], params)
        assert all(tree_leaves(same))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@every_backend
def test_compiled_evaluation_in_discrete_time(backend):
    model = purevdm.vdm(networks.mlp(8, fourier=(0,)), schedules.monotone_mlp(hidden=8), (2,), timesteps=10)
    params = perturbed(model)
    x = random.randint(random.key(0), (3, 2), 0, 256)
    compiled = torch.compile(model.nll_bound, fullgraph=True, backend=backend)
    close(compiled(params, x, random.key(1)), model.nll_bound(params, x, random.key(1)), 1e-5)


def test_compiled_reconstruction_never_holds_the_vocabulary():
    """4096 pixels of 65536 values: an axis of values would take a gibibyte for each intermediate."""
    d = decoders.discrete(65536)
    x, eps = random.randint(random.key(0), (4096,), 0, 65536), random.normal(random.key(1), (4096,))

    @torch.compile(fullgraph=True)
    def step(x, eps, gamma_0):
        return torch.func.grad_and_value(lambda g: d.reconstruction({}, x, eps, g).sum())(gamma_0)

    (grad, _), code = run_and_get_code(step, x, eps, torch.tensor(-20.0))
    shapes = re.findall(r"empty_strided\w*\(\(([\d, ]*)\)", "".join(code))
    sizes = [math.prod(map(int, re.findall(r"\d+", shape))) for shape in shapes]
    assert sizes
    assert max(sizes) <= 2**20  # of 2**28
    eager = torch.func.grad(lambda g, x, eps: d.reconstruction({}, x, eps, g).sum())
    want = sum(eager(torch.tensor(-20.0), *part) for part in zip(x.split(64), eps.split(64), strict=True))
    close(grad, want, 1e-3)  # 4096 terms of either sign
    assert grad.isfinite()


@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3), (2, 2, 2, 2)])
def test_events_of_any_rank(shape):
    model = purevdm.vdm(networks.mlp(8), schedules.fixed_linear(), shape, 5)
    params = model.init(random.key(0))
    x = random.randint(random.key(1), (3, *shape), 0, 5, torch.uint8)
    assert model.loss_fn(params, x, random.key(2)).isfinite()
    samples = model.sample(params, random.key(3), 2, steps=3)
    assert samples.shape == (2, *shape)
    assert ((samples >= 0) & (samples < 5)).all()


def test_a_model_is_data():
    """It pickles, compares, prints itself, and changes by _replace; in a compiled graph, too."""
    model = images()
    again = pickle.loads(pickle.dumps(model))
    assert again == model
    assert hash(again) == hash(model)
    assert model != model._replace(timesteps=5)
    assert model != purevdm.vdm(networks.vdm_unet(8, 2, groups=4, cond_dim=1), schedules.learned_linear(), (1, 4, 4), 16)
    for word in ("UNet(", "embed=8", "Linear(gamma_min=-7.75", "Discrete(vocab_size=16", "event_shape=(1, 4, 4)"):
        assert word in repr(model)
    assert len(repr(model)) < 1000
    assert "0x" not in repr(model)
    params, x = points().init(random.key(0)), random.randint(random.key(1), (5, 2), 0, 256)
    continuous, discrete = points(), points(timesteps=3)
    assert continuous._replace(timesteps=3) == discrete
    assert torch.equal(*(m.loss_fn(params, x, random.key(2)) for m in (continuous._replace(timesteps=3), discrete)))
    assert not torch.equal(*(m.loss_fn(params, x, random.key(2)) for m in (continuous, discrete)))
    other = points()._replace(decoder=decoders.discrete(16))
    with pytest.raises(ValueError, match=r"integers in \[0, 15\]"):
        other.loss_fn(params, x, random.key(2))


def test_seeds_stand_for_a_key():
    model = points()
    params, x, key = perturbed(model), random.randint(random.key(1), (6, 2), 0, 256), random.key(2)
    seeds = model.seeds(key, 6)
    assert torch.equal(model.loss_fn(params, x, seeds), model.loss_fn(params, x, key))
    rows = torch.cat([model.nll_bound(params, x[i : i + 2], seeds.rows(slice(i, i + 2))).total for i in (0, 2, 4)])
    close(rows, model.nll_bound(params, x, key).total, 1e-5)
    with pytest.raises(ValueError, match=r"key.t: expected shape \(6,\)"):
        model.loss_fn(params, x, seeds.rows(slice(0, 2)))
    with pytest.raises(TypeError, match=r"key.t: expected torch.float32"):
        model.loss_fn(params, x, seeds._replace(t=seeds.t.double()))


def test_noise_depends_on_the_dtype_and_parameters_do_not():
    single, double = points(), points(dtype=torch.float64)
    params, exact = (model.init(random.key(0)) for model in (single, double))
    assert all(torch.equal(a.double(), b) for a, b in zip(tree_leaves(params), tree_leaves(exact), strict=True))
    noise, other = (model.draw(KEY, 20) for model in (single, double))
    assert torch.equal(noise.key, other.key)
    assert all((a - b).abs().mean() > 0.1 for a, b in zip(noise[1:3], other[1:3], strict=True))
    x = random.randint(random.key(1), (20, 2), 0, 256)
    same = noise._replace(t=noise.t.double(), eps_0=noise.eps_0.double(), eps=noise.eps.double())
    close(bound.bound(single, params, x, noise), bound.bound(double, exact, x, same), 1e-4)


def test_endpoints_are_told_once():
    """A network left without takes the schedule's; another pair than the schedule's is refused."""
    schedule = schedules.learned_linear(-8.0, 4.0)
    z = torch.ones(2)
    for network in (networks.mlp(8), networks.mlp(8, gamma_min=-8.0, gamma_max=4.0)):
        model = purevdm.vdm(network, schedule, (2,))
        assert model.network.endpoints == (-8.0, 4.0)
        params = model.init(random.key(0))
        outs = [model.eps_hat(params, z[None], torch.tensor([g])) for g in (-8.0, 4.0)]
        assert (outs[0] - outs[1]).norm() > 1e-3
    assert purevdm.vdm(networks.mlp(8), schedule, (2,)) == purevdm.vdm(network, schedule, (2,))
    own = schedules.Schedule.of(lambda key: {}, lambda params, t: -6.0 + 9.0 * t)
    assert purevdm.vdm(networks.mlp(8), own, (2,)).network.endpoints == (-6.0, 3.0)
    with pytest.raises(ValueError, match=r"network: it normalises gamma between -13\.3 and 5.0, but the model"):
        purevdm.vdm(networks.vdm_unet(32, 1, gamma_min=-13.3, gamma_max=5.0), schedule, (3, 4, 4))


@pytest.mark.parametrize(
    "gamma",
    [lambda p, t: 5.0 - 18.0 * t, lambda p, t: 0.0 * t, lambda p, t: torch.log(t), lambda p, t: torch.stack([t, -t])],
    ids=["falling", "flat", "infinite", "one falling"],
)
def test_schedules_that_do_not_increase_are_refused(gamma):
    model = purevdm.vdm(
        networks.Network.of(lambda key, shape: {}, lambda params, z, gamma, cond=None, key=None: z),
        schedules.Schedule.of(lambda key: {}, gamma, endpoints=(-13.3, 5.0)),
        (2,),
    )
    params = {"network": {}, "schedule": {}}
    for call in (
        lambda: model.loss_fn(params, X, KEY),
        lambda: model.nll_bound_of_one(params, X[0], purevdm.Noise(*(field[0] for field in model.draw(KEY, 1)))),
        lambda: model.sample(params, KEY, 2, steps=2),
    ):
        with pytest.raises(ValueError, match="schedule: expected gamma"):
            call()


@since_2_13
@every_backend
def test_dynamic_shapes_compile(backend):
    """With every size and number of the model symbolic."""
    model = purevdm.vdm(networks.mlp(8, 1, fourier=(0,)), schedules.learned_linear(-8.0, 4.0), (2,), 16)
    params, x = perturbed(model), random.randint(random.key(1), (5, 2), 0, 16)
    step = torch.func.grad_and_value(model.loss_fn)
    got = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)(params, x, random.key(2))
    close(got, step(params, x, random.key(2)), 1e-4)
    sample = torch.compile(model.sample, fullgraph=True, dynamic=True, backend=backend)
    got = sample(params, random.key(3), 3, steps=torch.tensor(4))
    decoded_alike(got, model.sample(params, random.key(3), 3, steps=4))


@since_2_13
def test_a_graph_refuses_parameters_of_another_model():
    step = torch.compile(MODEL.loss_fn, fullgraph=True)
    with pytest.raises(Exception, match=r"params\.network\.dense2\.bias: expected shape"):
        step(change("network.dense2.bias", torch.ones(1)), X, KEY)


def test_import_has_no_side_effects():
    code = (
        "import sys, torch; s = torch.random.get_rng_state(); before = set(sys.modules); import purevdm; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "assert torch.equal(s, torch.random.get_rng_state()); assert torch.get_default_dtype() == torch.float32; "
        "assert 'torch._inductor' not in sys.modules and 'msgpack' not in sys.modules; "
        "assert not new & {'sklearn', 'matplotlib', 'hypothesis', 'pytest'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


MODEL = points()
PARAMS = MODEL.init(random.key(0))
X = torch.zeros(3, 2, dtype=torch.int64)
KEY = random.key(1)


def change(path, leaf):
    """The parameters with another leaf, or without it."""
    params = optree.tree_map(torch.clone, PARAMS)
    *above, name = path.split(".")
    functools.reduce(operator.getitem, above, params)[name] = leaf
    return params


NAN = change("network.dense2.kernel", torch.full((16, 16), math.nan))
INFINITE = change("schedule.b", torch.tensor(-math.inf))
OF_SEVEN = purevdm.vdm(
    networks.Network.of(lambda key, shape: {}, lambda *a, **k: torch.zeros(7)), schedules.fixed_linear(), (2,)
)


@pytest.mark.parametrize(
    ("params", "x", "key", "error", "word"),
    [
        (PARAMS, X + 256, KEY, ValueError, r"x: expected integers in \[0, 255\], got values from 256"),
        (PARAMS, X[:, :1], KEY, ValueError, r"x: expected shape \(B, 2\)"),
        (PARAMS, X[:0], KEY, ValueError, "x: expected at least one example"),
        (PARAMS, X, 0, TypeError, r"key: .*random\.key\(0\)"),
        (NAN, X, KEY, ValueError, "params.network.dense2.kernel: expected finite numbers, got NaN"),
        (INFINITE, X, KEY, ValueError, "params.schedule.b: expected finite numbers, got an infinity"),
        (
            PARAMS["network"],
            X,
            KEY,
            ValueError,
            "params: expected a dict with the keys 'network' and 'schedule'.*got .*dense1",
        ),
        (change("network.dense2.bias", None), X, KEY, ValueError, r"params: .*params.network.dense2.bias of shape \(16,\)"),
        (change("network.dense2.bias", torch.ones(1)), X, KEY, ValueError, r"params.network.dense2.bias: expected shape"),
        (change("network.dense2.bias", torch.ones(16).double()), X, KEY, TypeError, "bias: expected torch.float32"),
        (change("network.dense2.bias", 3.0), X, KEY, TypeError, "params.network.dense2.bias: expected a torch.Tensor"),
        (change("network.dense9", torch.ones(1)), X, KEY, ValueError, "params: expected no leaf params.network.dense9"),
        (change("schedule.w", torch.zeros(())), X, KEY, ValueError, "schedule: expected gamma.* strictly increasing"),
    ],
)
def test_bad_input_to_losses_is_named(params, x, key, error, word):
    """In a gradient, too. The zoo (doors.py) tries more."""
    for call in (MODEL.loss_fn, MODEL.nll_bound, *([torch.func.grad(MODEL.loss_fn)] if params is NAN else ())):
        with pytest.raises(error, match=word):
            call(params, x, key)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: points(vocab_size=4, decoder=decoders.discrete(4)), "vocab_size"),
        (lambda: purevdm.vdm(networks.mlp(), schedules.fixed_linear(), 2), "event_shape"),
        (lambda: MODEL.eps_hat(PARAMS, torch.zeros(3, 4), torch.zeros(3)), "z: expected shape"),
        (lambda: MODEL.eps_hat(PARAMS, torch.zeros(3, 2), torch.zeros(())), "gamma: expected shape"),
        (lambda: MODEL.nll_bound_of_one(PARAMS, X, MODEL.draw(KEY, 3)), "x: expected shape"),
        (lambda: MODEL.nll_bound_of_one(PARAMS, X[0], MODEL.draw(KEY, 3)), r"noise\.t"),
        (lambda: OF_SEVEN.loss_fn(OF_SEVEN.init(KEY), X, KEY), r"network: expected an output of shape \(2,\)"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises((TypeError, ValueError), match=word):
        call()


def test_conditions_that_are_not_finite_are_named():
    model = purevdm.vdm(networks.mlp(8, cond_dim=2, classes=3), schedules.learned_linear(), (2,))
    params = model.init(random.key(0))
    cond = networks.Condition(vector=torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), label=torch.tensor([0, 1]))
    for call in (lambda: model.loss_fn(params, X[:2], KEY, cond), lambda: model.sample(params, KEY, 2, cond=cond)):
        with pytest.raises(ValueError, match=r"cond\.vector: expected finite numbers, got NaN"):
            call()


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 100_663), (torch.float64, 54_043_195_528_445)])
def test_more_steps_than_a_dtype_resolves_are_refused(dtype, most):
    options = dict(network=networks.mlp(8, fourier=()), schedule=schedules.fixed_linear(), event_shape=(2,), dtype=dtype)
    assert purevdm.vdm(**options, timesteps=most).timesteps == most
    with pytest.raises(ValueError, match=f"timesteps: expected an integer at least 0 and at most {most}"):
        purevdm.vdm(**options, timesteps=most + 1)
    model = purevdm.vdm(**options)
    with pytest.raises(ValueError, match="timesteps: expected an integer"):
        model._replace(timesteps=2 * most).loss_fn(model.init(random.key(0)), torch.zeros(2, 2).long(), random.key(1))


def test_the_bound_in_the_most_steps_is_that_of_continuous_time():
    model = purevdm.vdm(networks.mlp(8, fourier=()), schedules.fixed_linear(), event_shape=(2,))
    params, x = model.init(random.key(0)), random.randint(random.key(1), (512, 2), 0, 256)
    many, endless = (model._replace(timesteps=t).nll_bound(params, x, random.key(2)).total.mean() for t in (100_663, 0))
    assert abs(many - endless) <= 0.01 * endless


def test_data_of_unsigned_integers_beyond_the_vocabulary_are_named():
    model = purevdm.vdm(networks.mlp(4), schedules.learned_linear(), (2,), 8)
    params = model.init(random.key(0))
    for dtype in (torch.uint16, torch.uint32, torch.uint64):
        x = torch.tensor([[1, 9]]).to(dtype)
        with pytest.raises(ValueError, match=r"x: expected integers in \[0, 7\], got values from 1"):
            model.nll_bound(params, x, random.key(1))


@pytest.mark.parametrize("mask", [None, torch.tensor([[True, False]])], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_data_of_every_integer_dtype_are_the_same_data(dtype, mask):
    model = purevdm.vdm(networks.mlp(4), schedules.learned_linear(), (2,), 8)
    params, x = model.init(random.key(0)), torch.arange(6).reshape(3, 2)
    found, want = (model.nll_bound(params, data, random.key(1), mask=mask).total for data in (x.to(dtype), x))
    assert torch.equal(found, want)


def test_parameters_that_no_memory_holds_are_refused_before_any_is_made():
    for hidden in (2**31, 2**40):
        with pytest.raises(ValueError, match="init: expected parameters that a memory holds, got"):
            purevdm.vdm(networks.mlp(hidden), schedules.learned_linear(), (2,), 8)


def test_gamma_min_suits_the_number_of_levels_where_it_was_left_out():
    def made(schedule, vocab_size=None, **options):
        return purevdm.vdm(networks.mlp(8, fourier=()), schedule, (2,), vocab_size, **options).schedule

    makers = (schedules.fixed_linear, schedules.learned_linear, schedules.monotone_mlp, schedules.constrained_monotone)
    for make in makers:
        assert made(make()) == make(-13.3, 5.0)  # the paper's for 256 levels, bit for bit
        assert made(make(gamma_max=4.0), 256).endpoints == (-13.3, 4.0)
        assert made(make(), decoder=decoders.gaussian()) == make(-13.3, 5.0)
        assert made(make(-13.3), 16) == make(-13.3)
        for levels in (2, 17, 1000, 2**16):
            found = made(make(), levels)
            assert found == make(-13.3 - 2.0 * math.log((2 / 256) / (2 / levels)), 5.0) == pickle.loads(pickle.dumps(found))
            assert decoders.reconstruction_bits(levels, found.endpoints[0]) < 0.011
    warped = importance.warped(schedules.learned_linear())
    assert made(warped, 16) == importance.warped(schedules.learned_linear(schedules.gamma_min_for(2 / 16), 5.0))
    # neighbours of narrow data lie closer, and one's own changes stay
    assert made(schedules.fixed_linear(), decoder=decoders.discrete(256, scale=4.0)).endpoints[0] == -13.3 - 2 * math.log(4)
    own = schedules.Schedule.of(lambda key: {}, lambda params, t: -9.0 + 12.0 * t)
    assert made(own, 17) == own
    params = purevdm.vdm(networks.mlp(8, fourier=()), schedules.learned_linear(), (2,), 2).init(random.key(0))
    assert params["schedule"]["b"] == torch.tensor(schedules.gamma_min_for(1.0))


@pytest.mark.parametrize(
    ("gamma_0", "levels", "bits"), [(-8.0, 256, "3.25"), (-13.3, 2**16, "7.45"), (-12.0, 256, "0.417"), (-1.0, 2, "0.631")]
)
def test_a_costly_reconstruction_is_warned_of_with_its_number(gamma_0, levels, bits):
    def made(gamma_0):
        return purevdm.vdm(networks.mlp(8, fourier=()), schedules.fixed_linear(gamma_0, 5.0), (50,), levels)

    with pytest.warns(UserWarning, match=rf"schedule: at gamma_0 = {gamma_0:g} reconstruction alone costs {bits} bits/dim"):
        model = made(gamma_0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(schedules.gamma_min_for(2 / levels))
    if levels <= 256:  # the closed form is what the bound says
        x = random.randint(random.key(0), (400, 50), 0, levels)
        found = model.nll_bound(model.init(random.key(1)), x, random.key(2)).recon / (50 * math.log(2))
        error = found.std() / math.sqrt(len(x))
        assert abs(found.mean() - decoders.reconstruction_bits(levels, gamma_0)) < 4 * error


def test_a_function_without_a_module_makes_a_network():
    """As one that was made by exec, or in a session of doctest."""
    made = {}
    exec("def apply(params, z, gamma, cond=None, key=None):\n    return z", {"__name__": None}, made)
    network = networks.Network.of(lambda key, shape: {}, made["apply"])
    assert made["apply"].__module__ is None
    model = purevdm.vdm(network, schedules.fixed_linear(-14.0, 4.0), (2,))
    assert model.gamma(model.init(KEY), torch.tensor(1.0)) == 4.0
