"""Bytes of tokens by an any-order model: what was encoded comes back, the size is what the model says, damage is refused."""

import math

import chains
import numpy as np
import pytest
import torch
from chains import EVERY, F64, FLAT, LOG_P
from hypothesis import given, settings
from hypothesis import strategies as st
from perturb import perturbed

from purevdm import codec, masked, networks, random, schedules
from purevdm.codec import _tokens, decode_tokens, encode_tokens
from purevdm.networks import Network

OVERHEAD = len(_tokens.MAGIC) + _tokens._HEAD.size + 4


def make(event_shape=(5,), classes=4, network=None, **options):
    return masked.diffusion(networks.mlp(8, fourier=(), **(network or {})), None, event_shape, classes, **options)


def started(model):
    return perturbed(model.init(random.key(0)), 1, 0.4)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(2, 300),
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(1, 9),
    st.sampled_from([torch.int64, torch.uint8, torch.int32]),
)
@settings(max_examples=25, deadline=None)
def test_what_was_encoded_comes_back(shape, classes, n, steps, lanes, dtype):
    classes = min(classes, 256 if dtype == torch.uint8 else 300)
    model = make(tuple(shape), classes)
    params, x = started(model), random.randint(random.key(n), (n, *shape), 0, classes, torch.int64).to(dtype)
    data = encode_tokens(model, params, x, steps=min(steps, math.prod(shape)), lanes=lanes, seed=n)
    back = decode_tokens(model, params, data)
    assert back.dtype == dtype
    assert torch.equal(back, x)


def test_conditions_are_taken_again():
    model = make(network=dict(classes=3))
    params, x, label = started(model), random.randint(random.key(1), (6, 5), 0, 4), torch.arange(6) % 3
    data = encode_tokens(model, params, x, label)
    assert torch.equal(decode_tokens(model, params, data, label), x)
    with pytest.raises(codec.CodecError, match=r"^cond: expected the condition"):
        decode_tokens(model, params, data, label.flip(0))


@pytest.mark.parametrize("steps", [None, 1])
def test_an_ideal_predictor_takes_the_bits_of_the_chain(steps):
    """Whatever the order, one token at a time; all at once, those of the marginals."""
    model = chains.ideal_model(schedules.power(floor=1e-9))
    x = EVERY[random.categorical(random.key(0), LOG_P, (3000,))]
    bits = []
    data = encode_tokens(model, FLAT, x, steps=steps, callback=lambda tokens, cost: bits.append(cost))
    p = torch.stack([chains.START, chains.START @ chains.TRANSITION, chains.START @ chains.TRANSITION @ chains.TRANSITION])
    log_p = p.log()[torch.arange(3), x].sum(1) if steps else chains.log_prob(chains.START, chains.TRANSITION, x)
    want = -log_p.sum().item() / math.log(2)
    most = 3 * math.ceil(3000 / _tokens.LANES) * 6 + 64  # dithers, and the words at the end
    assert -32 < 8 * (len(data) - OVERHEAD) - want < most + 1e-4 * want
    assert sum(bits) == pytest.approx(want, abs=most)
    assert torch.equal(decode_tokens(model, FLAT, data), x)


def test_the_rate_is_the_bound_in_any_order():
    model = make((6,), 7)
    params, n = started(model), 3000
    x = (random.randint(random.key(1), (n, 6), 0, 3) * torch.arange(1, 4)[[0, 1, 2, 2, 1, 0]] % 7).long()
    bound = masked.order.nll_bound(model, params, x.repeat(4, 1), random.key(2)).total / math.log(2)
    rate = 8 * (len(encode_tokens(model, params, x)) - OVERHEAD) / n
    error = bound.std() / (4 * n) ** 0.5
    assert abs(rate - bound.mean()) < 5 * error + 0.05  # dithers: 0.024 bits


def test_noise_of_another_machine_changes_nothing():
    """A network whose logits differ by 1e-9 from call to call."""
    model, calls = make((6,), 5, dtype=F64), []

    def apply(params, *args, **options):
        calls.append(0)
        noise = 1e-9 * torch.sin(1e3 * len(calls) + torch.arange(36, dtype=F64))
        return model.network.apply(params, *args, **options) + noise

    noisy = model._replace(network=Network.of(model.network.init, apply))
    params, x = started(model), random.randint(random.key(1), (300, 6), 0, 5)
    data = encode_tokens(noisy, params, x, lanes=64)
    assert torch.equal(decode_tokens(noisy, params, data), x)


def test_damage_and_other_models_are_refused():
    model = make()
    params, x = started(model), random.randint(random.key(1), (20, 5), 0, 4)
    data, dice = encode_tokens(model, params, x), np.random.default_rng(0)
    for i in dice.integers(0, len(data), 60):
        broken = bytearray(data)
        broken[i] ^= 1 << dice.integers(8)
        with pytest.raises(codec.CodecError):
            decode_tokens(model, params, broken)
    for cut in (b"", data[:5], data[:40], data[:-1], data + b"0", _tokens.MAGIC):
        with pytest.raises(codec.CodecError):
            decode_tokens(model, params, cut)
    other = perturbed(params, 2, 1e-6)
    with pytest.raises(codec.CodecError, match="expected the model and the parameters"):
        decode_tokens(model, other, data)
    uniform = make(corruption="uniform")
    for call in (
        lambda: encode_tokens(uniform, started(uniform), x),
        lambda: encode_tokens(model, params, x + 4),
        lambda: encode_tokens(model, params, x, steps=6),
        lambda: encode_tokens(model, params, x, lanes=0),
        lambda: decode_tokens(model, params, "text"),
    ):
        with pytest.raises((TypeError, ValueError), match=r"^(model|x|steps|lanes|data): expected"):
            call()


def test_a_network_in_float32_is_refused():
    def apply(params, z, gamma, cond=None, key=None):
        return z.float().cos()

    model = masked.diffusion(Network.of(lambda key, shape: {}, apply), None, (3,), 4)
    with pytest.raises(ValueError, match=r"^network: expected to compute in float64 throughout"):
        encode_tokens(model, FLAT, torch.zeros(2, 3, dtype=torch.int64))
