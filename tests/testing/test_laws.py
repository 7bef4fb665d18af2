"""The laws hold for the library's own parts, and catch faults that people make."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import changed

import purevdm
from purevdm import decoders, networks, nn, ode, process, random, schedules, solvers, testing
from purevdm.networks import Network
from purevdm.schedules import Schedule
from purevdm.solvers import Solver, Step
from purevdm.testing import sources

# What holds


KEYS = st.integers(0, 2**63 - 1).map(random.key)
MAKERS = (schedules.fixed_linear, schedules.learned_linear, schedules.monotone_mlp, schedules.constrained_monotone)
SCHEDULES = st.builds(
    lambda make, low, high: make(low, high), st.sampled_from(MAKERS), st.floats(-15.0, -4.0), st.floats(1.0, 8.0)
)
DECODERS = st.one_of(st.integers(2, 300).map(decoders.discrete), st.just(decoders.gaussian()))


@given(SCHEDULES, KEYS)
def test_schedules(schedule, key):
    testing.check_schedule(schedule, key=key)


def per_dimension(params, t):
    return -8.0 + torch.tensor([9.0, 10.0, 12.0], dtype=t.dtype) * t


def by_context(params, t, context):
    return -8.0 + (10.0 + torch.tanh(context)) * t


def nothing(key):
    return {}


def test_a_layer_norm_of_times_passes():
    testing.check_schedule(Schedule.of(normed_init, normed))


def test_schedules_of_the_events_shape_and_of_a_context():
    testing.check_schedule(Schedule.of(nothing, per_dimension), event_shape=(3,))
    schedule = Schedule.of(nothing, by_context, contextual=True)
    testing.check_schedule(schedule, event_shape=(3,), context=torch.tensor([1.0, 0.0, -2.0]))


CONDITION = networks.Condition(vector=torch.tensor([[0.0], [1.0], [-2.0]]), label=torch.tensor([0, 3, 1]))


@pytest.mark.parametrize(
    ("network", "event", "options"),
    [
        (networks.mlp(16, cond_dim=1, classes=4), (3,), dict(cond=CONDITION, stochastic=False)),
        (networks.mlp(16, cond_dim=1, cond_drop=0.5), (3,), dict(cond=CONDITION._replace(label=None), stochastic=True)),
        (networks.unet(8, (1, 2), 1, dropout=0.3), (1, 6, 6), dict(stochastic=True)),
        (networks.vdm_unet(32, 1, dropout=0.0), (1, 6, 6), dict(stochastic=False)),
        (networks.mixed(networks.mlp(16)), (3,), dict(stochastic=False)),
    ],
    ids=["mlp", "dropped", "unet", "vdm_unet", "mixed"],
)
def test_networks(network, event, options):
    testing.check_network(network, event, **options)


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 3)
        )

    def forward(self, z, gamma):
        return self.layers(torch.cat([z, gamma[:, None]], 1))


def test_modules():
    testing.check_network(networks.from_module(Module), (3,), stochastic=True)


@pytest.mark.parametrize("loc", [0.0, (0.1, -0.3)])
@pytest.mark.parametrize("make", [decoders.gaussian, partial(decoders.discrete, 2), partial(decoders.discrete, 17)])
def test_decoders(make, loc):
    event = () if isinstance(loc, float) else (2,)
    testing.check_decoder(make(loc=loc, scale=0.5), event)


def test_the_paper_s_decoder():
    testing.check_decoder(decoders.discrete(256))


@settings(max_examples=10)
@given(
    SCHEDULES,
    st.integers(1, 4),
    st.sampled_from(["eps", "x", "v"]),
    DECODERS,
    st.one_of(st.just(0), st.integers(1, 50)),
    KEYS,
)
def test_models(schedule, size, predicts, decoder, timesteps, key):
    n, network = 8, networks.mlp(8, fourier=(), predicts=predicts)
    model = purevdm.vdm(network, schedule, (size,), decoder=decoder, timesteps=timesteps)
    k_x, k_init = random.split(key)
    real = model.decoder.vocab_size is None
    shape = (n, *model.event_shape)
    x = random.normal(k_x, shape) if real else random.randint(k_x, shape, 0, model.decoder.vocab_size)
    testing.check_model(model, model.init(k_init), x, passes=4)


P = torch.tensor([0.5, 0.1, 0.1, 0.3], dtype=torch.float64)
NO_PARAMS = {"network": {}, "schedule": {}}
IDEAL = purevdm.vdm(sources.categorical(P), schedules.fixed_linear(-10.0, 10.0), (20,), 4, dtype=torch.float64)
X = random.categorical(random.key(0), P.log(), shape=(64, 20))


def test_the_ideal_model_is_above_the_entropy():
    testing.check_model(IDEAL, NO_PARAMS, X, entropy=20 * sources.entropy(P))


@pytest.mark.parametrize("predicts", ["eps", "v"])
@pytest.mark.parametrize("event", [(1,), (2,)])
@pytest.mark.parametrize("decoder", [decoders.gaussian(loc=3.0, scale=0.2), decoders.discrete(8)], ids=["real", "discrete"])
def test_densities(event, decoder, predicts):
    model = purevdm.vdm(
        networks.mlp(16, fourier=(), predicts=predicts), schedules.fixed_linear(-3.0, 3.0), event, decoder=decoder
    )
    testing.check_density(model, model.init(random.key(1)), points=81)


def test_events_of_more_numbers_have_no_grid():
    with pytest.raises(ValueError, match="model: expected events of one or two numbers"):
        testing.check_density(IDEAL, NO_PARAMS)


# What does not: faults that people make, and what the message says of them


def schedule_of(gamma, **options):
    return lambda: testing.check_schedule(Schedule.of(nothing, gamma, **options))


def hidden(params, t):
    """Its derivative is lost."""
    return -8.0 + 12.0 * t.detach()


def forgetful_init(key, event_shape):
    return nn.dense_init(random.key(0), event_shape[0] + 1, event_shape[0], kernel_init=nn.normal(1.0))


def dense_init(key, event_shape):
    return nn.dense_init(key, event_shape[0] + 1, event_shape[0], kernel_init=nn.normal(1.0))


def dense_apply(params, z, gamma, cond=None, key=None):
    return nn.dense(params, torch.cat([z, gamma[None]]))


def torch_draws(params, z, gamma, cond=None, key=None):
    return dense_batched(params, z, gamma) * (1.0 + 0.1 * torch.rand(()))


def dropping(params, z, gamma, cond=None, key=None):
    """A dropout that forgets its key."""
    h = dense_apply(params, z, gamma)
    return h if key is None else h * random.bernoulli(random.key(0), 0.5, h.shape)


def transposed(params, z, gamma, cond=None, key=None):
    """A condition of shape (B, B), transposed."""
    return dense_batched(params, z, gamma) + cond.mT.sum(1, keepdim=True)


def dense_batched(params, z, gamma, cond=None, key=None):
    return nn.dense(params, torch.cat([z, gamma[:, None]], 1))


def normalised(params, z, gamma, cond=None, key=None):
    """A norm over the batch, in evaluation too."""
    h = dense_batched(params, z, gamma)
    return (h - h.mean(0)) / (h.std(0, unbiased=False) + 1e-3)


def unconditional(params, z, gamma, cond=None, key=None):
    return dense_apply(params, z, gamma)


class Cube(torch.autograd.Function):
    """Its second derivative is lost."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad):
        return grad * 3 * ctx.saved_tensors[0].detach() ** 2


def cubed(params, z, gamma, cond=None, key=None):
    return Cube.apply(dense_apply(params, z, gamma))


def features(params, t):
    return torch.nn.functional.layer_norm(torch.tanh(3.0 * params["w"] * t + params["b"]), (8,), eps=1e-2)


def normed_init(key):
    return dict(zip("wb", random.normal(key, (2, 8)), strict=True))


def normed(params, t):
    """A schedule with a layer norm of its features of time."""
    return -5.0 + 10.0 * t + 0.1 * features(params, t) @ torch.linspace(0.1, 1.0, 8, dtype=t.dtype)


def normed_each(params, t):
    """Of each dimension, where PyTorch's derivative of a layer norm's derivative is wrong in any mode."""
    return -5.0 + 10.0 * t + 0.1 * features(params, t)[:3]


def rooted(params, z, gamma, cond=None, key=None):
    """The derivative of a square root at zero is infinite."""
    return (dense_apply(params, z, gamma) * 0.0).square().sum().sqrt() + z


def mutating(params, z, gamma, cond=None, key=None):
    params["bias"].add_(1.0)
    return dense_batched(params, z, gamma)


def network_of(apply, init=dense_init, batched=False, **options):
    return lambda: testing.check_network(Network.of(init, apply, batched=batched), (3,), **options)


def shifted(decoder, part):
    """Its positions off by a part of a step."""
    step = 2.0 / decoder.vocab_size
    return changed(
        decoder, encode=lambda p, x, cond=None, dtype=torch.float32: decoder.encode(p, x, cond, dtype) + part * step
    )


def decoder_of(decoder):
    return lambda: testing.check_decoder(decoder)


DISCRETE, REAL = decoders.discrete(9), decoders.gaussian(loc=1.0, scale=3.0)


def euler(denoise, z_t, gamma_t, gamma_s, key, carry):
    eps, x = denoise(z_t, gamma_t)
    sigma = process.sigma(gamma_t)
    return Step(z_t + (gamma_s - gamma_t) * sigma * (eps - sigma * z_t) / 2, x)


def noiseless(denoise, z_t, gamma_t, gamma_s, key, carry):
    """The ancestral mean without its noise."""
    eps, x = denoise(z_t, gamma_t)
    return Step(solvers.ancestral_step(z_t, eps, gamma_t, gamma_s, torch.zeros_like(z_t)), x)


def solver_of(step, order=None):
    return lambda: testing.check_solver(Solver.of(step), order)


def dense_model(apply):
    model = purevdm.vdm(Network.of(dense_init, apply, batched=True), schedules.fixed_linear(), (3,))
    x = random.randint(random.key(0), (8, 3), 0, 256)
    return lambda: testing.check_model(model, model.init(random.key(1)), x, passes=4)


FAULTS = {
    "a decreasing schedule": (
        schedule_of(lambda p, t: 5.0 - 18.0 * t),
        r"gamma must increase strictly in t\n.*gamma\(0\) = 5",
    ),
    "a schedule that is infinite at 0": (schedule_of(lambda p, t: t.log()), r"gamma must be finite\n.*1 of 129"),
    "a schedule without a derivative": (schedule_of(hidden), r"derivative must integrate.*\n.*0, where gamma rises by 12"),
    "a schedule of another shape": (schedule_of(lambda p, t: t * torch.ones(2)), "gamma must return a number"),
    "a slope with another gradient": (
        lambda: testing.check_schedule(Schedule.of(normed_init, normed_each), event_shape=(3,)),
        r"gradient of gamma's derivative.*\n.*along b.*by differences",
    ),
    "a lost second derivative": (network_of(cubed), r"derivative of that in z must be.*\n.*found: +0, and"),
    "other endpoints": (schedule_of(lambda p, t: 9.0 * t, endpoints=(0.0, 5.0)), r"endpoints must be.*\n.*gamma\(1\) = 9"),
    "an init that forgets its key": (network_of(dense_apply, init=forgetful_init), "network.init must use its key"),
    "a network that draws from torch": (network_of(torch_draws, batched=True), "the same without a key\n.*torch's own"),
    "a dropout that forgets its key": (network_of(dropping, stochastic=True), "keys must matter"),
    "a dropout that should not be": (
        network_of(lambda p, z, g, cond=None, key=None: z if key is None else z * random.uniform(key), stochastic=False),
        "keys must not matter",
    ),
    "a transposed condition": (
        network_of(transposed, batched=True, cond=torch.arange(9.0).reshape(3, 3)),
        r"must depend on that example only\n.*expected an output of shape \(3,\)",
    ),
    "a norm over the batch": (network_of(normalised, batched=True), "must depend on that example only"),
    "a forgotten condition": (network_of(unconditional, cond=torch.arange(3.0)), "the condition must matter"),
    "an infinite gradient": (network_of(rooted), r"gradients must be finite\n.*kernel"),
    "a network that changes its parameters": (network_of(mutating, batched=True), "apply must give the same without a key"),
    "a decoder off by half a step": (decoder_of(shifted(DISCRETE, 0.5)), "must be the first and the last position"),
    "half a step, and its bounds too": (
        decoder_of(changed(shifted(DISCRETE, 0.5), bounds=lambda like: None)),
        "within 0.4 steps of a value's position must decode to it\n.*value 0 decodes to 1",
    ),
    "probabilities that do not sum to one": (
        decoder_of(changed(DISCRETE, log_probs=lambda p, z, g: DISCRETE.log_probs(p, z, g) - 0.01)),
        "must sum to one\n.*off by 0.01",
    ),
    "a density that does not integrate to one": (
        decoder_of(changed(REAL, log_prob=lambda p, x, z, g: REAL.log_prob(p, x, z, g) + 1.1)),
        r"must integrate to one\n.*3\.00",
    ),
    "a reconstruction of another sign": (
        decoder_of(
            changed(
                DISCRETE, reconstruction=lambda p, x, e, g: -DISCRETE.reconstruction(p, x, e, g), log_prob=DISCRETE.log_prob
            )
        ),
        "-reconstruction must agree with log_probs",
    ),
    "samples of another law": (
        decoder_of(changed(REAL, sample=lambda p, k, z, g: REAL.sample(p, k, z, g + 0.5))),
        "sample must draw from p",
    ),
    "samples that are the mode": (
        decoder_of(changed(DISCRETE, sample=lambda p, k, z, g: DISCRETE.mode(p, z))),
        "sample must draw from p",
    ),
    "a mode without its offset": (
        decoder_of(changed(REAL, mode=lambda p, z: 3.0 * z, sample=REAL.sample)),
        "mode must be the likeliest data",
    ),
    "a check that accepts all": (
        decoder_of(changed(DISCRETE, check=lambda x: torch.ones_like(x, dtype=torch.bool))),
        "check must refuse values beyond the vocabulary",
    ),
    "a solver of a lower order": (solver_of(euler, 2), r"fall with order 2 in the step\n.*order [01]\."),
    "a solver without its noise": (solver_of(noiseless), "many steps must draw from the source\n.*standard deviation"),
    "a bound across examples": (dense_model(normalised), "an example's bound must depend on that example"),
    "an entropy above the bound": (
        lambda: testing.check_model(IDEAL, NO_PARAMS, X, entropy=20 * sources.entropy(P) + 15.0),
        "must lie above the entropy\n.*below",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_caught(fault):
    run, words = FAULTS[fault]
    with pytest.raises(testing.LawError, match=words) as caught:
        run()
    assert "to see it:" in str(caught.value)


def test_a_log_density_that_is_off_is_caught(monkeypatch):
    model = purevdm.vdm(networks.mlp(8, fourier=()), schedules.fixed_linear(-3.0, 3.0), (1,), decoder=decoders.gaussian())
    exact = testing.models.likelihood.log_prob
    wrong = lambda *a, **k: (found := exact(*a, **k))._replace(log_prob=found.log_prob + 0.1)  # noqa: E731
    monkeypatch.setattr(testing.models.likelihood, "log_prob", wrong)
    with pytest.raises(testing.LawError, match=r"must integrate to one\n.*1\.10"):
        testing.check_density(model, model.init(random.key(0)), points=101, integrator=ode.dopri5(1e-3, 1e-3))


def test_compiled_parts():
    testing.check_schedule(schedules.learned_linear(), compile=True)
    testing.check_network(networks.mlp(8, fourier=()), (2,), compile=True)


def test_only_a_part_can_be_held_against_its_laws():
    """Nothing passes for the default, or because nothing was looked at."""
    checks = {
        "schedule": testing.check_schedule,
        "network": lambda part: testing.check_network(part, (2,)),
        "decoder": testing.check_decoder,
        "solver": testing.check_solver,
        "model": lambda part: testing.check_model(part, {}, X),
    }
    for name, check in checks.items():
        with pytest.raises(TypeError, match=f"{name}: expected a"):
            check(None)
    with pytest.raises(ValueError, match="gamma_0: expected at least one"):
        testing.check_decoder(decoders.discrete(8), gamma_0=())
