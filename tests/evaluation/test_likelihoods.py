"""Likelihoods of data sets by every method: the right order, weights combined by hand, honest errors, pairs, bad input."""

import math
from functools import partial

import pytest
import torch

import purevdm
from purevdm import decoders, evaluation, likelihood, networks, ode, process, random, schedules
from purevdm.bound import NLLBound
from purevdm.likelihood import Estimate
from purevdm.networks import Network
from purevdm.testing import sources

PARAMS = {"network": {}, "schedule": {}}
P = torch.tensor([0.5, 0.1, 0.1, 0.3], dtype=torch.float64)


def ideal(gamma_0=-5.0, dims=6):
    """A model of independent pixels that knows the probabilities of their values."""
    return purevdm.vdm(sources.categorical(P), schedules.fixed_linear(gamma_0, 12.0), (dims,), 4, dtype=torch.float64)


def pixels(n, dims=6):
    """Such pixels, and their log p as an estimate without error."""
    x = random.categorical(random.key(0), P.log().expand(n, dims, 4))
    return x, likelihood.combine(P.log()[x].sum(1)[None], torch.zeros(n))


def points():
    model = purevdm.vdm(networks.mlp(8, fourier=()), schedules.learned_linear(-4.0, 4.0), (2,), 16)
    return model, model.init(random.key(0)), random.randint(random.key(1), (20, 2), 0, 16)


def test_methods_stand_in_order():
    """Of one ideal model in few steps: the bound, importance weights, the flow, the truth. Differences are paired."""
    model = ideal(-5.0, 4)
    x, truth = pixels(100, 4)
    batches = x.split(50)
    bound = evaluation.bounds(model, PARAMS, batches, random.key(1), passes=20, timesteps=6)
    weighted, flow = (
        evaluation.likelihoods(model, PARAMS, batches, random.key(2), estimate=partial(method, model, **options))
        for method, options in (
            (likelihood.importance_bound, dict(timesteps=6, samples=64)),
            (likelihood.log_prob, dict(samples=4, integrator=ode.rk4(20))),
        )
    )
    for above, below in ((bound, weighted), (weighted, flow)):
        gap = evaluation.difference(model, above, below)
        assert gap.mean > 4 * gap.error
    # the ideal flow is the truth, but for the noise left at time 0 and 20 steps
    gap = evaluation.difference(model, flow, truth)
    assert abs(gap.mean) < 4 * gap.error + 0.02
    assert gap.error < 0.01


def test_batches_and_passes_by_hand():
    """Keys as for bounds; passes are more samples; conditions are handed on; examples keep their order."""
    model = purevdm.vdm(networks.mlp(8, classes=3), schedules.learned_linear(-4.0, 4.0), (2,), 16)
    params, x = model.init(random.key(0)), random.randint(random.key(1), (5, 2), 0, 16)
    labels, done = torch.arange(5) % 3, []
    method = partial(likelihood.importance_bound, model, timesteps=4, samples=3)
    batches = [(x[:3], labels[:3]), (x[3:], labels[3:])]
    options = dict(passes=2, estimate=method, callback=done.append)
    found = evaluation.likelihoods(model, params, batches, random.key(2), **options)
    weights = []
    for j, (part, given) in enumerate(batches):
        keys = random.split(random.fold_in(random.key(2), j), 2)
        weights.append(torch.cat([method(params, part, k, given).log_weights for k in keys]).detach().double())
    assert torch.equal(found.log_weights, torch.cat(weights, 1))
    assert found.evaluations.tolist() == [2 * 3 * 4] * 5
    assert done == [3, 2]
    want = likelihood.combine(found.log_weights, found.evaluations)
    assert all(map(torch.equal, found, want))
    assert found.log_prob.dtype == found.error.dtype == torch.float64
    assert not found.log_prob.requires_grad


def test_left_out_the_method_is_the_flow_of_the_model():
    model, params, x = points()
    found = evaluation.likelihoods(model, params, [x[:2]], random.key(2))
    key = random.split(random.fold_in(random.key(2), 0), 1)[0]
    with torch.no_grad():
        want = likelihood.log_prob(model, params, x[:2], key)
    torch.testing.assert_close(found.log_prob, want.log_prob.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.evaluations, want.evaluations)


def test_figures_of_known_weights():
    model, _, _ = points()
    weights = torch.tensor([[1.0, 2.0, 4.0], [3.0, 2.0, 8.0]], dtype=torch.float64)
    found = likelihood.combine(weights.log(), torch.tensor([10, 20, 60]))
    got = evaluation.measurement(model, found)
    bits = -torch.tensor([2.0, 2.0, 6.0], dtype=torch.float64).log2() / 2  # an example has two dimensions
    assert got.total == pytest.approx((bits.mean().item(), bits.std().item() / math.sqrt(3)))
    # weights 1, 3: a standard error of 1 at a mean of 2; 4, 8: of 2 at 6
    assert got.sampling == pytest.approx(math.hypot(1 / 2, 2 / 6) / 3 / (2 * math.log(2)))
    assert got[2:] == (2, 30.0, 3, "bits/dim", 0)
    alone = evaluation.measurement(model, likelihood.combine(weights[:1].log(), found.evaluations))
    assert math.isnan(alone.sampling)
    assert alone.samples == 1
    bound = NLLBound(*torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.5, 0.5], [0.0, 1.0, 5.0]], dtype=torch.float64))
    gap = evaluation.difference(model, bound, found)
    each = (bound.total + torch.tensor([2.0, 2.0, 6.0], dtype=torch.float64).log()) / (2 * math.log(2))
    assert gap == pytest.approx((each.mean().item(), each.std().item() / math.sqrt(3)))
    assert evaluation.difference(model, found, found) == (0.0, 0.0)


def test_the_error_of_sampling_is_what_other_keys_change():
    model, (x, _) = ideal(-4.0, 2), pixels(30, 2)
    method = partial(likelihood.importance_bound, model, timesteps=10, samples=50)
    found = [evaluation.likelihoods(model, PARAMS, [x], random.key(s), estimate=method) for s in range(60)]
    measured = [evaluation.measurement(model, each) for each in found]
    spread = torch.tensor([m.total.mean for m in measured]).std()
    said = torch.tensor([m.sampling for m in measured]).mean()
    assert abs(spread / said - 1) < 4 / math.sqrt(2 * 60) + 0.05  # and a little for so few weights
    assert all(m.sampling < m.total.error for m in measured)


def test_densities_of_real_numbers_are_in_nats():
    """A Gaussian's entropy, widened by the noise left at time 0 and stretched by the decoder's scale."""
    std, gamma_0, scale = 0.5, -6.0, 3.0
    model = purevdm.vdm(
        sources.gaussian(std),
        schedules.fixed_linear(gamma_0, 20.0),
        (2,),
        decoder=decoders.gaussian(scale=[scale, scale]),
        dtype=torch.float64,
    )
    x = scale * std * random.normal(random.key(0), (400, 2), torch.float64)
    flow = partial(likelihood.log_prob, model, integrator=ode.rk4(40))
    found = evaluation.likelihoods(model, PARAMS, x.split(200), random.key(1), estimate=flow)
    variance = scale**2 * (std**2 + math.exp(gamma_0))
    want = -0.5 * (x.square() / variance + math.log(2 * math.pi * variance)).sum(1)
    torch.testing.assert_close(found.log_prob, want, rtol=0, atol=1e-4)
    measured = evaluation.measurement(model, found)
    assert measured.unit == "nats"
    assert abs(measured.total.mean + want.mean().item()) < 1e-4


def test_compiled_methods_say_the_same():
    model, params, x = points()
    method = partial(likelihood.importance_bound, model, timesteps=3, samples=2)
    want = evaluation.likelihoods(model, params, x.split(10), random.key(2), estimate=method)
    compiled = torch.compile(method, fullgraph=True, backend="eager")
    found = evaluation.likelihoods(model, params, x.split(10), random.key(2), estimate=compiled)
    torch.testing.assert_close(found.log_weights, want.log_weights, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.evaluations, want.evaluations)


def test_bad_input_is_named():
    model, params, x = points()
    method = partial(likelihood.importance_bound, model, timesteps=3)

    def lost(params, x, key, cond):
        """An integration that lost an example."""
        found = method(params, x, key, cond)
        return found._replace(log_weights=torch.where(x[:, 0] == x[-1, 0], math.nan, found.log_weights))

    first = int((x[:, 0] == x[-1, 0]).nonzero()[0]) if (x[:10, 0] == x[9, 0]).any() else 0
    for options, error, word in (
        (dict(passes=0), ValueError, "passes"),
        (dict(key=3), TypeError, "key"),
        (dict(batches=[]), ValueError, "batches: expected at least one"),
        (dict(batches=x), TypeError, "batches: expected an iterable"),
        (dict(batches=[x.double()]), TypeError, "x: expected a tensor of integers"),
        (
            dict(estimate=model.nll_bound),
            TypeError,
            r"expected it to return a likelihood.Estimate, got a NLLBound",
        ),
        (dict(estimate=lambda p, x, *rest: method(p, x[:-1], *rest)), ValueError, "estimate's log_weights: expected shape"),
        (dict(batches=[x], estimate=lost), ValueError, f"estimate: expected weights, got nan for example {first} of"),
    ):
        given = dict(batches=x.split(10), key=random.key(0), estimate=method) | options
        with pytest.raises(error, match=word):
            evaluation.likelihoods(model, params, given.pop("batches"), given.pop("key"), **given)
    one, other = (Estimate(torch.zeros(n), torch.zeros(n), torch.zeros(1, n), torch.zeros(n)) for n in (2, 3))
    with pytest.raises(ValueError, match="b: expected the examples of a, 2, got 3"):
        evaluation.difference(model, one, other)
    with pytest.raises(TypeError, match="a: expected an NLLBound or an Estimate, got a float32 tensor"):
        evaluation.difference(model, torch.zeros(2), one)


def test_another_number_of_weights_is_refused_and_named():
    """Two weights of one example, and one of four: as many numbers as three calls of the same kind."""
    model, params, x = points()

    def uneven(params, x, key, cond):
        return likelihood.combine(torch.full((3 if len(x) == 2 else 1, len(x)), -1.0), torch.zeros(len(x)))

    with pytest.raises(ValueError, match=r"batches\[1\]: expected as many numbers .* the first call, 4, got 2 in pass 0"):
        evaluation.likelihoods(model, params, [x[:2], x[2:6]], random.key(0), estimate=uneven)


def test_errors_say_in_which_batch_and_of_which_model():
    model, params, x = points()
    with pytest.raises(ValueError, match=r"batches\[1\]: x: expected integers in"):
        evaluation.bounds(model, params, [x, x + 16], random.key(0))
    broken = params | {"network": {}}
    with pytest.raises(ValueError, match=r"batches\[0\]: b: params: expected a leaf"):
        evaluation.compare((model, params), (model, broken), [x], random.key(0))


def stiff(params, z, gamma, cond=None, key=None):
    """A field that is not finite for the examples that are told so."""
    return z + torch.where(cond > 0, torch.nan, 0.0)


@pytest.mark.parametrize("integrator", [ode.dopri5, partial(ode.rk4, 5), partial(ode.heun, 5)])
def test_an_example_that_fails_is_marked_and_counted_and_the_others_are_as_without_it(integrator):
    model = purevdm.vdm(Network.of(lambda key, shape: {}, stiff), schedules.fixed_linear(-4.0, 4.0), (2,), 16)
    x, fails = random.randint(random.key(1), (4, 2), 0, 16), torch.tensor([0.0, 1.0, 0.0, 0.0])

    def told(cond, **options):
        flow = partial(likelihood.log_prob, model, samples=2, integrator=integrator(**options))
        return evaluation.likelihoods(model, PARAMS, [(x, cond)], random.key(2), estimate=flow, failures="nan")

    found, want = told(fails, failures="nan"), told(0.0 * fails)
    assert found.log_prob.isnan().tolist() == [False, True, False, False]
    assert torch.equal(found.log_weights[:, fails == 0], want.log_weights[:, fails == 0])
    measured = evaluation.measurement(model, found)
    assert (measured.examples, measured.left_out, evaluation.measurement(model, want).left_out) == (3, 1, 0)
    rest = Estimate(*(part[..., fails == 0] for part in want))
    assert measured[:-1] == evaluation.measurement(model, rest)[:-1]
    with pytest.raises(ValueError, match="a: expected the likelihood of every example, got NaN for example 1"):
        evaluation.difference(model, found, want)
    with pytest.raises(ValueError, match=r"batches\[0\]: field: "):
        told(fails)
    flow = partial(likelihood.log_prob, model, integrator=integrator(failures="nan"))
    with pytest.raises(ValueError, match="estimate: expected weights, got nan for example 1"):
        evaluation.likelihoods(model, PARAMS, [(x, fails)], random.key(2), estimate=flow)
    with pytest.raises(ValueError, match="found: expected log p of at least one example, got NaN for all 4"):
        evaluation.measurement(model, told(fails + 1.0, failures="nan"))


def test_left_out_the_method_marks_failures_too():
    model = purevdm.vdm(Network.of(lambda key, shape: {}, stiff), schedules.fixed_linear(-4.0, 4.0), (2,), 16)
    batch = torch.zeros(2, 2, dtype=torch.int64), torch.tensor([0.0, 1.0])
    found = evaluation.likelihoods(model, PARAMS, [batch], random.key(0), failures="nan")
    assert found.log_prob.isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match=r"batches\[0\]: field: example 1"):
        evaluation.likelihoods(model, PARAMS, [batch], random.key(0))


def test_one_key_for_all_classes_classifies_where_a_key_for_each_does_not():
    """An ideal model of numbers around one of two means, told which: at one draw of times and noise."""

    def apply(params, z, gamma, cond=None, key=None):
        alpha, noise = process.alpha(gamma), process.sigma(gamma) ** 2
        spread = 0.3**2
        x = cond + spread * alpha * (z - alpha * cond) / (alpha**2 * spread + noise)
        return process.eps_from_x(z, x, gamma)

    model = purevdm.vdm(
        Network.of(lambda key, shape: {}, apply), schedules.fixed_linear(-8.0, 8.0), (2,), decoder=decoders.gaussian()
    )
    truth = torch.arange(400) % 2
    means = torch.tensor([-0.3, 0.3])
    x = means[truth][:, None] + 0.3 * random.normal(random.key(0), (400, 2))

    def right(keys):
        of = [evaluation.bounds(model, PARAMS, [(x, m.expand(400))], k).total for m, k in zip(means, keys, strict=True)]
        return (torch.stack(of).argmin(0) == truth).float().mean()

    best = ((x.sum(1) > 0).long() == truth).float().mean()  # by the exact likelihood
    assert right([random.key(1)] * 2) > best - 0.12
    assert right(random.split(random.key(1))) < best - 0.25
