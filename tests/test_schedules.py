"""Schedules: the official numbers, monotone for any parameters, ends that stay."""

import math
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import optree
import pytest
import torch
from compare import close
from goldens import CASES, case
from hypothesis import given, settings
from perturb import perturbed
from torch._dynamo.utils import counters
from versions import since_2_13

import purevdm
from purevdm import bound, importance, interop, networks, nn, random, sampling, schedules, testing
from purevdm.bfn import bridge
from purevdm.schedules import Schedule
from purevdm.testing import sources

MAKERS = {
    "fixed_linear": schedules.fixed_linear,
    "learned_linear": schedules.learned_linear,
    "monotone_mlp": schedules.monotone_mlp,
    "constrained": schedules.constrained_monotone,
    "pinned": lambda *ends, **kw: schedules.monotone_mlp(*ends, pin_endpoints=True, **kw),
}
seeds = st.integers(0, 2**32 - 1)


def scrambled(schedule, seed, scale):
    """Parameters far from any initialisation: every leaf normal, of this scale."""
    params = schedule.init(random.key(0))
    leaves, spec = optree.tree_flatten(params)
    keys = random.split(random.key(seed), max(1, len(leaves)))
    new = [(random.normal(k, leaf.shape) * scale).double() for k, leaf in zip(keys, leaves, strict=False)]
    return optree.tree_unflatten(spec, new)


@pytest.mark.parametrize("name", CASES)
def test_gamma_and_its_derivative_are_the_official_ones(name):
    c = case(name)
    t = torch.tensor(c.arrays["gamma/t"])
    gamma, slope = torch.func.jvp(lambda t: c.model.gamma(c.params, t), (t,), (torch.ones_like(t),))
    np.testing.assert_allclose(gamma, c.arrays["gamma/g"].reshape(-1), rtol=0, atol=5e-6)  # five units in the last place
    np.testing.assert_allclose(slope, c.arrays["gamma/dg"].reshape(-1), rtol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=15)
@given(seed=seeds, scale=st.floats(0.05, 5))
def test_the_laws_hold_for_any_parameters(name, seed, scale):
    schedule = MAKERS[name]()
    params = optree.tree_map(lambda leaf: leaf.float(), scrambled(schedule, seed, scale))
    testing.check_schedule(schedule, params=params)
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    wide = optree.tree_map(lambda leaf: leaf.double(), params)
    _, slope = torch.func.jvp(lambda t: schedule.gamma(wide, t), (t,), (torch.ones_like(t),))
    assert (slope > 0).all()


@pytest.mark.parametrize("name", ["fixed_linear", "learned_linear", "pinned", "constrained"])
@given(low=st.floats(-30, 0), width=st.floats(0.5, 30))
def test_ends_are_the_given_ones(name, low, width):
    schedule = MAKERS[name](low, low + width)
    gamma = schedule.gamma(schedule.init(random.key(0)), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(gamma, torch.tensor([low, low + width]), rtol=1e-6, atol=1e-5)


@given(seeds, st.floats(0.1, 3))
def test_pinned_ends_are_two_parameters_bit_for_bit(seed, scale):
    schedule = schedules.monotone_mlp(hidden=64, pin_endpoints=True)
    params = optree.tree_map(lambda leaf: leaf.float(), scrambled(schedule, seed, scale))
    b, w = params["l1"]["bias"][0], params["l1"]["kernel"][0, 0].abs()
    assert torch.equal(schedule.gamma(params, torch.tensor([0.0, 1.0])), torch.stack([b, b + w]))


@given(seeds, st.floats(0.01, 30), st.sampled_from(sorted(nn.CONVEX)), st.integers(1, 9))
def test_constrained_ends_are_exact_and_the_interior_bends(seed, scale, base, n):
    schedule = schedules.constrained_monotone(hidden=(7, 5), activation=base)
    params = optree.tree_map(lambda leaf: leaf.float(), scrambled(schedule, seed, scale))
    b, w = params["b"], params["w"].abs()
    t = torch.cat([torch.zeros(1), torch.linspace(0, 1, n), torch.ones(1)])
    gamma = schedule.gamma(params, t)
    assert torch.equal(gamma[[0, -1]], torch.stack([b, b + w]))
    assert torch.equal(torch.func.vmap(lambda t: schedule.gamma(params, t))(t)[[0, -1]], torch.stack([b, b + w]))
    # and the derivative is there, too, the limit of its neighbours'
    slope = torch.func.jvp(lambda t: schedule.gamma(params, t), (t[[0, -1]],), (torch.ones(2),))[1]
    near = torch.func.jvp(lambda t: schedule.gamma(params, t), (torch.tensor([1e-6, 1 - 1e-6]),), (torch.ones(2),))[1]
    torch.testing.assert_close(slope, near, rtol=0.05, atol=1e-3 * float(w))


def test_constrained_parameters_all_learn():
    schedule = schedules.constrained_monotone(hidden=(8, 8))
    params = scrambled(schedule, 0, 1.0)
    grads = torch.func.grad(lambda p: schedule.gamma(p, torch.linspace(0, 1, 50, dtype=torch.float64)).square().sum())(
        params
    )
    assert all(leaf.abs().max() > 0 for leaf in optree.tree_leaves(grads))


@pytest.mark.parametrize("name", MAKERS)
def test_times_of_any_shape(name):
    """Mapped over or not, of more axes, or one time expanded to many: the same, in the same dtype."""
    schedule = MAKERS[name]()
    params = optree.tree_map(lambda leaf: leaf.float(), scrambled(schedule, 3, 1.0))
    t = torch.linspace(0.1, 0.9, 5)
    gamma, slope = schedules.gamma_and_slope(schedule, params, t)
    torch.testing.assert_close(gamma, schedule.gamma(params, t))
    assert gamma.dtype == slope.dtype == torch.float32
    for some, index in ((t[2].expand(4), [2] * 4), (t.reshape(5, 1), torch.arange(5).reshape(5, 1)), (t[1], 1)):
        found = schedules.gamma_and_slope(schedule, params, some)
        torch.testing.assert_close(found, (gamma[index], slope[index]))
    steps = torch.tensor([-1e-6, 1e-6], dtype=torch.float64)
    wide = optree.tree_map(lambda leaf: leaf.double(), params)
    rise = torch.stack([schedule.gamma(wide, t.double() + d) for d in steps]).diff(dim=0)[0] / 2e-6
    torch.testing.assert_close(slope.double(), rise, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("ends", [(5.0, 5.0), (float("nan"), 1.0)])
def test_bad_ends_are_refused(name, ends):
    with pytest.raises(ValueError, match="gamma_min"):
        MAKERS[name](*ends)


@pytest.mark.parametrize(
    ("options", "word"),
    [(dict(hidden=()), "hidden"), (dict(hidden=(3, 0)), r"hidden\[1\]"), (dict(activation="silu"), "silu")],
)
def test_networks_of_another_form_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        schedules.constrained_monotone(**options)


# What a model makes of a schedule

NO_PARAMS = {"network": {}, "schedule": {}}


def of(gamma, event=(2,), **options):
    """A model of this schedule, whose network is ideal for a Gaussian."""
    schedule = schedules.Schedule.of(lambda key: {}, gamma, **options)
    return purevdm.vdm(sources.gaussian(0.4), schedule, event, dtype=torch.float64)


def dip(t):
    """A line but for a fall from about 0.03 to 0.06, between eighths."""
    return -10.0 + 14.0 * t - torch.exp(-(((t - 0.06) / 0.02) ** 2))


def test_a_fall_between_eighths_is_refused_where_a_call_meets_it():
    model, x = of(lambda params, t: dip(t)), torch.zeros(64, 2, dtype=torch.int64)
    for call in (model.loss_fn, model.nll_bound, model.vlb_and_variance_grads):
        with pytest.raises(ValueError, match=r"schedule: expected .*increase at the times of every example"):
            call(NO_PARAMS, x, random.key(0))
    with pytest.raises(ValueError, match=r"schedule: .*increase at the times of every example"):
        model._replace(timesteps=500).nll_bound(NO_PARAMS, x.repeat(8, 1), random.key(0))
    with pytest.raises(ValueError, match=r"schedule: expected .*increase from each step's time to the next.* falls by 0\.0"):
        model.sample(NO_PARAMS, random.key(0), 2, steps=500, grid="time")
    with pytest.raises(ValueError, match=r"schedule: expected .*increase from each step's time"):
        sampling.invert(model, NO_PARAMS, x[:2], steps=500, grid="time")
    model.sample(NO_PARAMS, random.key(0), 2, steps=500, grid="gamma")  # looks at its ends only
    with pytest.raises(testing.LawError, match="increase strictly"):
        testing.check_schedule(model.schedule)
    narrow = schedules.Schedule.of(
        lambda key: {}, lambda params, t: 9.0 * t - 1e-3 * torch.exp(-(((t - 0.3001) / 2e-5) ** 2))
    )
    testing.check_schedule(schedules.fixed_linear(0.0, 9.0))
    with pytest.raises(testing.LawError, match="increase strictly"):
        testing.check_schedule(narrow)


def test_a_contextual_schedule_is_looked_at_for_every_example():
    model = of(lambda params, t, c: -10.0 + c * t, contextual=True)
    x, cond = torch.zeros(3, 2, dtype=torch.int64), torch.tensor([14.0, 13.0, -2.0], dtype=torch.float64)
    for call in (
        lambda c: model.loss_fn(NO_PARAMS, x, random.key(0), c),
        lambda c: model.sample(NO_PARAMS, random.key(0), 3, steps=2, cond=c),
        lambda c: sampling.invert(model, NO_PARAMS, x, c, steps=2),
    ):
        with pytest.raises(ValueError, match=r"schedule: .*got -10, -10\.5, -11, -11\.5, -12 at .* in example 2"):
            call(cond)
        call(cond.abs() + 1.0)
    bent = of(
        lambda params, t, c: dip(t) if c is None else -10.0 + 14.0 * t + c * (dip(t) + 10.0 - 14.0 * t), contextual=True
    )
    flags = torch.zeros(64, dtype=torch.float64)
    bent.loss_fn(NO_PARAMS, x[:1].expand(64, 2), random.key(0), flags)
    with pytest.raises(ValueError, match=r"schedule: .*increase at the times of every example"):
        bent.loss_fn(NO_PARAMS, x[:1].expand(64, 2), random.key(0), flags + 1.0)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 40.0), (torch.float64, 300.0)])
def test_gamma_has_a_range_in_which_all_is_finite_and_none_beyond(dtype, most):
    def model(low, high, schedule=schedules.learned_linear):
        return purevdm.vdm(networks.mlp(8, fourier=()), schedule(low, high), (2,), 4096, dtype=dtype)

    widest = model(-most, most)
    params, x = widest.init(random.key(0)), random.randint(random.key(1), (8, 2), 0, 4096)
    grads, loss = torch.func.grad_and_value(widest.loss_fn)(params, x, random.key(2))
    assert loss.isfinite()
    assert all(leaf.isfinite().all() for leaf in optree.tree_leaves(grads))
    assert widest._replace(timesteps=1).nll_bound(params, x, random.key(2)).total.isfinite().all()
    widest.sample(params, random.key(3), 2, steps=3)
    for low, high in ((-most - 1, 5.0), (-5.0, most + 1)):
        with pytest.raises(ValueError, match="gamma"):
            model(low, high)
    params["schedule"]["b"] -= 2.0
    with pytest.raises(ValueError, match=f"schedule: expected gamma.*from -{most:g} at least to {most:g} at most"):
        widest.loss_fn(params, x, random.key(2))
    with pytest.raises(ValueError, match=r"gamma_min, gamma_max: expected numbers in \[-300, 300\]"):
        schedules.constrained_monotone(-301.0, 5.0)


ONE_GRAPH = MAKERS | {
    "warped": lambda: importance.warped(schedules.constrained_monotone(), 8),
    "each dimension": lambda: Schedule.of(lambda key: {"w": torch.ones(3)}, lambda params, t: 4.0 * t * params["w"] - 5.0),
}


@since_2_13
@pytest.mark.parametrize("name", ONE_GRAPH)
@pytest.mark.parametrize("method", ["bound", *(pytest.param(m, marks=pytest.mark.slow) for m in ("loss_fn", "by variance"))])
def test_one_graph_serves_every_batch(name, method):
    """By default with explicit noise, which takes a compiler longer to make than a schedule does."""
    model = purevdm.vdm(networks.mlp(4, layers=1, fourier=()), ONE_GRAPH[name](), (3,), 16)
    params, counters["stats"] = model.init(random.key(0)), Counter()
    eager = {
        "bound": torch.func.grad_and_value(lambda params, x, noise: bound.bound(model, params, x, noise).total.mean()),
        "loss_fn": torch.func.grad_and_value(model.loss_fn),
        "by variance": model.vlb_and_variance_grads,
    }[method]
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    for n in (4, 7, 17):
        x = random.randint(random.key(n), (n, 3), 0, 16)
        source = model.draw(random.key(1), n) if method == "bound" else random.key(1)
        for batch in (x, *(source if method == "bound" else ())):
            torch._dynamo.mark_dynamic(batch, 0)
        close(compiled(params, x, source), eager(params, x, source), 1e-4)
    assert counters["stats"]["unique_graphs"] == 1


# Steps


def event(params, t):
    return torch.tensor([-9.0, -7.0], dtype=t.dtype) + params["w"].exp() * t + t.square()


EVENT = Schedule.of(lambda key: {"w": torch.tensor([2.0, 2.5])}, event)
CONTEXT = Schedule.of(
    lambda key: {"w": torch.tensor([2.5, 1.0, 1.0])}, lambda params, t, c: params["w"].exp() @ c * t, contextual=True
)
STEPPED = {
    **{name: make() for name, make in MAKERS.items()},
    "karras": schedules.karras(),
    "tabulated": schedules.tabulated(interop.betas("cosine", 1001).cumsum(0).log()),
    "bridge": bridge.schedule(0.02),
    "vp": interop.score_sde("vp").schedule,
    "warped": importance.warped(schedules.monotone_mlp()),
    "event": EVENT,
    "contextual": CONTEXT,
}


def test_a_schedule_is_checked_in_its_contexts_dtypes():
    testing.check_schedule(CONTEXT, context=torch.tensor([0.5, 1.0, 2.0]))


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("timesteps", [1000, 100_000])
def test_weights_in_steps_and_their_gradients_are_float64s(name, timesteps):
    """Not the difference of two values of float32, which is 5e-5 off in 1,000 steps, and 6e-3 in 100,000."""
    schedule = STEPPED[name]
    params = schedule.init(random.key(0))
    params = perturbed(params, 3, 0.05) if params else params
    i = torch.cat([torch.arange(1, 9), random.randint(random.key(1), (48,), 9, timesteps), torch.tensor([timesteps])])
    context = random.uniform(random.key(2), (len(i), 3)) if schedule.contextual else None
    wide = optree.tree_map(lambda leaf: leaf.double(), (params, context))
    ends = [schedules.gamma(schedule, wide[0], (i - back).double() / timesteps, wide[1]) for back in (1, 0)]

    def weight(params):
        return schedules.levels(schedule, params, i.float() / timesteps, timesteps, context).weight

    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(weight(params).double(), timesteps * torch.expm1(ends[1] - ends[0]), rtol=eps, atol=0)

    def exactly(params):
        ends = [schedules.gamma(schedule, params, (i - back).double() / timesteps, wide[1]) for back in (1, 0)]
        return timesteps * torch.expm1(ends[1] - ends[0])

    got, want = (torch.func.grad(lambda p, f=f: f(p).sum())(p) for f, p in ((weight, params), (exactly, wide[0])))
    close(got, want, 4 * eps)


def test_weights_in_steps_compiled_batched_and_along_a_direction():
    schedule, timesteps = schedules.monotone_mlp(hidden=8), 100_000
    params = schedule.init(random.key(0))
    t = torch.tensor([1.0, 2.0, 31_416.0, 99_999.0, 100_000.0]) / timesteps

    def every(params, t):
        def weight(params, t):
            return schedules.levels(schedule, params, t[None], timesteps).weight[0]

        along = torch.func.jvp(lambda p: torch.func.vmap(weight, in_dims=(None, 0))(p, t), (params,), (params,))
        return *along, torch.func.vmap(torch.func.grad(weight, argnums=(0, 1)), in_dims=(None, 0))(params, t)

    wide = optree.tree_map(lambda leaf: leaf.double(), params)
    for way in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, dynamic=True)):
        close(way(every)(params, t), every(wide, t.double()), 16 * torch.finfo(torch.float32).eps)


# Tables


def test_a_table_s_levels_are_those_of_its_steps():
    levels = torch.linspace(-3.0, 2.0, 11, dtype=torch.float64) ** 3
    schedule = schedules.tabulated(levels)
    testing.check_schedule(schedule)
    t = torch.arange(11, dtype=torch.float64) / 10
    torch.testing.assert_close(schedules.gamma(schedule, {}, t), levels, rtol=1e-12, atol=1e-12)
    steps = schedules.levels(schedule, {}, t[1:], 10)
    torch.testing.assert_close(steps.weight, 10 * torch.expm1(levels.diff()), rtol=1e-9, atol=0)
    assert schedules.gamma(schedule, {}, torch.tensor([0.0, 1.0])).tolist() == [-27.0, 8.0]
    assert repr(schedule) == "Tabulated(11 levels from -27 to 8)"
    for bad in ([1.0], [0.0, 0.0], [1.0, 0.0], [0.0, math.inf], [0.0, 301.0]):
        with pytest.raises(ValueError, match=r"^levels"):
            schedules.tabulated(bad)
    with pytest.raises(TypeError, match=r"^levels: expected numbers"):
        schedules.tabulated("12")


def test_the_grid_of_karras_is_a_line_in_a_power_of_sigma():
    schedule = schedules.karras(0.01, 50.0, 5.0)
    testing.check_schedule(schedule)
    sigma = torch.exp(0.5 * schedules.gamma(schedule, {}, torch.linspace(0, 1, 9, dtype=torch.float64)))
    torch.testing.assert_close(sigma ** (1 / 5), torch.linspace(0.01 ** (1 / 5), 50 ** (1 / 5), 9, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^sigma_min, sigma_max: expected"):
        schedules.karras(2.0, 1.0)
