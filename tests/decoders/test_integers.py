"""Integers in unit bins and classes as unit vectors: masses against SciPy's, laws, symmetries, what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_ndtr

from purevdm import decoders, random, testing

F64 = torch.float64
KEY = random.key(0)


def log_mass(low, high):
    """The log mass of a standard normal in an interval, by the side on which it is small."""
    low, high = (-high, -low) if low + high > 0 else (low, high)
    top, bottom = log_ndtr(high), log_ndtr(low)
    return top + math.log(-math.expm1(bottom - top))


@given(st.integers(-40, 40), st.floats(-30, 30), st.floats(-12, 4))
def test_the_mass_of_an_integer_is_the_normal_s(value, z, gamma_0):
    decoder = decoders.integers(loc=0.5, scale=1.5)
    x, z_0, level = torch.tensor([value]), torch.tensor([z], dtype=F64), torch.tensor(gamma_0, dtype=F64)
    std, mean = 1.5 * math.exp(gamma_0 / 2), 1.5 * z + 0.5
    want = log_mass((value - 0.5 - mean) / std, (value + 0.5 - mean) / std)
    assert decoder.log_prob({}, x, z_0, level).item() == pytest.approx(want, rel=1e-10, abs=1e-12)
    assert decoder.log_prob({}, x, z_0.float(), level.float()).isfinite().all()


@pytest.mark.parametrize("ends", [(None, None), (0, None), (None, 3), (-2, 5)])
@pytest.mark.parametrize("gamma_0", [-8.0, 0.0, 3.0])
def test_integers_obey_the_laws(ends, gamma_0):
    testing.check_decoder(decoders.integers(*ends, loc=1.0, scale=3.0), gamma_0=(gamma_0,))


def test_a_floor_is_added_to_each_mass():
    z, level = torch.linspace(-1, 1, 5, dtype=F64), torch.tensor(-3.0, dtype=F64)
    x = torch.tensor([-4, 0, 1, 2, 9])
    plain, floored = (decoders.integers(scale=2.0, floor=floor).log_prob({}, x, z, level) for floor in (0.0, 1e-10))
    torch.testing.assert_close(floored, (plain.exp() + 1e-10).log(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["softmax", "bins"])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_classes_obey_the_laws(form, shape):
    testing.check_decoder(decoders.one_hot(5, form=form, loc=0.3, scale=4.0), shape)


def test_the_softmax_is_the_posterior_of_equally_likely_classes():
    decoder, gamma_0 = decoders.one_hot(4, loc=0.2, scale=2.0), torch.tensor(-1.0, dtype=F64)
    z = random.normal(KEY, (7, 4), F64)
    f = decoder.encode({}, torch.arange(4), dtype=F64)
    want = (-0.5 * (z[:, None] - f).square().sum(-1) * torch.exp(-gamma_0)).log_softmax(-1)
    torch.testing.assert_close(decoder.log_probs({}, z, gamma_0), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "decoder", [decoders.one_hot(5, scale=4.0), decoders.one_hot(5, form="bins"), decoders.integers(0, scale=8.0)]
)
def test_float32_is_near_float64_and_gradients_are_finite(decoder):
    x, gamma_0 = torch.arange(5), torch.tensor([-13.3, -8.0, 0.0, 5.0, 12.0], dtype=F64)
    eps_0 = random.normal(KEY, decoder.latent_shape((5,)), F64)
    level = gamma_0.reshape(5, *(1 for _ in eps_0.shape[1:]))
    exact = decoder.reconstruction({}, x, eps_0, level)
    found = decoder.reconstruction({}, x, eps_0.float(), level.float())
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)
    grad = torch.func.grad(lambda e: decoder.reconstruction({}, x, e, level.float()).sum())(50.0 * eps_0.float())
    assert grad.isfinite().all()


def test_likeliest_and_drawn_values_stay_within_the_ends():
    decoder = decoders.integers(0, 4, scale=2.0)
    z = torch.linspace(-3, 6, 50)
    for found in (decoder.mode({}, z), decoder.sample({}, KEY, z, torch.tensor(2.0))):
        assert (found.min(), found.max()) == (0, 4)
    with pytest.raises(ValueError, match=r"^z: expected finite latents"):
        decoder.mode({}, torch.tensor([math.nan]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: decoders.integers(3, 3), r"^least, most: expected least < most, got 3 and 3"),
        (lambda: decoders.integers(0.5), r"^least: expected an integer"),
        (lambda: decoders.integers(scale=0.0), r"^scale: expected a number above 0"),
        (lambda: decoders.integers(floor=1.0), r"^floor: expected a number in \[0, 1\)"),
        (lambda: decoders.one_hot(1), r"^classes: expected an integer at least 2"),
        (lambda: decoders.one_hot(3, form="probit"), r"^form: expected one of 'softmax', 'bins'"),
        (lambda: decoders.one_hot(3, floor=0.1), r"^floor: expected 0 with form='softmax'"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
    assert not decoders.integers(0).check(torch.tensor([-1])).any()
    assert not decoders.one_hot(3).check(torch.tensor([-1, 3])).any()
