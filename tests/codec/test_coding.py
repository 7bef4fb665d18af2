"""Data to bytes and back: every kind of model, data and setting; the rate is the bound."""

import math

import hypothesis.strategies as st
import numpy as np
import optree
import pytest
import torch
from hypothesis import given, settings
from tiny_codec import OTHERS, images, model_and_params

import purevdm
from purevdm import codec, decoders, importance, networks, nn, parts, random, schedules
from purevdm.codec import _chain, _network
from purevdm.noise import Seeds
from purevdm.testing import sources


def there_and_back(model, params, x, cond=None, **options):
    data = codec.encode(model, params, x, cond, **options)
    decoded = codec.decode(model, params, data, cond, lanes=3)
    assert decoded.dtype == x.dtype
    assert torch.equal(decoded, x)
    return data


# Round trips


@settings(max_examples=20)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    values=st.sampled_from([2, 3, 17, 256]),
    steps=st.integers(1, 8),
    n=st.integers(1, 9),
    lanes=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
    extreme=st.booleans(),
)
def test_any_shape_vocabulary_steps_and_batch(shape, values, steps, n, lanes, seed, extreme):
    model, params = model_and_params(event_shape=tuple(shape), vocab_size=values)
    x = images(model, n, seed)
    x = torch.where(x % 2 == 0, 0, values - 1) if extreme else x
    there_and_back(model, params, x, timesteps=steps, lanes=lanes, seed=seed)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.norm, self.out = torch.nn.Linear(7, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 6)

    def forward(self, z, gamma):
        return self.out(torch.nn.functional.silu(self.norm(self.into(torch.cat([z, gamma[:, None] / 10.0], 1)))))


NETWORKS = {
    "mlp": (networks.mlp(8), (6,)),
    "predicts x": (networks.mlp(8, fourier=(), predicts="x"), (6,)),
    "predicts v": (networks.mlp(8, fourier=(), predicts="v"), (6,)),
    "self-conditioned": (networks.mlp(8, fourier=(), self_condition=True), (6,)),
    "module": (networks.from_module(Net), (6,)),
    "mixed": (networks.mixed(networks.mlp(8, fourier=())), (6,)),
    "mixed module": (networks.mixed(networks.from_module(Net)), (6,)),
    "vdm_unet": (networks.vdm_unet(8, 1, groups=4), (1, 4, 4)),
    "unet": (networks.unet(8, (1, 2), 1, attention=(1,), heads=2, groups=4, fourier=()), (3, 4, 4)),
    "series": (networks.unet(8, (1, 2), 1, groups=4, fourier=(), adapter="c l -> l c"), (1, 8)),
}


@pytest.mark.parametrize("portable", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_any_network(name, portable):
    network, shape = NETWORKS[name]
    model, params = model_and_params(network, event_shape=shape)
    there_and_back(model, params, images(model, 4), timesteps=2, portable=portable, lanes=3)


def nothing(key, event_shape):
    return {}


def each_line(params, t):
    return torch.linspace(-8.0, -6.0, 6).to(t) + torch.linspace(10.0, 13.0, 6).to(t) * t


def of_context(params, t, context):
    return -6.0 + 0.3 * context + 10.0 * t


def each_of_context(params, t, context):
    return -6.0 + 0.3 * context + torch.linspace(9.0, 11.0, 6).to(t) * t


def of_layer(params, t, context):
    return -6.0 + torch.sigmoid(nn.dense(params, context))[0] + 10.0 * t


def empty(key):
    return {}


def layer(key):
    return nn.dense_init(key, 6, 1)


def contextual(init, gamma):
    return schedules.Schedule.of(init, gamma, endpoints=(-6.0, 5.0), contextual=True)


NUMBER = random.uniform(random.key(0), (7,))
SCHEDULES = {
    "fixed": (schedules.fixed_linear(-13.3, 5.0), None),
    "learned": (schedules.learned_linear(-7.0, 4.0), None),
    "monotone": (schedules.monotone_mlp(-7.0, 4.0, hidden=8), None),
    "pinned": (schedules.monotone_mlp(-7.0, 4.0, hidden=8, pin_endpoints=True), None),
    "constrained": (schedules.constrained_monotone(-7.0, 4.0, hidden=(8,)), None),
    "warped": (importance.warped(schedules.monotone_mlp(-7.0, 4.0, hidden=8)), None),
    "multivariate": (schedules.Schedule.of(empty, each_line), None),
    "contextual": (contextual(layer, of_layer), random.normal(random.key(2), (7, 6))),
    "of a number": (contextual(empty, of_context), NUMBER),
    "of a number, multivariate": (contextual(empty, each_of_context), NUMBER),
}


@pytest.mark.parametrize("portable", [True, False])
@pytest.mark.parametrize("name", SCHEDULES)
def test_any_schedule(name, portable):
    schedule, cond = SCHEDULES[name]
    model, params = model_and_params(schedule=schedule)
    there_and_back(model, params, images(model, 7), cond, timesteps=6, portable=portable, lanes=3)


@pytest.mark.parametrize("portable", [True, False])
@pytest.mark.parametrize(
    ("kind", "schedule"),
    [*((kind, "learned") for kind in OTHERS), *((kind, "of a number, multivariate") for kind in OTHERS if kind != "mlp")],
)
def test_any_reverse_process_and_decoder(kind, schedule, portable):
    network, options = OTHERS[kind]
    schedule, cond = SCHEDULES[schedule]
    model, params = model_and_params(network, schedule, **options)
    there_and_back(model, params, images(model, 7), cond, timesteps=6, portable=portable, lanes=3)


@pytest.mark.slow
def test_a_compiled_network_writes_the_same_file():
    network, options = OTHERS["mlp"]
    model, params = model_and_params(network, **options)
    x = images(model, 4)
    assert there_and_back(model, params, x, timesteps=2, compile=True) == there_and_back(model, params, x, timesteps=2)


def test_another_reverse_process_or_decoder_is_another_model():
    models = [model_and_params(network, **options) for network, options in OTHERS.values() if network.outputs is None]
    models += [model_and_params(), model_and_params(reverse=parts.posterior(log_last=-5.0), decoder=models[1][0].decoder)]
    data = [codec.encode(*each, images(each[0], 2), timesteps=2) for each in models]
    for i, file in enumerate(data):
        for j, each in enumerate(models):
            if i != j:
                with pytest.raises(codec.CodecError, match="expected the parameters that the file was written with"):
                    codec.decode(*each, file)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_any_dtype_of_data(dtype):
    model, params = model_and_params()
    there_and_back(model, params, images(model, 3, dtype=dtype), timesteps=3)


def test_a_decoder_of_its_own_positions():
    decoder = decoders.discrete(8, loc=[0.1, 0.0, -0.3, 0.0, 0.0, 0.2], scale=[0.5, 1.0, 2.0, 1.0, 0.3, 0.7])
    model, params = model_and_params(decoder=decoder)
    there_and_back(model, params, images(model, 6), timesteps=5)


def test_a_condition_is_needed_on_both_sides():
    model, params = model_and_params(networks.mlp(8, fourier=(), classes=5, cond_dim=2))
    x, label = images(model, 7), torch.arange(7) % 5
    cond = networks.Condition(vector=random.uniform(random.key(0), (7, 2)), label=label)
    data = there_and_back(model, params, x, cond, timesteps=4)
    with pytest.raises(codec.CodecError, match="cond: expected the condition that these data were encoded with"):
        codec.decode(model, params, data, cond._replace(label=label.flip(0)))
    with pytest.raises(codec.CodecError, match="cond: expected a condition"):
        codec.decode(model, params, data)
    with pytest.raises(codec.CodecError, match="cond: expected the condition"):
        codec.decode(model, params, data, optree.tree_map(lambda leaf: leaf[:5], cond))


def test_data_far_from_the_model_cost_much_and_come_back():
    """Of a model that knows only one value, data of another: all its latents are beyond the tables."""
    p = torch.tensor([1.0 - 3e-9, 1e-9, 1e-9, 1e-9], dtype=torch.float64)
    model = purevdm.vdm(sources.categorical(p), schedules.fixed_linear(-13.0, 6.0), (16,), 4)
    params = {"network": {}, "schedule": {}}
    likely, unlikely = torch.zeros(5, 16, dtype=torch.int64), torch.full((5, 16), 3)
    few, many = (codec.info(there_and_back(model, params, x, timesteps=6)).net for x in (likely, unlikely))
    assert many > few + 20


# The stream


def chain_of(model, params, steps, lanes):
    return _chain.chain_of(_network.denoiser_of(model, params, True, lanes, False), steps, 0)


def test_rounds_grow_from_one_example_to_the_lanes():
    model, params = model_and_params()
    payload = _chain.encode(chain_of(model, params, 5, 4), 3, images(model, 20), None)
    assert payload.rounds[0] == 1
    assert max(payload.rounds) == 4
    assert sum(payload.rounds) == 20


def test_too_few_initial_words_are_doubled():
    model, params = model_and_params()
    chain, x = chain_of(model, params, 5, 4), images(model, 3).numpy()
    assert _chain.push_rounds(chain, 0, x, None, 2, 1.0) is None
    rounds, _ = _chain.push_rounds(chain, 0, x, None, 40, 1.0)  # a need so small that rounds are first tried too large
    assert sum(rounds) == 3


def test_the_callback_is_given_what_each_round_cost():
    model, params = model_and_params()
    costs = []
    data = codec.encode(model, params, images(model, 30), timesteps=5, lanes=8, callback=lambda *cost: costs.append(cost))
    info = codec.info(data)
    assert sum(n for n, _ in costs) == 30
    assert abs(sum(bits for _, bits in costs) / (30 * 6) - info.net) < 64 / (30 * 6)
    assert info.rate > info.net + info.initial_bits / (30 * 6)


# The rate


def bound_in_all_steps(model, params, x, key, timesteps):
    """The bound of each example with a draw of noise at each of its steps, bits per dimension."""
    stepped, n = model._replace(timesteps=timesteps), len(x)
    total = torch.zeros(n, dtype=torch.float64)
    for i in range(timesteps):
        t = torch.full((n,), (i + 1) / timesteps, dtype=model.dtype)
        terms = stepped.nll_bound(params, x, Seeds(t, model.seeds(random.fold_in(key, i), n).key))
        total += (terms.diffusion / timesteps + (terms.recon + terms.prior if i == 0 else 0.0)).double()
    return total / (math.prod(model.event_shape) * math.log(2.0))


P = torch.tensor([0.05, 0.4, 0.05, 0.3, 0.01, 0.19], dtype=torch.float64)


def ranged(params, z, gamma, cond=None, key=None):
    """The ideal denoiser's noise, and a v for each number, in [-0.1, 1.1]."""
    ideal = sources.categorical(P)
    return torch.stack([ideal.apply(params, z, gamma), 1.2 * torch.sin(7.0 * z)], -1)


IDEAL, RANGED = sources.categorical(P), networks.Network.of(nothing, ranged, outputs=2)
ESTIMATE = decoders.discretised_gaussian(6, scale=1.0)
RATES = {
    "posterior": (IDEAL, {}),
    "upper": (IDEAL, {"reverse": parts.upper()}),
    "learned range": (RANGED, {"reverse": parts.learned_range()}),
    "estimate": (IDEAL, {"decoder": ESTIMATE, "reverse": parts.posterior(log_last=-2.0)}),
    "estimate, learned range": (RANGED, {"decoder": ESTIMATE, "reverse": parts.learned_range(log_last=(-5.0, -3.0))}),
}


@pytest.mark.parametrize(
    ("kind", "timesteps"),
    [
        *((kind, 50) for kind in RATES),
        *(pytest.param("posterior", steps, marks=pytest.mark.slow) for steps in (100, 250)),
    ],
)
def test_the_net_rate_is_the_bound(kind, timesteps):
    """Within half a percent and four standard errors, which are below half a percent, too."""
    p, (network, options) = P, RATES[kind]
    schedule = schedules.fixed_linear(-3.0 if "decoder" in options else -12.0, 6.0)
    options = options if "decoder" in options else options | {"vocab_size": 6}
    model = purevdm.vdm(network, schedule, (64,), dtype=torch.float64, **options)
    params, n, lanes = {"network": {}, "schedule": {}}, 1024, 64
    x = random.categorical(random.key(0), p.log(), shape=(n, 64))
    chain, costs = chain_of(model, params, timesteps, lanes), []
    _chain.push_rounds(chain, 0, x.numpy(), None, 20 * lanes * 64 // 32, 1.0, lambda *cost: costs.append(cost))
    counts, bits = (np.array(column, np.float64) for column in zip(*costs, strict=True))
    bound = bound_in_all_steps(model, params, x, random.key(1), timesteps)
    excess = bits / 64 - bound.reshape(-1, lanes).sum(1).numpy()
    mean = excess.sum() / n
    error = math.sqrt(np.square(excess - counts * mean).sum()) / n
    rate = bound.mean().item()
    assert error < 0.005 * rate
    assert abs(mean) < 0.005 * rate + 4 * error, (mean / rate, error / rate)


# Settings and errors


def test_a_file_for_this_machine_is_refused_elsewhere():
    model, params = model_and_params()
    x = images(model, 9)
    data = codec.encode(model, params, x, timesteps=5, portable=False, lanes=4)
    assert torch.equal(codec.decode(model, params, data), x)
    assert not codec.info(data).portable
    assert '"dtype": "float32"' in codec.info(data).machine
    with pytest.raises(codec.CodecError, match="expected the machine and the settings that wrote the file"):
        codec.decode(model, params, data, lanes=5)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads % 2 + 1)
        with pytest.raises(codec.CodecError, match="expected the machine and the settings that wrote the file"):
            codec.decode(model, params, data)
    finally:
        torch.set_num_threads(threads)


def test_real_data_are_refused():
    model, params = model_and_params(decoder=decoders.gaussian())
    with pytest.raises(ValueError, match=r"model.decoder: expected finitely many values .* got finite numbers"):
        codec.encode(model, params, torch.zeros(3, 6))


class Short(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.out = torch.nn.Linear(6, 6)

    def forward(self, z, gamma):
        return self.out(torch.sin(z.float()).to(z.dtype))


def test_a_network_that_computes_in_less_than_float64_is_refused():
    model, params = model_and_params(networks.from_module(Short))
    x = images(model, 3)
    with pytest.raises(ValueError, match=r"network: expected to compute in float64 throughout, .* found .*float32"):
        codec.encode(model, params, x, timesteps=3)
    there_and_back(model, params, x, timesteps=3, portable=False, lanes=3)


def infinite(params, z, gamma, cond=None, key=None):
    return z / 0.0


def test_a_network_whose_output_is_not_finite_is_named():
    model, params = model_and_params(networks.Network.of(nothing, infinite))
    with pytest.raises(ValueError, match="network: expected finite outputs"):
        codec.encode(model, params, images(model, 3), timesteps=3)


def test_the_models_own_steps_are_the_default():
    model, params = model_and_params()
    model, x = model._replace(timesteps=7), images(model, 2)
    assert [codec.info(codec.encode(model, params, x, timesteps=t)).timesteps for t in (None, 3)] == [7, 3]
