"""The law of turned examples: kept by what is equivariant, and broken by each part that is not."""

import pytest
import torch

import purevdm
from purevdm import decoders, networks, parts, random, schedules, testing
from purevdm.networks import Wrapped
from purevdm.testing.networks import _moved

KEY = random.key(0)


def model_of(network, decoder=None, **options):
    decoder = decoders.gaussian(scale=2.0) if decoder is None else decoder
    options = dict(subspace=parts.zero_centre()) | options
    model = purevdm.vdm(network, schedules.fixed_linear(-6.0, 5.0), (4, 3), decoder=decoder, **options)
    params = model.init(KEY)
    x = random.normal(random.key(2), (5, 4, 3))
    return model, params | {"network": _moved(params["network"], random.key(1))}, x - x.mean(1, keepdim=True)


class Handed(Wrapped):
    """Adds a vector that changes its sign in a mirror to what another returns."""

    def apply(self, params, z, gamma, *args, **kwargs):
        return self.own.apply(params, z, gamma, *args, **kwargs) + torch.linalg.cross(z, z.roll(1, 0))


def test_an_equivariant_network_keeps_it_with_a_mask_too():
    model, params, x = model_of(networks.egnn(16, 2))
    testing.check_rotation(model, params, x)
    mask = (torch.arange(4) < torch.tensor([2, 3, 4, 4, 2])[:, None])[..., None]
    testing.check_rotation(model, params, model.subspace.project(x, mask), mask=mask)


def test_a_reflection_is_told_from_a_rotation():
    model, params, x = model_of(Handed(networks.egnn(16, 1)))
    testing.check_rotation(model, params, x, reflections=False)
    with pytest.raises(testing.LawError, match="the network's estimate must be reflected with the latent"):
        testing.check_rotation(model, params, x)


@pytest.mark.parametrize("network", [networks.mlp(16, fourier=()), networks.transformer(16, 1)])
def test_a_network_that_is_not_equivariant_breaks_it(network):
    with pytest.raises(testing.LawError, match="the network's estimate must be turned with the latent"):
        testing.check_rotation(*model_of(network))


def test_a_decoder_that_prefers_a_direction_breaks_it():
    decoder = decoders.gaussian(scale=[1.0, 2.0, 3.0])
    with pytest.raises(testing.LawError, match="prior must be the same of a turned example with its noise"):
        testing.check_rotation(*model_of(networks.egnn(16, 1), decoder, subspace=None))


def test_too_few_columns_are_refused():
    with pytest.raises(ValueError, match=r"^model: expected a last axis of at least 4 coordinates"):
        testing.check_rotation(*model_of(networks.egnn(16, 1)), coordinates=4)
