"""Weightings of the training loss: their formulas, and the times that match them."""

import math

import pytest
import torch

import purevdm
from purevdm import decoders, importance, networks, parts, random, schedules

F64 = torch.float64
KEY = random.key(0)


WEIGHTINGS = {
    "sigmoid": (parts.sigmoid(1.0), lambda g: 1.0 / (1.0 + math.exp(-g - 1.0))),
    "edm": (parts.edm(), lambda g: math.exp(-0.5 * ((-g - 2.4) / 2.4) ** 2) * (math.exp(g) + 0.25)),
    "truncated_snr": (
        parts.truncated_snr(),  # of the loss of x: (x - x_hat)**2 = exp(gamma) (eps - eps_hat)**2
        lambda g: max(math.exp(-g), 1.0) * math.exp(g) / math.cosh(g / 2.0),
    ),
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weightings_are_those_of_the_papers(name):
    weighting, formula = WEIGHTINGS[name]
    gamma = torch.linspace(-30.0, 30.0, 61, dtype=F64)
    want = torch.tensor([formula(g) for g in gamma.tolist()], dtype=F64)
    torch.testing.assert_close(weighting.weight(gamma), want, rtol=1e-12, atol=0)
    torch.testing.assert_close(weighting.weight(gamma.float()).double(), want, rtol=2e-5, atol=1e-38)


def test_a_monotone_weighting_stays_at_its_maximum():
    gamma = torch.linspace(-30.0, 30.0, 6001, dtype=F64)
    base, held = (weighting.weight(gamma) for weighting in (parts.edm(), parts.monotone(parts.edm())))
    top = int(base.argmax())
    torch.testing.assert_close(held[:top], base[:top], rtol=1e-4, atol=0)
    torch.testing.assert_close(held[top:], base[top].expand(len(held) - top), rtol=1e-5, atol=0)
    assert parts.monotone(parts.sigmoid()) == parts.sigmoid()
    with pytest.raises(ValueError, match="base: expected a weighting that rises to one maximum"):
        parts.monotone(parts.Weighting.of(lambda gamma: 2.0 + torch.sin(gamma)))


def test_importance_follows_the_weighted_losses():
    """Of a loss whose weight is 0 at small noise, no times are learned there."""
    schedule = importance.warped(schedules.fixed_linear(-6.0, 6.0), bins=4, uniform=0.01)
    weighting = parts.Weighting.of(lambda gamma: (gamma > 0.0).to(gamma.dtype))
    model = purevdm.vdm(networks.mlp(8), schedule, (4,), decoder=decoders.gaussian(), dtype=F64, weighting=weighting)
    params, x = model.init(KEY), random.normal(KEY, (64, 4), F64)
    for i in range(100):
        params["schedule"] |= model.loss_and_stats(params, x, random.key(i))[1]["schedule"]
    density = importance.density(schedule, params["schedule"])
    assert density[:2].sum() < 0.6  # of 4; what the average has not seen, 0.95**100 of it, counts by its root
