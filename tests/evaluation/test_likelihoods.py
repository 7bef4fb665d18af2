"""Likelihoods of data sets by every method: the right order, weights combined by hand, honest errors, pairs, bad input."""

import math
from functools import partial

import pytest
import torch

import purevdm
from purevdm import decoders, evaluation, likelihood, networks, ode, process, random, schedules
from purevdm.bound import NLLBound
from purevdm.networks import Network
from purevdm.testing import sources

PARAMS = {"network": {}, "schedule": {}}
P = torch.tensor([0.5, 0.1, 0.1, 0.3], dtype=torch.float64)


def ideal(gamma_0=-5.0, dims=6):
    """A model of independent pixels that knows the probabilities of their values."""
    return purevdm.vdm(sources.categorical(P), schedules.fixed_linear(gamma_0, 12.0), (dims,), 4, dtype=torch.float64)


def pixels(n, dims=6):
    """Such pixels, and their log p as a method without error."""

    def exact(params, x, key, cond):
        return likelihood.combine(P.log()[x].sum(1)[None], torch.zeros(len(x)))

    return random.categorical(random.key(0), P.log().expand(n, dims, 4)), exact


def points():
    model = purevdm.vdm(networks.mlp(8, fourier=()), schedules.learned_linear(-4.0, 4.0), (2,), 16)
    return model, model.init(random.key(0)), random.randint(random.key(1), (20, 2), 0, 16)


def test_methods_stand_in_order():
    """Of one ideal model in few steps: the bound, importance weights, the flow, the truth. Differences are paired."""
    model = ideal(-5.0, 4)
    x, truth = pixels(100, 4)
    batches = x.split(50)
    bound = evaluation.per_example(model, PARAMS, batches, random.key(1), passes=20, timesteps=6)
    weighted, flow = (
        evaluation.per_example(model, PARAMS, batches, random.key(2), method=partial(method, model, **options))
        for method, options in (
            (likelihood.importance_bound, dict(timesteps=6, samples=64)),
            (likelihood.log_prob, dict(samples=4, integrator=ode.rk4(20))),
        )
    )
    for above, below in ((bound, weighted), (weighted, flow)):
        gap = evaluation.compare(above, below).difference
        assert gap.mean > 4 * gap.error
    # the ideal flow is the truth, but for the noise left at time 0 and 20 steps
    gap = evaluation.compare(flow, evaluation.per_example(model, PARAMS, batches, random.key(0), method=truth)).difference
    assert abs(gap.mean) < 4 * gap.error + 0.02
    assert gap.error < 0.01


def test_batches_and_passes_by_hand():
    """Keys as of bounds; passes are more samples; conditions are handed on; examples keep their order."""
    model = purevdm.vdm(networks.mlp(8, classes=3), schedules.learned_linear(-4.0, 4.0), (2,), 16)
    params, x = model.init(random.key(0)), random.randint(random.key(1), (5, 2), 0, 16)
    labels, done = torch.arange(5) % 3, []
    method = partial(likelihood.importance_bound, model, timesteps=4, samples=3)
    batches = [(x[:3], labels[:3]), (x[3:], labels[3:])]
    options = dict(passes=2, method=method, callback=done.append)
    each = evaluation.per_example(model, params, batches, random.key(2), **options)
    found, weights = each.result, []
    for j, (part, given) in enumerate(batches):
        keys = random.split(random.fold_in(random.key(2), j), 2)
        weights.append(torch.cat([method(params, part, k, given).log_weights for k in keys]).detach().double())
    assert torch.equal(found.log_weights, torch.cat(weights, 1))
    assert found.evaluations.tolist() == [2 * 3 * 4] * 5
    assert done == [3, 2]
    assert torch.equal(each.nll, -found.log_prob)
    want = likelihood.combine(found.log_weights, found.evaluations)
    assert all(map(torch.equal, found, want))
    assert found.log_prob.dtype == found.error.dtype == torch.float64
    assert not found.log_prob.requires_grad


def test_figures_of_known_weights():
    weights = torch.tensor([[1.0, 2.0, 4.0], [3.0, 2.0, 8.0]], dtype=torch.float64)

    def of(result):
        return evaluation.PerExample(result, torch.full((3,), 2), torch.zeros(3), 1, "bits/dim")

    found = likelihood.combine(weights.log(), torch.tensor([10, 20, 60]))
    got = of(found).summary()
    bits = -torch.tensor([2.0, 2.0, 6.0], dtype=torch.float64).log2() / 2  # an example has two dimensions
    assert got.nll == pytest.approx((bits.mean().item(), bits.std().item() / math.sqrt(3)))
    # weights 1, 3: a standard error of 1 at a mean of 2; 4, 8: of 2 at 6
    assert got.sampling == pytest.approx(math.hypot(1 / 2, 2 / 6) / 3 / (2 * math.log(2)))
    assert got.pooled == pytest.approx(got.nll)  # as all have as many dimensions
    assert got.terms == {}
    assert got[4:] == (2, 30.0, 3, 1, "bits/dim", 0)
    alone = of(likelihood.combine(weights[:1].log(), found.evaluations)).summary()
    assert math.isnan(alone.sampling)
    assert alone.samples == 1
    bound = NLLBound(*torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.5, 0.5], [0.0, 1.0, 5.0]], dtype=torch.float64))
    gap = evaluation.compare(of(bound), of(found)).difference
    each = (bound.total + torch.tensor([2.0, 2.0, 6.0], dtype=torch.float64).log()) / (2 * math.log(2))
    assert gap == pytest.approx((each.mean().item(), each.std().item() / math.sqrt(3)))
    assert evaluation.compare(of(found), of(found)).difference == (0.0, 0.0)


def test_the_error_of_sampling_is_what_other_keys_change():
    model, (x, _) = ideal(-4.0, 2), pixels(30, 2)
    method = partial(likelihood.importance_bound, model, timesteps=10, samples=50)
    measured = [evaluation.evaluate(model, PARAMS, [x], random.key(s), method=method) for s in range(60)]
    spread = torch.tensor([m.nll.mean for m in measured]).std()
    said = torch.tensor([m.sampling for m in measured]).mean()
    assert abs(spread / said - 1) < 4 / math.sqrt(2 * 60) + 0.05  # and a little for so few weights
    assert all(m.sampling < m.nll.error for m in measured)


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
    found = evaluation.per_example(model, PARAMS, x.split(200), random.key(1), method=flow)
    variance = scale**2 * (std**2 + math.exp(gamma_0))
    want = -0.5 * (x.square() / variance + math.log(2 * math.pi * variance)).sum(1)
    torch.testing.assert_close(found.nll, -want, rtol=0, atol=1e-4)
    measured = found.summary()
    assert measured.unit == "nats"
    assert abs(measured.nll.mean + want.mean().item()) < 1e-4
    assert abs(measured.pooled.mean + want.mean().item() / 2) < 1e-4


def test_methods_that_give_something_else_are_named():
    model, params, x = points()
    method = partial(likelihood.importance_bound, model, timesteps=3)

    def lost(params, x, key, cond):
        """An integration that lost an example."""
        found = method(params, x, key, cond)
        return found._replace(log_weights=torch.where(x[:, 0] == x[-1, 0], math.nan, found.log_weights))

    first = int((x[:, 0] == x[-1, 0]).nonzero()[0])
    for given, word in (
        (lambda p, x, *rest: method(p, x[:-1], *rest), "method's log_weights: expected shape"),
        (lost, f"method: expected .* a number, got nan for example {first} of"),
    ):
        with pytest.raises(ValueError, match=word):
            evaluation.per_example(model, params, [x], random.key(0), method=given)


def test_errors_say_in_which_batch():
    model, params, x = points()
    with pytest.raises(ValueError, match=r"batches\[1\]: x: expected integers in"):
        evaluation.per_example(model, params, [x, x + 16], random.key(0))


def stiff(params, z, gamma, cond=None, key=None):
    """A field that is not finite for the examples that are told so."""
    return z + torch.where(cond > 0, torch.nan, 0.0)


@pytest.mark.parametrize("integrator", [ode.dopri5, partial(ode.rk4, 5), partial(ode.heun, 5)])
def test_an_example_that_fails_is_marked_and_counted_and_the_others_are_as_without_it(integrator):
    model = purevdm.vdm(Network.of(lambda key, shape: {}, stiff), schedules.fixed_linear(-4.0, 4.0), (2,), 16)
    x, fails = random.randint(random.key(1), (4, 2), 0, 16), torch.tensor([0.0, 1.0, 0.0, 0.0])

    def told(cond, **options):
        flow = partial(likelihood.log_prob, model, samples=2, integrator=integrator(**options))
        return evaluation.per_example(model, PARAMS, [(x, cond)], random.key(2), method=flow, failures="nan")

    found, want = told(fails, failures="nan"), told(0.0 * fails)
    assert found.nll.isnan().tolist() == [False, True, False, False]
    rest = want.rows(fails == 0)
    assert torch.equal(found.result.log_weights[:, fails == 0], rest.result.log_weights)
    measured = found.summary()
    assert (measured.examples, measured.left_out, want.summary().left_out) == (3, 1, 0)
    assert measured[:-1] == rest.summary()[:-1]
    pair = evaluation.compare(found, want)
    assert pair.a == measured == pair.b
    assert pair.difference == (0.0, 0.0)
    assert str(pair).endswith(", 1 left out)")
    with pytest.raises(ValueError, match=r"batches\[0\]: field: "):
        told(fails)
    flow = partial(likelihood.log_prob, model, integrator=integrator(failures="nan"))
    with pytest.raises(ValueError, match=r"method: expected .* a number, got nan for example 1"):
        evaluation.per_example(model, PARAMS, [(x, fails)], random.key(2), method=flow)
    with pytest.raises(ValueError, match="nll: expected that of at least one example, got NaN for all 4"):
        told(fails + 1.0, failures="nan").summary()


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
        of = [evaluation.per_example(model, PARAMS, [(x, m.expand(400))], k).nll for m, k in zip(means, keys, strict=True)]
        return (torch.stack(of).argmin(0) == truth).float().mean()

    best = ((x.sum(1) > 0).long() == truth).float().mean()  # by the exact likelihood
    assert right([random.key(1)] * 2) > best - 0.12
    assert right(random.split(random.key(1))) < best - 0.25
