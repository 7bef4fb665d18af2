"""The paper's U-Net: official scores, any size, randomness by key alone."""

import perturb
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


def perturbed(network, shape):
    return perturb.perturbed(network.init(random.key(0), shape), 1, 0.1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 7), (4, 6, 3), (3, 8, 8)])
@pytest.mark.parametrize("options", [{}, dict(attention=True, fourier=()), dict(cond_dim=3, fourier=range(-1, 2))])
def test_any_size_of_image(shape, options):
    network = networks.vdm_unet(8, 2, groups=4, **options)
    cond = torch.ones(3) if "cond_dim" in options else None
    z = random.normal(random.key(2), shape)
    out = network.apply(perturbed(network, shape), z, torch.tensor(-3.0), cond)
    assert out.shape == shape
    assert out.isfinite().all()
    # at the start the last convolution is zero, and eps_hat, to which z is added, is z
    assert network.residual
    assert not network.apply(network.init(random.key(0), shape), z, torch.tensor(1.0), cond).any()


def test_dropout_comes_from_the_key_alone():
    network, still = (networks.vdm_unet(8, 1, groups=4, dropout=rate) for rate in (0.5, 0.0))
    params, z, g = perturbed(network, (1, 4, 4)), random.normal(random.key(5), (1, 4, 4)), torch.tensor(0.0)
    quiet = network.apply(params, z, g)
    assert torch.equal(quiet, network.apply(params, z, g))
    assert torch.equal(quiet, still.apply(params, z, g, key=random.key(0)))
    a, b, again = (network.apply(params, z, g, key=random.key(i)) for i in (0, 1, 0))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)
    assert not torch.equal(a, quiet)


def test_the_condition_and_gamma_matter():
    network = networks.vdm_unet(8, 1, groups=4, cond_dim=1)
    params, z = perturbed(network, (1, 4, 4)), random.normal(random.key(5), (1, 4, 4))
    one = network.apply(params, z, torch.tensor(0.0), torch.tensor(1.0))
    assert torch.equal(one, network.apply(params, z, torch.tensor(0.0), torch.tensor([1])))
    assert not torch.equal(one, network.apply(params, z, torch.tensor(0.0), torch.tensor(0.0)))
    assert not torch.equal(one, network.apply(params, z, torch.tensor(2.0), torch.tensor(1.0)))


def test_the_laws_hold():
    testing.check_network(networks.vdm_unet(8, 1, groups=4, attention=True, dropout=0.2), (2, 5, 4), stochastic=True)
    testing.check_network(networks.vdm_unet(8, 1, groups=4, dropout=0.0), (1, 4, 4), stochastic=False)


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: networks.vdm_unet(33), ValueError, "embed"),
        (lambda: networks.vdm_unet(layers=0), ValueError, "layers"),
        (lambda: networks.vdm_unet(dropout=1.0), ValueError, "dropout"),
        (lambda: networks.vdm_unet(fourier=(0.5,)), TypeError, "fourier"),
        (lambda: networks.vdm_unet(gamma_min=5.0), TypeError, "gamma_max"),
        (lambda: networks.vdm_unet(cond_dim=-1), ValueError, "cond_dim"),
        (lambda: networks.vdm_unet().init(random.key(0), (8, 8)), ValueError, "event_shape"),
        (lambda: networks.vdm_unet().apply({}, torch.zeros(3, 8, 8), torch.zeros(1)), ValueError, "gamma"),
        (lambda: networks.vdm_unet().apply({}, torch.zeros(8, 8), torch.zeros(())), ValueError, "z: "),
        (lambda: networks.vdm_unet().apply({}, torch.zeros(3, 8, 8), torch.zeros(()), torch.zeros(1)), ValueError, "cond"),
        (lambda: networks.vdm_unet(cond_dim=2).apply({}, torch.zeros(3, 8, 8), torch.zeros(())), ValueError, "cond"),
    ],
)
def test_bad_input_is_named(call, error, word):
    with pytest.raises(error, match=word):
        call()
