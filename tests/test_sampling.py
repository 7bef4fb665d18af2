"""The way back: official steps, exact chains on a known source, one graph for any number of steps."""

import math

import optree
import perturb
import pytest
import sources
import torch
from compare import close, decoded_alike
from torch._dynamo.utils import counters

import purevdm
from purevdm import networks, process, random, schedules, solvers

NO_PARAMS = {"network": {}, "schedule": {}}


def test_the_loop_is_the_steps():
    """Sampling by hand, with the documented keys."""
    model = purevdm.vdm(sources.gaussian(0.3), schedules.fixed_linear(-8.0, 6.0), (3,), 64, dtype=torch.float64)
    params, steps = NO_PARAMS, 7
    k_z, k_steps, _ = random.split(random.key(4), 3)
    z = random.normal(k_z, (5, 3), torch.float64)
    latents = [z]
    for i in range(steps):
        s, t = (torch.tensor(v / steps, dtype=torch.float64) for v in (steps - i - 1, steps - i))
        gamma_s, gamma_t = model.gamma(params, s), model.gamma(params, t)
        eps = random.normal(random.fold_in(k_steps, i), z.shape, torch.float64)
        z = solvers.ancestral_step(z, model.eps_hat(params, z, gamma_t.expand(5)), gamma_s, gamma_t, eps)
        latents.append(z)
    seen = []
    x, z = model.sample(
        params, random.key(4), 5, steps=steps, trajectory=True, callback=lambda i, z: seen.append((i, z.shape))
    )
    torch.testing.assert_close(z, torch.stack(latents))
    assert seen == [(i, (5, 3)) for i in range(steps)]
    assert torch.equal(x, model.sample(params, random.key(4), 5, steps=steps))
    assert x.dtype == torch.int64


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("decode", ["argmax", "sample"])
def test_samples_follow_the_source(decode, clip):
    p = torch.tensor([0.5, 0.1, 0.1, 0.3], dtype=torch.float64)
    model = purevdm.vdm(sources.categorical(p), schedules.fixed_linear(-10.0, 10.0), (50,), 4, dtype=torch.float64)
    x = model.sample(NO_PARAMS, random.key(0), 400, steps=150, decode=decode, clip=clip)
    frequencies = x.flatten().bincount(minlength=4) / x.numel()
    # 20,000 pixels: four standard errors, and the bias of 150 steps
    assert (frequencies - p).abs().max() < 4 * 0.5 / math.sqrt(20_000) + 0.01


def test_gaussian_variance_of_many_steps():
    std = 0.4
    model = purevdm.vdm(sources.gaussian(std), schedules.fixed_linear(-9.0, 9.0), (200,), 256, dtype=torch.float64)
    _, z = model.sample(NO_PARAMS, random.key(1), 100, steps=300, trajectory=True)
    assert abs(z[-1].std() / std - 1) < 0.03


def test_one_graph_serves_any_number_of_steps_and_a_second_any_number_of_samples():
    model = purevdm.vdm(networks.mlp(8, fourier=(0,)), schedules.learned_linear(), (2,))
    params = model.init(random.key(0))
    counters.clear()
    compiled = torch.compile(model.sample, fullgraph=True)
    for n, steps, graphs in ((3, 1, 1), (3, 5, 1), (3, 40, 1), (4, 5, 2), (2, 3, 2), (9, 4, 2)):
        got = compiled(params, random.key(steps), n, steps=torch.tensor(steps))
        decoded_alike(got, model.sample(params, random.key(steps), n, steps=steps))
        assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


def test_compiled_trajectory_is_the_eager_one():
    model = purevdm.vdm(networks.mlp(8, fourier=(0,)), schedules.learned_linear(), (2,))
    params = model.init(random.key(0))
    sample = torch.compile(model.sample, fullgraph=True)
    got = sample(params, random.key(1), 3, steps=6, trajectory=True, clip=True, decode="sample")
    want = model.sample(params, random.key(1), 3, steps=6, trajectory=True, clip=True, decode="sample")
    close(got.z, want.z, 1e-5)
    decoded_alike(got.x, want.x)


def test_more_samples_begin_with_fewer():
    model = purevdm.vdm(sources.gaussian(0.3), schedules.fixed_linear(), (2, 2))
    params = NO_PARAMS
    few, many = (model.sample(params, random.key(0), n, steps=9) for n in (3, 8))
    assert torch.equal(few, many[:3])


def test_sampling_builds_no_graph():
    model = purevdm.vdm(networks.mlp(8), schedules.learned_linear(), (2,))
    params = optree.tree_map(lambda leaf: leaf.requires_grad_(), model.init(random.key(0)))
    assert not model.sample(params, random.key(0), 2, steps=3, trajectory=True).z.requires_grad


def model_and_params():
    model = purevdm.vdm(sources.gaussian(0.3), schedules.fixed_linear(), (2,))
    return model, NO_PARAMS


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        (dict(steps=0), ValueError, "steps"),
        (dict(steps=2.0), TypeError, "steps"),
        (dict(steps=torch.tensor(0)), ValueError, "steps"),
        (dict(steps=torch.tensor(2.0)), TypeError, "steps"),
        (dict(steps=torch.tensor([2])), ValueError, "steps"),
        (dict(steps=torch.tensor(2), trajectory=True), TypeError, "steps"),
        (dict(n=0), ValueError, "n: expected"),
        (dict(decode="mean"), ValueError, "decode"),
        (dict(key=torch.zeros(2)), TypeError, "key"),
        (dict(key=random.split(random.key(0), 3)), ValueError, "key"),
        (
            dict(params={"network": {"w": torch.tensor(math.nan)}, "schedule": {}}),
            ValueError,
            "expected no leaf",
        ),
    ],
)
def test_bad_input_is_named(arguments, error, word):
    model, params = model_and_params()
    call = dict(params=params, key=random.key(0), n=2, steps=3) | arguments
    with pytest.raises(error, match=word):
        model.sample(call.pop("params"), call.pop("key"), call.pop("n"), **call)


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
    tensor = model.sample(params, random.key(1), 3, cond=label, guidance=torch.tensor(3.0), **options).z
    torch.testing.assert_close(tensor, weighed[3.0])


def test_a_self_conditioned_sampler_hands_its_estimate_on():
    network = networks.mlp(8, fourier=(), self_condition=True)
    model = purevdm.vdm(network, schedules.learned_linear(), (2,), 16)
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.5)
    k_z, k_steps, _ = random.split(random.key(4), 3)
    z, x_hat, steps = random.normal(k_z, (3, 2)), torch.zeros(3, 2), 4
    for i in range(steps):
        gamma_s, gamma_t = (model.gamma(params, torch.tensor(v / steps)) for v in (steps - i - 1, steps - i))
        eps = random.normal(random.fold_in(k_steps, i), z.shape)
        eps_hat = model.eps_hat(params, z, gamma_t.expand(3), None, x_hat)
        x_hat = process.x_from_eps(z, eps_hat, gamma_t)
        z = solvers.ancestral_step(z, eps_hat, gamma_s, gamma_t, eps)
        x_hat = x_hat.clamp(-15 / 16, 15 / 16)
    got = model.sample(params, random.key(4), 3, steps=steps, trajectory=True).z
    torch.testing.assert_close(got[-1], z, rtol=1e-4, atol=1e-4)


def test_bad_conditions_of_a_batch_are_named():
    model, params = conditional()
    for cond, word in ((torch.tensor(1), "each of the 3"), (torch.tensor([1, 2]), "each of the 3"), ([1, 2, 0], "cond")):
        with pytest.raises((TypeError, ValueError), match=word):
            model.sample(params, random.key(0), 3, steps=1, cond=cond)
    with pytest.raises(ValueError, match="cond: expected the condition that guidance"):
        model.sample(params, random.key(0), 3, steps=1, guidance=2.0)
    with pytest.raises(ValueError, match="guidance"):
        model.sample(params, random.key(0), 3, steps=1, cond=torch.tensor([0, 1, 2]), guidance=math.nan)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        (dict(grid="euler"), ValueError, "grid: expected one of"),
        (dict(solver="ddim"), TypeError, r"solver: expected a Solver such as purevdm.solvers.ddim\(\)"),
        (dict(guidance=torch.ones(2)), ValueError, r"guidance: expected shape \(1,\)"),
        (dict(guidance=torch.tensor(2)), TypeError, "guidance: expected a floating-point"),
    ],
)
def test_unknown_ways_are_named(options, error, word):
    model, params = conditional()
    with pytest.raises(error, match=word):
        model.sample(params, random.key(0), 1, cond=torch.tensor([0]), **options)


def test_guidance_for_each_sample():
    model, params = conditional()
    label, options = torch.tensor([0, 1, 2]), dict(steps=3, trajectory=True)
    each = model.sample(params, random.key(1), 3, cond=label, guidance=torch.tensor([0.0, 1.0, 3.0]), **options).z
    for i, weight in enumerate((0.0, 1.0, 3.0)):
        whole = model.sample(params, random.key(1), 3, cond=label, guidance=weight, **options).z
        torch.testing.assert_close(each[:, i], whole[:, i])


def test_a_schedule_for_each_pixel_samples_the_source():
    p = torch.tensor([0.5, 0.1, 0.1, 0.3], dtype=torch.float64)
    low, high = -10.0 - torch.arange(50) / 50, 10.0 - torch.arange(50) / 50
    schedule = schedules.Schedule(lambda key: {}, lambda params, t: low.to(t) + (high - low).to(t) * t)
    model = purevdm.vdm(sources.categorical(p), schedule, (50,), 4, dtype=torch.float64)
    for solver, steps in ((solvers.ancestral(), 150), (solvers.dpmpp_2m(), 40)):
        for grid in ("time", "gamma"):
            x = model.sample(NO_PARAMS, random.key(0), 400, steps=steps, solver=solver, grid=grid, decode="sample")
            frequencies = x.flatten().bincount(minlength=4) / x.numel()
            assert (frequencies - p).abs().max() < 4 * 0.5 / math.sqrt(20_000) + 0.01


def test_a_contextual_schedule_samples_as_each_condition_would():
    contextual = schedules.Schedule(lambda key: {}, lambda params, t, c: -14.0 + (24.0 + c) * t, contextual=True)
    network = sources.gaussian(0.3)
    model = purevdm.vdm(network, contextual, (2,), dtype=torch.float64)
    cond, options = torch.tensor([0.0, 3.0], dtype=torch.float64), dict(steps=6, trajectory=True, solver=solvers.ddim())
    got = model.sample(NO_PARAMS, random.key(0), 2, cond=cond, **options).z
    for i, high in enumerate((10.0, 13.0)):
        alone = purevdm.vdm(network, schedules.fixed_linear(-14.0, high), (2,), dtype=torch.float64)
        want = alone.sample(NO_PARAMS, random.key(0), 2, **options).z
        torch.testing.assert_close(got[:, i], want[:, i], rtol=1e-12, atol=1e-12)


def test_latents_that_are_not_finite_are_never_decoded():
    network = networks.Network(lambda key, shape: {}, lambda params, z, gamma, cond=None, key=None: z * math.nan)
    model = purevdm.vdm(network, schedules.fixed_linear(), (2,))
    with pytest.raises(ValueError, match="z: expected finite latents"):
        model.sample(NO_PARAMS, random.key(0), 2, steps=2)
    with pytest.raises(ValueError, match="z: expected finite latents"):
        model.sample(NO_PARAMS, random.key(0), 2, steps=2, decode="sample")
