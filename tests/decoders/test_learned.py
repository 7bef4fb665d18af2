"""Learned encoders and decoders around a latent diffusion, and the distributions of data at their end."""

import math

import goldens
import numpy as np
import optree
import pytest
import torch

import purevdm
from purevdm import decoders, networks, random, schedules
from purevdm.decoders import _counts

F64, KEY = torch.float64, random.key(0)
TABLE = np.load(goldens.HERE / "negative_binomial.npz")


def table(name):
    return torch.tensor(TABLE[name])


def test_negative_binomials_are_exact_over_the_table():
    """Against 60 digits: counts to 50,000, means from 1e-6, theta from 1e-4 to the Poisson limit; and the derivatives."""
    count, mean, theta = table("table/count")[:, None, None], table("table/mean")[:, None], table("table/theta")
    log_mean, log_theta = (x.log().expand(8, 7, 9).clone().requires_grad_() for x in (mean, theta))
    log_p = _counts.negative_binomial_log_prob(count, log_mean, log_theta)
    of_mean, of_theta = torch.autograd.grad(log_p.sum(), (log_mean, log_theta))
    for got, name in ((log_p, "log_p"), (of_mean, "dlog_p_dlog_mean"), (of_theta, "dlog_p_dlog_theta")):
        want = table(f"table/{name}")
        # the terms that meet reach 5e5, and float64 has 2e-16
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_cells_are_decoded_as_the_official_program_does():
    library = decoders.negative_binomial(library=lambda cond: cond)
    counts, out, size = table("cells/counts"), table("cells/logits"), table("cells/size_factor")
    log_p = library.log_prob({"log_theta": table("cells/log_theta")}, counts, out, size)
    torch.testing.assert_close(log_p, table("cells/log_p"), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(-log_p.sum(1).mean(), table("cells/loss"), rtol=1e-12, atol=0)


def test_totals_have_a_distribution_of_their_own():
    params = torch.tensor([2.0, math.log(0.7)], dtype=F64)
    n = torch.arange(200_000, dtype=F64)
    log_p = _counts._log_total(n, params)
    torch.testing.assert_close(log_p.exp().sum(), torch.ones((), dtype=F64), rtol=1e-12, atol=0)
    far = _counts._log_total(torch.tensor([1e9], dtype=F64), params)  # where the distribution function is 1
    log_normal = torch.distributions.LogNormal(2.0, 0.7).log_prob(torch.tensor([1e9], dtype=F64))
    torch.testing.assert_close(far, log_normal, rtol=1e-6, atol=0)
    counts = decoders.negative_binomial(library="total", log_total=(2.0, 0.7))
    own = counts.init(KEY, (3,)) | {"log_total": params}
    x, out = torch.tensor([[1, 0, 4], [2, 2, 2]]), random.normal(KEY, (2, 3), F64)
    with_total = counts.log_prob(own, x, out).sum(1)
    given = decoders.negative_binomial(library=lambda cond: cond)
    torch.testing.assert_close(
        with_total, given.log_prob(own, x, out, x.sum(1)).sum(1) + _counts._log_total(x.sum(1).double(), params)
    )


@pytest.mark.parametrize("theta", [0.05, 3.0, 1e9])
def test_draws_of_counts_have_their_moments(theta):
    counts = decoders.negative_binomial(library=lambda cond: cond)
    n, mean = 40_000, torch.tensor([0.4, 30.0], dtype=F64)
    own = {"log_theta": torch.full((2,), math.log(theta))}
    x = counts.sample(own, KEY, mean.log().expand(n, 2), mean.sum().expand(n)).double()
    var = mean + mean.square() / theta
    assert ((x.mean(0) - mean).abs() < 5.0 * (var / n).sqrt()).all()
    kurtosis = ((x - mean) ** 4).mean(0) / var.square()
    assert ((x.var(0) / var - 1.0).abs() < 5.0 * ((kurtosis - 1.0) / n).sqrt()).all()
    assert x.min() >= 0


def test_the_mode_is_the_likeliest():
    counts = decoders.negative_binomial(library=lambda cond: cond)
    own, out, size = {"log_theta": torch.tensor([0.0, 1.0, 5.0])}, torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([60.0])
    mode = counts.mode(own, out, size)
    log_p = [counts.log_prob(own, torch.full((1, 3), k), out, size) for k in range(80)]
    assert torch.equal(torch.cat(log_p).argmax(0)[None], mode)


def latent(observation, event=(6,), code=(2,), **options):
    outputs = () if observation.outputs is None else (observation.outputs,)
    maps = decoders.perceptron((*event, *outputs), (16,), code), decoders.perceptron(code, (16,), (*event, *outputs))
    decoder = decoders.learned(observation, *maps, latent=code, event_shape=event)
    return purevdm.vdm(networks.mlp(16), schedules.learned_linear(-4.0, 4.0), event, decoder=decoder, **options)


OBSERVATIONS = {
    "counts": (decoders.negative_binomial(), lambda key: random.randint(key, (8, 6), 0, 30)),
    "counts and their total": (decoders.negative_binomial(library="total"), lambda key: random.randint(key, (8, 6), 0, 30)),
    "real": (decoders.normal(0.5), lambda key: random.normal(key, (8, 6))),
    "classes": (decoders.categorical(5), lambda key: random.randint(key, (8, 6), 0, 5)),
}


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_all_parts_learn_from_the_bound_and_samples_are_data(kind):
    observation, data = OBSERVATIONS[kind]
    model, x = latent(observation), data(random.key(1))
    params = model.init(KEY)
    grads, loss = torch.func.grad_and_value(model.loss_fn)(params, x, random.key(2))
    assert loss.isfinite()
    still = [path for path, g in zip(optree.tree_paths(grads), optree.tree_leaves(grads), strict=True) if not g.any()]
    # what a network that starts at zero passes no gradient to
    assert all(path[0] == "network" for path in still)
    for decode in ("argmax", "sample"):
        samples = model.sample(params, random.key(3), 4, steps=3, decode=decode)
        assert samples.shape == (4, 6)
        assert observation.check(samples).all()
    compiled = torch.compile(torch.func.grad_and_value(model.loss_fn), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(params, x, random.key(2))[1], loss, rtol=1e-5, atol=1e-5)


def test_the_bound_of_a_latent_diffusion_is_no_better_than_the_truth():
    """x = a v + noise with v normal: p(x) is normal. With the ideal maps and denoiser the bound is met to little: encode to
    the mean of v given x, which with z_0's noise is v's posterior."""
    a, noise = torch.tensor([1.5, -0.5, 1.0], dtype=F64), 0.6
    posterior = 1.0 / (1.0 + a.square().sum() / noise**2)  # of v given x
    mean_of = a / noise**2 * posterior
    # f has the variance 1 - posterior, and z_0 / alpha_0 = f + exp(gamma_0 / 2) eps is v's posterior
    gamma_0, var_f = float(posterior.log()), float(1.0 - posterior)

    def apply(params, z, gamma, cond=None, key=None):
        alpha2, sigma2 = torch.sigmoid(-gamma), torch.sigmoid(gamma)
        return sigma2.sqrt() * z / (alpha2 * var_f + sigma2)

    network = networks.Network.of(lambda key, shape: {}, apply)
    fixed = {
        "encoder": decoders.Map(lambda key: {}, lambda params, x: x @ mean_of[:, None]),
        "decoder": decoders.Map(lambda key: {}, lambda params, z: z @ a[None]),
    }
    decoder = decoders.learned(decoders.normal(noise, learned=False), **fixed, latent=(1,), event_shape=(3,))
    schedule = schedules.fixed_linear(gamma_0, 12.0)
    model = purevdm.vdm(network, schedule, (3,), decoder=decoder, dtype=F64)
    x = random.normal(KEY, (4000, 1), F64) * a + noise * random.normal(random.key(1), (4000, 3), F64)
    truth = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=F64), torch.outer(a, a) + noise**2 * torch.eye(3))
    params = model.init(random.key(2))
    gap = torch.stack([model.nll_bound(params, x, random.key(i)).total + truth.log_prob(x) for i in range(3, 11)]).mean(0)
    error = gap.std() / math.sqrt(len(gap))
    assert abs(gap.mean()) < 4.0 * error < 0.1  # the bound is met
    worse = model._replace(schedule=schedules.fixed_linear(gamma_0 - 2.0, 12.0))
    gap = torch.stack([worse.nll_bound(params, x, random.key(i)).total + truth.log_prob(x) for i in range(3, 11)]).mean(0)
    assert gap.mean() > 10.0 * gap.std() / math.sqrt(len(gap))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: decoders.negative_binomial(dispersion=0.0), "dispersion: expected a number above 0"),
        (lambda: decoders.negative_binomial(library=3.0), "library: expected None, 'total' or a function"),
        (lambda: decoders.normal(-1.0), "scale: expected a number above 0"),
        (lambda: decoders.categorical(1), "classes: expected an integer at least 2"),
        (lambda: decoders.learned(None, None, None, latent=(1,), event_shape=(1,)), "observation: expected an Observation"),
        (
            lambda: decoders.learned(decoders.normal(), None, None, latent=(1,), event_shape=(1,)),
            "encoder: expected a map with init and apply",
        ),
    ],
)
def test_bad_settings_are_named(call, error):
    with pytest.raises((TypeError, ValueError), match=error):
        call()


def test_bad_counts_and_maps_are_named():
    model = latent(decoders.negative_binomial())
    params, x = model.init(KEY), torch.ones(2, 6, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"x: expected counts, integers of at least 0, got values from -1 to 1"):
        model.loss_fn(params, torch.cat([x[:1], -x[:1]]), KEY)
    with pytest.raises(TypeError, match="x: expected a tensor of integers, counts"):
        model.loss_fn(params, x.float(), KEY)
    with pytest.raises(ValueError, match="mask: expected None, as a learned encoder"):
        model.loss_fn(params, x, KEY, mask=x > 0)
    maps = decoders.perceptron((6,), (8,), (3,)), decoders.perceptron((2,), (8,), (6,))
    decoder = decoders.learned(decoders.normal(), *maps, latent=(2,), event_shape=(6,))
    model = purevdm.vdm(networks.mlp(8), schedules.fixed_linear(), (6,), decoder=decoder)
    with pytest.raises(ValueError, match=r"decoder\.encoder: expected shape \(2, 2\), got .*\(2, 3\)"):
        model.loss_fn(model.init(KEY), torch.zeros(2, 6), KEY)
