"""Our batching rules against a loop over the examples, under nested transforms and for a batch of kernels."""

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from hypothesis import given
from torch.func import grad, jvp, vmap

from purevdm import nn, random

seeds = st.integers(0, 2**31)


def draw(seed, *shape):
    return random.normal(random.key(seed), shape, torch.float64)


def looped(f, *xs):
    return torch.stack([f(*each) for each in zip(*xs, strict=True)])


@given(seeds, st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2]), st.booleans(), st.booleans())
def test_a_batch_of_convolutions(seed, rank, batch, stride, bias, circular):
    space, kernel = range(3, 3 + rank), draw(seed, 2, 4, *(3,) * rank)
    params = {"kernel": kernel} | ({"bias": draw(seed, 2)} if bias else {})

    def f(x):
        return nn.conv(params, x, stride, "circular" if circular else "zeros")

    def loss(x):
        return f(x).square().sum()

    x, y = draw(seed, batch, 4, *space), draw(seed + 1, batch, 4, *space)
    padded = F.pad(x, (1, 1) * rank, mode="circular" if circular else "constant")
    want = (F.conv1d, F.conv2d, F.conv3d)[rank - 1](padded, kernel, params.get("bias"), stride=stride)
    torch.testing.assert_close(vmap(f)(x), want)
    torch.testing.assert_close(vmap(f, in_dims=1)(x.movedim(0, 1)), want)
    torch.testing.assert_close(vmap(vmap(f))(x[None])[0], want)
    torch.testing.assert_close(vmap(grad(loss))(x), looped(grad(loss), x))
    torch.testing.assert_close(grad(lambda x: vmap(loss)(x).sum())(x), looped(grad(loss), x))
    forward = jvp(vmap(f), (x,), (y,))[1]
    torch.testing.assert_close(forward, looped(lambda x, y: jvp(f, (x,), (y,))[1], x, y))


@given(seeds, st.booleans())
def test_a_batch_of_kernels(seed, batched_x):
    params = {"kernel": draw(seed, 3, 2, 4, 3, 3), "bias": draw(seed, 3, 2)}
    x = draw(seed, 3, 4, 5, 4) if batched_x else draw(seed, 1, 4, 5, 4).expand(3, -1, -1, -1)
    want = torch.stack([nn.conv({name: leaf[i] for name, leaf in params.items()}, x[i]) for i in range(3)])
    found = vmap(nn.conv)(params, x) if batched_x else vmap(nn.conv, in_dims=(0, None))(params, x[0])
    torch.testing.assert_close(found, want)


@given(seeds, st.sampled_from([0, 1, -1]))
def test_concatenate_is_cat(seed, axis):
    x, y = draw(seed, 5, 2, 3), draw(seed + 1, 2, 3)
    f = lambda x: nn.concatenate([x, y, x.sin()], axis)  # noqa: E731
    torch.testing.assert_close(f(x[0]), torch.cat([x[0], y, x[0].sin()], axis))
    torch.testing.assert_close(vmap(f)(x), looped(f, x))
    torch.testing.assert_close(vmap(vmap(f))(x[None])[0], looped(f, x))
    loss = lambda x: f(x).square().sum()  # noqa: E731
    torch.testing.assert_close(vmap(grad(loss))(x), looped(grad(loss), x))
