"""Likelihoods: official numbers, known answers, bounds in the right order, errors that are honest."""

import math

import hypothesis.strategies as st
import optree
import pytest
import torch
from goldens import case, flow_case, nchw
from hypothesis import given, settings

import purevdm
from purevdm import decoders, likelihood, networks, nn, ode, random, schedules
from purevdm.likelihood._dequantise import dequantised
from purevdm.testing import sources

NO_PARAMS = {"network": {}, "schedule": {}}
PROBABILITIES = torch.tensor([0.5, 0.1, 0.1, 0.3], dtype=torch.float64)


def pixels(gamma_0=-7.0, gamma_1=12.0, dims=6):
    model = purevdm.vdm(
        sources.categorical(PROBABILITIES), schedules.fixed_linear(gamma_0, gamma_1), (dims,), 4, dtype=torch.float64
    )
    x = random.categorical(random.key(0), PROBABILITIES.log().expand(40, dims, 4))
    return model, x, PROBABILITIES.log()[x].sum(1)


def weighed(model, params, x, eps, cond=None, kind="variational", **options):
    """The estimate of one weight, with all noise explicit."""
    z_0, extra = dequantised(kind, model, params, x, cond).latents(eps)
    found = likelihood.log_prob_latent(model, params, z_0, cond, **options)
    return found._replace(log_prob=found.log_prob + extra)


@pytest.mark.slow
def test_log_p_is_the_official_one():
    """Of the first image. The official solver's tolerance is 1e-6."""
    c, a = case("fixed_t0", torch.float64), flow_case("fixed_t0")
    integrator, x, cond = ode.dopri5(1e-7, 1e-7), c.x[:1], c.cond[:1]
    z_0, z_1 = (nchw(a[f"flow/{name}"])[:1] for name in ("z_0", "z_1"))
    found = likelihood.to_noise(c.model, c.params, z_0, cond, integrator=integrator)
    torch.testing.assert_close(found, z_1, rtol=0, atol=2e-5)
    back = likelihood.to_data(c.model, c.params, found, cond, integrator=integrator)
    torch.testing.assert_close(back, z_0, rtol=0, atol=1e-5)

    # Three latents of one image, as a batch.
    eps = torch.cat([nchw(eps)[:1] for eps in (*a["flow/eps"], a["flow/eps_truncated"])])
    options = dict(probe_noise="exact", integrator=integrator)
    variational = weighed(c.model, c.params, x.expand(2, -1, -1, -1), eps[:2], cond.expand(2), **options).log_prob
    truncated = weighed(c.model, c.params, x, eps[2:], cond, "truncated", **options).log_prob
    torch.testing.assert_close(variational, torch.tensor(a["flow/log_w"])[:, 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(truncated, torch.tensor(a["flow/log_p_x_truncated"])[:1], rtol=0, atol=1e-4)
    for k in (1, 2):
        found = likelihood.combine(variational[:k, None], torch.zeros(1)).log_prob
        torch.testing.assert_close(found, torch.tensor(a[f"flow/log_p_x_{k}"])[:1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dequantisation", ["variational", "truncated"])
def test_discrete_pixels_lie_below_the_truth_and_rise_to_it(dequantisation):
    model, x, true = pixels(gamma_0=-3.0)  # so noisy that one sample is far off
    gaps = []
    for samples in (1, 4, 16):
        found = likelihood.log_prob(
            model, NO_PARAMS, x, random.key(1), dequantisation=dequantisation, samples=samples, integrator=ode.rk4(60)
        )
        gap = found.log_prob - true
        gaps.append(gap.mean())
        assert gap.mean() < 3 * gap.std() / math.sqrt(len(x))
    assert gaps[0] < gaps[1] < gaps[2]


@pytest.mark.parametrize("dequantisation", ["truncated", "uniform"])
def test_masses_of_bins_are_those_of_a_mixture(dequantisation):
    """An ideal model's latent is normal about each value, with the values' probabilities."""
    model, _, _ = pixels(gamma_0=-3.0, dims=1)
    x, options = torch.arange(4)[:, None], dict(samples=400, integrator=ode.rk4(60), probes="exact")
    found = likelihood.log_prob(model, NO_PARAMS, x, random.key(1), dequantisation=dequantisation, **options)
    f = model.decoder.encode({}, x, dtype=torch.float64)
    normal = torch.distributions.Normal(f, math.exp(-1.5))
    mass = PROBABILITIES @ (normal.cdf(f.T + 0.25) - normal.cdf(f.T - 0.25))
    assert ((found.log_prob - mass.log()).abs() < 5 * found.error + 1e-4).all()


def test_the_flow_is_between_the_bound_and_the_truth():
    model, x, true = pixels(gamma_0=-5.0)
    flow = likelihood.log_prob(model, NO_PARAMS, x, random.key(1), samples=4, integrator=ode.rk4(60)).log_prob
    bound = -torch.stack([model.nll_bound(NO_PARAMS, x, k).total for k in random.split(random.key(2), 50)]).mean(0)
    assert (flow - true).mean() < 1e-3
    assert bound.mean() < flow.mean()


def test_importance_weighted_trajectories_rise_from_the_bound_to_the_truth():
    model, x, true = pixels()
    model = model._replace(timesteps=10)
    found = [likelihood.importance_bound(model, NO_PARAMS, x, random.key(1), samples=k) for k in (1, 8, 64)]
    means = [(estimate.log_prob - true).mean() for estimate in found]
    assert means[0] < means[1] < means[2] < 0.05
    # one trajectory is the discrete-time bound: both means over many draws
    bound = -torch.stack([model.nll_bound(NO_PARAMS, x, k).total for k in random.split(random.key(2), 64)])
    gap = found[2].log_weights.mean(0) - bound.mean(0)
    error = (found[2].log_weights.var(0) / 64 + bound.var(0) / 64).sum().sqrt() / len(x)
    assert abs(gap.mean()) < 4 * error
    assert found[1].evaluations.tolist() == [80] * len(x)


def test_compiled_trajectories_pass_no_derivatives_rather_than_wrong_ones():
    """The noise that they start from requires no gradient: a loop's derivative would leave out what comes by it."""
    model, params, x = mixing(0)
    params = optree.tree_map(lambda leaf: leaf.requires_grad_(), params)
    bound = torch.compile(likelihood.importance_bound, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="loop: a compiled loop passes no derivatives"):
        bound(model, params, x, random.key(1), timesteps=3)
    want = likelihood.importance_bound(model, params, x, random.key(1), timesteps=3).log_prob
    assert want.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(bound(model, params, x, random.key(1), timesteps=3).log_prob, want.detach())


def test_standard_errors_are_honest():
    """The log of a mean of many weights is off by its standard error as often as a normal would be."""
    model, x, _ = pixels(gamma_0=-4.0, dims=2)
    found = [
        likelihood.importance_bound(model, NO_PARAMS, x, k, timesteps=20, samples=400)
        for k in random.split(random.key(3), 10)
    ]
    reference = likelihood.combine(torch.cat([f.log_weights for f in found]), found[0].evaluations).log_prob
    scaled = torch.stack([(f.log_prob - reference) / f.error for f in found])
    inside = (scaled.abs() < 2).double().mean()
    assert 0.9 < inside <= 1.0  # 400 of them: 0.954 expected, a little more about their own mean


def mixing(seed):
    """A network in which each number depends on all, its parameters, and four examples."""
    model = purevdm.vdm(networks.mlp(8, fourier=()), schedules.fixed_linear(-4.0, 3.0), (3,), 4, dtype=torch.float64)
    params = model.init(random.key(seed))
    params["network"]["dense3"]["kernel"] = random.normal(random.key(seed), (8, 3), torch.float64)  # zero at first
    return model, params, random.randint(random.key(seed + 1), (4, 3), 0, 4)


@settings(max_examples=10)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 3), st.sampled_from(["variational", "truncated", "uniform"]))
def test_first_samples_and_examples_stay(seed, n, samples, dequantisation):
    model, params, x = mixing(seed)
    options = dict(integrator=ode.rk4(3), probes=2, dequantisation=dequantisation)
    few = likelihood.log_prob(model, params, x[:n], random.key(seed), samples=samples, **options)
    many = likelihood.log_prob(model, params, x, random.key(seed), samples=3, **options)
    torch.testing.assert_close(many.log_weights[:samples, :n], few.log_weights, rtol=1e-12, atol=1e-12)
    assert many.evaluations.tolist() == [36] * 4


@settings(max_examples=10)
@given(st.integers(0, 2**31), st.permutations(range(4)), st.integers(1, 4))
def test_examples_do_not_see_one_another(seed, order, n):
    model, params, x = mixing(seed)
    eps, *probes = random.normal(random.key(seed + 2), (3, 4, 3), torch.float64)
    probes = torch.stack(probes)

    def weights(rows):
        options = dict(probe_noise=probes[:, rows], integrator=ode.dopri5(1e-3, 1e-3))
        return weighed(model, params, x[rows], eps[rows], **options)

    whole = weights(range(4))
    for rows in (order, order[:n]):
        found = weights(rows)
        torch.testing.assert_close(found.log_prob, whole.log_prob[rows], rtol=1e-11, atol=1e-11)
        assert torch.equal(found.evaluations, whole.evaluations[rows])


@given(st.integers(0, 2**31), st.integers(1, 9), st.floats(-800.0, 800.0))
def test_the_effective_sample_size_is_between_one_and_all(seed, k, shift):
    log_w = 3.0 * random.normal(random.key(seed), (k, 2), torch.float64)
    found = likelihood.combine(log_w + shift, torch.ones(2)).ess
    w = log_w.exp()
    torch.testing.assert_close(found, w.sum(0) ** 2 / (w**2).sum(0), rtol=1e-10, atol=0)
    assert ((found > 1 - 1e-9) & (found < k + 1e-9)).all()


@settings(max_examples=5)
@given(st.integers(0, 2**31))
def test_estimated_divergences_agree_with_the_exact_one_on_average(seed):
    model, x, _ = pixels(dims=3)
    options = dict(integrator=ode.rk4(10))
    exact = likelihood.log_prob(model, NO_PARAMS, x[:2], random.key(seed), probes="exact", **options).log_prob
    many = likelihood.log_prob(model, NO_PARAMS, x[:2], random.key(seed), probes=300, chunk=100, **options).log_prob
    # the ideal denoiser of independent pixels has a diagonal Jacobian: Rademacher probes are exact
    torch.testing.assert_close(many, exact, rtol=1e-9, atol=1e-9)


MIXTURE = sources.Mixture(
    torch.tensor([0.3, 0.7], dtype=torch.float64),
    torch.tensor([[-1.0, 0.5], [0.8, -0.2]], dtype=torch.float64),
    torch.tensor([[[0.2, 0.1], [0.1, 0.3]], [[0.5, -0.2], [-0.2, 0.2]]], dtype=torch.float64),
)


GAUSSIAN = sources.Mixture(torch.ones(1, dtype=torch.float64), MIXTURE.means[:1], MIXTURE.covariances[:1])


@pytest.mark.parametrize("source", [MIXTURE, GAUSSIAN], ids=["mixture", "gaussian"])
def test_densities_of_real_data_are_exact(source):
    """The model's density is that of the source with the noise left at time 0, stretched as the decoder says."""
    loc, scale, gamma_0 = torch.tensor([3.0, -1.0]).double(), torch.tensor([2.0, 0.5]).double(), -6.0
    decoder = decoders.gaussian(loc=loc.tolist(), scale=scale.tolist())
    model = purevdm.vdm(source.network, schedules.fixed_linear(gamma_0, 25.0), (2,), decoder=decoder, dtype=torch.float64)
    f = source.sample(random.key(0), 8)
    noise = torch.full((2,), math.exp(gamma_0), dtype=torch.float64)
    want = source.widened(noise).log_prob(f) - scale.log().sum()
    for points in (None, 4):
        options = dict(integrator=ode.dopri5(1e-7, 1e-7, quadrature=points), probes="exact")
        found = likelihood.log_prob(model, NO_PARAMS, loc + scale * f, random.key(1), **options)
        torch.testing.assert_close(found.log_prob, want, rtol=0, atol=1e-5)
    # averaged over the decoder's noise, it is the density of a source that is wider once more
    options = dict(dequantisation="variational", samples=20, integrator=ode.rk4(20), probes="exact")
    averaged = likelihood.log_prob(model, NO_PARAMS, (loc + scale * f)[:4], random.key(1), **options)
    wider = source.widened(2 * noise).log_prob(f[:4]) - scale.log().sum()
    assert (averaged.log_prob - wider).abs().max() < 5 * averaged.error.max() + 1e-4


def bounded():
    """A network whose noise is bounded, so that its density lies within a grid."""

    def init(key, event_shape):
        return nn.dense_init(key, event_shape[0] + 1, event_shape[0], kernel_init=nn.normal(1.0))

    def apply(params, z, gamma, cond=None, key=None):
        return 2.0 * torch.tanh(nn.dense(params, torch.cat([z, gamma[None]])))

    return networks.Network.of(init, apply)


@pytest.mark.parametrize(("dims", "points"), [(1, 801), (2, 101)])
def test_the_density_of_any_network_integrates_to_one(dims, points):
    model = purevdm.vdm(bounded(), schedules.fixed_linear(-3.0, 3.0), (dims,), dtype=torch.float64)
    axis = torch.linspace(-35.0, 35.0, points, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(*[axis] * dims, indexing="ij"), -1).reshape(-1, dims)
    options = dict(probe_noise="exact", integrator=ode.rk4(30))
    density = likelihood.log_prob_latent(model, model.init(random.key(1)), grid, **options).log_prob.exp()
    assert abs(density.sum() * (axis[1] - axis[0]) ** dims - 1) < 1e-3


def test_a_map_over_adaptive_steps_is_refused_and_over_a_fixed_grid_is_not():
    model, params, x = mixing(0)
    key = random.key(0)

    def one(x, integrator):
        return likelihood.log_prob(model, params, x[None], key, integrator=integrator).log_prob[0]

    with pytest.raises(RuntimeError, match=r"integrator: torch.func.vmap cannot map over .* a fixed grid"):
        torch.func.vmap(lambda x: one(x, ode.dopri5()))(x)
    mapped = torch.func.vmap(lambda x: one(x, ode.rk4(3)))(x)
    torch.testing.assert_close(mapped, torch.stack([one(row, ode.rk4(3)) for row in x]))


BROKEN = networks.Network.of(lambda key, shape: {}, lambda params, z, gamma, cond=None, key=None: z / (gamma > 0))


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (
            lambda m, x, k: likelihood.log_prob(m, NO_PARAMS, x, k, dequantisation="none"),
            "dequantisation of discrete data: ",
        ),
        (lambda m, x, k: likelihood.log_prob(m, NO_PARAMS, x, k, torch.zeros(3), samples=2), "each of the 40 examples"),
        (lambda m, x, k: likelihood.log_prob(m, NO_PARAMS, x, k, probes="all"), "probes: expected an integer"),
        (lambda m, x, k: likelihood.importance_bound(m, NO_PARAMS, x, k), "timesteps: expected at least 1"),
        (lambda m, x, k: likelihood.importance_bound(m, NO_PARAMS, x, k, timesteps=torch.tensor(0)), "timesteps: expected"),
        (
            lambda m, x, k: likelihood.importance_bound(
                m._replace(dtype=torch.float32), NO_PARAMS, x, k, timesteps=torch.tensor(10**9)
            ),
            "timesteps: expected .*100663",
        ),
        (
            lambda m, x, k: likelihood.log_prob(m._replace(network=BROKEN), NO_PARAMS, x, k),
            "field: example 0 stopped",
        ),
    ],
)
def test_bad_input_is_named(call, word):
    model, x, _ = pixels()
    with pytest.raises((TypeError, ValueError), match=word):
        call(model, x, random.key(0))


def test_a_compiled_likelihood_loses_no_gradient_silently():
    model = purevdm.vdm(networks.mlp(4, 1, fourier=()), schedules.learned_linear(-4.0, 4.0), (2,), 8)
    params = model.init(random.key(0))
    params["schedule"]["w"].requires_grad_()
    x = random.randint(random.key(1), (3, 2), 0, 8)

    def run(params, x, key):
        return likelihood.log_prob(model, params, x, key, integrator=ode.heun(2)).log_prob

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="require no gradient"):
        compiled(params, x, random.key(2))
    with torch.no_grad():
        torch.testing.assert_close(compiled(params, x, random.key(2)), run(params, x, random.key(2)))
