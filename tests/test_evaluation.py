"""The bound of a data set: known answers, independence from batches, honest errors, pairs, the loss over noise levels."""

import math

import pytest
import torch
from parts import changed
from torch.utils.data import DataLoader, TensorDataset

import purevdm
from purevdm import evaluation, networks, process, random, schedules
from purevdm.evaluation._figures import figure, per_unit
from purevdm.evaluation._profile import _curve
from purevdm.networks import Condition
from purevdm.schedules import Schedule
from purevdm.testing import sources

PARAMS = {"network": {}, "schedule": {}}
P = torch.tensor([0.5, 0.1, 0.1, 0.3], dtype=torch.float64)


def ideal(p=P, low=-9.0, high=8.0, n=20, **options):
    """A model of independent pixels that knows the probabilities p of their values."""
    return purevdm.vdm(sources.categorical(p), schedules.fixed_linear(low, high), (n,), 4, dtype=torch.float64, **options)


def pixels(seed, n, dimensions=20):
    return random.categorical(random.key(seed), P.log().expand(n, dimensions, 4))


def points(**options):
    model = purevdm.vdm(networks.mlp(8, **options), schedules.learned_linear(-6.0, 4.0), (2,), 16)
    return model, model.init(random.key(0)), random.randint(random.key(1), (50, 2), 0, 16)


# Means and their errors


def test_the_entropy_of_independent_pixels():
    x = pixels(0, 600)
    batches = [(x[i : i + 250], None) for i in range(0, 600, 250)]
    done = []
    found = evaluation.evaluate(ideal(), PARAMS, batches, random.key(1), passes=3, callback=done.append)
    assert abs(found.nll.mean - sources.entropy(P) / math.log(2)) < 4 * found.nll.error
    assert list(found.terms) == ["recon", "prior", "diffusion"]
    assert math.isclose(found.nll.mean, sum(term.mean for term in found.terms.values()))
    assert (found.examples, found.passes, found.unit, done) == (600, 3, "bits/dim", [250, 250, 100])
    # more passes leave less noise
    once = evaluation.evaluate(ideal(), PARAMS, batches, random.key(1), passes=1)
    assert found.terms["diffusion"].error < once.terms["diffusion"].error


def test_one_batch_by_hand_with_conditions_and_a_smaller_one():
    model = purevdm.vdm(networks.mlp(8, classes=3, cond_dim=1), schedules.learned_linear(), (2,), 16, timesteps=10)
    params, x = model.init(random.key(0)), random.randint(random.key(1), (5, 2), 0, 16)
    cond = Condition(vector=torch.ones(5, 1), label=torch.arange(5) % 3)

    def rows_of(cond, rows):
        return Condition(*(None if c is None else c[rows] for c in cond))

    batches = [(x[rows], rows_of(cond, rows)) for rows in (slice(3), slice(3, None))]
    shapes = []

    def nll_bound(params, x, key, cond):
        shapes.append(tuple(x.shape))
        return model.nll_bound(params, x, key, cond)

    found = evaluation.evaluate(model, params, batches, random.key(2), passes=2, method=nll_bound)
    assert shapes == [(3, 2)] * 2 + [(2, 2)] * 2
    each = evaluation.per_example(model, params, batches, random.key(2), passes=2)
    assert all(term.dtype == torch.float64 and term.shape == (5,) for term in each.result)
    assert each.dims.tolist() == [2] * 5
    want = []
    for j, (batch, given) in enumerate(batches):
        keys = random.split(random.fold_in(random.key(2), j), 2)
        terms = [torch.stack(list(model.nll_bound(params, batch, k, given)), 1).double() for k in keys]
        want.append((terms[0] + terms[1]) / 2)
    assert torch.equal(torch.stack(list(each.result), 1), torch.cat(want))
    assert each.summary() == found
    bits = each.nll / (2 * math.log(2))
    assert math.isclose(found.nll.mean, bits.mean(), rel_tol=1e-12)
    assert math.isclose(found.nll.error, bits.std() / math.sqrt(5), rel_tol=1e-12)
    assert str(found.nll) == f"{found.nll.mean:.4f} +- {found.nll.error:.4f}"


def test_errors_cover_the_truth_as_often_as_they_say():
    """Of 200 sets' intervals of two standard errors, 95 in 100 hold the truth. Times are independent, so that sets are."""
    models = [ideal(p, n=4, antithetic=False) for p in (P, P * 0.8 + 0.05)]
    x = pixels(5, 200 * 50, 4)
    a, b = (evaluation.per_example(m, PARAMS, [x], random.key(6), passes=16).nll / (4 * math.log(2)) for m in models)
    for each, truth in ((a, sources.entropy(P) / math.log(2)), (a - b, (a - b).mean())):
        found = [figure(part) for part in each.split(50)]
        held = sum(abs(f.mean - truth) < 2 * f.error for f in found)
        assert held > 200 * 0.95 - 4 * math.sqrt(200 * 0.95 * 0.05)
        # and they are no larger than they need be
        means, errors = (torch.tensor(column) for column in zip(*found, strict=True))
        assert errors.square().mean().sqrt() < 1.25 * means.std()
    # times spread over a batch leave less noise than they say
    sets = evaluation.per_example(ideal(n=4), PARAMS, x[:5000].split(50), random.key(7)).nll.reshape(100, 50)
    assert sets.mean(1).std() < sets.var(1).mean().div(50).sqrt()


def test_figures_show_two_digits_of_their_error():
    for mean, error, text in (
        (2.08031, 0.0197, "2.0803 +- 0.0197"),
        (2.080312, 0.00031, "2.08031 +- 0.00031"),
        (2.5, 1e-9, "2.500000 +- 0.000000"),
        (2.5, math.nan, "2.5000 +- nan"),
        (2.5, math.inf, "2.5000 +- inf"),
    ):
        assert str(evaluation.Figure(mean, error)) == text


# Batches and steps


def test_batches_of_every_form_are_one():
    model, params, x = points()

    def each(batches):
        return evaluation.per_example(model, params, batches, random.key(2)).result

    want = each([(part, None) for part in x.split(20)])
    for batches in (
        x.split(20),
        ((part,) for part in x.split(20)),
        [[part, None] for part in x.split(20)],
        DataLoader(TensorDataset(x), batch_size=20),
        DataLoader(x, batch_size=20),
    ):
        assert all(map(torch.equal, each(batches), want))
    model, params, _ = points(classes=3)
    labels = torch.arange(50) % 3
    pairs = DataLoader(TensorDataset(x, labels), batch_size=20)
    assert all(map(torch.equal, each(pairs), each(zip(x.split(20), labels.split(20), strict=True))))


def test_steps_are_those_asked_for():
    model, params, x = points()
    own = evaluation.evaluate(model._replace(timesteps=7), params, [x], random.key(2))
    assert evaluation.evaluate(model, params, [x], random.key(2), timesteps=7) == own
    assert evaluation.evaluate(model._replace(timesteps=9), params, [x], random.key(2), timesteps=7) == own
    continuous = evaluation.evaluate(model._replace(timesteps=9), params, [x], random.key(2), timesteps=0)
    assert continuous == evaluation.evaluate(model, params, [x], random.key(2)) != own


@pytest.mark.parametrize(
    ("batches", "error", "word"),
    [
        ([], ValueError, "batches: expected at least one"),
        (torch.zeros(3, 2), TypeError, r"batches: expected an iterable of batches, as \[x\] .*got a float32 tensor"),
        ([[1, 2]], TypeError, r"batches\[0\]: expected a tensor x, .* or \(x, cond, mask\), got \[1, 2\]"),
        ([torch.zeros(3, 2).long(), {"x": 3}], TypeError, r"batches\[1\]: expected .*got .*dict"),
        ([(torch.zeros(3, 2).long(), None, None, None)], TypeError, r"batches\[0\]: expected"),
        ([torch.zeros(0, 2).long()], ValueError, r"batches\[0\]: expected at least one example"),
        ([torch.zeros(3, 3).long()], ValueError, r"batches\[0\]: x: expected shape"),
    ],
)
def test_bad_batches_are_named(batches, error, word):
    model, params, _ = points()
    for call in (evaluation.per_example, evaluation.evaluate, evaluation.profile):
        with pytest.raises(error, match=word):
            call(model, params, batches, random.key(0))


def test_bad_input_is_named():
    model, params, x = points()
    for options, word in (
        (dict(passes=0), "passes"),
        (dict(timesteps=-1), "timesteps"),
        (dict(group=purevdm.parallel.Group(0, 2, torch.device("cpu"))), "group: expected"),
    ):
        for call in (evaluation.evaluate, evaluation.profile):
            with pytest.raises(ValueError, match=word):
                call(model, params, [x], random.key(0), **options)
    for call, name in ((evaluation.evaluate, "method"), (evaluation.profile, "bound")):
        with pytest.raises(ValueError, match=f"{name}: expected None with timesteps=5"):
            call(model, params, [x], random.key(0), timesteps=5, **{name: model.nll_bound})
    with pytest.raises(ValueError, match="failures: expected one of 'raise', 'nan'"):
        evaluation.evaluate(model, params, [x], random.key(0), failures="skip")


# Two models


def test_pairs_share_what_differs_between_examples():
    a, b = ideal(), ideal(P * 0.8 + 0.05)
    batches, key = pixels(2, 1000).split(500), random.key(3)
    found = evaluation.compare(*(evaluation.per_example(model, PARAMS, batches, key, passes=8) for model in (a, b)))
    assert found.a == evaluation.evaluate(a, PARAMS, batches, key, passes=8)
    assert found.b == evaluation.evaluate(b, PARAMS, batches, key, passes=8)
    assert math.isclose(found.difference.mean, found.a.nll.mean - found.b.nll.mean, abs_tol=1e-12)
    unpaired = math.hypot(found.a.nll.error, found.b.nll.error)
    assert found.difference.error < unpaired / 8
    # a knows the truth, which the pair tells and two evaluations do not
    assert -unpaired < found.difference.mean < -4 * found.difference.error
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == ["a", "b", "a"]
    assert lines[2].endswith(f"bits/dim, paired over 1000 examples (unpaired +- {unpaired:.4f})")


def test_models_of_other_kinds_are_compared():
    """Another network, schedule and number of steps, a condition that one of them takes, and other batches."""
    (a, of_a, x), (b, of_b, _) = points(), points(classes=3)
    b = b._replace(schedule=schedules.fixed_linear(-6.0, 4.0), timesteps=1000)
    labels = torch.arange(50) % 3
    of = evaluation.per_example(a, of_a, [x], random.key(3))
    found = evaluation.compare(of, evaluation.per_example(b, of_b | {"schedule": {}}, [(x, labels)], random.key(3)))
    assert found.difference.mean == pytest.approx(found.a.nll.mean - found.b.nll.mean)
    stepped = [evaluation.per_example(m, of_a, [x], random.key(3), timesteps=8) for m in (a, a._replace(timesteps=5))]
    assert evaluation.compare(*stepped).difference == (0.0, 0.0)
    assert evaluation.compare(of, evaluation.per_example(a, of_a, x.split(20), random.key(4))).difference.error > 0


def test_what_cannot_be_compared_is_named():
    model, params, x = points()
    of = evaluation.per_example(model, params, [x], random.key(0))
    for other, word in (
        (of._replace(unit="nats"), "b: expected what a has, 50 examples in bits/dim, got 50 in nats"),
        (of.rows(torch.arange(49)), "b: expected what a has, 50 examples in bits/dim, got 49"),
        (of.rows(torch.arange(50).flip(0)), r"b: expected the examples of a in .* order, got another as example \d"),
        (of._replace(dims=of.dims + (torch.arange(50) == 7)), "got another as example 7"),
        (
            of._replace(result=purevdm.NLLBound(*(term * math.nan for term in of.result))),
            "b: expected an example that failed",
        ),
    ):
        with pytest.raises(ValueError, match=word):
            evaluation.compare(of, other)
    with pytest.raises(TypeError, match=r"b: expected what evaluation\.per_example returns, got a NLLBound"):
        evaluation.compare(of, of.result)


def test_examples_of_several_sizes_are_pooled():
    """The mean of ratios, and the ratio of sums with the error of one, covered by repeated draws."""
    draw = torch.Generator().manual_seed(0)
    dims = torch.randint(1, 20, (400, 60), generator=draw)
    nll = dims * (2.0 + torch.randn(400, 60, generator=draw, dtype=torch.float64)) + dims.double().sqrt()
    found = []
    for d, each in zip(dims, nll, strict=True):
        result = purevdm.NLLBound(each, 0.0 * each, 0.0 * each)
        found.append(evaluation.PerExample(result, d, d, 1, "bits/dim").summary())
    one = found[0]
    assert one.nll == pytest.approx(figure(nll[0] / per_unit(dims[0], "bits/dim")))
    assert one.pooled.mean == pytest.approx(nll[0].sum().item() / dims[0].sum().item() / math.log(2))
    means, errors = (torch.tensor(column) for column in zip(*(each.pooled for each in found), strict=True))
    assert errors.mean() == pytest.approx(means.std().item(), rel=4 / math.sqrt(800) + 0.05)  # and a little for the ratio
    real = evaluation.PerExample(result, d, d, 1, "nats").summary()
    assert real.nll == figure(nll[-1])
    assert real.pooled.mean == pytest.approx(nll[-1].sum().item() / dims[-1].sum().item())


# The loss over noise levels


def bent():
    """A schedule whose slope varies tenfold."""

    def init(key):
        return {}

    def gamma(params, t):
        return -9.0 + 17.0 * (0.1 * t + 0.9 * t**3)

    return Schedule.of(init, gamma)


@pytest.mark.parametrize("steps", [0, 40])
def test_mean_and_integral_are_the_diffusion_loss(steps):
    model, key = ideal()._replace(schedule=bent(), timesteps=steps), random.key(4)
    batches = pixels(3, 600).split(300)
    found = evaluation.profile(model, PARAMS, batches, key, bins=30, passes=3)
    assert (found.examples, found.passes, found.unit) == (600, 3, "bits/dim")
    whole = evaluation.evaluate(model, PARAMS, batches, key, passes=3)  # of the same draws
    assert found.diffusion == pytest.approx(whole.terms["diffusion"], rel=1e-9)
    assert found.t.draws.sum() == found.gamma.draws.sum() == 1800
    assert found.t.centres.tolist() == pytest.approx([(i + 0.5) / 30 for i in range(30)])
    assert found.gamma.edges[[0, -1]].tolist() == pytest.approx([-9.0, 8.0])
    for curve in (found.t, found.gamma):
        width = curve.edges.diff()
        error = (width * curve.error).square().sum().sqrt().item()
        assert abs((curve.mean * width).sum().item() - found.diffusion.mean) < 4 * error
        assert error < 0.05 * found.diffusion.mean


def test_against_gamma_it_is_the_error_of_the_noise():
    """Known where the denoiser is linear, x_hat = c z: (eps - eps_hat) sigma / alpha = x_hat - x = (c alpha - 1) x + c sigma
    eps."""
    std, vocab = 0.4, 64
    model = purevdm.vdm(sources.gaussian(std), bent(), (8,), vocab, dtype=torch.float64)
    p = sources.gaussian_pmf(std, vocab)
    x = random.categorical(random.key(0), p.log().expand(2000, 8, vocab))
    variance = (p * model.decoder.encode({}, torch.arange(vocab), dtype=torch.float64).square()).sum()
    found = evaluation.profile(model, PARAMS, [x], random.key(1), bins=17, passes=2).gamma
    fine = torch.linspace(-9.0, 8.0, 17 * 64 + 1, dtype=torch.float64)
    middle = ((fine[1:] + fine[:-1]) / 2).reshape(17, 64)
    alpha, sigma = process.alpha(middle), process.sigma(middle)
    c = std**2 * alpha / (std**2 * alpha**2 + sigma**2)
    square = ((c * alpha - 1).square() * variance + (c * sigma).square()) * (alpha / sigma).square()
    want = 0.5 * square.mean(1) / math.log(2)
    assert ((found.mean - want).abs() / found.error).max() < 4.5
    assert (found.error / found.mean).max() < 0.1


def test_errors_count_examples_and_not_draws():
    """The same examples drawn again and again: errors fall to what examples differ by, and no further."""
    edges = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    value = torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0], dtype=torch.float64)
    at = torch.tensor([0.1, 0.2, 0.3, 0.5, 1.0 + 1e-9], dtype=torch.float64)
    once = _curve(edges, at[None], value[None], torch.ones(1, 5, dtype=torch.float64))
    assert once.draws.tolist() == [3, 2]
    assert once.mean.tolist() == [2.0, 6.5]
    assert once.error.tolist() == pytest.approx([1.0 / math.sqrt(3), 2.5])
    again = _curve(edges, at.repeat(4, 1), value.repeat(4, 1), torch.ones(4, 5, dtype=torch.float64))
    assert again.draws.tolist() == [12, 8]
    assert again.error.tolist() == pytest.approx(once.error.tolist())
    edges = torch.tensor([0.0, 0.05, 0.15, 2.0], dtype=torch.float64)
    empty = _curve(edges, at[None], value[None], torch.ones_like(at)[None])
    assert empty.draws.tolist() == [0, 1, 4]
    assert empty.mean.isnan().tolist() == [True, False, False]
    assert empty.error.isnan().tolist() == [True, True, False]


def test_schedules_of_several_levels():
    """One for each dimension is taken at its mean; one for each example has no gamma at a time."""
    low, high = torch.full((20,), -9.0, dtype=torch.float64), torch.linspace(6.0, 10.0, 20, dtype=torch.float64)
    each = Schedule.of(lambda key: {}, lambda params, t: low + (high - low) * t)
    model, x = ideal()._replace(schedule=each), pixels(3, 300)
    for steps in (0, 50):
        found = evaluation.profile(model, PARAMS, [x], random.key(1), bins=6, timesteps=steps)
        assert found.gamma.edges[[0, -1]].tolist() == pytest.approx([-9.0, 8.0])
        integral = (found.gamma.mean * found.gamma.edges.diff()).sum().item()
        assert integral == pytest.approx(found.diffusion.mean, rel=1e-2)
    seen = Schedule.of(lambda key: {}, lambda params, t, context: -9.0 + (16.0 + context) * t, contextual=True)
    network = changed(model.network, apply=lambda params, z, gamma, cond=None, key=None: 0.9 * z)
    model, pair = model._replace(schedule=seen, network=network), (x, torch.linspace(0, 1, 300, dtype=torch.float64))
    found = evaluation.profile(model, PARAMS, [pair], random.key(1), bins=4)
    assert found.gamma is None
    assert found.t.mean.mean() == pytest.approx(found.diffusion.mean)


def test_bounds_that_are_no_numbers_are_named():
    model, params, x = points()

    def constant(value, n):
        return lambda *_: purevdm.NLLBound(*[torch.full((n,), value)] * 3)

    for method, error, word in (
        (constant(math.nan, 50), ValueError, r"method: expected -log p\(x\) that is a number, got nan for example 0"),
        (constant(1.0, 3), ValueError, r"method's recon: expected shape \(50,\)"),
        (lambda *_: "bound", TypeError, "method's result: expected a purevdm.NLLBound or a likelihood.Estimate"),
    ):
        with pytest.raises(error, match=word):
            evaluation.per_example(model, params, [x], random.key(0), method=method)
