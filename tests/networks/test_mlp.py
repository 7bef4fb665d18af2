"""The network of the 2D example: its layers by hand, any event."""

import functools
import math
from dataclasses import dataclass
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

import purevdm
from purevdm import bfn, networks, random, schedules


@given(st.integers(0, 2**31), st.floats(-13.3, 5.0))
def test_it_is_the_official_example_written_out(seed, gamma):
    network = networks.mlp(16)
    params = network.init(random.key(seed), (2,))
    z = random.normal(random.key(seed + 1), (2,))
    h = torch.cat([z, torch.tensor([2 * (gamma + 13.3) / 18.3 - 1])])
    angles = torch.tensor([2.0**n * 2 * math.pi for n in range(8)]) * h[:, None]
    h = torch.cat([h, angles.sin().flatten(), angles.cos().flatten()])
    assert h.shape == (51,)
    for name in ("dense1", "dense2"):
        h = F.silu(h @ params[name]["kernel"] + params[name]["bias"])
    want = h @ params["dense3"]["kernel"] + params["dense3"]["bias"]
    torch.testing.assert_close(network.apply(params, z, torch.tensor(gamma)), want, rtol=1e-3, atol=1e-3)


@given(st.lists(st.integers(1, 3), max_size=3), st.integers(0, 2), st.integers(1, 3))
def test_any_event(shape, cond_dim, layers):
    network = networks.mlp(4, layers, fourier=(0,), cond_dim=cond_dim)
    params = network.init(random.key(0), tuple(shape))
    cond = torch.ones(cond_dim) if cond_dim else None
    z = random.normal(random.key(1), tuple(shape))
    assert network.apply(params, z, torch.tensor(0.0), cond).shape == z.shape


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: networks.mlp(0), ValueError, "hidden"),
        (lambda: networks.mlp(layers=0), ValueError, "layers"),
        (lambda: networks.mlp(gamma_max=-20.0), TypeError, "gamma_min"),
        (lambda: networks.mlp(gamma_min=5.0, gamma_max=-20.0), ValueError, "gamma_min"),
        (lambda: networks.mlp().apply({}, torch.zeros(2), torch.zeros(3)), ValueError, "gamma"),
    ],
)
def test_bad_input_is_named(call, error, word):
    with pytest.raises(error, match=word):
        call()


INNER = networks.mlp(8)


def by_global(params, z, gamma, cond=None, key=None):
    return INNER.apply(params, z, gamma, cond, key)


def by_argument(inner, params, z, gamma, cond=None, key=None):
    return inner.apply(params, z, gamma, cond, key)


class Outer:
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, params, z, gamma, cond=None, key=None):
        return self.inner.apply(params, z, gamma, cond, key)

    def method(self, *args, **kwargs):
        return self(*args, **kwargs)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda inner: functools.partial(by_argument, inner),
        lambda inner: Outer(inner),
        lambda inner: Outer(inner).method,
        lambda inner: lambda *args, **kwargs: by_argument(inner, *args, **kwargs),
    ],
)
def test_a_network_in_anothers_apply_needs_its_endpoints(wrapped):
    """The model does not reach it, so it would normalise gamma by the paper's."""
    schedule = schedules.fixed_linear(-8.0, 4.0)
    told = networks.mlp(8, gamma_min=-8.0, gamma_max=4.0)
    outer, plain = (networks.Network.of(told.init, apply) for apply in (wrapped(told), told.apply))
    one, other = (purevdm.vdm(network, schedule, (2,), 16) for network in (outer, plain))
    params, x = one.init(random.key(0)), torch.tensor([[1, 2]])
    assert torch.equal(one.loss_fn(params, x, random.key(1)), other.loss_fn(params, x, random.key(1)))
    none = networks.Network.of(INNER.init, wrapped(INNER))
    with pytest.raises(ValueError, match=r"network: its apply calls .*gamma_min=-8\.0, gamma_max=4\.0"):
        purevdm.vdm(none, schedule, (2,), 16)
    with pytest.raises(ValueError, match=r"network: its apply calls .*gamma_min=0\.0, gamma_max=1\.0"):
        bfn.continuous(none, (2,), 0.1)
    purevdm.vdm(none, schedules.fixed_linear(), (2,))  # the paper's, of 256 levels


def test_a_network_among_the_globals_needs_its_endpoints():
    with pytest.raises(ValueError, match="network: its apply calls"):
        purevdm.vdm(networks.Network.of(INNER.init, by_global), schedules.fixed_linear(-8.0, 4.0), (2,), 16)


def test_a_global_that_an_attribute_is_named_as_is_not_called():
    """Python's own list of a function's globals takes ``whole.INNER`` for the global INNER."""
    told = networks.mlp(8, gamma_min=-8.0, gamma_max=4.0)
    whole = SimpleNamespace(INNER=told)

    def apply(*args, **kwargs):
        return whole.INNER.apply(*args, **kwargs)

    purevdm.vdm(networks.Network.of(told.init, apply), schedules.fixed_linear(-8.0, 4.0), (2,), 16)


@dataclass(frozen=True)
class Twice(networks.Wrapped):
    def apply(self, params, z, gamma, *args, **kwargs):
        return 2.0 * self.own.apply(params, z, gamma, *args, **kwargs)


def test_a_network_within_a_wrapped_one_is_told():
    schedule, x = schedules.fixed_linear(-8.0, 4.0), torch.tensor([[1, 2]])
    one = purevdm.vdm(Twice(INNER), schedule, (2,), 16)
    other = purevdm.vdm(Twice(networks.mlp(8, gamma_min=-8.0, gamma_max=4.0)), schedule, (2,), 16)
    params = one.init(random.key(0))
    assert one == other
    assert torch.equal(one.loss_fn(params, x, random.key(1)), other.loss_fn(params, x, random.key(1)))
    assert one.network.endpoints == (-8.0, 4.0)
    short = one._replace(network=networks.mixed(one.network))
    assert not torch.equal(short.loss_fn(params, x, random.key(1)), one.loss_fn(params, x, random.key(1)))
