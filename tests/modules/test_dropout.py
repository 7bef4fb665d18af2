"""What modules draw: masks by key, of their rates, independent; attention as torch's."""

import pytest
import torch
import torch.nn.functional as F
from compare import close
from kinds import KEY, KINDS, made
from torch import nn

from purevdm import bound, networks, random


@pytest.mark.parametrize("name", [name for name in KINDS if "dropout" in name or name == "transformer"])
def test_dropout_is_by_key_and_a_part_of_a_batch_is_part_of_the_whole(name):
    model, params, x = made(KINDS[name])
    seeds = model.seeds(KEY, 5)

    def losses(rows=slice(0, 5)):
        part = seeds.rows(rows)
        return bound.bound(model, params, x[rows], model.draw(part, len(part.t))).diffusion

    whole = losses()
    assert torch.equal(whole, losses())
    assert not torch.equal(whole, model.nll_bound(params, x, seeds).diffusion)
    parts = [losses(rows) for rows in (slice(0, 1), slice(1, 5))]
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


Q, K = random.normal(random.key(3), (3, 4, 5, 2)), random.normal(random.key(4), (3, 2, 5, 2))
MASK = random.bernoulli(random.key(5), 0.5, (5, 5)) | torch.eye(5, dtype=torch.bool)
NOTHING = torch.ones(3, 1, 5, 5, dtype=torch.bool).tril()  # rows that attend to nothing: 0, as torch's own
NOTHING[0, 0, 1] = False
NOTHING[2] = False


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(is_causal=True),
        dict(attn_mask=MASK),
        dict(attn_mask=torch.where(MASK, 0.5, -1.0), scale=0.3),
        dict(attn_mask=NOTHING),
        dict(attn_mask=torch.where(NOTHING, 0.0, -torch.inf)),
        dict(enable_gqa=True),
    ],
)
def test_attention_with_dropout_is_attention_on_average(options):
    """The written-out attention and its gradients against torch's, at a rate that drops almost nothing."""
    keys = K if "enable_gqa" in options else K.repeat(1, 2, 1, 1)

    def call(module, z, gamma, cond):
        return F.scaled_dot_product_attention(z.reshape(Q.shape), keys, keys, dropout_p=1e-9, **options).reshape(z.shape)

    network = networks.from_module(nn.Identity(), call=call)

    def keyed(q):
        return network.apply({}, q.reshape(3, 40), torch.zeros(3), key=random.split(KEY, 3)).reshape(q.shape)

    def own(q):
        return F.scaled_dot_product_attention(q, keys, keys, **options)

    torch.testing.assert_close(keyed(Q), own(Q))
    grad, wanted = (torch.func.grad(lambda q, f=f: f(q).square().sum())(Q) for f in (keyed, own))
    assert wanted.isfinite().all()
    torch.testing.assert_close(grad, wanted)


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(2, 4), nn.Linear(4, 1)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1)

    def forward(self, z, gamma, mask):
        h = self.into(torch.stack([z, gamma[:, None].expand_as(z)], -1))
        return self.out(self.layers(h, src_key_padding_mask=mask))[..., 0]


def test_a_transformer_with_a_padding_mask_compiles_in_training():
    model, params, x = made(Padded)
    mask = torch.tensor([[False, True]] * 5)
    grad_fn = torch.func.grad_and_value(model.loss_fn)
    close(torch.compile(grad_fn, fullgraph=True, backend="eager")(params, x, KEY, mask), grad_fn(params, x, KEY, mask), 1e-5)
    with pytest.raises(ValueError, match=r"key_padding_mask: expected shape \(5, 2\), got \(5, 1\)"):
        model.loss_fn(params, x, KEY, mask[:, :1])
