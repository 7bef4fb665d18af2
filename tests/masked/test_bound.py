"""The bound: exact for ideal predictors, gradients of schedules, what does not exist, any order."""

import math

import chains
import pytest
import torch
from chains import ENTROPY, EVERY, F64, FLAT, LENGTH, LOG_P
from chains import ideal_model as ideal
from hypothesis import given, settings
from hypothesis import strategies as st

from purevdm import importance, masked, networks, random, schedules, sizes
from purevdm.masked import corruptions, order
from purevdm.testing.sources import mean_and_error


def test_the_mean_bound_of_a_chain_is_its_entropy():
    model = ideal(schedules.power(floor=1e-60))
    bound = chains.expected_bound(model, EVERY, *chains.gauss(2)).total
    torch.testing.assert_close((LOG_P.exp() * bound).sum(), ENTROPY, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", [schedules.fixed_linear(-30.0, 30.0), schedules.cosine(1e-12)], ids=repr)
def test_no_schedule_changes_the_continuous_bound(schedule):
    bound = chains.expected_bound(ideal(schedule), EVERY, *chains.gauss(200)).total
    torch.testing.assert_close(bound, -LOG_P, rtol=0, atol=1e-8)


def test_all_terms_of_wide_ends_are_counted():
    """Ends at which a tenth is left over cost what a model costs that guesses it: the bound stays above."""
    with pytest.warns(UserWarning, match="its ends alone cost"):
        model = ideal(schedules.power(floor=0.1))
    terms = chains.expected_bound(model, EVERY, *chains.gauss(2))
    for term in (terms.recon, terms.prior):
        torch.testing.assert_close(term, torch.full_like(term, 0.1 * LENGTH * math.log(3)))
    assert (LOG_P.exp() * terms.total).sum() > ENTROPY


def uniform_bound(model, t, weight):
    """The exact expectation over all latents under uniform noise, of every sequence."""
    total = torch.zeros(len(EVERY), dtype=F64)
    gamma = model.schedule.gamma({}, t)
    for z in EVERY:
        n = len(EVERY)
        noise = masked.Noise(t.repeat_interleave(n), torch.zeros(len(t) * n, LENGTH, dtype=F64), z.expand(len(t) * n, -1))
        terms = masked.bound.bound(model, FLAT, EVERY.repeat(len(t), 1), noise)
        q = torch.stack([model.corruption.log_q(EVERY, z.expand(n, -1), g.expand(n, LENGTH)).sum(1).exp() for g in gamma])
        total += ((terms.diffusion.reshape(len(t), n) * q) * weight[:, None]).sum(0)
        ends = terms.recon[:n] + terms.prior[:n]
    return total + ends


def test_the_continuous_bound_under_uniform_noise_is_the_log_probability():
    bound = uniform_bound(ideal(schedules.fixed_linear(-24.0, 24.0), "uniform"), *chains.gauss(120))
    torch.testing.assert_close(bound, -LOG_P, rtol=0, atol=1e-7)


def test_the_bound_under_uniform_noise_falls_with_steps():
    line, found = schedules.power(floor=1e-12), []
    for steps in (1, 4, 16, 64):
        model = ideal(line, "uniform", timesteps=steps)
        t = torch.arange(1, steps + 1, dtype=F64) / steps
        bound = uniform_bound(model, t, torch.full((steps,), 1 / steps, dtype=F64))
        found.append((LOG_P.exp() * bound).sum() - ENTROPY)
    assert found[0] > found[1] > found[2] > found[3] > 0
    assert 3 < found[2] / found[3] < 5  # of first order in a step


@given(st.integers(2, 6), st.integers(0, 2**31 - 1), st.sampled_from(["masking", "uniform"]))
@settings(max_examples=25, deadline=None)
def test_a_loss_in_steps_is_the_divergence_of_two_posteriors(k, seed, kind):
    """By Bayes' rule from the transitions, in float64."""
    noise = {"masking": corruptions.Masking, "uniform": corruptions.Uniform}[kind](k)
    keys, s = random.split(random.key(seed), 4), noise.symbols
    log_p = torch.log_softmax(random.normal(keys[0], (k,), F64), -1)
    x, gammas = random.randint(keys[1], (), 0, k).long(), random.uniform(keys[2], (2,), F64, -4.0, 4.0).sort().values
    alpha_s, alpha_t = torch.sigmoid(-gammas)
    base = torch.eye(s, dtype=F64)[-1] if kind == "masking" else torch.full((s,), 1 / s, dtype=F64)
    stays, eye = alpha_t / alpha_s, torch.eye(s, dtype=F64)
    at_s = alpha_s * eye[:k] + (1 - alpha_s) * base  # q(z_s | x)
    step = stays * eye + (1 - stays) * base  # q(z_t | z_s)
    weight = torch.expm1(gammas[1] - gammas[0])
    for z in range(s):
        if not (step[:, z] * at_s[x]).sum() > 0:
            continue  # z_t that x does not lead to
        posterior = [p / p.sum() for p in (step[:, z] * at_s[x], step[:, z] * (log_p.exp() @ at_s))]
        q, p = posterior
        want = torch.where(q > 0, q * torch.log(q / p), 0.0).sum()
        given = (log_p[None], x[None], torch.tensor([z]), corruptions.weighted(gammas[1:], weight[None], 1))
        torch.testing.assert_close(noise.loss(*given)[0], want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [corruptions.Masking, corruptions.Uniform])
def test_many_short_steps_cost_what_continuous_time_does_in_float32(kind):
    noise, n, steps = kind(5), 64, 50_000
    log_p = torch.log_softmax(random.normal(random.key(0), (n, 5), F64), -1)
    x, gamma, slope = torch.arange(n) % 5, torch.linspace(-8.0, 8.0, n, dtype=F64), torch.full((n,), 7.0, dtype=F64)
    z = torch.full((n,), 5) if kind is corruptions.Masking else (x + torch.arange(n) // 5) % 5
    want = noise.loss(log_p, x, z, corruptions.weighted(gamma, slope, 0))
    weight = steps * torch.expm1(slope / steps)
    got = noise.loss(log_p.float(), x, z, corruptions.weighted(gamma.float(), weight.float(), steps))
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("corruption", ["masking", "uniform"])
def test_gradients_of_a_schedule_are_those_of_the_expected_bound(corruption):
    """Exactly, summed over all latents with their probabilities, against differences: in steps, where the interior counts,
    and with a network that sees the level."""
    steps, k = 3, 3

    def apply(params, seen, gamma, cond=None, key=None):
        return seen.roll(1, 0) * torch.tanh(gamma) + 0.3 * seen.cos()

    network = networks.Network.of(lambda key, shape: {}, apply)
    bent = schedules.constrained_monotone(-3.0, 3.0, (4,))
    options = dict(corruption=corruption, classes_last=True, timesteps=steps, dtype=F64)
    with pytest.warns(UserWarning, match="its ends alone"):
        model = masked.diffusion(network, bent, (2,), k, **options)
    params, x = model.init(random.key(0)), torch.tensor([0, 2])
    symbols = k + (corruption == "masking")
    latents = [z for z in chains.every(symbols, 2) if corruption == "uniform" or all((z == x) | (z == k))]

    def expected(params, detached=False):
        total = 0.0
        for i in range(1, steps + 1):
            t = torch.tensor([i / steps], dtype=F64)
            levels = schedules.levels(bent, params["schedule"], t, steps)
            for z in latents:
                u = torch.where(z == x, 0.99999 if corruption == "masking" else 0.0, 0.0)[None].double()
                noise = masked.Noise(t, u, None if corruption == "masking" else z[None])
                terms = masked.bound.terms(model, {}, x[None], noise, levels)
                q = model.corruption.log_q(x, z, levels.gamma_t).sum().exp()
                q = q.detach() if detached else q
                value = terms.diffusion.sum()
                total += q * (value if detached else value.detach()) / steps
            total += (terms.recon + terms.prior).sum() / steps
        return total

    got = torch.func.grad(lambda p: expected(p, detached=True))(params)["schedule"]
    for path in (("w",), ("b",), ("layers", "0", "bias")):
        leaf, grad = params["schedule"], got
        for name in path:
            leaf, grad = leaf[name], grad[name]
        entry, step = leaf.reshape(-1)[:1], 1e-5
        values = []
        for sign in (1, -1):
            entry += sign * step
            values.append(expected(params))
            entry -= sign * step
        torch.testing.assert_close(grad.reshape(-1)[0], (values[0] - values[1]) / (2 * step), rtol=1e-6, atol=1e-7)


NETWORK = networks.transformer(16, 1, positions=True)


@pytest.mark.parametrize("timesteps", [0, 5])
@pytest.mark.parametrize("corruption", ["masking", "uniform"])
def test_padding_changes_nothing(corruption, timesteps):
    options = dict(corruption=corruption, classes_last=True, timesteps=timesteps, dtype=F64)
    short, long = (masked.diffusion(NETWORK, None, (n,), 5, **options) for n in (4, 7))
    params = started(short)
    x = random.randint(random.key(1), (6, 7), 0, 5)
    mask = sizes.mask(torch.full((6,), 4), (7,))
    noise = long.draw(random.key(2), 6)
    cut = noise._replace(u=noise.u[:, :4], others=None if noise.others is None else noise.others[:, :4])
    a = masked.bound.bound(long, params, x, noise, mask=mask)
    b = masked.bound.bound(short, params, x[:, :4], cut)
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    terms = long.terms(params, x, random.key(2), mask=mask)
    assert not any(term[:, 4:].any() for term in terms)
    drawn = long.sample(params, random.key(3), 6, steps=3, mask=mask)
    assert not drawn[:, 4:].any()
    if corruption == "masking":
        each = order.nll_bound(long, params, x, random.key(2), mask=mask).diffusion
        torch.testing.assert_close(each, order.nll_bound(long, params, 0 * x + x * mask, random.key(2), mask=mask).diffusion)


def started(model):
    params = model.init(random.key(0))
    out = params["network"]["out"]["kernel"]
    out += 0.3 * random.normal(random.key(9), tuple(out.shape), out.dtype)  # its zeros would say nothing
    return params


def test_any_order_and_masks_have_one_bound():
    """In expectation; and exactly that of a chain for the ideal predictor."""
    model = ideal(schedules.power(floor=1e-12))
    x = random.categorical(random.key(3), LOG_P, (4000,))
    each = order.nll_bound(model, FLAT, EVERY[x], random.key(4)).total + LOG_P[x]
    mean, error = mean_and_error(each)
    assert abs(mean) < 4 * error < 0.2

    def apply(params, seen, gamma, cond=None, key=None):
        return seen.roll(1, 0) + seen.roll(-1, 0) * 0.7 - seen.cumsum(0).cos()

    model = masked.diffusion(networks.Network.of(lambda key, shape: {}, apply), None, (6,), 4, classes_last=True, dtype=F64)
    x = random.randint(random.key(0), (1, 6), 0, 4).expand(20_000, 6)
    (a, a_error), (b, b_error) = (
        mean_and_error(total)
        for total in (model.nll_bound(FLAT, x, random.key(1)).total, order.nll_bound(model, FLAT, x, random.key(1)).total)
    )
    assert abs(a - b) < 4 * math.hypot(a_error, b_error) + 1e-4
    assert b_error < a_error  # whose numbers of hidden tokens vary, too


def test_times_by_importance_leave_the_bound():
    warped = importance.warped(schedules.power(), bins=8)
    model = masked.diffusion(NETWORK, warped, (6,), 5, classes_last=True)
    params, x = started(model), random.randint(random.key(1), (256, 6), 0, 5)
    for i in range(20):
        _, stats = model.loss_and_stats(params, x, random.key(i))
        params["schedule"] |= stats["schedule"]
    plain = masked.diffusion(NETWORK, None, (6,), 5, classes_last=True)
    base = {"network": params["network"], "schedule": {}}
    (a, a_error), (b, b_error) = (
        mean_and_error(m.nll_bound(p, x.repeat(40, 1), random.key(50)).total) for m, p in ((model, params), (plain, base))
    )
    assert importance.density(warped, params["schedule"]).std() > 0.05
    assert abs(a - b) < 4 * math.hypot(a_error, b_error)
