"""The paper's U-Net: official scores, any size, randomness by key alone."""

import pytest
import torch
from goldens import CASES, case, nchw

from purevdm import networks, random, testing


@pytest.mark.parametrize("name", CASES)
def test_scores_are_the_official_ones(name):
    c = case(name)
    z = nchw(c.arrays["score/z"])
    got, want = c.model.eps_hat(c.params, z, torch.tensor(c.arrays["score/g"]), c.cond), nchw(c.arrays["score/eps_hat"])
    assert (got - want).norm() <= 2e-5 * want.norm()


def test_it_is_one_resolution_with_attention_in_the_middle():
    network = networks.vdm_unet(8, 2, groups=4)
    params = network.init(random.key(0), (1, 5, 7))
    assert list(params["down"]) == ["0"]
    assert "attn" in params["mid"]["block1"]
    assert "attn" not in params["down"]["0"]["0"]
    assert "attn" in networks.vdm_unet(8, 2, groups=4, attention=True).init(random.key(0), (1, 5, 7))["down"]["0"]["0"]
    assert network.residual  # z is added to what is zero at the start
    assert not network.apply(params, random.normal(random.key(2), (1, 5, 7)), torch.tensor(1.0)).any()


def test_the_laws_hold():
    testing.check_network(networks.vdm_unet(8, 1, groups=4, attention=True, dropout=0.2), (2, 5, 4), stochastic=True)
    testing.check_network(networks.vdm_unet(8, 1, groups=4, dropout=0.0), (1, 4, 4), stochastic=False)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        (dict(embed=33), ValueError, "embed"),
        (dict(layers=0), ValueError, "layers"),
        (dict(dropout=1.0), ValueError, "dropout"),
        (dict(fourier=(0.5,)), TypeError, "fourier"),
        (dict(gamma_min=5.0), TypeError, "gamma_max"),
    ],
)
def test_bad_input_is_named(options, error, word):
    with pytest.raises(error, match=word):
        networks.vdm_unet(**options)
