"""The model: gradients, conditions, self-conditioning, events of any shape, training, evaluation, one graph, bad input."""

import math
import pickle

import hypothesis.strategies as st
import perturb
import pytest
import torch
from backends import every_backend
from compare import close
from hypothesis import given, settings
from torch._dynamo.utils import counters
from versions import since_2_13

import purevdm
from purevdm import bfn, decoders, evaluation, networks, random, schedules, training

F64 = torch.float64


def continuous(event_shape=(3,), network=None, **options):
    network = networks.mlp(8, fourier=(), predicts="v", **(network or {}))
    return bfn.continuous(network, event_shape, 0.1, decoder=bfn.binned(5), **options)


def discretised(event_shape=(3,), network=None, **options):
    return bfn.discretised(networks.mlp(8, fourier=(), outputs=2, **(network or {})), event_shape, 5, 0.1, **options)


def discrete(event_shape=(3,), network=None, **options):
    return bfn.discrete(networks.mlp(8, fourier=(), **(network or {})), event_shape, 5, 2.0, **options)


KINDS = [continuous, discretised, discrete]


def data(n, event_shape=(3,)):
    return random.randint(random.key(11), (n, *event_shape), 0, 5)


def started(model):
    return perturb.perturbed(model.init(random.key(0)), 1, 0.2)


@pytest.mark.parametrize("timesteps", [0, 4])
@pytest.mark.parametrize("make", KINDS)
def test_losses_are_the_mean_bound_in_bits(make, timesteps):
    model = make(timesteps=timesteps)
    params, x = started(model), data(6)
    terms = bfn.bound.bound(model, params, x, model.draw(random.key(2), 6))
    loss, stats = model.loss_and_stats(params, x, random.key(2))
    want = {name: term.mean() / (3 * math.log(2)) for name, term in terms._asdict().items()}
    close((loss, stats), (sum(want.values()), want), 1e-5)
    # without the second batch
    short = model._replace(reconstruction=False)
    diffusion, parts = short.loss_and_stats(params, x, random.key(2))
    torch.testing.assert_close(diffusion, stats["diffusion"])
    assert parts["recon"] == 0
    torch.testing.assert_close(short.nll_bound(params, x, random.key(2)).recon, terms.recon)


@pytest.mark.parametrize("timesteps", [0, 4])
@pytest.mark.parametrize("make", KINDS)
def test_gradients_are_those_of_finite_differences(make, timesteps):
    model = make(timesteps=timesteps, dtype=F64)
    params, x = started(model), data(4)

    def loss(shift):
        first = {name: leaf + shift for name, leaf in params["network"]["dense1"].items()}
        moved = {"network": params["network"] | {"dense1": first}}
        return model.loss_fn(moved, x, random.key(3))

    at, step = torch.zeros((), dtype=F64), 1e-6
    grad = torch.func.grad(loss)(at)
    torch.testing.assert_close(grad, (loss(at + step) - loss(at - step)) / (2 * step), rtol=1e-5, atol=1e-7)
    _, forward = torch.func.jvp(loss, (at,), (torch.ones_like(at),))
    torch.testing.assert_close(grad, forward)


@settings(max_examples=10)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.sampled_from(KINDS), st.sampled_from([0, 3]))
def test_events_of_any_shape(shape, make, timesteps):
    shape = tuple(shape)
    model = make(shape, timesteps=timesteps)
    params, x = model.init(random.key(0)), data(2, shape)
    terms = model.nll_bound(params, x, random.key(1))
    assert [tuple(term.shape) for term in terms] == [(2,)] * 3
    assert terms.total.isfinite().all()
    drawn = model.sample(params, random.key(2), 3, steps=2)
    assert drawn.shape == (3, *shape)
    assert drawn.min() >= 0
    assert drawn.max() <= 4


@pytest.mark.parametrize("make", KINDS)
def test_an_example_s_bound_is_its_own(make):
    model = make(timesteps=3)
    params, x = started(model), data(5)
    seeds = model.seeds(random.key(3), 5)
    part = model.nll_bound(params, x[1:3], seeds.rows(slice(1, 3)))
    close(part, [term[1:3] for term in model.nll_bound(params, x, seeds)], 1e-5)


def test_layouts_of_classes_are_one_model():
    """A network that treats dimensions alike gives the same losses whichever way classes lie."""
    p = torch.tensor([0.2, 0.3, 0.5])

    def last(params, seen, t, cond=None, key=None):
        return p.log() + seen * t

    def first(params, seen, t, cond=None, key=None):
        return (p.log()[None, :, None] + seen.unflatten(0, (2, 3)) * t).flatten(0, 1)

    def init(key, shape):
        assert shape in ((2, 4, 3), (6, 4))
        return {}

    def found(apply, classes_last):
        model = bfn.discrete(networks.Network.of(init, apply), (2, 4), 3, 2.0, classes_last=classes_last, timesteps=3)
        x = random.randint(random.key(0), (6, 2, 4), 0, 3)
        bound = model.nll_bound({"network": {}}, x, random.key(1)).total
        return bound, model.sample({"network": {}}, random.key(2), 2, steps=3)

    torch.testing.assert_close(found(last, True), found(first, False))


@pytest.mark.parametrize("make", KINDS)
def test_self_conditioning_is_two_passes(make):
    """The second takes the first's mean."""
    model = make(network=dict(self_condition=True), dtype=F64)
    params, x = started(model), data(6)
    noise = model.draw(random.key(2), 6, train=False)
    h = model.output.encode(x, F64)
    w = bfn.flows.latent(h, purevdm.process.align(model.flow.snr(noise.t), h), noise.eps)

    def look(x_hat):
        return bfn.bound.outputs(model, params["network"], w, noise.t, x_hat=x_hat)

    first = look(None)
    want = look(torch.func.vmap(model.flow.estimate)(model.output.mean(first)))
    got = bfn.bound.in_bound(model, params["network"], w, noise.t)
    for a, b, c in zip(got, want, first, strict=True):
        torch.testing.assert_close(a, b)
        assert not torch.allclose(a, c)
    assert model.sample(params, random.key(3), 2, steps=4, solver=bfn.solvers.sde_2()).shape == (2, 3)


def test_dropout_is_only_for_training():
    line = networks.unet(8, (1,), 1, adapter="c l -> l c", groups=4, dropout=0.5)
    model = bfn.discrete(line, (1, 8), 3, 1.0)
    params, x = started(model), random.randint(random.key(0), (4, 1, 8), 0, 3)
    losses = [model.loss_fn(params, x, random.key(1), train=train) for train in (True, False)]
    assert losses[0] != losses[1]
    torch.testing.assert_close(losses[1], model.nll_bound(params, x, random.key(1)).total.mean() / (8 * math.log(2)))


@pytest.mark.parametrize("make", KINDS)
def test_guidance_goes_from_none_through_the_condition_and_past_it(make):
    model = make(network=dict(classes=3, cond_drop=0.5))
    params, label = started(model), torch.tensor([0, 1, 2])
    options = dict(steps=4, trajectory=True, solver=bfn.solvers.ode_1())
    free, plain = (model.sample(params, random.key(1), 3, cond=c, **options).theta for c in (None, label))
    weighed = {w: model.sample(params, random.key(1), 3, cond=label, guidance=w, **options).theta for w in (0.0, 1.0, 3.0)}
    torch.testing.assert_close(weighed[0.0], free)
    torch.testing.assert_close(weighed[1.0], plain)
    assert not torch.allclose(weighed[3.0], plain)
    each = torch.tensor([0.0, 1.0, 3.0])
    per_example = model.sample(params, random.key(1), 3, cond=label, guidance=each, **options).theta
    for row, weight in enumerate((0.0, 1.0, 3.0)):
        torch.testing.assert_close(per_example[:, row], weighed[weight][:, row])


def test_real_data_decode_to_real_data():
    decoder = decoders.gaussian(loc=5.0, scale=2.0)
    model = bfn.continuous(networks.mlp(8, predicts="v"), (2,), 0.05, decoder=decoder, recon_std=0.2)
    params = started(model)
    mode, drawn = (model.sample(params, random.key(1), 500, steps=3, decode=how) for how in ("argmax", "sample"))
    spread = (drawn - mode) / 2.0
    assert abs(spread.std() - 0.2) < 0.03
    x = 2.0 * random.normal(random.key(0), (4, 2)) + 5.0
    # a density: other units shift the bound by the log of the scale
    plain = bfn.continuous(model.network, (2,), 0.05, recon_std=0.2)
    a, b = (m.nll_bound(params, y, random.key(2)).total for m, y in ((model, x), (plain, (x - 5.0) / 2.0)))
    torch.testing.assert_close(a, b + 2 * math.log(2.0), rtol=1e-4, atol=1e-4)


def test_samples_are_differentiable_where_asked():
    model = bfn.continuous(networks.mlp(8, fourier=(), predicts="v"), (2,), 0.1, dtype=F64)
    params, options = started(model), dict(steps=3, solver=bfn.solvers.ode_2())

    def spread(scale):
        last = {name: scale * leaf for name, leaf in params["network"]["dense3"].items()}
        moved = {"network": params["network"] | {"dense3": last}}
        return model.sample(moved, random.key(1), 4, differentiable=True, **options).square().mean()

    one, step = torch.ones((), dtype=F64), 1e-6
    grad = torch.func.grad(spread)(one)
    torch.testing.assert_close(grad, (spread(one + step) - spread(one - step)) / (2 * step), rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="differentiable"):
        torch.func.grad(lambda p: model.sample(p, random.key(1), 4, **options).sum())(params)
    with pytest.raises(ValueError, match="differentiable"):
        discrete().sample(started(discrete()), random.key(1), 2, differentiable=True)


@pytest.mark.parametrize("grid", ["time", "root"])
@pytest.mark.parametrize("make", KINDS)
def test_samples_start_and_stop_at_any_time_and_from_any_latents(make, grid):
    model = make()
    params, key, options = started(model), random.key(1), dict(solver=bfn.solvers.ode_1(), grid=grid)
    whole = model.sample(params, key, 4, steps=8, trajectory=True, **options)
    w_0 = random.normal(random.split(key, 3)[0], (4, *model.flow.latent_shape(model.event_shape)), model.dtype)
    assert torch.equal(model.sample(params, random.key(2), 4, steps=8, z=w_0, **options), whole.x)
    middle = 0.5 if grid == "time" else 0.25
    half = model.sample(params, key, 4, steps=4, until=middle, trajectory=True, **options)
    assert half.x is None
    close(half.theta, whole.theta[:5], 1e-5)
    w = model.sample(params, key, 4, steps=4, until=torch.tensor(middle), **options)
    rest = model.sample(params, key, 4, steps=4, z=w, start=middle, trajectory=True, **options)
    close(rest.theta, whole.theta[4:], 1e-5)


@pytest.mark.parametrize("make", KINDS)
def test_training_lowers_the_loss(make):
    """The library's own loop: gradients in pieces, steps, an average."""
    model = make(reconstruction=False)
    state, grad_fn = training.init(model, random.key(0)), training.gradients(model, accumulate=2)
    x, settings = data(1).expand(16, 3), training.AdamW(lr=2e-2, warmup=0, weight_decay=0.0)
    before = model.loss_fn(state.params, x, random.key(3))
    for _ in range(30):
        state, metrics = training.train_step(settings, grad_fn, state, x, random.key(1))
    assert model.loss_fn(state.params, x, random.key(3)) < 0.75 * before  # the same times and noise
    assert set(metrics) == {"loss", "recon", "prior", "diffusion", "grad_norm", "lr"}
    whole = training.gradients(model)(state.params, x, model.seeds(random.key(2), 16))
    close(grad_fn(state.params, x, model.seeds(random.key(2), 16)), whole, 1e-4)
    with pytest.raises(ValueError, match="variance: expected False for a BFN"):
        training.gradients(model, variance=True)


def test_evaluation_takes_bfns_beside_diffusion_models():
    model = discretised()
    vdm = purevdm.vdm(networks.mlp(8), schedules.fixed_linear(), (3,), 5)
    params, theirs, x = started(model), vdm.init(random.key(0)), data(32)
    found = evaluation.evaluate(model, params, x.split(16), random.key(1), passes=2, timesteps=10)
    assert found.unit == "bits/dim"
    assert found.terms["prior"].mean == 0
    assert 0 < found.terms["recon"].mean < found.nll.mean
    each = [evaluation.per_example(m, p, [x], random.key(2)) for m, p in ((model, params), (vdm, theirs))]
    pair = evaluation.compare(*each)
    assert abs(pair.a.nll.mean - pair.b.nll.mean - pair.difference.mean) < 1e-9
    real = bfn.continuous(networks.mlp(8, predicts="v"), (2,), 0.1)
    points = random.normal(random.key(0), (8, 2))
    assert evaluation.evaluate(real, started(real), [points], random.key(1)).unit == "nats"


@since_2_13
@every_backend
def test_one_graph_of_gradients(backend):
    model = discretised(network=dict(classes=3), timesteps=4)
    params, x, label = started(model), data(4), torch.arange(4) % 3
    step = torch.func.grad_and_value(model.loss_fn)
    counters.clear()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for seed in (1, 2):
        got, want = (f(params, x, random.key(seed), label) for f in (compiled, step))
        close(got, want, 1e-4)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@since_2_13
@pytest.mark.parametrize("timesteps", [0, 4])
@pytest.mark.parametrize("make", KINDS)
def test_every_loss_compiles_also_with_dynamic_numbers(make, timesteps):
    model = make(timesteps=timesteps)
    params = started(model)
    step = torch.func.grad_and_value(model.loss_fn)
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for n in (4, 6):
        close(compiled(params, data(n), random.key(n)), step(params, data(n), random.key(n)), 1e-4)


@pytest.mark.parametrize("make", KINDS)
def test_models_pickle_and_compare(make):
    model = make()
    assert pickle.loads(pickle.dumps(model)) == model == make(timesteps=None)
    assert hash(model) == hash(make())
    assert model != make(timesteps=3)
    assert len(repr(model)) < 1000


def sample(n=2, **options):
    model = discrete()
    return model.sample(started(model), random.key(0), n, **(dict(steps=2) | options))


MLP = networks.mlp(4)
BAD = [
    (lambda: bfn.continuous(MLP, (2,), 0.1, recon_std=0.0), ValueError, "recon_std"),
    (lambda: bfn.continuous(networks.mlp(4, outputs=2), (2,), 0.1), ValueError, "network: expected one with outputs=None"),
    (lambda: bfn.continuous(MLP, (2,), 1e-10), ValueError, "sigma_1: expected a signal-to-noise ratio of at most"),
    (lambda: bfn.continuous(MLP, (2,), 1e-100, dtype=F64), ValueError, "sigma_1: expected a signal-to-noise ratio"),
    (lambda: bfn.discretised(MLP, (2,), 4, 0.1), ValueError, "network: expected one with outputs=2"),
    (lambda: discretised(std_bounds=(0.0, 1.0)), ValueError, "std_bounds"),
    (lambda: bfn.discrete(MLP, (), 3, 1.0), ValueError, "event_shape"),
    (lambda: bfn.discrete(MLP, (2,), 2, 1e25), ValueError, "beta_1: expected a signal-to-noise ratio of at most"),
    (lambda: discrete(steps=3), TypeError, "unexpected keyword argument .steps"),
    (lambda: discrete(network=dict(gamma_min=-1.0, gamma_max=1.0)), ValueError, "network: it normalises gamma"),
    (lambda: sample(solver=purevdm.solvers.ddim()), TypeError, r"solver: expected a Solver such as purevdm\.bfn"),
    (lambda: sample(guidance=2.0), ValueError, "cond"),
    (lambda: sample(start=0.5), ValueError, "z: expected the latents at the time `start`"),
    (lambda: sample(until=0.0), ValueError, "start, until: expected 0 <= start < until <= 1, got 0.0 and 0.0"),
]


@pytest.mark.parametrize(("call", "error", "word"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_does_not_fit_is_named(call, error, word):
    with pytest.raises(error, match=word):
        call()


def test_a_small_deviation_is_no_error():
    bfn.continuous(MLP, event_shape=(2,), sigma_1=1e-9)
