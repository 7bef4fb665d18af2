"""Real-valued data, the whole way: the bound of known densities, samples, compiled graphs, what is refused."""

import math

import perturb
import pytest
import torch
from backends import every_backend
from compare import close
from parts import changed

import purevdm
from purevdm import decoders, evaluation, networks, random, schedules, solvers
from purevdm.testing import sources

NO_PARAMS = {"network": {}, "schedule": {}}


def float64(x):
    return torch.tensor(x, dtype=torch.float64)


CORRELATED = sources.Mixture(float64([1.0]), float64([[0.3, -0.2]]), float64([[[1.0, 0.8], [0.8, 0.9]]]))
MIXTURE = sources.Mixture(
    float64([0.5, 0.3, 0.2]),
    float64([[-1.0, 0.5], [1.0, 1.0], [0.5, -1.5]]),
    float64([[[0.1, 0.0], [0.0, 0.3]], [[0.2, 0.12], [0.12, 0.1]], [[0.3, -0.2], [-0.2, 0.4]]]),
)


def bent_levels(params, t):
    """A schedule for each of two dimensions, from its own endpoints and with a bend of its own."""
    low, high = torch.tensor([-10.0, -13.0]).to(t), torch.tensor([12.0, 13.0]).to(t)
    return low + (high - low) * (t + torch.tensor([0.3, -0.3]).to(t) * t * (1.0 - t))


SCHEDULES = {
    "fine": schedules.fixed_linear(-13.0, 12.0),
    "coarse": schedules.fixed_linear(-3.0, 12.0),
    "each": schedules.Schedule.of(lambda key: {}, bent_levels),
}


def ideal(source, schedule="fine", decoder=None, **options):
    decoder = decoders.gaussian() if decoder is None else decoder
    schedule = SCHEDULES[schedule]
    return purevdm.vdm(source.network, schedule, (2,), decoder=decoder, dtype=torch.float64, **options)


def batches(model, source, key, n=20_000):
    """The means of 16 batches: the bound, and the data's own log p, nats an example."""
    means, log_p = [], []
    for k in random.split(key, 16):
        k_x, k_loss = random.split(k)
        x = source.sample(k_x, n)
        means.append(model.nll_bound(NO_PARAMS, x, k_loss).total.mean())
        log_p.append(source.log_prob(x).mean())
    return torch.stack(means), torch.stack(log_p)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_of_a_correlated_gaussian_is_its_entropy(schedule):
    """Widened by the noise that is left at time 0, in closed form."""
    model = ideal(CORRELATED, schedule)
    gamma_0, gamma_1 = model.gamma(NO_PARAMS, float64([0.0, 1.0])).reshape(2, -1).expand(2, 2)
    total, log_p = batches(model, CORRELATED, random.key(0))
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * CORRELATED.widened(gamma_0.exp()).covariances[0])
    mean, error = sources.mean_and_error(total)
    assert abs(mean - entropy) < 4 * error
    # the data's own log-density as a control variate
    gap, error = sources.mean_and_error(total + log_p)
    sharp = 0.5 * torch.logdet(2 * math.pi * math.e * CORRELATED.covariances[0])
    assert abs(gap - (entropy - sharp)) < 4 * error
    assert error < 0.05
    assert abs(entropy - sharp) > 0.1 or schedule != "coarse"
    assert gamma_1.min() >= 12.0  # the prior loss is below the error


@pytest.mark.parametrize("schedule", ["fine", "each"])
def test_the_bound_of_a_mixture_is_its_entropy(schedule):
    total, log_p = batches(ideal(MIXTURE, schedule), MIXTURE, random.key(1))
    gap, error = sources.mean_and_error(total + log_p)
    # the noise left at time 0, of variance exp(-10) at most, adds less than 0.0005
    assert abs(gap) < 4 * error
    assert error < 0.05


def test_discrete_time_falls_to_continuous_time():
    means = [batches(ideal(MIXTURE, timesteps=t), MIXTURE, random.key(2), 5000)[0].mean() for t in (4, 16, 64, 0)]
    assert means[0] > means[1] > means[2] > means[3]
    assert means[2] - means[3] < 0.2 * (means[0] - means[3])


def test_evaluation_is_in_nats():
    x = CORRELATED.sample(random.key(0), 2000)
    found = evaluation.evaluate(ideal(CORRELATED), NO_PARAMS, [(x[:1500], None), (x[1500:], None)], random.key(1), passes=4)
    assert found.unit == "nats"
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * CORRELATED.covariances[0])
    assert abs(found.nll.mean - entropy) < 4 * found.nll.error
    # the loss is the same in bits per dimension
    loss, terms = (f(NO_PARAMS, x, random.key(2)) for f in (ideal(CORRELATED).loss_fn, ideal(CORRELATED).nll_bound))
    torch.testing.assert_close(loss, terms.total.mean() / (2 * math.log(2)))


def test_the_bound_of_moved_and_stretched_data_changes_by_the_log_of_the_scale():
    """The same noise: term by term."""
    loc, scale = (100.0, -7.0), (20.0, 0.01)
    x = MIXTURE.sample(random.key(0), 50)
    plain = ideal(MIXTURE).nll_bound(NO_PARAMS, x, random.key(1))
    moved = ideal(MIXTURE, decoder=decoders.gaussian(loc=loc, scale=scale))
    got = moved.nll_bound(NO_PARAMS, x * float64(scale) + float64(loc), random.key(1))
    torch.testing.assert_close(got.recon, plain.recon + math.log(20.0 * 0.01), rtol=1e-12, atol=1e-12)
    # f comes back to 1e-14, and meets the noise at time 0 at a size of exp(-6.5)
    torch.testing.assert_close(got.prior, plain.prior, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(got.diffusion, plain.diffusion, rtol=1e-8, atol=1e-8)


def test_gradients_reach_the_data():
    """As a score would use them: exact for a Gaussian, whose -log p has the gradient S^-1 (x - m)."""
    model, x = ideal(CORRELATED), CORRELATED.sample(random.key(0), 1).expand(4000, 2)
    slopes = torch.func.grad(lambda x: model.nll_bound(NO_PARAMS, x, random.key(1)).total.sum())(x)
    want = torch.linalg.solve(CORRELATED.covariances[0], x[0] - CORRELATED.means[0])
    assert ((slopes.mean(0) - want).abs() < 5 * slopes.std(0) / math.sqrt(4000)).all()


@pytest.mark.parametrize(("solver", "steps"), [(solvers.ancestral(), 500), (solvers.dpmpp_2m(), 100)])
def test_samples_have_the_sources_mean_and_covariance(solver, steps):
    decoder, n = decoders.gaussian(loc=(5.0, 0.0), scale=(1.0, 3.0)), 2000
    model = ideal(MIXTURE, "each", decoder)
    x = model.sample(NO_PARAMS, random.key(0), n, steps=steps, solver=solver, grid="gamma", decode="sample")
    assert x.dtype == torch.float64
    wanted = MIXTURE.sample(random.key(1), 200_000) * float64([1.0, 3.0]) + float64([5.0, 0.0])
    # four standard errors of n samples, and the bias of the steps
    std = wanted.std(0)
    assert ((x.mean(0) - wanted.mean(0)).abs() / std).max() < 4 / math.sqrt(n) + 0.02
    assert ((x.T.cov() - wanted.T.cov()).abs() / torch.outer(std, std)).max() < 4 * math.sqrt(2 / n) + 0.03
    log_p = MIXTURE.log_prob((x - float64([5.0, 0.0])) / float64([1.0, 3.0]))
    own = MIXTURE.log_prob(MIXTURE.sample(random.key(2), n))
    assert abs(log_p.mean() - own.mean()) < 4 * math.hypot(log_p.std(), own.std()) / math.sqrt(n) + 0.05


def small():
    decoder = decoders.gaussian(loc=(1.0, -1.0), scale=(2.0, 0.5))
    network = networks.mlp(8, 1, fourier=(), self_condition=True)
    model = purevdm.vdm(network, schedules.learned_linear(-8.0, 5.0), (2,), decoder=decoder)
    return model, perturb.perturbed(model.init(random.key(0)), 1, 0.1)


@every_backend
def test_the_compiled_loss_is_the_eager_one(backend):
    model, params = small()
    x, eager = random.normal(random.key(1), (6, 2)), torch.func.grad_and_value(model.loss_fn)
    step = torch.compile(eager, fullgraph=True, backend=backend)
    (grads, loss), (eager_grads, eager_loss) = (f(params, x, random.key(2)) for f in (step, eager))
    close(loss, eager_loss, 1e-5)
    close(grads, eager_grads, 1e-4)
    # of float64 data, too, which the model takes to its own dtype
    torch.testing.assert_close(model.loss_fn(params, x.double(), random.key(2)), eager_loss, rtol=1e-5, atol=1e-5)
    x[3, 1] = math.nan  # a compiled graph reads no values, and what is NaN stays so
    assert step(params, x, random.key(2))[1].isnan()


@every_backend
def test_compiled_samples_are_the_eager_ones(backend):
    model, params = small()
    got, want = (
        f(params, random.key(3), 4, steps=3, decode="sample")
        for f in (torch.compile(model.sample, fullgraph=True, backend=backend), model.sample)
    )
    close(got, want, 1e-5)


def test_bad_data_and_models_are_named():
    model, params = small()
    with pytest.raises(TypeError, match=r"x: expected .* float32 or float64 .*decoders\.discrete"):
        model.loss_fn(params, torch.zeros(3, 2, dtype=torch.int64), random.key(0))
    with pytest.raises(ValueError, match="clip: expected False, as these data have no bounds"):
        model.sample(params, random.key(0), 2, steps=2, clip=True)
    with pytest.raises(ValueError, match=r"decoder: expected a loc and scale that broadcast against events \(2,\)"):
        purevdm.vdm(networks.mlp(8), schedules.learned_linear(), (2,), decoder=decoders.gaussian(loc=((0.0,), (1.0,))))
    with pytest.raises(ValueError, match="vocab_size: the decoder takes real numbers"):
        purevdm.vdm(networks.mlp(8), schedules.learned_linear(), (2,), 16, decoder=decoders.gaussian())
    other = model._replace(decoder=changed(model.decoder, unit="bans"))
    with pytest.raises(ValueError, match=r"model\.decoder\.unit: expected one of"):
        evaluation.evaluate(other, params, [(torch.zeros(3, 2), None)], random.key(0))
