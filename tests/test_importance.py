"""Importance sampling of times: the best density, its variance, the same bound, a histogram that training moves."""

import math

import hypothesis.strategies as st
import pytest
import tiny
import torch
from backends import every_backend
from compare import close
from hypothesis import given
from optree import tree_leaves, tree_map
from perturb import perturbed

import purevdm
from purevdm import importance, networks, random, schedules, training
from purevdm.module import Module
from purevdm.training import checkpoint

DIMS, RISE = 4, 10.0


def bent(params, t):
    """gamma' = RISE (1 + 8 t**3) / 3."""
    return -6.0 + RISE * (t + 2.0 * t**4) / 3.0


BENT = schedules.Schedule.of(lambda key: {}, bent)
BLIND = networks.Network.of(lambda key, shape: {}, lambda params, z, gamma, cond=None, key=None: torch.zeros_like(z))


def integral(f, edges, n=2000):
    """Of f over each bin, by midpoints."""
    low, high = edges[:-1, None], edges[1:, None]
    t = low + (high - low) * (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return f(t).mean(1) * (high - low)[:, 0]


def slope(t):
    return RISE * (1.0 + 8.0 * t**3) / 3.0


def grid(bins):
    return torch.linspace(0, 1, bins + 1, dtype=torch.float64)


def blind(schedule, **options):
    """A network that predicts no noise: its loss at t is gamma'(t) |eps|**2 / 2."""
    return purevdm.vdm(BLIND, schedule, (DIMS,), 16, dtype=torch.float64, **options)


def learned(model, steps=200, n=512):
    """Parameters after some batches, without an optimiser."""
    params, x = model.init(random.key(0)), torch.zeros(n, *model.event_shape, dtype=torch.int64)
    for i in range(steps):
        _, stats = model.loss_and_stats(params, x, random.key(i))
        params = params | {"schedule": params["schedule"] | stats["schedule"]}
    return params


def histogram(seed, bins, dtype=torch.float64):
    """Any: losses over ten orders of magnitude, bins that were never visited."""
    k_square, k_visits, k_none = random.split(random.key(seed), 3)
    square = torch.exp(4.0 * random.normal(k_square, (bins,), dtype))
    visits = random.uniform(k_visits, (bins,), dtype) * (random.uniform(k_none, (bins,)) > 0.3)
    return {"square": square * visits, "visits": visits / visits.sum().clamp(min=1.0)}


# The optimal density


def test_the_optimum_is_the_root_of_the_second_moment_and_none_has_less_variance():
    square = integral(lambda t: slope(t) ** 2, grid(8)) * 8
    best = importance.optimal(square)
    torch.testing.assert_close(best, square.sqrt() / square.sqrt().mean())
    assert math.isclose(best.mean(), 1.0, rel_tol=1e-12)
    least = (square / best).mean()
    torch.testing.assert_close(least, square.sqrt().mean().square())
    for seed in range(20):
        other = best * torch.exp(0.3 * random.normal(random.key(seed), (8,), torch.float64))
        assert (square / (other / other.mean())).mean() > least
    mixed = importance.optimal(square, 0.25)
    torch.testing.assert_close(mixed, 0.25 + 0.75 * best)


def test_training_finds_the_optimum_of_a_known_curve():
    """E[l(t)**2] = gamma'(t)**2 (d**2 + 2 d) / 4. A bin's mean over 20 batches is good to some percent."""
    schedule = importance.warped(BENT, 8, uniform=0.1)
    params = learned(blind(schedule))
    want = importance.optimal(integral(lambda t: slope(t) ** 2, grid(8)), 0.1)
    torch.testing.assert_close(importance.density(schedule, params["schedule"]), want, rtol=0.05, atol=0.0)
    # in the histogram's own units: nats**2, and a batch's part in each bin
    warp = params["schedule"]["warp"]
    second = integral(lambda t: slope(t) ** 2, grid(8)) * 8 * (DIMS**2 + 2 * DIMS) / 4
    torch.testing.assert_close(warp["square"] / warp["visits"], second, rtol=0.2, atol=0.0)
    assert math.isclose(warp["visits"].sum(), 1 - 0.95**200, rel_tol=1e-6)


def test_the_variance_falls_as_predicted():
    """Var = E[|eps|**4 / 4] sum over bins of the integral of gamma'**2 / p, minus the squared mean."""
    n, x = 200_000, torch.zeros(200_000, DIMS, dtype=torch.int64)
    base = blind(BENT, antithetic=False)
    model = blind(importance.warped(BENT, 8), antithetic=False)
    params = learned(model)
    p = importance.density(model.schedule, params["schedule"])
    fourth, squares = (DIMS**2 + 2 * DIMS) / 4, integral(lambda t: slope(t) ** 2, grid(8))
    variances = []
    for way, held, density in ((base, {"network": {}, "schedule": {}}, torch.ones(8)), (model, params, p)):
        losses = way.nll_bound(held, x, random.key(1)).diffusion
        off = (losses - losses.mean()).square()
        want = fourth * (squares / density).sum() - (RISE * DIMS / 2) ** 2
        assert abs(off.mean() - want) < 4.5 * off.std() / math.sqrt(n)
        assert abs(losses.mean() - RISE * DIMS / 2) < 4.5 * losses.std() / math.sqrt(n)
        variances.append(want)
    assert variances[1] < 0.6 * variances[0]
    # about what a straight line leaves, the best that there is: RISE**2 d / 2
    assert variances[1] < 1.2 * RISE**2 * DIMS / 2


# The same bound, and the same gradients


def ready(base, **options):
    """A network and a histogram that are far from their start."""
    network = networks.mlp(8, fourier=(0,), predicts="v")
    plain = purevdm.vdm(network, base, (2,), 16, dtype=torch.float64, **options)
    params = tree_map(torch.Tensor.double, perturbed(tree_map(torch.Tensor.float, plain.init(random.key(0))), 1, 0.3))
    model = plain._replace(schedule=importance.warped(base, 6))
    own = {"network": params["network"], "schedule": {"base": params["schedule"], "warp": histogram(5, 6)}}
    return plain, params, model, own


def test_the_bound_and_its_gradients_are_the_same_within_their_errors():
    """On common noise: reconstruction and prior are equal, the diffusion loss is another estimate of the same mean.
    Gradients along a few directions, leaf by leaf; none for the histogram."""
    plain, params, model, own = ready(schedules.learned_linear(-5.0, 3.0))
    x = random.randint(random.key(2), (64, 2), 0, 16)
    gaps, slopes = [], []
    for i in range(100):
        a, b = (m.nll_bound(p, x, random.key(i)) for m, p in ((model, own), (plain, params)))
        torch.testing.assert_close((a.recon, a.prior), (b.recon, b.prior))
        gaps.append((a.diffusion - b.diffusion).mean())
        a, b = (torch.func.grad(m.loss_fn)(p, x, random.key(i)) for m, p in ((model, own), (plain, params)))
        assert not any(leaf.any() for leaf in tree_leaves(a["schedule"]["warp"]))
        ours, theirs = [a["network"], a["schedule"]["base"]], [b["network"], b["schedule"]]
        pairs = zip(tree_leaves(ours), tree_leaves(theirs), strict=True)
        slopes.append([((u - v) * random.normal(random.key(j), u.shape, u.dtype)).sum() for j, (u, v) in enumerate(pairs)])
    for found, most in ((torch.stack(gaps)[:, None], 6), (torch.tensor(slopes), 5)):
        assert (found.std(0) > 0).all()
        assert (found.mean(0).abs() < most * found.std(0) / 10).all()


# The warp


@given(st.integers(0, 2**31), st.integers(2, 40), st.sampled_from([1e-3, 0.1, 1.0]), st.sampled_from(["float32", "float64"]))
def test_the_warp_is_monotone_with_exact_ends_and_slope_one_over_the_density(seed, bins, uniform, dtype):
    dtype = getattr(torch, dtype)
    schedule = importance.warped(schedules.fixed_linear(-5.0, 3.0), bins, uniform=uniform)
    params = {"base": {}, "warp": histogram(seed, bins, dtype)}
    p = importance.density(schedule, params)
    assert p.dtype == dtype
    assert p.min() >= uniform * (1 - 1e-6)
    assert abs(p.mean() - 1) < 1e-5
    edges = importance.edges(p)
    assert (edges[0], edges[-1]) == (0.0, 1.0)
    assert (edges.diff() > 0).all()
    u = torch.cat([edges, random.uniform(random.key(seed), (50,), dtype)]).sort().values
    t = importance.warp(edges, u)
    assert (t[0], t[-1]) == (0.0, 1.0)
    assert (t.diff() >= 0).all()
    torch.testing.assert_close(importance.warp(edges, edges), torch.linspace(0, 1, bins + 1, dtype=dtype))
    gamma, slope = schedules.gamma_and_slope(schedule, params, u)
    torch.testing.assert_close(gamma, -5.0 + 8.0 * t)
    # the weights have mean one: each bin's mass times its weight is its length in time
    middle = (edges[1:] + edges[:-1]) / 2
    weight = schedules.gamma_and_slope(schedule, params, middle)[1] / 8.0
    torch.testing.assert_close(weight * edges.diff(), torch.full_like(p, 1 / bins))
    tolerance = 1e-9 if dtype == torch.float64 else 1e-6 / (uniform / bins)  # of edges near 1
    torch.testing.assert_close(weight * p, torch.ones_like(p), rtol=min(tolerance, 0.5), atol=0.0)
    assert (slope * (1 if uniform < 1 else p.mean()) <= 8.0 / uniform * (1 + tolerance)).all()


def test_schedules_for_each_dimension_and_contexts():
    params = {"base": {}, "warp": histogram(3, 5)}
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    rise = torch.tensor([8.0, 9.0, 10.0]).double()
    wide = importance.warped(schedules.Schedule.of(lambda key: {}, lambda params, t: -5.0 + rise * t), 5)
    at = importance.warp(importance.edges(importance.density(wide, params)), t)
    torch.testing.assert_close(schedules.gamma(wide, params, t), -5.0 + rise * at[:, None])
    seen = schedules.Schedule.of(lambda key: {}, lambda params, t, c: -5.0 + (8.0 + c) * t, contextual=True)
    context = torch.arange(9.0).double()
    found = schedules.gamma(importance.warped(seen, 5), params, t, context)
    torch.testing.assert_close(found, -5.0 + (8.0 + context) * at)


# The histogram


@given(st.integers(0, 2**31), st.integers(1, 20))
def test_observing_is_pure_and_blind_to_the_order_and_cut_of_a_batch(seed, n):
    warp = histogram(seed, 6)
    edges = importance.edges(importance.optimal(warp["square"] + 1e-3, 0.1))
    u = random.uniform(random.key(seed), (2 * n,), torch.float64)
    losses = random.normal(random.key(seed + 1), (2 * n,), torch.float64).exp()
    before = tree_map(torch.clone, warp)
    whole = importance.observe(warp, edges, u, losses, 0.9)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(warp), tree_leaves(before), strict=True))
    again = importance.observe(warp, edges, u, losses, 0.9)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(whole), tree_leaves(again), strict=True))
    order = random.permutation(random.key(seed), 2 * n)
    close(importance.observe(warp, edges, u[order], losses[order], 0.9), whole, 1e-12)
    halves = [importance.observe(warp, edges, u[i::2], losses[i::2], 0.9) for i in (0, 1)]
    close(tree_map(lambda a, b: (a + b) / 2, *halves), whole, 1e-12)
    # by hand
    where = (importance.warp(edges, u) * 6).long().clamp(max=5)
    for b in range(6):
        there = (losses * edges.diff()[where] * 6)[where == b]
        wanted = 0.9 * warp["square"][b] + 0.1 * there.square().sum() / (2 * n)
        torch.testing.assert_close(whole["square"][b], wanted)


def test_bins_that_nobody_visits_go_by_the_mean():
    """From one example in one bin: all bins alike but for what that one says; after long, a number still."""
    schedule = importance.warped(schedules.fixed_linear(), 4)
    params = schedule.init(random.key(0))
    params |= schedule.observe(params, torch.tensor([0.1]), torch.tensor([3.0]))
    p = importance.density(schedule, params)
    torch.testing.assert_close(p, torch.ones(4))  # the mean is what it says
    for _ in range(3000):
        params |= schedule.observe(params, torch.tensor([0.01]), torch.tensor([3.0]))
    assert importance.density(schedule, params).isfinite().all()


def test_huge_and_zero_losses():
    schedule = importance.warped(schedules.fixed_linear(), 4)
    t = torch.tensor([0.1, 0.3, 0.6, 0.9])
    for losses in (torch.zeros(4), torch.tensor([0.0, 1e15, 1e3, 1e-15])):
        params = schedule.init(random.key(0))
        for _ in range(20):
            params |= schedule.observe(params, t, losses)
        p = importance.density(schedule, params)
        assert p.isfinite().all()
        assert p.min() >= 0.1 * (1 - 1e-5)
        assert schedules.gamma(schedule, params, torch.linspace(0, 1, 9)).diff().min() > 0


# Training


def warped_tiny(**options):
    network = networks.mlp(8, fourier=(0,))
    return purevdm.vdm(network, importance.warped(schedules.constrained_monotone(-5.0, 3.0, (4,)), 4), (2,), 16, **options)


def steps(n, model, settings=tiny.SETTINGS, **options):
    grad_fn, state = training.gradients(model, **options), training.init(model, random.key(0))
    for i in range(n):
        state, metrics = training.train_step(settings, grad_fn, state, tiny.data(seed=i), random.key(3))
    return state, metrics


@pytest.mark.parametrize("variance", [False, True])
def test_a_step_keeps_the_histogram_that_the_loss_returned(variance):
    model = warped_tiny()
    state, metrics = steps(2, model, variance=variance)
    assert metrics.keys() == {"loss", "recon", "prior", "diffusion", "gamma_0", "gamma_1", "grad_norm", "lr"}
    key, x = random.fold_in(random.key(3), 2), tiny.data(seed=2)
    _, stats = model.loss_and_stats(state.params, x, key)
    # AdamW with much weight decay moves all but the histogram
    settings = tiny.SETTINGS._replace(weight_decay=10.0, warmup=0)
    after, _ = training.train_step(settings, training.gradients(model, variance=variance), state, x, random.key(3))
    close(after.params["schedule"]["warp"], stats["schedule"]["warp"], 1e-6)
    assert stats["schedule"].keys() == {"warp"}
    seen = state.params["schedule"]["warp"]
    u = model.seeds(key, 8).t
    hits = torch.histc(importance.warp(importance.edges(importance.density(model.schedule, state.params["schedule"])), u), 4)
    torch.testing.assert_close(stats["schedule"]["warp"]["visits"], 0.95 * seen["visits"] + 0.05 * hits / 8)
    assert not torch.equal(after.params["schedule"]["base"]["w"], state.params["schedule"]["base"]["w"])
    assert after.ema_params["schedule"]["warp"]["visits"].sum() > 0


def test_pieces_rows_and_outside_gradients_keep_what_the_whole_keeps():
    model, x = warped_tiny(), tiny.data()
    params = steps(2, model)[0].params
    whole = training.gradients(model)(params, x, random.key(1))
    close(training.gradients(model, accumulate=4)(params, x, random.key(1)), whole, 1e-4)
    close(training.gradients(model, remat=True)(params, x, random.key(1)), whole, 1e-4)
    seeds = model.seeds(random.key(1), 8)
    parts = [training.gradients(model)(params, x[i : i + 2], seeds.rows(slice(i, i + 2))) for i in range(0, 8, 2)]
    close(tree_map(lambda *leaves: sum(leaves) / 4, *parts), whole, 1e-4)


@every_backend
def test_it_compiles_in_one_graph_as_eager(backend):
    model = purevdm.vdm(networks.mlp(4, 1, fourier=()), importance.warped(schedules.learned_linear(-5.0, 3.0), 4), (2,), 16)
    params = perturbed(model.init(random.key(0)), 1, 0.3)
    params["schedule"]["warp"] = histogram(2, 4, torch.float32)
    compiled, eager = training.gradients(model, compile=True, backend=backend), training.gradients(model)
    got, want = (grads(params, tiny.data(), random.key(3)) for grads in (compiled, eager))
    close(got, want, 1e-4)


def test_checkpoints_and_modules_hold_the_histogram(tmp_path):
    model = warped_tiny()
    state, _ = steps(3, model)
    path = checkpoint.save(tmp_path, state)
    loaded = checkpoint.load(path, training.init(model, random.key(5)))
    for a, b in zip(tree_leaves(loaded.params), tree_leaves(state.params), strict=True):
        assert torch.equal(a, b)
    module = Module(model.loss_and_stats, state.params)
    assert {name for name, _ in module.named_buffers()} == {f"params.schedule.warp.{name}" for name in ("square", "visits")}
    loss, stats = module(tiny.data(), random.key(1))
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    module.load(module.tree() | {"schedule": module.tree()["schedule"] | stats["schedule"]})
    assert torch.equal(module.tree()["schedule"]["warp"]["visits"], stats["schedule"]["warp"]["visits"])


def test_steps_leave_the_histogram_and_training_in_steps_is_refused():
    model = warped_tiny(timesteps=10)
    params = model.init(random.key(0))
    assert "schedule" not in model.loss_and_stats(params, tiny.data(), random.key(1))[1]
    with pytest.raises(ValueError, match="timesteps: expected 0 with a warped schedule"):
        training.gradients(model)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda base: importance.warped(importance.warped(base)), "base: .* is not warped"),
        (lambda base: importance.warped(base, 1), "bins: expected an integer at least 2"),
        (lambda base: importance.warped(base, uniform=0.0), "uniform: expected a number in"),
        (lambda base: importance.density(base, {}), "schedule: expected one of importance.warped"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises((TypeError, ValueError), match=word):
        call(schedules.learned_linear())


@pytest.mark.parametrize(
    ("square", "word"),
    [
        (torch.tensor([-1.0, 1.0]), "finite numbers of at least 0, got"),
        (torch.tensor([torch.nan, 1.0]), ".* got NaN"),
        (torch.ones(3), r"shape \(2,\)"),
    ],
)
def test_histograms_of_another_form_have_no_density(square, word):
    schedule = importance.warped(schedules.learned_linear(), 2)
    with pytest.raises(ValueError, match=rf"params\.warp\.square: expected {word}"):
        importance.density(schedule, {"base": {}, "warp": {"square": square, "visits": torch.ones(2)}})
