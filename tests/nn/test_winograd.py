"""Transformed convolutions against direct ones: exact in float64, a small factor of the rounding in float32."""

import hypothesis.strategies as st
import optree
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch.func import grad, jvp, vmap

import purevdm
from purevdm import nn, random
from purevdm.nn import _winograd

seeds = st.integers(0, 2**31)
places = st.lists(st.integers(1, 9), min_size=1, max_size=3)


def draw(seed, *shape):
    return random.normal(random.key(seed), shape, torch.float64)


def layer(seed, rank=2, n_in=3, n_out=2):
    """A convolution's parameters, float64."""
    return {"kernel": draw(seed, n_out, n_in, *(3,) * rank), "bias": draw(seed + 1, n_out)}


def test_the_three_matrices_make_a_filter():
    data, kernel, output = (
        torch.tensor(m, dtype=torch.float64) for m in (_winograd.DATA, _winograd.KERNEL, _winograd.OUTPUT)
    )
    bilinear = torch.einsum("op,pd,pk->odk", output, data, kernel)
    o, d, k = torch.meshgrid(*(torch.arange(n) for n in bilinear.shape), indexing="ij")
    torch.testing.assert_close(bilinear, (d == o + k).double(), atol=1e-14, rtol=0)


@given(seeds, places, st.sampled_from([1, 2]), st.booleans())
def test_a_transformed_convolution_is_the_direct_one(seed, space, stride, bias):
    params = layer(seed, len(space))
    params = params if bias else {"kernel": params["kernel"]}
    x = draw(seed + 2, 3, *space)
    want = nn.conv(params, x, stride)
    torch.testing.assert_close(nn.conv(nn.winograd(params, 1), x, stride), want, atol=1e-12, rtol=1e-12)


def test_float32_rounds_little_more_than_the_direct_sum():
    x, kernel = draw(0, 64, 32, 32), draw(1, 64, 64, 3, 3) / 24
    want = F.conv2d(x, kernel, padding=1)

    def error(conv):
        return (conv.double() - want).square().mean().sqrt() / want.square().mean().sqrt()

    # 8e-7 against 2e-7 to 4e-7, by the order of the direct sum; with the points 0, +-1 and +-2 it would be 1.7e-6
    assert error(F.conv2d(x.float(), kernel.float(), padding=1)) < 6e-7
    assert error(nn.conv(nn.winograd({"kernel": kernel.float()}), x.float())) < 1.2e-6


@given(seeds, st.integers(1, 3))
def test_batches_and_derivatives(seed, batch):
    params = layer(seed)
    transformed = nn.winograd(params, 1)
    x, v = draw(seed + 2, batch, 3, 5, 4), draw(seed + 3, batch, 3, 5, 4)

    def pair(f):
        """What f makes of the direct layer and of the transformed."""
        return f(lambda x: nn.conv(transformed, x)), f(lambda x: nn.conv(params, x))

    for f in (
        lambda conv: vmap(conv)(x),
        lambda conv: vmap(conv, in_dims=1)(x.movedim(0, 1)),
        lambda conv: vmap(vmap(conv))(x[None]),
        lambda conv: grad(lambda x: vmap(conv)(x).square().sum())(x),
        lambda conv: jvp(vmap(conv), (x,), (v,)),
    ):
        torch.testing.assert_close(*pair(f), atol=1e-10, rtol=1e-10)


@given(seeds, st.booleans())
def test_an_ensemble_of_kernels(seed, batched_x):
    layers = [layer(seed + i) for i in range(3)]
    stacked = optree.tree_map(lambda *leaves: torch.stack(leaves), *(nn.winograd(params, 1) for params in layers))
    x = draw(seed, 3, 3, 5, 6)
    want = torch.stack([nn.conv(params, x[i if batched_x else 0]) for i, params in enumerate(layers)])
    got = vmap(nn.conv, in_dims=(0, 0 if batched_x else None))(stacked, x if batched_x else x[0])
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (purevdm.networks.vdm_unet(32, 1, dropout=0.0), (3, 6, 5)),
        (purevdm.networks.unet(32, (1, 2), 1), (3, 6, 5)),
        (purevdm.networks.unet(32, (1, 2), 1, adapter="c l -> l c", fourier=(3, 4)), (16, 11)),
    ],
)
def test_a_model_samples_and_is_bounded_as_before(network, shape):
    model = purevdm.vdm(network, purevdm.schedules.learned_linear(), shape, dtype=torch.float64)
    key = random.key(0)
    params = optree.tree_map(lambda p: p + 0.05 * random.normal(key, tuple(p.shape), p.dtype), model.init(key))
    transformed = nn.winograd(params)
    assert any("winograd" in accessor.path for accessor in optree.tree_accessors(transformed))
    x = model.sample(params, key, 2, steps=3)
    assert torch.equal(model.sample(transformed, key, 2, steps=3), x)
    torch.testing.assert_close(model.elbo(transformed, x, key), model.elbo(params, x, key), atol=1e-9, rtol=1e-9)


def test_what_is_not_transformed_stays_as_it_is():
    params = {
        "wide": nn.conv_init(random.key(0), 32, 40),
        "narrow": nn.conv_init(random.key(1), 3, 40),
        "large": nn.conv_init(random.key(2), 32, 32, (5, 5)),
        "dense": nn.dense_init(random.key(3), 33, 33),
    }
    transformed = nn.winograd(params)
    assert list(params["wide"]) == ["kernel", "bias"]  # and the argument
    assert {name: transformed[name] is not None and set(transformed[name]) for name in params} == {
        "wide": {"winograd", "bias"},
        "narrow": {"kernel", "bias"},
        "large": {"kernel", "bias"},
        "dense": {"kernel", "bias"},
    }
    for name in ("narrow", "large", "dense"):
        assert all(transformed[name][part] is params[name][part] for part in params[name])
    assert {name: tuple(part.shape) for name, part in transformed["wide"]["winograd"].items()} == {
        "data": (6, 6),
        "kernel": (6, 6, 32, 40),
        "output": (16, 36),
    }


def test_a_compiled_batch_in_a_loop_is_the_eager_one():
    params = {"kernel": draw(0, 16, 16, 3, 3).float() / 12, "bias": draw(1, 16).float()}
    x = draw(2, 2, 16, 8, 7).float()

    def repeated(params, x):
        transformed = nn.winograd(params, 16)

        def body(i, x):
            return i + 1, vmap(lambda x: nn.swish(nn.conv(transformed, x)))(x).contiguous()

        return torch.while_loop(lambda i, x: i < 3, body, (torch.tensor(0), x))[1]

    want = x
    for _ in range(3):
        want = vmap(lambda x: nn.swish(nn.conv(params, x)))(want)
    torch.testing.assert_close(torch.compile(repeated, fullgraph=True)(params, x), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("params", "min_channels", "error", "message"),
    [
        (torch.zeros(3), 1, TypeError, "params: expected a dict"),
        ({"kernel": torch.zeros(2, 2, 3, 3)}, 0, ValueError, "min_channels"),
        ({"kernel": torch.zeros(2, 2, 3, 3)}, 3, ValueError, "at least 3 channels, got none"),
        ({"a": {"kernel": torch.zeros(2, 2, 3).bfloat16()}}, 1, TypeError, r"params\['a'\]\['kernel'\]: expected float32"),
    ],
)
def test_bad_arguments_are_refused(params, min_channels, error, message):
    with pytest.raises(error, match=message):
        nn.winograd(params, min_channels)


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 4), (1, 3, 4, 4)])
def test_a_map_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="x: expected 3 channels and 2 axes of space"):
        nn.conv(nn.winograd(layer(0), 1), torch.zeros(shape, dtype=torch.float64))


def test_a_network_in_half_precision_refuses_transformed_kernels():
    network = purevdm.networks.mixed(purevdm.networks.vdm_unet(32, 1, dropout=0.0), torch.bfloat16)
    params = nn.winograd(network.init(random.key(0), (3, 4, 4)))
    with pytest.raises(TypeError, match=r"x: a kernel transformed by nn.winograd takes float32 or float64, got .*bfloat16"):
        network.apply(params, torch.zeros(3, 4, 4), torch.tensor(0.0))
