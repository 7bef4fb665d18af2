"""The U-Net of several resolutions: any rank and size, adapters, self-conditioning, randomness by key alone."""

import hypothesis.strategies as st
import optree
import perturb
import pytest
import torch
from backends import every_backend
from compare import close, decoded_alike
from hypothesis import given, settings
from torch._dynamo.utils import counters
from versions import since_2_13

import purevdm
from purevdm import bound, denoiser, networks, nn, random, schedules, testing, training
from purevdm.networks import Condition, _blocks

ZERO = torch.tensor(0.0)
AXIAL = ("c h w -> h w c", "c h w -> w h c")
TINY = dict(embed=8, multipliers=(1, 2), blocks=1, groups=4, heads=2)


def perturbed(network, shape, scale=0.1):
    return perturb.perturbed(network.init(random.key(0), shape), 1, scale)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 3), st.booleans())
def test_events_of_every_rank_and_size(space, levels, parted):
    shape = (2, *space)
    whole = {1: "c l -> l c", 2: "c h w -> (h w) c", 3: "c d h w -> (d h w) c"}
    adapter = {1: "c l -> l c", 2: AXIAL, 3: "c d h w -> h (d w) c"}[len(space)] if parted else whole[len(space)]
    network = networks.unet(
        4, (1,) * levels, 1, attention=(0,), adapter=adapter, heads=1, groups=2, dropout=0.3, fourier=(0,)
    )
    z = random.normal(random.key(2), shape)
    out = network.apply(perturbed(network, shape), z, ZERO, key=random.key(3))
    assert out.shape == shape
    assert out.isfinite().all()
    assert not network.apply(network.init(random.key(0), shape), z, ZERO).any()  # the last convolution starts at zero


def test_every_leaf_matters():
    """No parameter is dead: each has a gradient somewhere."""
    kinds = dict(classes=3, cond_dim=2, ctrl_dim=5, map_channels=1, cond_drop=0.5)
    network = networks.unet(**TINY, attention=(0, 1), **kinds, self_condition=True)
    params = perturbed(network, (1, 5, 6), 0.3)
    z, x_hat, ctrl = (random.normal(random.key(i), s) for i, s in enumerate(((1, 5, 6), (1, 5, 6), (3, 5))))

    def loss(params):
        cond = Condition(torch.tensor([1.0, 2.0]), torch.tensor(1), ctrl, x_hat)
        outs = [network.apply(params, z, ZERO, cond=c, x_hat=x_hat) for c in (cond, None)]
        return sum(((out - 1) ** 3).sum() for out in outs)

    grads = torch.func.grad(loss)(params)
    paths, leaves, _ = optree.tree_flatten_with_path(grads)
    # a bias of the keys shifts all logits of a query alike
    dead = [path for path, leaf in zip(paths, leaves, strict=True) if leaf.abs().max() == 0 and path[-2:] != ("k", "bias")]
    assert not dead


@pytest.mark.parametrize(
    ("space", "moves", "padding"),
    [
        ((12,), (4,), "circular"),
        ((8, 5), (4, 0), ("circular", "zeros")),  # a cylinder, of an odd height
        ((5, 8), (0, 4), ("zeros", "circular")),
        ((4, 8, 3), (0, 4, 0), "circular"),  # an odd circular axis does not move, but wraps
    ],
)
def test_along_circular_axes_events_and_maps_move_with_their_outputs(space, moves, padding):
    """Exactly, but for the order of sums: by whole strides, and by no others."""
    adapter = {1: "c l -> l c", 2: "c h w -> (h w) c", 3: "c d h w -> (d h w) c"}[len(space)]
    options = dict(adapter=adapter, heads=2, groups=4, attention=(1,), map_channels=1, fourier=(0,))
    network = networks.unet(8, (1, 2, 2), 1, padding=padding, **options)
    params = optree.tree_map(lambda leaf: leaf.double(), perturbed(network, (2, *space)))
    z, field = (random.normal(random.key(i), (n, *space), torch.float64) for i, n in enumerate((2, 1)))
    axes = tuple(range(1, 1 + len(space)))

    def off(moves):
        moved = network.apply(params, z.roll(moves, axes), ZERO, cond=field.roll(moves, axes))
        return (moved - whole.roll(moves, axes)).abs().max() / whole.abs().max()

    whole = network.apply(params, z, ZERO, cond=field)
    assert off(moves) < 1e-12
    assert off([n // 2 for n in moves]) > 1e-3
    for other in (tuple(2 * bool(n) for n in moves), tuple(4 * (kind == "zeros") for kind in network.padding)):
        assert not any(other) or off(other) > 1e-3


@pytest.mark.parametrize("space", [(1, 1), (5, 3), (2, 7)])
def test_circular_axes_of_any_size(space):
    """What lies at one end reaches the other in one convolution."""
    network = networks.vdm_unet(8, 1, fourier=(), groups=4, padding="circular")
    params, z = perturbed(network, (1, *space)), random.normal(random.key(3), (1, *space))
    assert network.apply(params, z, ZERO).shape == z.shape
    x = torch.zeros(1, *space).index_fill(2, torch.tensor(space[1] - 1), 1.0)
    assert nn.conv(params["conv_in"] | {"bias": torch.zeros(8)}, x, padding=network.padding)[:, :, 0].abs().max() > 0


def test_without_a_padding_it_is_zeros():
    z = random.normal(random.key(5), (1, 5, 4))
    outs = [
        network.apply(perturbed(network, z.shape), z, ZERO)
        for network in (
            networks.unet(**TINY, **options) for options in ({}, {"padding": "zeros"}, {"padding": ("zeros",) * 2})
        )
    ]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])
    assert networks.unet(**TINY) == networks.unet(**TINY, padding=("zeros", "zeros"))


def test_axial_attention_keeps_rows_apart():
    network = networks.unet(8, (1,), 1, adapter=AXIAL[0], heads=2, groups=1)
    params = perturbed(network, (1, 4, 5), 0.3)["mid"]["block1"]["attn"]["0"]
    x = random.normal(random.key(1), (8, 4, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn, "group_norm", lambda params, x, groups, rank: x)  # which sees the whole map
        seen = torch.func.grad(lambda x: _blocks.attend(params, x, AXIAL[0], 1, 2)[:, 2].sum())(x).abs().amax((0, 2)) > 0
    assert seen.tolist() == [False, False, True, False]


def test_attention_stands_where_it_is_asked_for():
    network = networks.unet(8, (1, 2, 2), 1, attention=(1,), adapter=AXIAL, heads=2, groups=4, ctrl_dim=3)
    params = network.init(random.key(0), (1, 8, 8))
    for i in range(3):
        for half in ("down", "up"):
            block = params[half][str(i)]["0"]
            assert ("attn" in block) == (i == 1)
            assert ("cross" in block) == (i == 1)
    assert set(params["mid"]["block1"]["attn"]) == {"0", "1"}
    assert set(params["mid"]["block2"]) == {"resnet"}


def test_dropout_and_the_estimate():
    network = networks.unet(**TINY, dropout=0.5, self_condition=True)
    params, z = perturbed(network, (1, 4, 4)), random.normal(random.key(5), (1, 4, 4))
    quiet = network.apply(params, z, ZERO)
    assert torch.equal(quiet, network.apply(params, z, ZERO, x_hat=torch.zeros_like(z)))
    assert not torch.equal(quiet, network.apply(params, z, ZERO, x_hat=torch.ones_like(z)))
    a, b, again = (network.apply(params, z, ZERO, key=random.key(i)) for i in (0, 1, 0))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)
    assert not torch.equal(a, quiet)


def test_the_laws_hold():
    network = networks.unet(**TINY, attention=(1,), adapter=AXIAL, dropout=0.2, classes=2, cond_drop=0.5)
    testing.check_network(network, (2, 5, 4), cond=torch.tensor([0, 1, 0]), stochastic=True)


@since_2_13
@every_backend
def test_the_compiled_step_is_the_eager_one(backend):
    """Of two resolutions, with classes that are dropped, circular along one axis: one graph for every batch."""
    options = dict(groups=2, heads=2, dropout=0.1, classes=3, cond_drop=0.3, padding=("zeros", "circular"))
    network = networks.unet(4, (1, 2), 1, **options)
    model = purevdm.vdm(network, schedules.learned_linear(), (1, 3, 5), 16)
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.1)
    eager = torch.func.grad_and_value(lambda params, *given: bound.bound(model, params, *given).total.mean() / 15)
    counters.clear()
    step = torch.compile(eager, fullgraph=True, backend=backend)
    for n in (3, 2, 5):
        x, noise = random.randint(random.key(n), (n, 1, 3, 5), 0, 16), model.draw(random.key(2), n)
        label = torch.arange(n) % 3
        for batch in (x, *noise, label):
            torch._dynamo.mark_dynamic(batch, 0)
        got, want = (f(params, x, noise, Condition(label=label)) for f in (step, eager))
        close(got, want, 1e-4)
        assert optree.tree_map(lambda grad: grad.stride(), got[0]) == optree.tree_map(lambda leaf: leaf.stride(), params)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_the_compiled_sampler_is_the_eager_one():
    """Guided: the network twice in the loop."""
    network = networks.unet(4, (1,), 1, groups=2, heads=2, classes=3, cond_drop=0.3)
    model, label = purevdm.vdm(network, schedules.fixed_linear(), (1, 3, 4), 16), torch.tensor([0, 2])
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.1)
    options = dict(steps=torch.tensor(4), cond=label, guidance=2.0)
    sample = torch.compile(model.sample, fullgraph=True)
    decoded_alike(sample(params, random.key(3), 2, **options), model.sample(params, random.key(3), 2, **options))


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: networks.unet(30), ValueError, "embed, groups: expected embed to be a multiple"),
        (lambda: networks.unet(8, (1,), heads=3), ValueError, "heads: expected a divisor of the 8 channels at resolution 0"),
        (lambda: networks.unet(8, (3, 4), heads=16, attention=(0,)), ValueError, "heads: .*24 channels at resolution 0"),
        (lambda: networks.unet(multipliers=()), ValueError, "multipliers"),
        (lambda: networks.unet(multipliers=(1.5,)), TypeError, r"multipliers\[0\]"),
        (lambda: networks.unet(attention=(3,)), ValueError, "attention"),
        (lambda: networks.unet(blocks=0), ValueError, "blocks"),
        (lambda: networks.unet(adapter=("c h w -> h w c", "c l -> l c")), ValueError, "adapter"),
        (lambda: networks.unet(adapter=()), ValueError, "adapter"),
        (lambda: networks.unet(8, time_scale=0.0), ValueError, "time_scale: expected a"),
        (lambda: networks.unet(padding="reflect"), ValueError, "padding: expected 'zeros' or 'circular'.*got 'reflect'"),
        (
            lambda: networks.unet(padding=("circular",)),
            ValueError,
            r"padding: .* each of 2 axes of space, got \('circular',\)",
        ),
        (lambda: networks.unet(padding=("zeros", True)), TypeError, "padding: expected"),
        (lambda: networks.unet(padding=None), TypeError, "padding: expected .*got None"),
        (lambda: networks.unet().init(random.key(0), (3, 8)), ValueError, "event_shape"),
        (lambda: networks.unet().apply({}, torch.zeros(3, 8), ZERO), ValueError, "z: expected"),
        (lambda: networks.unet().apply({}, torch.zeros(3, 8, 8), torch.zeros(1)), ValueError, "gamma"),
    ],
)
def test_bad_input_is_named(call, error, word):
    with pytest.raises(error, match=word):
        call()


def test_an_estimate_is_refused_where_none_is_taken():
    network = networks.unet(**TINY)
    params, z = perturbed(network, (1, 4, 4)), torch.zeros(1, 4, 4)
    with pytest.raises(ValueError, match="x_hat: this network takes none"):
        network.apply(params, z, ZERO, x_hat=z)
    network = networks.unet(**TINY, self_condition=True)
    with pytest.raises(ValueError, match="x_hat: expected shape"):
        network.apply(perturbed(network, (1, 4, 4)), z, ZERO, x_hat=z[0])


def test_in_eager_mode_blocks_are_computed_again_and_keep_only_their_inputs():
    """The same gradients, with fewer numbers kept for the backward pass; also where a batch is cut."""
    options = dict(groups=4, heads=2, dropout=0.1, map_channels=1, cond_drop=0.3, padding="circular")
    x, field = random.randint(random.key(1), (4, 1, 6, 5), 0, 16), random.normal(random.key(3), (4, 1, 6, 5))
    sizes, grads = ([], []), []
    for remat, kept in enumerate(sizes):
        network = networks.unet(8, (1, 2), 2, remat=bool(remat), **options)
        model = purevdm.vdm(network, schedules.learned_linear(), (1, 6, 5), 16)
        params = perturb.perturbed(model.init(random.key(0)), 1, 0.1)
        leaves = optree.tree_map(lambda leaf: leaf.detach().requires_grad_(), params["network"])
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            denoiser.output(network, leaves, field, torch.zeros(4), field)
        for accumulate in (1, 2):
            gradients = training.gradients(model, remat=bool(remat), accumulate=accumulate)
            grads.append(gradients(params, x, random.key(2), field))
    for other in grads[1:]:
        close(other, grads[0], 1e-4)
    assert sum(sizes[1]) < sum(sizes[0]) / 3


@since_2_13
@pytest.mark.slow
def test_blocks_computed_again_give_the_same_gradients():
    """Both U-Nets in one graph: the loss compiled, checkpoints inside it, the gradient taken from outside."""
    options = dict(groups=2, dropout=0.1, remat=True)
    pair = [networks.unet(4, (1, 2), 1, heads=1, **options), networks.vdm_unet(4, 1, fourier=(), **options)]

    def apply(params, z, gamma, cond=None, key=None):
        return sum(n.apply(p, z, gamma, key=key) for n, p in zip(pair, params.values(), strict=True)) / 2

    def init(key, shape):
        return {str(i): n.init(k, shape) for i, (n, k) in enumerate(zip(pair, random.split(key), strict=True))}

    model = purevdm.vdm(networks.Network.of(init, apply), schedules.learned_linear(), (1, 3, 4), 16)
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.1)
    x = random.randint(random.key(1), (3, 1, 3, 4), 0, 16)
    got = training.gradients(model, compile=True, remat=True)(params, x, random.key(2))
    want = training.gradients(model)(params, x, random.key(2))
    close(got, want, 1e-4)
    assert not any(leaf.requires_grad for leaf in optree.tree_leaves(got))
    close(training.gradients(model, remat=True)(params, x, random.key(2)), want, 1e-4)
    with pytest.raises(ValueError, match="remat: expected variance=False"):
        training.gradients(model, remat=True, variance=True)


def test_the_time_scale_is_what_gamma_is_multiplied_by():
    """A network at 1000 sees in gamma = 0.02 what one at 20 sees in gamma = 1."""
    ends = dict(gamma_min=0.0, gamma_max=1.0)
    fast, slow = (networks.unet(8, (1,), 1, groups=4, time_scale=scale, **ends) for scale in (1000.0, 20.0))
    params = perturbed(fast, (1, 4, 4))
    z = random.normal(random.key(2), (1, 4, 4))
    found = slow.apply(params, z, torch.tensor(1.0))
    torch.testing.assert_close(found, fast.apply(params, z, torch.tensor(0.02)))
    assert (found - fast.apply(params, z, torch.tensor(1.0))).norm() > 1e-3 * found.norm()
