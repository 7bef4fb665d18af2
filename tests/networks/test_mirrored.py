"""Networks that are as good at mirror images: equivariance, whatever else is given, and both ways to a batch."""

import pytest
import torch
from perturb import perturbed

import purevdm
from purevdm import _apply, networks, random, schedules, testing

SHAPE, BINS = (1, 4, 6), 5
KEYS = random.split(random.key(0), 4)
UNET = networks.unet(4, (1,), 1, groups=2, heads=1)
Z, GAMMA = random.normal(KEYS[1], (3, *SHAPE)), torch.tensor([-7.0, 0.0, 3.0])


def drawn(network):
    return perturbed(network.init(KEYS[0], SHAPE), 1, 0.2)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("outputs", [None, 2])
def test_what_it_makes_of_a_mirror_image_is_the_mirror_image(axis, outputs):
    own = networks.unet(4, (1,), 1, groups=2, heads=1, outputs=outputs)
    network, params = networks.mirrored(own, axis), drawn(own)
    of_output = axis if outputs is None else axis - 1
    levels = GAMMA[:, None, None, None] + torch.linspace(-1.0, 1.0, 24).reshape(4, 6)  # for each dimension, too
    for gamma, flipped in ((GAMMA, GAMMA), (levels, levels.flip(axis))):
        whole = _apply.for_batch(network, params, Z, gamma)
        out, of_mirror = whole(params, Z, gamma), whole(params, Z.flip(axis), flipped)
        torch.testing.assert_close(of_mirror, out.flip(of_output), rtol=1e-5, atol=1e-5)
    alone = own.apply_to_batch(params, Z, GAMMA)
    assert not torch.allclose(own.apply_to_batch(params, Z.flip(axis), GAMMA), alone.flip(of_output), atol=0.01)


def test_batches_whole_and_by_example_are_one():
    network = networks.mirrored(networks.binned(networks.unet(4, (1,), 1, groups=2, heads=1, outputs=2), BINS))
    params = drawn(network)
    whole = _apply.for_batch(network, params, Z, GAMMA)(params, Z, GAMMA)
    by_example = torch.func.vmap(lambda z, gamma: network.apply(params, z, gamma))(Z, GAMMA)
    torch.testing.assert_close(whole, by_example, rtol=1e-5, atol=1e-5)


def test_an_estimate_that_is_given_is_mirrored():
    own = networks.unet(4, (1,), 1, groups=2, heads=1, self_condition=True)
    network, params, x_hat = networks.mirrored(own), drawn(own), random.normal(KEYS[2], SHAPE)
    out = network.apply(params, Z[0], GAMMA[0], x_hat=x_hat)
    of_mirror = network.apply(params, Z[0].flip(-1), GAMMA[0], x_hat=x_hat.flip(-1))
    torch.testing.assert_close(of_mirror, out.flip(-1), rtol=1e-5, atol=1e-5)


def test_a_model_keeps_the_laws():
    model = purevdm.vdm(networks.mirrored(UNET), schedules.fixed_linear(-8.0, 4.0), SHAPE, vocab_size=BINS)
    testing.check_model(model, model.init(KEYS[1]), random.randint(KEYS[0], (6, *SHAPE), 0, BINS))


@pytest.mark.parametrize(
    ("network", "axis", "error"),
    [
        (networks.unet(4, (1,), 1, groups=2, map_channels=1), -1, "network: expected one that takes no map"),
        (UNET, 1, "axis: expected an integer at most -1"),
        (None, -1, "network: expected a purevdm Network"),
    ],
)
def test_what_does_not_fit_is_refused(network, axis, error):
    with pytest.raises((TypeError, ValueError), match=error):
        networks.mirrored(network, axis)
