"""The model: losses, conditions, events of any shape, training, evaluation, one graph, bad input."""

import math
import pickle
from functools import partial

import chains
import hypothesis.strategies as st
import pytest
import torch
from backends import every_backend
from compare import close
from hypothesis import given, settings
from perturb import perturbed
from torch._dynamo.utils import counters
from versions import since_2_13

import purevdm
from purevdm import evaluation, masked, networks, random, schedules, training
from purevdm.testing import check_model

F64 = torch.float64


def make(event_shape=(3,), network=None, **options):
    return masked.diffusion(networks.mlp(8, fourier=(), **(network or {})), None, event_shape, 5, **options)


uniform = partial(make, corruption="uniform")
KINDS = [make, uniform]


def data(n, event_shape=(3,)):
    return random.randint(random.key(11), (n, *event_shape), 0, 5)


def started(model):
    return perturbed(model.init(random.key(0)), 1, 0.2)


@pytest.mark.parametrize("timesteps", [0, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_mean_bound_in_bits(kind, timesteps):
    model = kind(timesteps=timesteps)
    params, x = started(model), data(6)
    terms = masked.bound.bound(model, params, x, model.draw(random.key(2), 6))
    loss, stats = model.loss_and_stats(params, x, random.key(2))
    want = {name: term.mean() / (3 * math.log(2)) for name, term in terms._asdict().items()}
    close((loss, stats), (sum(want.values()), want), 1e-5)
    torch.testing.assert_close(loss, model.loss_fn(params, x, random.key(2)))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.sampled_from(KINDS), st.sampled_from([0, 2]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_events_of_any_shape(shape, kind, timesteps, last):
    shape = tuple(shape)
    model = kind(shape, timesteps=timesteps, classes_last=last)
    params, x = model.init(random.key(0)), data(2, shape)
    terms = model.nll_bound(params, x, random.key(1))
    assert [tuple(term.shape) for term in terms] == [(2,)] * 3
    assert terms.total.isfinite().all()
    drawn = model.sample(params, random.key(2), 3, steps=2)
    assert drawn.shape == (3, *shape)
    assert 0 <= drawn.min() <= drawn.max() <= 4


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_of_symbols_are_one_model(kind):
    """A network that treats positions alike gives the same losses whichever way symbols lie."""
    s = 6 if kind is make else 5

    def last(params, seen, gamma, cond=None, key=None):
        return (seen * 3.0 + gamma).cumsum(-1).cos()

    def first(params, seen, gamma, cond=None, key=None):
        return last(params, seen.unflatten(0, (2, s)).movedim(1, -1), gamma).movedim(-1, 1).flatten(0, 1)

    def init(key, shape):
        assert shape in ((2, 4, s), (2 * s, 4))
        return {}

    def found(apply, classes_last):
        own = networks.Network.of(init, apply)
        name = "masking" if kind is make else "uniform"
        model = masked.diffusion(own, None, (2, 4), 5, corruption=name, classes_last=classes_last, timesteps=3)
        params, x = {"network": {}, "schedule": {}}, data(6, (2, 4))
        return model.nll_bound(params, x, random.key(1)).total, model.sample(params, random.key(2), 2, steps=3)

    torch.testing.assert_close(found(last, True), found(first, False))


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_numbers_and_of_unit_vectors_are_one_model(kind):
    s = 6 if kind is make else 5
    table = random.normal(random.key(5), (s, 5))

    def of_vectors(params, seen, gamma, cond=None, key=None):
        return torch.nn.functional.pad((0.5 + 0.5 * seen) @ table + gamma, (0, s - 5))

    def of_numbers(params, z, gamma, cond=None, key=None):
        return table[z.long()] + gamma

    networks_of = (
        networks.Network.of(lambda key, shape: {}, f, outputs=n) for f, n in ((of_vectors, None), (of_numbers, 5))
    )
    params, name = {"network": {}, "schedule": {}}, "masking" if kind is make else "uniform"
    one, other = (
        masked.diffusion(network, None, (4,), 5, corruption=name, classes_last=True, timesteps=3) for network in networks_of
    )
    x, mask = data(6, (4,)), torch.arange(4) < torch.tensor([1, 2, 3, 4, 4, 4])[:, None]
    close(one.nll_bound(params, x, random.key(1), mask=mask), other.nll_bound(params, x, random.key(1), mask=mask), 1e-6)
    drawn = (model.sample(params, random.key(2), 6, steps=3) for model in (one, other))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_s_bound_is_its_own(kind):
    model = kind(timesteps=3)
    params, x = started(model), data(5)
    seeds = model.seeds(random.key(3), 5)
    part = model.nll_bound(params, x[1:3], seeds.rows(slice(1, 3)))
    close(part, [term[1:3] for term in model.nll_bound(params, x, seeds)], 1e-5)
    whole, rows = model.draw(seeds, 5), model.draw(seeds.rows(slice(1, 3)), 2)
    for a, b in zip(whole, rows, strict=True):
        assert a is b is None or torch.equal(a[1:3], b)


def test_dropout_is_only_for_training():
    line = networks.unet(8, (1,), 1, adapter="c l -> l c", groups=4, dropout=0.5)
    model = masked.diffusion(line, None, (1, 8), 3)
    params, x = started(model), random.randint(random.key(0), (4, 1, 8), 0, 3)
    losses = [model.loss_fn(params, x, random.key(1), train=train) for train in (True, False)]
    assert losses[0] != losses[1]
    torch.testing.assert_close(losses[1], model.nll_bound(params, x, random.key(1)).total.mean() / (8 * math.log(2)))


class Norm(torch.nn.Module):
    """Tokens embedded, and normalised over the batch."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.out = torch.nn.Embedding(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 5)

    def forward(self, seen, gamma):
        h = self.embed(seen.long())
        return self.out(torch.relu(self.norm((h + h.mean(1, keepdim=True)).mT).mT))


def test_a_module_that_embeds_tokens_and_keeps_statistics():
    model = masked.diffusion(networks.from_module(Norm, outputs=5), None, (4,), 5)
    params, x = model.init(random.key(0)), data(16, (4,))
    moved = model.update(params, x, random.key(1))
    name = "norm"
    before, after = (tree["network"]["buffers"][name]["running_mean"] for tree in (params, moved))
    assert not torch.equal(before, after)
    state, grad_fn = training.init(model, random.key(0)), training.gradients(model)
    state, _ = training.train_step(training.AdamW(lr=1e-3), grad_fn, state, x, random.key(1), update=model.update)
    assert state.step == 1


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(kind):
    """The library's own loop: gradients in pieces, steps, an average."""
    model = kind()
    state, grad_fn = training.init(model, random.key(0)), training.gradients(model, accumulate=2)
    x, steps = data(1).expand(16, 3), training.AdamW(lr=2e-2, warmup=0, weight_decay=0.0)
    before = model.loss_fn(state.params, x, random.key(3))
    for _ in range(30):
        state, metrics = training.train_step(steps, grad_fn, state, x, random.key(1))
    assert model.loss_fn(state.params, x, random.key(3)) < 0.75 * before  # the same times and noise
    assert set(metrics) == {"loss", "recon", "prior", "diffusion", "grad_norm", "lr"}
    whole = training.gradients(model)(state.params, x, model.seeds(random.key(2), 16))
    close(grad_fn(state.params, x, model.seeds(random.key(2), 16)), whole, 1e-4)
    with pytest.raises(ValueError, match="variance: expected False for a MaskedDiffusion"):
        training.gradients(model, variance=True)


def test_evaluation_counts_tokens_and_bytes():
    """Bits a token and a byte, each token standing for so many bytes, of padded texts."""
    model, bytes_of = make((6,)), torch.tensor([1, 1, 2, 3, 9])
    params, x = started(model), data(32, (6,))
    mask = torch.arange(6) < 1 + torch.arange(32)[:, None] % 6
    each = evaluation.per_example(model, params, [(x, None, mask)], random.key(1), passes=2, timesteps=10)
    assert torch.equal(each.dims, mask.sum(1))
    found, count = each.summary(), (bytes_of[x] * mask).sum(1)
    total = each.nll.sum() / math.log(2)
    assert found.unit == "bits/dim"
    assert found.pooled.mean == pytest.approx((total / mask.sum()).item())
    per_byte = evaluation.bits_per(each, count)
    assert per_byte.mean == pytest.approx((total / count.sum()).item())
    for bad in (count[:3], -count, count.double() * math.nan, mask.sum(1) * 0):
        with pytest.raises((TypeError, ValueError), match=r"^count: expected"):
            evaluation.bits_per(each, bad)
    order = partial(masked.order.nll_bound, model)
    pair = evaluation.compare(each, evaluation.per_example(model, params, [(x, None, mask)], random.key(1), method=order))
    assert pair.difference.error > 0


@since_2_13
@every_backend
@pytest.mark.parametrize("kind", [make, pytest.param(uniform, marks=pytest.mark.slow)])
def test_one_graph_of_gradients(kind, backend):
    model = kind(network=dict(classes=3), timesteps=4)
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
@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_compiles_also_with_dynamic_numbers(kind, timesteps):
    model = kind(timesteps=timesteps)
    params = started(model)
    step = torch.func.grad_and_value(model.loss_fn)
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for n in (4, 6):
        close(compiled(params, data(n), random.key(n)), step(params, data(n), random.key(n)), 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_models_keep_the_laws_of_a_bound(kind):
    model = kind(network=dict(classes=3))
    check_model(model, started(model), data(8), torch.arange(8) % 3)


def test_an_ideal_model_s_bound_is_above_the_entropy():
    model = chains.ideal_model(schedules.power(floor=1e-9))
    x = chains.EVERY[random.categorical(random.key(0), chains.LOG_P, (500,))]
    check_model(model, chains.FLAT, x, entropy=chains.ENTROPY.item())


@pytest.mark.parametrize("kind", KINDS)
def test_models_pickle_and_compare(kind):
    model = kind()
    assert pickle.loads(pickle.dumps(model)) == model == kind(timesteps=None)
    assert hash(model) == hash(kind())
    assert model != kind(timesteps=3)
    assert len(repr(model)) < 1000


MLP = networks.mlp(4, fourier=())
MODEL, UNIFORM, X = make(), uniform(), data(4)
OWN = UNIFORM.init(random.key(0))
PARAMS, NOISE = MODEL.init(random.key(0)), MODEL.draw(random.key(1), 4)
KNOWN = torch.tensor([True, False, False]).expand(4, 3)


def diffusion(network=MLP, schedule=None, event_shape=(3,), classes=5, **options):
    return masked.diffusion(network, schedule, event_shape, classes, **options)


def sample(n=4, **options):
    return MODEL.sample(PARAMS, random.key(0), n, **(dict(steps=2) | options))


BAD = [
    (lambda: diffusion(networks.mlp(4, outputs=2)), ValueError, "network: expected one of logits in its input"),
    (lambda: diffusion(networks.mlp(4, self_condition=True)), ValueError, "network: expected one with self_condition=False"),
    (lambda: diffusion(networks.mlp(4, gamma_min=-1.0, gamma_max=1.0)), ValueError, "network: it normalises gamma between"),
    (lambda: diffusion(classes=1), ValueError, "classes: expected an integer at least 2"),
    (lambda: diffusion(corruption="mask"), ValueError, "corruption: expected one of 'masking', 'uniform'"),
    (lambda: diffusion(event_shape=()), ValueError, "event_shape: expected one axis or more"),
    (lambda: diffusion(schedule=0), TypeError, "schedule: expected a purevdm Schedule"),
    (lambda: diffusion(schedule=schedules.power(floor=1e-30)), ValueError, "schedule: expected gamma in"),
    (lambda: diffusion(timesteps=-1), ValueError, "timesteps"),
    (lambda: MODEL._replace(corruption=None).loss_fn(PARAMS, X, random.key(0)), TypeError, "corruption: expected a Masking"),
    (lambda: MODEL._replace(timesteps=10**9).sample(PARAMS, random.key(0), 2), ValueError, "timesteps"),
    (lambda: MODEL.nll_bound(PARAMS, X + 1, random.key(0)), ValueError, r"x: expected integers in \[0, 4\], got values"),
    (lambda: MODEL.nll_bound(PARAMS, X.float(), random.key(0)), TypeError, "x: expected a tensor of integers"),
    (lambda: MODEL.nll_bound(PARAMS, X, random.key(0), mask=~X.isfinite()), ValueError, "mask: expected something in every"),
    (
        lambda: masked.bound.bound(MODEL, PARAMS, X, NOISE._replace(u=NOISE.u + 1)),
        ValueError,
        r"noise\.u: expected",
    ),
    (
        lambda: masked.bound.bound(MODEL, PARAMS, X, NOISE._replace(others=X.long())),
        ValueError,
        r"noise\.others: expected None",
    ),
    (lambda: masked.bound.bound(UNIFORM, OWN, X, NOISE), ValueError, r"noise\.others: expected classes"),
    (
        lambda: masked.bound.bound(MODEL, PARAMS, X, MODEL.seeds(random.key(0), 4)),
        TypeError,
        "noise: expected a",
    ),
    (
        lambda: masked.order.nll_bound(UNIFORM, OWN, X, random.key(0)),
        TypeError,
        "model: expected a Masked",
    ),
    (lambda: MODEL.log_probs(PARAMS, X.long() + 2, torch.zeros(4)), ValueError, r"z: expected integers in \[0, 5\]"),
    (lambda: sample(known=KNOWN), ValueError, "known, x: expected both or neither"),
    (lambda: sample(known=KNOWN, x=X + 9), ValueError, r"x: expected integers in \[0, 4\] where known"),
    (lambda: sample(known=KNOWN | True, x=X), ValueError, "known: expected something that is not known in every sample"),
    (lambda: sample(known=KNOWN.float(), x=X), TypeError, "known: expected a bool tensor"),
    (lambda: sample(known=KNOWN, x=X[:2]), ValueError, "x: expected shape"),
    (lambda: UNIFORM.sample(OWN, random.key(0), 4, known=KNOWN, x=X), ValueError, "known: expected None for uniform noise"),
    (lambda: sample(grid="gamma"), ValueError, "grid: expected one of 'time', 'cosine'"),
    (lambda: sample(guidance=2.0), ValueError, "cond"),
    (lambda: evaluation.profile(MODEL, PARAMS, [X], random.key(0)), TypeError, "model: expected a purevdm VDM"),
    (lambda: training.init(3, random.key(0)), TypeError, "model: expected a purevdm VDM, BFN or MaskedDiffusion"),
    (lambda: schedules.power(0.5), ValueError, "exponent: expected a number of at least 1"),
    (lambda: schedules.cosine(0.5), ValueError, "floor: expected a number in"),
]


@pytest.mark.parametrize(("call", "error", "word"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_does_not_fit_is_named(call, error, word):
    with pytest.raises(error, match=f"^{word}"):
        call()


def test_ends_that_cost_much_are_warned_of():
    with pytest.warns(UserWarning, match=r"gamma_1 = 3 its ends alone cost 0\.11 bits a token"):
        diffusion(schedule=schedules.fixed_linear(-20.0, 3.0))


def test_a_vdm_takes_the_schedules_too():
    model = purevdm.vdm(networks.mlp(8), schedules.cosine(1e-4), (2,), 5)
    params = model.init(random.key(0))
    assert model.nll_bound(params, data(3, (2,)), random.key(1)).total.isfinite().all()
