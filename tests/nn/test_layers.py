"""Layers against torch's own, and against what they promise."""

import math
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from compare import close
from hypothesis import given

from purevdm import nn, random
from purevdm.nn import _layers

seeds = st.integers(0, 2**31)
sizes = st.integers(1, 6)


def draw(seed, *shape):
    return random.normal(random.key(seed), shape, torch.float64)


def wide(params):
    return {name: leaf.double() for name, leaf in params.items()}


@given(seeds, sizes, sizes, st.booleans())
def test_dense_is_torchs(seed, n_in, n_out, bias):
    params = wide(nn.dense_init(random.key(seed), n_in, n_out, bias=bias))
    assert set(params) == {"kernel", "bias"} if bias else {"kernel"}
    x, b = draw(seed, 3, n_in), params.get("bias", torch.zeros(n_out, dtype=torch.float64))
    torch.testing.assert_close(nn.dense(params, x), F.linear(x, params["kernel"].T, b))


@given(seeds, sizes, sizes, sizes, sizes)
def test_pointwise_is_dense_at_each_position(seed, n_in, n_out, h, w):
    params = wide(nn.dense_init(random.key(seed), n_in, n_out)) | {"bias": draw(seed, n_out)}
    x = draw(seed, n_in, h, w)
    torch.testing.assert_close(nn.pointwise(params, x), nn.dense(params, x.movedim(0, -1)).movedim(-1, 0))


@given(seeds, sizes, sizes, st.integers(1, 3), st.sampled_from([1, 3, 5]))
def test_conv_keeps_the_size_and_matches_torch(seed, n_in, n_out, rank, size):
    params = wide(nn.conv_init(random.key(seed), n_in, n_out, (size,) * rank))
    x = draw(seed, n_in, *range(3, 3 + rank))
    y = nn.conv(params, x)
    assert y.shape == (n_out, *x.shape[1:])
    reference = (F.conv1d, F.conv2d, F.conv3d)[rank - 1](x, params["kernel"], padding="same")
    torch.testing.assert_close(y, reference)


@given(
    seeds, st.lists(st.integers(2, 5), min_size=1, max_size=3), st.sampled_from([3, 5]), st.sampled_from([1, 2]), st.data()
)
def test_a_circular_convolution_is_that_of_a_periodic_map(seed, space, size, stride, data):
    """Of three copies in a row, the middle one."""
    padding = tuple(data.draw(st.sampled_from(["zeros", "circular"])) for _ in space)
    params, x = wide(nn.conv_init(random.key(seed), 2, 3, (size,) * len(space))), draw(seed, 2, *space)
    y = nn.conv(params, x, stride, padding)
    circular = [axis for axis, kind in enumerate(padding, start=1) if kind == "circular"]
    for axis in circular:
        x = torch.cat([x] * 3, axis)
    want = (F.conv1d, F.conv2d, F.conv3d)[len(space) - 1](x, params["kernel"], params["bias"], padding="same")
    for axis, n in enumerate(space, start=1):
        want = want.narrow(axis, n if axis in circular else 0, n).index_select(axis, torch.arange(0, n, stride))
    torch.testing.assert_close(y, want)


def norm_and_map(seed, channels, space):
    """A group norm's parameters and a map, float64."""
    return {"scale": draw(seed, channels), "bias": draw(seed + 1, channels)}, draw(seed + 2, channels, *space)


@given(seeds, st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]), st.sampled_from([(7,), (3, 4), (2, 1, 3)]))
def test_the_compilers_group_norm_is_torchs_with_both_derivatives(seed, groups, per_group, space):
    params, x = norm_and_map(seed, groups * per_group, space)
    weight = draw(seed + 3, *x.shape)

    def derivatives(norm):
        def loss(params, x):
            return (norm(params, x, groups, 1e-6) * weight).sum().square()

        first = torch.func.grad(loss, argnums=(0, 1))
        tangents = torch.func.jvp(first, (params, x), (params, weight))  # forward over reverse: a Hessian's product
        return loss(params, x), *tangents

    compilers = partial(_layers._group_norm_by_channel, rank=len(space))
    torch.testing.assert_close(derivatives(compilers), derivatives(nn.group_norm), rtol=1e-7, atol=1e-7)


def test_the_compilers_group_norm_bears_a_large_mean():
    params, x = norm_and_map(0, 4, (8, 8))
    x = (x + 2.0**12).float()
    want = F.group_norm(x.double()[None], 2, params["scale"], params["bias"], 1e-6)[0]
    got = _layers._group_norm_by_channel({k: v.float() for k, v in params.items()}, x, 2, 1e-6, 2)
    assert (got - want).abs().max() < 1e-3  # the mean itself is rounded to 2.4e-4


def test_group_norm_compiled_in_three_dtypes():
    params, x = norm_and_map(0, 4, (3, 5))
    gradient = torch.func.vmap(torch.func.grad(lambda p, x: nn.group_norm(p, x, 2).square().sum()), (None, 0))
    compiled = torch.compile(gradient, fullgraph=True)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        p, batch = {k: v.to(dtype) for k, v in params.items()}, torch.stack([x, 2 * x + 1]).to(dtype)
        wide = {k: v.double() for k, v in p.items()}
        want = gradient(wide, batch.double())
        got = compiled(p, batch)
        assert got["scale"].dtype == dtype
        close(got, want, tolerance)


@given(seeds, sizes, sizes, st.sampled_from([1, 2, 3]))
def test_attention_is_torchs(seed, tokens, sources, heads):
    q, k, v = (draw(seed + i, 2, n, 6) for i, n in enumerate((tokens, sources, sources)))
    want = F.scaled_dot_product_attention(*(x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)))
    torch.testing.assert_close(nn.attention(q, k, v, heads), want.transpose(1, 2).flatten(2))


def test_attention_in_parts_is_that_of_the_whole():
    """So many pairs of tokens that a CPU takes the queries in three parts, the last one shorter; with its gradients."""
    q, k, v = (draw(i, n, 6) for i, n in enumerate((1001, 800, 800)))

    def mean_square(attention):
        return torch.func.grad_and_value(lambda q, k, v: attention(q, k, v).square().mean(), argnums=(0, 1, 2))(q, k, v)

    close(mean_square(nn.attention), mean_square(F.scaled_dot_product_attention), 1e-10)


@given(seeds, st.floats(0.0, 0.9))
def test_dropout_zeroes_or_scales(seed, rate):
    x = draw(seed, 50)
    keep = random.bernoulli(random.key(seed), 1 - rate, (50,))
    y = nn.dropout(keep, x, rate)
    assert torch.equal(y == 0, ~keep | (x == 0))
    torch.testing.assert_close(y[keep], x[keep] / (1 - rate))


@given(seeds, st.lists(st.integers(1, 7), min_size=1, max_size=3))
def test_down_and_up_again_any_size(seed, space):
    x = draw(seed, 2, *space)
    # a kernel that copies the centre picks every other position; upsampling repeats each of those
    params = {"kernel": torch.zeros(2, 2, *(3,) * len(space), dtype=x.dtype)}
    for c in range(2):
        params["kernel"][(c, c, *(1 for _ in space))] = 1.0
    down = nn.conv(params, x, stride=2)
    assert torch.equal(down, x[(slice(None), *(slice(None, None, 2) for _ in space))])
    up = nn.upsample(down, space)
    assert up.shape == x.shape
    for axis, size in enumerate(space, start=1):
        x = x.index_select(axis, torch.arange(size) // 2 * 2)
    assert torch.equal(up, x)


def test_initialisers():
    k = random.key(0)
    kernel = nn.lecun_normal(k, (400, 500), 400)
    assert abs(kernel.std() * 20 - 1) < 0.01
    assert kernel.abs().max() <= 2 / 20 / 0.8796 + 1e-6
    assert abs(nn.normal(0.1)(k, (10_000,), 1).std() * 10 - 1) < 0.05


def test_embedding_takes_rows_and_maps():
    params = nn.embedding_init(random.key(0), 50, 400)
    assert abs(params["embedding"].std() * 20 - 1) < 0.02
    index = torch.tensor([3, 0, 3])
    assert torch.equal(torch.func.vmap(lambda i: nn.embedding(params, i))(index), params["embedding"][index])


@given(st.floats(0, 1000), st.integers(4, 33))
def test_timestep_embedding(t, dim):
    e = nn.timestep_embedding(torch.tensor(t, dtype=torch.float64), dim)
    half = dim // 2
    assert e.shape == (dim,)
    torch.testing.assert_close(e[:half] ** 2 + e[half : 2 * half] ** 2, torch.ones(half, dtype=torch.float64))
    assert math.isclose(e[0], math.sin(t), abs_tol=1e-9)
    assert math.isclose(e[half - 1], math.sin(t / 10000), abs_tol=1e-9)
    assert dim % 2 == 0 or e[-1] == 0


@given(seeds, st.lists(st.integers(-2, 8), min_size=1, max_size=4), st.integers(1, 4))
def test_fourier_features_are_channel_major(seed, exponents, channels):
    x = random.normal(random.key(seed), (channels, 2, 3))
    y = nn.fourier_features(x, exponents)
    n = len(exponents)
    assert y.shape == (2 * channels * n, 2, 3)
    for c in range(channels):
        for j, e in enumerate(exponents):
            angle = 2 * math.pi * 2.0**e * x[c]
            torch.testing.assert_close(y[c * n + j], angle.sin())
            torch.testing.assert_close(y[(channels + c) * n + j], angle.cos())


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: nn.dense_init(random.key(0), 0, 1), "n_in"),
        (lambda: nn.conv_init(random.key(0), 1, 1, (2, 3)), "kernel_size"),
        (lambda: nn.conv_init(random.key(0), 1, 1, (3,) * 4), "kernel_size"),
        (lambda: nn.group_norm(nn.group_norm_init(random.key(0), 6), torch.zeros(6, 2), 4), "groups"),
        (lambda: nn.attention(*torch.zeros(3, 2, 5), 2), "heads"),
        (lambda: nn.upsample(torch.zeros(1, 3), (7,)), "space"),
        (lambda: nn.upsample(torch.zeros(1, 3), (5, 5)), "space"),
        (lambda: nn.timestep_embedding(torch.tensor(0.0), 3), "dim"),
        (
            lambda: nn.conv(nn.conv_init(random.key(0), 1, 1, (5,)), torch.zeros(1, 1), padding="circular"),
            "kernel: expected",
        ),
        (lambda: nn.paddings("reflect", 2), "padding: expected 'zeros' or 'circular'.*got 'reflect'"),
    ],
)
def test_sizes_that_do_not_fit_are_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()


@pytest.mark.parametrize("space", [(5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("n", [1, 3])
def test_layers_of_feature_maps_take_a_batch(space, n):
    rank, x = len(space), draw(0, n, 4, *space)
    kernel, dense = (
        {"kernel": draw(1, 6, 4, *(3,) * rank), "bias": draw(2, 6)},
        {"kernel": draw(3, 4, 5), "bias": draw(4, 5)},
    )
    norm = {"scale": draw(5, 4), "bias": draw(6, 4)}
    for layer, of_batch in (
        (lambda x: nn.conv(kernel, x, 2, "circular"), None),
        (lambda x: nn.upsample(x, tuple(2 * size - 1 for size in space)), None),
        (lambda x: nn.group_norm(norm, x, 2), lambda x: nn.group_norm(norm, x, 2, rank=rank)),
        (lambda x: nn.pointwise(dense, x), lambda x: nn.pointwise(dense, x, rank)),
    ):
        want = torch.stack([layer(one) for one in x])
        torch.testing.assert_close((of_batch or layer)(x), want, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(torch.func.vmap(layer)(x), want, rtol=1e-12, atol=1e-12)
