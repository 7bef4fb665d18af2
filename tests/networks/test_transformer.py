"""The transformer of sets and sequences: its laws, its attention by hand, what a mask leaves out, bad input."""

import functools

import pytest
import torch
import torch.nn.functional as F
from compare import close
from hypothesis import given
from hypothesis import strategies as st
from perturb import perturbed
from versions import since_2_13

import purevdm
from purevdm import bfn, decoders, networks, nn, random, schedules, sizes, testing, training

KEY = random.key(0)
make = functools.partial(networks.transformer, 16, 2, heads=2)


@pytest.mark.parametrize(
    ("network", "cond", "stochastic"),
    [
        (make(), None, False),
        (make(fourier=(0, 1), predicts="v", self_condition=True), None, False),
        (make(positions=True, outputs=2), None, False),
        (
            make(cond_dim=1, classes=4, cond_drop=0.3, dropout=0.2),
            networks.Condition(torch.tensor([[0.0], [1.0], [-2.0]]), torch.tensor([0, 3, 1])),
            True,
        ),
        (networks.mixed(make(predicts="v")), None, False),
    ],
    ids=["plain", "fourier", "outputs", "conditions", "mixed"],
)
def test_its_laws(network, cond, stochastic):
    testing.check_network(network, (5, 3), cond=cond, stochastic=stochastic)
    tolerant = network.dtype is None
    if tolerant:
        testing.check_padding(network, (5, 3), cond=cond)
    if network.positions:
        with pytest.raises(testing.LawError, match="permuted elements must have permuted outputs"):
            testing.check_permutation(network, (5, 3), cond=cond)
    elif tolerant:
        testing.check_permutation(network, (5, 3), cond=cond)


def by_hand(params, z, gamma, mask, heads):
    """One layer for one example, written out."""
    angles = 1000.0 * (gamma + 13.3) / 18.3 * 10000.0 ** (-torch.arange(2) / 1.0)
    h = torch.cat([angles.sin(), angles.cos()])
    for name in ("dense0", "dense1"):
        h = F.silu(nn.dense(params[name], h))
    context, x, layer = h, nn.dense(params["into"], z), params["layers"]["0"]

    def normed(x, shift, scale):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift

    a, b, c, d, e, f = nn.dense(layer["modulation"], context).chunk(6)
    q, k, v = nn.dense(layer["qkv"], normed(x, a, b)).chunk(3, -1)
    outs, width = [], len(context) // heads
    for i in range(heads):
        part = slice(i * width, (i + 1) * width)
        logits = (q[:, part] @ k[:, part].T / width**0.5).masked_fill(~mask, -torch.inf)
        outs.append(logits.softmax(-1) @ v[:, part])
    x = x + c * nn.dense(layer["proj"], torch.cat(outs, -1))
    x = x + f * nn.dense(layer["down"], F.silu(nn.dense(layer["up"], normed(x, d, e))))
    return nn.dense(params["out"], normed(x, *nn.dense(params["modulation"], context).chunk(2)))


@given(st.integers(0, 2**31), st.floats(-13.3, 5.0), st.integers(1, 4))
def test_it_is_a_transformer_written_out(seed, gamma, n):
    network = networks.transformer(16, 1, heads=2)
    params = perturbed(network.init(random.key(seed), (4, 3)), 1, 0.1)
    z, mask = random.normal(random.key(seed + 1), (4, 3)), torch.arange(4) < n
    got = network.apply(params, z[None], torch.tensor([gamma]), mask=mask[None, :, None])[0]
    torch.testing.assert_close(got[mask], by_hand(params, z, gamma, mask, 2)[mask], rtol=2e-3, atol=2e-3)


def test_it_starts_from_nothing():
    """Of z alone, as a network of the noise; and every block from the identity."""
    network = make()
    z = random.normal(KEY, (2, 5, 3))
    assert not network.apply(network.init(KEY, (5, 3)), z, torch.zeros(2)).any()
    assert network.residual
    assert not make(predicts="v").residual


def test_it_compiles_and_its_sampler():
    network = networks.transformer(16, 1, heads=2, dropout=0.1)
    model = purevdm.vdm(network, schedules.learned_linear(-6.0, 4.0), (5, 2), decoder=decoders.gaussian())
    params, x = perturbed(model.init(KEY), 1, 0.1), random.normal(random.key(1), (4, 5, 2))
    mask = sizes.mask(torch.tensor([1, 5, 3, 2]), (5, 2))
    step = torch.func.grad_and_value(model.loss_fn)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    close(compiled(params, x, KEY, mask=mask), step(params, x, KEY, mask=mask), 1e-5)
    sample = torch.compile(model.sample, fullgraph=True, backend="aot_eager")
    close(sample(params, KEY, 4, steps=torch.tensor(3), mask=mask), model.sample(params, KEY, 4, steps=3, mask=mask), 1e-5)


def test_one_graph_serves_every_batch():
    network = networks.transformer(16, 1)
    params = perturbed(network.init(KEY, (5, 2)), 1, 0.1)
    compiled = torch.compile(lambda z, mask: network.apply(params, z, z[:, 0, 0], mask=mask), dynamic=True, backend="eager")
    for n, stance in ((3, "default"), (7, "fail_on_recompile")):
        z, mask = random.normal(random.key(n), (n, 5, 2)), sizes.mask(random.randint(random.key(1), (n,), 1, 6), (5, 2))
        with torch.compiler.set_stance(stance):
            close(compiled(z, mask), network.apply(params, z, z[:, 0, 0], mask=mask), 1e-5)


@since_2_13
def test_blocks_computed_again_give_the_same():
    pair = (networks.transformer(16, 1, heads=2, remat=remat) for remat in (False, True))
    options = dict(schedule=schedules.learned_linear(-6.0, 4.0), event_shape=(5, 2), decoder=decoders.gaussian())
    one, other = (purevdm.vdm(network, **options) for network in pair)
    params, x = perturbed(one.init(KEY), 1, 0.1), random.normal(random.key(1), (4, 5, 2))
    batch = (x, None, sizes.mask(torch.tensor([1, 5, 3, 2]), (5, 2)))
    again = training.gradients(other, remat=True, compile=True, backend="aot_eager")
    close(again(params, batch, KEY), training.gradients(one)(params, batch, KEY), 1e-5)


def test_sequences_of_classes():
    model = bfn.discrete(make(positions=True), event_shape=(7,), classes=4, beta_1=1.0, classes_last=True)
    x = random.randint(KEY, (3, 7), 0, 4)
    mask = torch.arange(7) < torch.tensor([[2], [7], [4]])
    assert torch.isfinite(model.loss_fn(model.init(KEY), x, KEY, mask=mask))


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: networks.transformer(8), ValueError, "width"),
        (lambda: networks.transformer(18), ValueError, "width, heads: expected width to be a multiple of 4"),
        (lambda: networks.transformer(16, heads=3), ValueError, "width, heads: expected width to be a multiple of heads"),
        (lambda: networks.transformer(16, 0), ValueError, "layers"),
        (lambda: networks.transformer(16, positions=1), TypeError, "positions"),
        (lambda: networks.transformer(16, cond_drop=0.1), ValueError, "cond_drop"),
        (lambda: make().init(KEY, (5,)), ValueError, "event_shape: expected elements and their numbers"),
        (lambda: make().apply(make().init(KEY, (5, 3)), torch.zeros(2, 5), torch.zeros(2)), ValueError, "z: expected"),
    ],
)
def test_bad_input_is_named(call, error, word):
    with pytest.raises(error, match=word):
        call()
