"""Rate and distortion as latents arrive: the bound's terms one after another, a Gaussian's in closed form, and what a stack
gives up of them."""

import contextlib
import math

import numpy as np
import pytest
import torch
from tiny_codec import OTHERS, images, model_and_params

import purevdm
from purevdm import bound, codec, decoders, networks, process, random, schedules
from purevdm.codec import _chain, _network, _swap
from purevdm.testing import sources

EMPTY = {"network": {}, "schedule": {}}


def each_of_context(params, t, context):
    return -6.0 + 0.3 * context + torch.linspace(9.0, 11.0, 6).to(t) * t


def nothing(key, *shape):
    return {}


CONTEXTUAL = schedules.Schedule.of(nothing, each_of_context, endpoints=(-6.0, 5.0), contextual=True)


@pytest.mark.parametrize("kind", [None, *OTHERS])
def test_the_last_rate_is_the_bound(kind):
    """With the same noise at every time, over two batches."""
    network, options = OTHERS.get(kind, (None, {"vocab_size": 16}))
    schedule, cond = (None, None) if kind == "mlp" else (CONTEXTUAL, random.uniform(random.key(5), (7,), torch.float64))
    model, params = model_and_params(network, schedule, timesteps=5, dtype=torch.float64, **options)
    x, key = images(model, 7), random.key(3)
    batches = [(x[rows], None if cond is None else cond[rows]) for rows in (slice(0, 4), slice(4, 7))]
    rates = []
    for j, (part, context) in enumerate(batches):
        noise = model.draw(random.fold_in(key, j), len(part), train=False)
        at = [noise._replace(t=torch.full((len(part),), i / 5, dtype=torch.float64)) for i in range(5, 0, -1)]
        terms = [bound.bound(model, params, part, each, context) for each in at]
        steps = [terms[0].prior, *(each.diffusion / 5 for each in terms), terms[0].recon]
        rates.append(torch.stack(steps, 1).cumsum(1) / (6 * math.log(2.0)))
    found, rates = codec.curve(model, params, batches, key), torch.cat(rates)
    torch.testing.assert_close(found.rate, rates.mean(0), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(found.rate_error, rates.std(0) / math.sqrt(7), rtol=1e-10, atol=0.0)
    assert (found.mse[-1], found.mse_error[-1], found.examples, found.unit) == (0.0, 0.0, 7, "bits/dim")


def test_a_gaussian_has_known_rates_and_errors():
    """Of the ideal denoiser: the posterior's variance, and KL terms that follow from it. Data are 3 f + 1."""
    std, scale, steps, d = 0.7, 3.0, 8, 4
    decoder = decoders.gaussian(loc=1.0, scale=scale)
    model = purevdm.vdm(sources.gaussian(std), schedules.fixed_linear(-5.0, 4.0), (d,), decoder=decoder, dtype=torch.float64)
    x = 1.0 + scale * std * random.normal(random.key(0), (4000, d), torch.float64)
    found = codec.curve(model, EMPTY, x.split(1000), random.key(1), timesteps=steps)
    gamma = torch.linspace(4.0, -5.0, steps + 1, dtype=torch.float64)
    power = process.alpha(gamma).square() * std**2
    left = std**2 * process.sigma(gamma).square() / (power + process.sigma(gamma).square())
    prior = 0.5 * (power[0] + process.sigma(gamma[0]).square() - 1.0) - process.sigma(gamma[0]).log()
    diffusion = 0.5 * torch.expm1(gamma[:-1] - gamma[1:]) * torch.exp(-gamma[:-1]) * left[:-1]
    recon = 0.5 * (math.log(2.0 * math.pi) + 1.0 + gamma[-1]) + math.log(scale)
    rate = d * torch.cat([prior[None], diffusion, recon[None]]).cumsum(0)
    assert ((found.rate - rate).abs() < 4.5 * found.rate_error).all()
    assert ((found.mse[:-1] - scale**2 * left).abs() < 4.5 * found.mse_error[:-1]).all()
    assert (found.mse_error[:-1] < 0.02 * found.mse[:-1]).all()
    assert found.unit == "nats"


@pytest.mark.parametrize(("estimate", "value"), [(0.0, 127.5), (7.0, 255.0)])
@pytest.mark.parametrize("decoder", [decoders.discrete(), decoders.discretised_gaussian()])
def test_errors_are_in_the_datas_units_and_estimates_in_their_range(decoder, estimate, value):
    network = networks.Network.of(nothing, lambda params, z, *a, **b: torch.full_like(z, estimate), predicts="x")
    model = purevdm.vdm(network, schedules.fixed_linear(), (6,), decoder=decoder, dtype=torch.float64)
    x = random.randint(random.key(0), (5, 6), 0, 256).to(torch.uint8)
    found = codec.curve(model, EMPTY, [x], random.key(1), timesteps=3)
    mse = (x.double() - value).square().mean()
    torch.testing.assert_close(found.mse, torch.cat([mse.expand(4), torch.zeros(1, dtype=torch.float64)]))


def test_other_models_and_no_batch_are_refused():
    model, params = model_and_params(decoder=decoders.one_hot(3))
    with pytest.raises(
        ValueError, match="model: expected a decoder without parameters, whose latents have the data's shape"
    ):
        codec.curve(model, params, [torch.zeros(3, 6)], random.key(0))
    with pytest.raises(ValueError, match="batches: expected at least one"):
        codec.curve(*model_and_params(), [], random.key(0))


# What docstrings say of a piece of a stack


def latents(swap, words, n):
    """What decodes from a stack: the latents, and how many bits a number had gone when each was known."""
    seen, backward = {}, _swap._backward
    stack = _swap.Stack(words)
    before = stack.bits

    def seeing(swap, i, k, fix):
        seen[i] = k.copy(), (before - stack.bits) / k.size
        return backward(swap, i, k, fix)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_swap, "_backward", seeing)
        with contextlib.suppress(_swap.CodingError):
            _swap.pop(stack, swap, n)
    return seen


def test_the_last_words_of_a_block_hold_the_first_latents_and_others_nothing():
    p = torch.tensor([0.05, 0.4, 0.05, 0.3, 0.01, 0.19], dtype=torch.float64)
    model = purevdm.vdm(sources.categorical(p), schedules.fixed_linear(-12.0, 6.0), (64,), 6, dtype=torch.float64)
    n, steps = 64, 50
    x = random.categorical(random.key(0), p.log(), shape=(n, 64))
    chain = _chain.chain_of(_network.denoiser_of(model, EMPTY, True, n, False), steps, 0)
    (size,), words = _chain.push_rounds(chain, 0, x.numpy(), None, 30 * n * 64 // 32, 1.0)
    swap = chain.swap(None, size)
    whole, rate = latents(swap, words, n), codec.curve(model, EMPTY, [x], random.key(1), timesteps=steps).rate.numpy()
    widths = np.exp(swap.levels.width_q[:, 0, 0] / 1024)  # of q(z_i given z_{i-1}), in steps of the lattice
    sigma = 1.0 / np.sqrt(1.0 + np.exp(-swap.levels.gamma[:, 0, 0]))
    held = np.log2(4.1327 * sigma / swap.levels.delta[:, 0, 0])
    junk = np.random.default_rng(0).integers(1, 2**32, len(words), dtype=np.uint32)
    for i in (40, 25, 15):
        assert abs(whole[i][1] - rate[steps - i] - held[i]) < 0.05  # what z_i occupies comes on top
        bits = rate[steps - i] + held[i] + np.log2(4.1327 * widths[i + 1])
        for share, right in ((1.03, True), (0.9, False)):
            last = int(share * bits * n * 64 / 32)
            found = latents(swap, np.concatenate([junk[:-last], words[-last:]]), n)
            assert (i in found and np.array_equal(found[i][0], whole[i][0])) is right
    assert not any(np.array_equal(k, whole[i][0]) for i, (k, _) in latents(swap, words[:-4], n).items())
