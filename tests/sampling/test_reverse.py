"""The reverse process: exact chains on a known source, one graph for any number of steps; starting, stopping, the hook
between steps, derivatives; every kind compiled."""

import math

import optree
import perturb
import pytest
import torch
from backends import every_backend
from compare import close, decoded_alike
from torch._dynamo.utils import counters
from versions import since_2_13

import purevdm
from purevdm import decoders, networks, process, random, sampling, schedules, solvers
from purevdm._compile import OLD
from purevdm.testing import sources

NO_PARAMS = {"network": {}, "schedule": {}}
PAPER = dict(solver=solvers.ancestral(), grid="time")


@pytest.mark.parametrize("self_condition", [False, True])
def test_the_loop_is_the_steps(self_condition):
    """Sampling by hand, with the documented keys. A self-conditioned network takes the last step's estimate, clamped."""
    network = networks.mlp(8, fourier=(), self_condition=self_condition)
    model = purevdm.vdm(network, schedules.learned_linear(), (2,), 16, dtype=torch.float64)
    params, steps = perturb.perturbed(model.init(random.key(0)), 1, 0.5), 4
    k_z, k_steps, _ = random.split(random.key(4), 3)
    z, x_hat = random.normal(k_z, (3, 2), torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    latents = [z]
    for i in range(steps):
        gamma_s, gamma_t = (model.gamma(params, torch.tensor(v / steps).double()) for v in (steps - i - 1, steps - i))
        eps = random.normal(random.fold_in(k_steps, i), z.shape, torch.float64)
        eps_hat = model.eps_hat(params, z, gamma_t.expand(3), None, x_hat if self_condition else None)
        x_hat = process.x_from_eps(z, eps_hat, gamma_t).clamp(-15 / 16, 15 / 16)
        z = solvers.ancestral_step(z, eps_hat, gamma_t, gamma_s, eps)
        latents.append(z)
    calls, options = [], dict(steps=steps, **PAPER)
    callback = dict(trajectory=True, callback=lambda i, z: calls.append((i, z.shape)))
    x, z = model.sample(params, random.key(4), 3, **options, **callback)
    torch.testing.assert_close(z, torch.stack(latents))
    assert calls == [(i, (3, 2)) for i in range(steps)]
    assert torch.equal(x, model.sample(params, random.key(4), 3, **options))
    assert x.dtype == torch.int64


@pytest.mark.parametrize(("decode", "clip"), [("argmax", True), ("sample", False)])
def test_samples_follow_the_source(decode, clip):
    p = torch.tensor([0.5, 0.1, 0.1, 0.3], dtype=torch.float64)
    model = purevdm.vdm(sources.categorical(p), schedules.fixed_linear(-10.0, 10.0), (50,), 4, dtype=torch.float64)
    x = model.sample(NO_PARAMS, random.key(0), 400, steps=150, decode=decode, clip=clip, **PAPER)
    frequencies = x.flatten().bincount(minlength=4) / x.numel()
    # 20,000 pixels: four standard errors, and the bias of 150 steps
    assert (frequencies - p).abs().max() < 4 * 0.5 / math.sqrt(20_000) + 0.01


@every_backend
def test_one_graph_serves_any_number_of_steps_and_a_second_any_number_of_samples(backend):
    model = purevdm.vdm(networks.mlp(8, fourier=(0,), self_condition=True), schedules.learned_linear(), (2,))
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.3)
    counters.clear()
    compiled = torch.compile(model.sample, fullgraph=True, backend=backend)
    for n, steps, graphs in ((3, 1, 1), (3, 5, 1), (3, 40, 1), (4, 5, 2), (2, 3, 2), (9, 4, 2)):
        got = compiled(params, random.key(steps), n, steps=torch.tensor(steps))
        decoded_alike(got, model.sample(params, random.key(steps), n, steps=steps))
        assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


def test_more_samples_begin_with_fewer():
    model = purevdm.vdm(sources.gaussian(0.3), schedules.fixed_linear(), (2, 2))
    params = NO_PARAMS
    few, many = (model.sample(params, random.key(0), n, steps=9) for n in (3, 8))
    assert torch.equal(few, many[:3])


def test_sampling_builds_no_graph():
    model = purevdm.vdm(networks.mlp(8), schedules.learned_linear(), (2,))
    params = optree.tree_map(lambda leaf: leaf.requires_grad_(), model.init(random.key(0)))
    assert not model.sample(params, random.key(0), 2, steps=3, trajectory=True).z.requires_grad


def conditional():
    model = purevdm.vdm(networks.mlp(8, fourier=(), classes=3, cond_drop=0.5), schedules.learned_linear(), (2,), 16)
    return model, perturb.perturbed(model.init(random.key(0)), 1, 0.3)


def test_guidance_goes_from_none_through_the_condition_and_past_it():
    model, params = conditional()
    label, options = torch.tensor([0, 1, 2]), dict(steps=5, trajectory=True)
    free, plain = (model.sample(params, random.key(1), 3, cond=c, **options).z for c in (None, label))
    weighed = {w: model.sample(params, random.key(1), 3, cond=label, guidance=w, **options).z for w in (0.0, 1.0, 3.0)}
    torch.testing.assert_close(weighed[0.0], free)
    assert torch.equal(weighed[1.0], plain)
    assert not torch.allclose(weighed[3.0], plain, atol=1e-2)
    each = model.sample(params, random.key(1), 3, cond=label, guidance=torch.tensor([0.0, 1.0, 3.0]), **options).z
    for i, weight in enumerate((0.0, 1.0, 3.0)):
        torch.testing.assert_close(each[:, i], weighed[weight][:, i])


def test_a_schedule_for_each_pixel_samples_the_source():
    p = torch.tensor([0.5, 0.1, 0.1, 0.3], dtype=torch.float64)
    low, high = -10.0 - torch.arange(50) / 50, 10.0 - torch.arange(50) / 50
    schedule = schedules.Schedule.of(lambda key: {}, lambda params, t: low.to(t) + (high - low).to(t) * t)
    model = purevdm.vdm(sources.categorical(p), schedule, (50,), 4, dtype=torch.float64)
    for solver, steps in ((solvers.ancestral(), 150), (solvers.dpmpp_2m(), 40)):
        for grid in ("time", "gamma"):
            x = model.sample(NO_PARAMS, random.key(0), 400, steps=steps, solver=solver, grid=grid, decode="sample")
            frequencies = x.flatten().bincount(minlength=4) / x.numel()
            assert (frequencies - p).abs().max() < 4 * 0.5 / math.sqrt(20_000) + 0.01


def test_a_contextual_schedule_samples_as_each_condition_would():
    contextual = schedules.Schedule.of(lambda key: {}, lambda params, t, c: -14.0 + (24.0 + c) * t, contextual=True)
    network = sources.gaussian(0.3)
    model = purevdm.vdm(network, contextual, (2,), dtype=torch.float64)
    cond, options = torch.tensor([0.0, 3.0], dtype=torch.float64), dict(steps=6, trajectory=True, solver=solvers.ddim())
    got = model.sample(NO_PARAMS, random.key(0), 2, cond=cond, **options).z
    for i, high in enumerate((10.0, 13.0)):
        alone = purevdm.vdm(network, schedules.fixed_linear(-14.0, high), (2,), dtype=torch.float64)
        want = alone.sample(NO_PARAMS, random.key(0), 2, **options).z
        torch.testing.assert_close(got[:, i], want[:, i], rtol=1e-12, atol=1e-12)


def test_latents_that_are_not_finite_are_never_decoded():
    network = networks.Network.of(lambda key, shape: {}, lambda params, z, gamma, cond=None, key=None: z * math.nan)
    model = purevdm.vdm(network, schedules.fixed_linear(), (2,))
    for decode in ("argmax", "sample"):
        with pytest.raises(ValueError, match="z: expected finite latents"):
            model.sample(NO_PARAMS, random.key(0), 2, steps=2, decode=decode)
    with pytest.raises(ValueError, match="latents: expected finite numbers, got NaN"):
        model.sample(NO_PARAMS, random.key(0), 2, steps=2, until=0.5)


# Starting, stopping, the hook


@pytest.mark.parametrize("grid", ["time", "gamma"])
@pytest.mark.parametrize(
    "solver", [solvers.ancestral(), solvers.ddim(), solvers.dpmpp_2m()], ids=["ancestral", "ddim", "2m"]
)
def test_given_latents_stand_for_drawn_ones(solver, grid):
    model, params = bent()
    options, key = dict(steps=6, solver=solver, grid=grid), random.key(3)
    z_1 = random.normal(random.split(key, 4)[0], (4, 3), torch.float64)
    x, z = model.sample(params, key, 4, trajectory=True, **options)
    assert torch.equal(z[0], z_1)
    assert torch.equal(model.sample(params, key, 4, z=z_1, **options), x)
    assert torch.equal(model.sample(params, key, 4, until=0.0, **options), z[-1])
    part = model.sample(params, key, 4, until=0.25, trajectory=True, **options)
    assert part.x is None
    assert torch.equal(part.z[-1], model.sample(params, key, 4, until=torch.tensor(0.25), **options))


def bent():
    """A Gaussian source under a schedule whose two grids differ."""
    schedule = schedules.Schedule.of(lambda key: {}, lambda params, t: -6.0 + 10.0 * t + torch.sin(3.0 * t))
    return purevdm.vdm(sources.gaussian(0.3), schedule, (3,), 64, dtype=torch.float64), NO_PARAMS


def test_parts_of_a_deterministic_trajectory_make_the_whole():
    model, params = bent()
    key, way = random.key(3), dict(solver=solvers.ddim(), grid="time")
    whole = model.sample(params, key, 4, steps=8, trajectory=True, **way).z
    half = model.sample(params, key, 4, steps=4, until=0.5, **way)
    torch.testing.assert_close(half, whole[4], rtol=1e-12, atol=1e-12)
    rest = model.sample(params, key, 4, steps=4, z=half, start=0.5, trajectory=True, **way)
    torch.testing.assert_close(rest.z, whole[4:], rtol=1e-12, atol=1e-12)


def test_a_part_of_the_time_keeps_the_marginals():
    """Data diffused to a time and sampled back are of the source, whatever the time."""
    std = 0.4
    model = purevdm.vdm(sources.gaussian(std), schedules.fixed_linear(-9.0, 9.0), (200,), 256, dtype=torch.float64)
    x, eps = random.normal(random.key(0), (2, 100, 200), torch.float64)
    for start in (0.3, 0.8):
        gamma = model.gamma(NO_PARAMS, torch.tensor(start, dtype=torch.float64))
        options = dict(z=process.diffuse(std * x, gamma, eps), start=start, until=0.1, steps=200, **PAPER)
        z = model.sample(NO_PARAMS, random.key(1), 100, **options)
        gamma = model.gamma(NO_PARAMS, torch.tensor(0.1, dtype=torch.float64))
        want = torch.sqrt((process.alpha(gamma) * std) ** 2 + process.sigma(gamma) ** 2)
        assert abs(z.std() / want - 1) < 0.03  # six standard errors of 20,000 numbers, and the bias of the steps


def test_the_hook_sees_each_step_and_decides():
    model, params = bent()
    key, seen = random.key(3), []

    def hook(i, z, gamma, key):
        seen.append((i, gamma, key))
        return 0.5 * z

    z = model.sample(params, key, 4, steps=5, project=hook, trajectory=True, solver=solvers.ddim(), grid="time").z
    for step, (i, gamma, own) in enumerate(seen):
        assert i.dtype == torch.int32
        assert i == step
        assert torch.equal(own, random.fold_in(random.split(key, 4)[3], step))
        gamma_s, gamma_t = (model.gamma(params, torch.tensor(1 - v / 5, dtype=torch.float64)) for v in (step + 1, step))
        torch.testing.assert_close(gamma, gamma_s.expand(4, 1))
        eps_hat = model.eps_hat(params, z[step], gamma_t.expand(4))
        want = solvers.ddim_step(process.x_from_eps(z[step], eps_hat, gamma_t), eps_hat, gamma_s)
        torch.testing.assert_close(z[step + 1], 0.5 * want)
    assert len(seen) == 5


def correlated(params, z, gamma, cond=None, key=None):
    """E[x given z] of two numbers of variance 1 and correlation 0.8: their sum and difference are independent."""
    alpha, sigma = process.alpha(gamma)[:, None], process.sigma(gamma)[:, None]
    plus, minus = (
        v * alpha / (alpha**2 * v + sigma**2) * part
        for v, part in ((1.8, (z[:, :1] + z[:, 1:]) / 2), (0.2, (z[:, :1] - z[:, 1:]) / 2))
    )
    return torch.cat([plus + minus, plus - minus], 1)


def test_repeated_steps_bring_inpainting_near_to_the_conditional():
    """Where the first is 0.6, the second is N(0.48, 0.6**2). Replacement is biased, as its docstring says."""
    network = networks.Network.of(lambda key, shape: {}, correlated, predicts="x", batched=True)
    options = dict(decoder=decoders.gaussian(), dtype=torch.float64)
    model, n = purevdm.vdm(network, schedules.fixed_linear(-10.0, 8.0), (2,), **options), 2000
    x = torch.tensor([[0.6, 0.0]], dtype=torch.float64).expand(n, 2)
    known = torch.tensor([True, False]).expand(n, 2)

    def moments(**options):
        z = model.sample(NO_PARAMS, random.key(0), n, steps=60, until=0.0, **(PAPER | options))
        assert abs(z[:, 0].mean() - 0.6) < 0.01  # the known, with the noise of time 0
        return z[:, 1].mean().item(), z[:, 1].std().item()

    error = 0.6 / math.sqrt(n)
    mean, std = moments(project=sampling.inpaint(x, known))
    assert mean < 0.48 - 10 * error
    assert std > 0.64
    mean, std = moments(solver=sampling.repaint(x, known, 10))
    assert abs(mean - 0.48) < 0.02 + 4 * error
    assert abs(std - 0.6) < 0.02 + 4 * error / math.sqrt(2)
    once = moments(solver=sampling.repaint(x, known, 1))
    assert all(abs(a - b) < 0.06 for a, b in zip(once, moments(project=sampling.inpaint(x, known)), strict=True))


def test_repaint_is_its_solver_where_nothing_is_known():
    x, known = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    model = purevdm.vdm(networks.mlp(8, fourier=()), schedules.learned_linear(), (3,))
    params = model.init(random.key(0))
    with pytest.raises(ValueError, match=r"x: expected shape \(4, 3\)"):
        model.sample(params, random.key(0), 4, steps=3, solver=sampling.repaint(x, known))
    with pytest.raises(ValueError, match="solver: expected a deterministic one"):
        sampling.invert(model, params, x.long(), solver=sampling.repaint(x, known, solver=solvers.ddim()))
    # nothing known: one repeat of a deterministic solver is that solver
    plain = dict(z=torch.ones(2, 3), start=1.0, until=0.0, steps=3)
    ways = (solvers.ddim(), sampling.repaint(x, known, 1, solvers.ddim()))
    assert torch.equal(*(model.sample(params, random.key(0), 2, solver=way, **plain) for way in ways))


# Derivatives


def smooth(**options):
    """A model of float64, and a function of all that samples are differentiable in."""
    network = networks.mlp(8, fourier=(), cond_dim=2, cond_drop=0.5, self_condition=True)
    model = purevdm.vdm(network, schedules.learned_linear(-4.0, 3.0), (2,), 16, dtype=torch.float64)
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.3)
    inputs = dict(
        params=params,
        z=random.normal(random.key(5), (3, 2), torch.float64),
        cond=random.normal(random.key(6), (3, 2), torch.float64),
        guidance=torch.tensor([0.5, 1.0, 2.5], dtype=torch.float64),
        start=torch.tensor(0.9, dtype=torch.float64),
        until=torch.tensor(0.1, dtype=torch.float64),
    )

    def energy(inputs):
        return model.sample(key=random.key(1), n=3, steps=3, **inputs, **options).square().mean()

    return energy, inputs


@pytest.mark.parametrize("grid", ["time", "gamma"])
@pytest.mark.parametrize(
    "solver", [solvers.ancestral(), solvers.ddim(), solvers.dpmpp_2m()], ids=["ancestral", "ddim", "2m"]
)
def test_derivatives_are_those_of_finite_differences(solver, grid):
    energy, inputs = smooth(solver=solver, grid=grid, differentiable=True)
    grads = torch.func.grad(energy)(inputs)
    flat, spec = optree.tree_flatten(inputs)
    flat = [leaf.clone().requires_grad_() for leaf in flat]
    plain = torch.autograd.grad(energy(optree.tree_unflatten(spec, flat)), flat)
    close(optree.tree_unflatten(spec, list(plain)), grads, 1e-9)
    for i, name in enumerate(inputs):
        leaves, spec = optree.tree_flatten(inputs[name])
        keys = random.split(random.key(i), len(leaves))
        way = [random.normal(k, leaf.shape, torch.float64) for k, leaf in zip(keys, leaves, strict=True)]

        def at(h, name=name, leaves=leaves, spec=spec, way=way):
            moved = optree.tree_unflatten(spec, [leaf + h * d for leaf, d in zip(leaves, way, strict=True)])
            return energy(inputs | {name: moved})

        got = sum((g * d).sum() for g, d in zip(optree.tree_leaves(grads[name]), way, strict=True))
        # four values cancel the third derivative, too: what is left is rounding, and of the fourth power
        h = 1e-4
        want = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        assert abs(got - want) <= 1e-7 * (abs(want) + 1), name
        tangent = optree.tree_map(torch.zeros_like, inputs) | {name: optree.tree_unflatten(spec, way)}
        _, forward = torch.func.jvp(energy, (inputs,), (tangent,))
        torch.testing.assert_close(forward, got, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["params", "z", "cond", "guidance", "start"])
def test_derivatives_not_asked_for_are_never_zero_in_silence(name):
    energy, inputs = smooth()

    def of(part):
        return energy(inputs | {name: part})

    ways = {
        "grad": lambda: torch.func.grad(of)(inputs[name]),
        "vjp": lambda: torch.func.vjp(of, inputs[name])[1](torch.ones((), dtype=torch.float64)),
        "jvp": lambda: torch.func.jvp(of, (inputs[name],), (inputs[name],)),
        "grad of vmap": lambda: torch.func.grad(
            lambda part: torch.func.vmap(lambda w: of(optree.tree_map(lambda v: v * w, part)))(torch.ones(2).double()).sum()
        )(inputs[name]),
    }
    for way in ways.values():
        with pytest.raises(ValueError, match="differentiable: expected True"):
            way()
    detached = optree.tree_map(torch.detach, inputs)
    grad = torch.func.grad(lambda w: w * energy(optree.tree_map(torch.detach, detached)))(
        torch.ones((), dtype=torch.float64)
    )
    torch.testing.assert_close(grad, energy(inputs))
    held = optree.tree_map(lambda v: v.clone().requires_grad_(), inputs)
    assert not energy(held).requires_grad


@pytest.mark.parametrize("differentiable", [False, True])
def test_derivatives_by_what_a_hook_holds(differentiable):
    energy, inputs = smooth(project=lambda i, z, gamma, key: z, differentiable=differentiable)
    assert energy(inputs) == smooth()[0](inputs)

    def of(scale):
        held, _ = smooth(project=lambda i, z, gamma, key: scale * z, differentiable=differentiable)
        return held(inputs)

    scale, h = torch.tensor(0.9, dtype=torch.float64), 1e-4
    if differentiable:
        want = (of(scale + h) - of(scale - h)) / (2 * h)
        torch.testing.assert_close(torch.func.grad(of)(scale), want, rtol=1e-5, atol=1e-7)
    else:
        for take in (lambda: torch.func.grad(of)(scale), lambda: torch.func.jvp(of, (scale,), (scale,))):
            with pytest.raises(ValueError, match="differentiable: expected True"):
                take()
        assert not of(scale.clone().requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(steps=torch.tensor(2), trajectory=True), "steps: a trajectory"),
        (dict(cond=torch.tensor([1, 2, 0])), "each of the 2"),
        (dict(guidance=2.0), "cond: expected the condition that guidance"),
        (dict(cond=torch.tensor([0, 1]), guidance=torch.ones(3)), r"guidance: expected shape \(2,\)"),
        (dict(differentiable=True), "differentiable: data that are integers have no gradient"),
        (dict(start=0.5), "z: expected the latents at the time `start`"),
        (dict(z=torch.zeros(2, 3)), r"z: expected shape \(2, 2\), got a float32 tensor of shape \(2, 3\)"),
        (dict(until=1.0), "until, start: expected 0 <= until < start <= 1, got 1.0 and 1.0"),
        (dict(z=torch.zeros(2, 2), start=torch.tensor(0.3), until=0.4), "until, start: expected"),
        (dict(until=torch.tensor(math.nan)), "until, start: expected"),
        (dict(project=lambda i, z, gamma, key: z[:1]), r"project: expected shape \(2, 2\)"),
        (dict(project=lambda i, z, gamma, key: z.double()), "project: expected torch.float32"),
        (dict(project=sampling.inpaint(torch.zeros(2, 3), torch.ones(2, 3).bool())), r"x: expected shape \(2, 2\)"),
    ],
)
def test_bad_arguments_are_named(options, word):
    model, params = conditional()
    with pytest.raises((TypeError, ValueError), match=word):
        model.sample(params, random.key(0), 2, **(dict(steps=3) | options))


def test_samples_of_many_latents_by_vmap():
    energy, inputs = smooth()
    z = random.normal(random.key(0), (2, 3, 2), torch.float64)
    both = torch.func.vmap(lambda z: energy(inputs | {"z": z}))(z)
    torch.testing.assert_close(both, torch.stack([energy(inputs | {"z": one}) for one in z]))


# Compiled


def each_pixel(params, t):
    return torch.tensor([-6.0, -5.0]) + torch.tensor([10.0, 8.0]) * t


def told(params, t, context):
    return -6.0 + (10.0 + context) * t


HOOK = sampling.inpaint(torch.tensor([[0.5, 0.0]] * 3), torch.tensor([[True, False]] * 3))
LEVELS = dict(line=schedules.learned_linear(-6.0, 4.0), each=schedules.Schedule.of(lambda key: {}, each_pixel))
LEVELS["told"] = schedules.Schedule.of(lambda key: {}, told, contextual=True)
WAYS = {
    # every value of every option, and each pair that meets in the code
    "ancestral": ("line", False, dict(steps=torch.tensor(3), decode="sample", clip=True)),
    "repaint": ("line", False, dict(steps=torch.tensor(2), solver=sampling.repaint(*HOOK.args, 2))),
    "ddim": (
        "line",
        True,
        dict(steps=3, solver=solvers.ddim(), grid="gamma", trajectory=True, guidance=2.0, project=HOOK),
    ),
    "2m": (
        "each",
        False,
        dict(
            steps=torch.tensor(3),
            solver=solvers.dpmpp_2m(),
            z=torch.tensor([[0.3, -1.0], [0.1, 2.0], [-0.2, 0.4]]),
            start=torch.tensor(0.8),
            until=torch.tensor(0.2),
            guidance=torch.tensor([0.0, 1.0, 2.0]),
        ),
    ),
    "told": (
        "told",
        True,
        dict(
            steps=3,
            solver=solvers.dpmpp_2m(),
            grid="gamma",
            until=0.25,
            trajectory=True,
            guidance=torch.tensor(2.0),
            clip=True,
        ),
    ),
}


def compiled_alike(way, **compiler):
    schedule, self_condition, options = WAYS[way]
    network = networks.mlp(8, fourier=(), classes=3, cond_drop=0.5, self_condition=self_condition)
    model = purevdm.vdm(network, LEVELS[schedule], (2,), 16)
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.3)

    def sample(params, key):
        found = model.sample(params, key, 3, cond=torch.tensor([0, 1, 2]), **options)
        return (
            found
            if isinstance(found, tuple)
            else sampling.Sample(*((None, found) if found.is_floating_point() else (found, None)))
        )

    got, want = (f(params, random.key(1)) for f in (torch.compile(sample, fullgraph=True, **compiler), sample))
    assert got.x is None if want.x is None else decoded_alike(got.x, want.x) is None
    assert got.z is None if want.z is None else close(got.z, want.z, 1e-4) is None


@pytest.mark.parametrize("way", WAYS)
def test_every_way_compiles(way):
    compiled_alike(way, backend="eager")


@since_2_13
def test_a_graph_whose_numbers_are_all_symbolic():
    compiled_alike("2m", backend="eager", dynamic=True)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddim", "2m"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"])
def test_every_mode_of_the_compiler(way, mode):
    compiled_alike(way, mode=mode)


def test_compiled_derivatives():
    model = purevdm.vdm(networks.mlp(4, fourier=()), schedules.learned_linear(-4.0, 3.0), (2,), 16, dtype=torch.float64)
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.3)

    def energy(params, steps, differentiable):
        options = dict(steps=steps, until=0.1, solver=solvers.ddim(), differentiable=differentiable)
        return model.sample(params, random.key(1), 2, **options).square().mean()

    grad = torch.func.grad(energy)
    compiled = torch.compile(grad, fullgraph=True, backend="eager")
    close(compiled(params, 2, True), grad(params, 2, True), 1e-9)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="steps: compiled derivatives unroll them"):
        compiled(params, torch.tensor(2), True)
    if not OLD:
        with pytest.raises(torch._dynamo.exc.Unsupported, match="differentiable: expected True"):
            compiled(params, 2, False)
