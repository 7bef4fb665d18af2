"""The way back: official steps, exact chains on a known source, one graph for any number of steps."""

import itertools
import math

import numpy as np
import perturb
import pytest
import sources
import torch
from goldens import CASES, case, nchw
from torch._dynamo.utils import counters

import purevdm
from purevdm import networks, process, random, sampling, schedules


@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_official_ones(name):
    c = case(name)
    z = nchw(c.arrays["score/z"])
    for i in (0, 5, 9):
        gamma_s, gamma_t = (c.model.gamma(c.params, torch.tensor(t)) for t in ((9 - i) / 10, (10 - i) / 10))
        eps_hat = c.model.eps_hat(c.params, z, gamma_t.expand(4), c.cond)
        got = sampling.ancestral_step(z, eps_hat, gamma_s, gamma_t, nchw(c.arrays[f"sample/{i}/eps"])).z
        want = nchw(c.arrays[f"sample/{i}/z_s"])
        assert (got - want).norm() <= 1e-5 * want.norm()
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)


def test_the_loop_is_the_steps():
    """Sampling by hand, with the documented keys."""
    model = purevdm.vdm(sources.gaussian(0.3), schedules.fixed_linear(-8.0, 6.0), (3,), 64, dtype=torch.float64)
    params, steps = {"network": {}, "schedule": {}}, 7
    k_z, k_steps, _ = random.split(random.key(4), 3)
    z = random.normal(k_z, (5, 3), torch.float64)
    latents = [z]
    for i in range(steps):
        s, t = (torch.tensor(v / steps, dtype=torch.float64) for v in (steps - i - 1, steps - i))
        gamma_s, gamma_t = model.gamma(params, s), model.gamma(params, t)
        eps = random.normal(random.fold_in(k_steps, i), z.shape, torch.float64)
        z = sampling.ancestral_step(z, model.eps_hat(params, z, gamma_t.expand(5)), gamma_s, gamma_t, eps).z
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
    x = model.sample({"network": {}, "schedule": {}}, random.key(0), 400, steps=150, decode=decode, clip=clip)
    frequencies = x.flatten().bincount(minlength=4) / x.numel()
    # 20,000 pixels: four standard errors, and the bias of 150 steps
    assert (frequencies - p).abs().max() < 4 * 0.5 / math.sqrt(20_000) + 0.01


def test_gaussian_variance_of_many_steps():
    std = 0.4
    model = purevdm.vdm(sources.gaussian(std), schedules.fixed_linear(-9.0, 9.0), (200,), 256, dtype=torch.float64)
    _, z = model.sample({"network": {}, "schedule": {}}, random.key(1), 100, steps=300, trajectory=True)
    assert abs(z[-1].std() / std - 1) < 0.03


def test_one_graph_serves_any_number_of_steps_and_a_second_any_number_of_samples():
    model = purevdm.vdm(networks.mlp(8, fourier=(0,)), schedules.learned_linear(), (2,))
    params = model.init(random.key(0))
    counters.clear()
    compiled = torch.compile(model.sample, fullgraph=True)
    for n, steps, graphs in ((3, 1, 1), (3, 5, 1), (3, 40, 1), (4, 5, 2), (2, 3, 2), (9, 4, 2)):
        got = compiled(params, random.key(steps), n, steps=torch.tensor(steps))
        assert torch.equal(got, model.sample(params, random.key(steps), n, steps=steps))
        assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


def test_compiled_trajectory_is_the_eager_one():
    model = purevdm.vdm(networks.mlp(8, fourier=(0,)), schedules.learned_linear(), (2,))
    params = model.init(random.key(0))
    sample = torch.compile(model.sample, fullgraph=True)
    got = sample(params, random.key(1), 3, steps=6, trajectory=True, clip=True, decode="sample")
    want = model.sample(params, random.key(1), 3, steps=6, trajectory=True, clip=True, decode="sample")
    torch.testing.assert_close(got.z, want.z, rtol=5e-6, atol=5e-6)
    assert torch.equal(got.x, want.x)


def test_more_samples_begin_with_fewer():
    model = purevdm.vdm(sources.gaussian(0.3), schedules.fixed_linear(), (2, 2))
    params = {"network": {}, "schedule": {}}
    few, many = (model.sample(params, random.key(0), n, steps=9) for n in (3, 8))
    assert torch.equal(few, many[:3])


def test_sampling_builds_no_graph():
    model = purevdm.vdm(networks.mlp(8), schedules.learned_linear(), (2,))
    params = torch.utils._pytree.tree_map(lambda leaf: leaf.requires_grad_(), model.init(random.key(0)))
    assert not model.sample(params, random.key(0), 2, steps=3, trajectory=True).z.requires_grad


def model_and_params():
    model = purevdm.vdm(sources.gaussian(0.3), schedules.fixed_linear(), (2,))
    return model, {"network": {}, "schedule": {}}


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
        (dict(params={"network": {"w": torch.tensor(math.nan)}, "schedule": {}}), ValueError, "params/network/w"),
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


def test_guidance_of_known_noises_is_linear():
    a, b = random.normal(random.key(0), (2, 5), torch.float64)
    torch.testing.assert_close(sampling.guide(a, b, 2.5), 2.5 * a - 1.5 * b)


def test_a_self_conditioned_sampler_hands_its_estimate_on():
    network = networks.mlp(8, fourier=(), self_condition=True)
    model = purevdm.vdm(network, schedules.learned_linear(), (2,), 16)
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.5)
    k_z, k_steps, _ = random.split(random.key(4), 3)
    z, x_hat, steps = random.normal(k_z, (3, 2)), torch.zeros(3, 2), 4
    for i in range(steps):
        gamma_s, gamma_t = (model.gamma(params, torch.tensor(v / steps)) for v in (steps - i - 1, steps - i))
        eps = random.normal(random.fold_in(k_steps, i), z.shape)
        z, x_hat = sampling.ancestral_step(
            z, model.eps_hat(params, z, gamma_t.expand(3), None, x_hat), gamma_s, gamma_t, eps
        )
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


STD = 0.4


def flow(z_1, gamma_0, gamma_1):
    """Where the probability flow of x ~ N(0, STD**2) takes z_1: the marginals' scales."""
    scales = [torch.sqrt(process.alpha(g) ** 2 * STD**2 + process.sigma(g) ** 2) for g in (gamma_0, gamma_1)]
    return z_1 * scales[0] / scales[1]


@pytest.mark.parametrize("grid", ["time", "gamma"])
@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_deterministic_solvers_have_their_order_on_a_gaussian(method, order, grid):
    # a bent schedule, so that the two grids differ
    schedule = schedules.Schedule(lambda key: {}, lambda params, t: -6.0 + 10.0 * t + torch.sin(3.0 * t))
    model = purevdm.vdm(sources.gaussian(STD), schedule, (50,), 256, dtype=torch.float64)
    params = {"network": {}, "schedule": {}}
    errors = []
    for steps in (20, 40, 80, 160):
        z = model.sample(params, random.key(0), 4, steps=steps, method=method, grid=grid, trajectory=True).z
        want = flow(z[0], *(model.gamma(params, torch.tensor(t, dtype=torch.float64)) for t in (0.0, 1.0)))
        errors.append((z[-1] - want).norm() / want.norm())
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert abs(rates[-1] - order) < 0.15, rates
    assert errors[-1] < (0.02 if order == 1 else 0.001)


@pytest.mark.parametrize("method", ["ddim", "dpmpp_2m"])
def test_few_steps_follow_the_source(method):
    p = torch.tensor([0.5, 0.1, 0.1, 0.3], dtype=torch.float64)
    model = purevdm.vdm(sources.categorical(p), schedules.fixed_linear(-10.0, 10.0), (50,), 4, dtype=torch.float64)
    x = model.sample({"network": {}, "schedule": {}}, random.key(0), 400, steps=40, method=method, clip=True)
    frequencies = x.flatten().bincount(minlength=4) / x.numel()
    assert (frequencies - p).abs().max() < 4 * 0.5 / math.sqrt(20_000) + 0.01


def test_one_step_is_the_estimate_itself():
    z, eps = random.normal(random.key(0), (2, 5), torch.float64)
    gamma_s, gamma_t = torch.tensor(-40.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    done = sampling.ddim_step(z, eps, gamma_s, gamma_t)
    torch.testing.assert_close(done.z, done.x_hat, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(done.x_hat, process.x_from_eps(z, eps, gamma_t))
    two = sampling.dpmpp_2m_step(z, eps, gamma_s, gamma_t, torch.zeros_like(z), gamma_t, torch.tensor(True))
    torch.testing.assert_close(two.z, done.z)


def test_solvers_compile_for_any_number_of_steps():
    model = purevdm.vdm(networks.mlp(8, fourier=(), self_condition=True), schedules.learned_linear(), (2,))
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.3)
    compiled = torch.compile(model.sample, fullgraph=True)
    counters.clear()
    for steps in (1, 2, 9):
        options = dict(method="dpmpp_2m", grid="gamma")
        got = compiled(params, random.key(steps), 3, steps=torch.tensor(steps), **options)
        assert torch.equal(got, model.sample(params, random.key(steps), 3, steps=steps, **options))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("option", ["method", "grid"])
def test_unknown_ways_are_named(option):
    model, params = conditional()
    with pytest.raises(ValueError, match=f"{option}: expected one of"):
        model.sample(params, random.key(0), 1, cond=torch.tensor([0]), **{option: "euler"})
