"""What modules draw: masks by key, of their rates, independent; attention as torch's."""

import pytest
import torch
import torch.nn.functional as F
from modules import KEY, KINDS, made
from torch import nn

from purevdm import networks, random

DRAWS = [name for name in KINDS if "dropout" in name or name in ("transformer", "checkpoint", "reentrant checkpoint")]


@pytest.mark.parametrize("name", DRAWS)
def test_dropout_is_by_key_and_a_part_of_a_batch_is_part_of_the_whole(name):
    model, params, x = made(KINDS[name])
    seeds = model.seeds(KEY, 5)
    whole = model.elbo(params, x, seeds, train=True).diffusion
    assert torch.equal(whole, model.elbo(params, x, seeds, train=True).diffusion)
    assert not torch.equal(whole, model.elbo(params, x, seeds, train=False).diffusion)
    parts = [model.elbo(params, x[rows], seeds.rows(rows), train=True).diffusion for rows in (slice(0, 1), slice(1, 5))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)


class Ones(nn.Module):
    """What dropout leaves of ones: twice, as two numbers a mask."""

    def __init__(self, layer, shape):
        super().__init__()
        self.layer, self.shape = layer, shape

    def forward(self, z, gamma, cond=None):
        return torch.stack([self.layer(torch.ones(z.shape[0], *self.shape)).flatten(1) for _ in range(2)], -1)


@pytest.mark.parametrize(
    ("layer", "shape", "channels"),
    [
        (nn.Dropout(0.25), (600,), 600),
        (nn.Dropout(0.25, inplace=True), (600,), 600),
        (nn.Dropout1d(0.25), (600, 2), 600),
        (nn.Dropout2d(0.25), (600, 2, 1), 600),
        (nn.Dropout3d(0.25), (600, 1, 1, 2), 600),
    ],
)
def test_masks_are_independent_and_of_their_rate(layer, shape, channels):
    network = networks.from_module(Ones(layer, shape), outputs=2)
    n = 4
    out = network.apply({}, torch.zeros(n, 1), torch.zeros(n), key=random.split(KEY, n))
    kept = out.reshape(n, channels, -1, 2)
    assert (kept[:, :, :1] == kept).all()  # whole channels
    kept = (kept[:, :, 0] > 0).double()
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 1 / 0.75]))
    rows = kept.movedim(-1, 0).flatten(0, 1)  # each use of each example
    deviation = (0.25 * 0.75 / channels) ** 0.5
    assert (rows.mean(1) - 0.75).abs().max() < 5 * deviation
    off = torch.corrcoef(rows) - torch.eye(2 * n)
    assert off.abs().max() < 5 / channels**0.5


def test_alpha_dropout_keeps_mean_and_variance():
    z, keys = random.normal(random.key(3), (4, 5000)), random.split(KEY, 4)
    for layer in (nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3)):
        network = networks.from_module(nn.Sequential(layer), call=lambda module, z, gamma, cond: module(z[..., None]))
        out = network.apply({}, z, torch.zeros(4), key=keys)
        assert abs(out.mean()) < 5 / 20000**0.5
        assert abs(out.std() - 1) < 5 / 10000**0.5


def test_attention_with_dropout_is_attention_on_average():
    """The written-out attention, with every mask and grouping, against torch's, at a rate that drops almost nothing."""
    q, k = random.normal(random.key(3), (3, 4, 5, 2)), random.normal(random.key(4), (3, 2, 5, 2))
    mask = random.bernoulli(random.key(5), 0.5, (5, 5)) | torch.eye(5, dtype=torch.bool)
    for options in (
        {},
        dict(is_causal=True),
        dict(attn_mask=mask),
        dict(attn_mask=torch.where(mask, 0.5, -1.0), scale=0.3),
        dict(enable_gqa=True),
    ):
        keys = k if "enable_gqa" in options else k.repeat(1, 2, 1, 1)

        def call(module, z, gamma, cond, options=options, keys=keys):
            return F.scaled_dot_product_attention(q, keys, keys, dropout_p=1e-9, **options).reshape(z.shape)

        network = networks.from_module(nn.Identity(), call=call)
        out = network.apply({}, torch.zeros(3, 40), torch.zeros(3), key=random.split(KEY, 3))
        wanted = F.scaled_dot_product_attention(q, keys, keys, **options)
        torch.testing.assert_close(out.reshape(wanted.shape), wanted)
