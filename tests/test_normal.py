"""The normal's expectation over bins: derivatives of every order, by every transform, and what they keep in memory."""

import math

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from purevdm import _normal

BINS = 17
MEAN = torch.linspace(-1.4, 1.3, 15, dtype=torch.float64).reshape(5, 3)
STD = torch.logspace(-2.5, 1, 15, dtype=torch.float64).roll(4).reshape(5, 3)


def expectation(mean, std):
    return _normal.bin_expectation(mean, std, BINS)


def plainly(mean, std):
    """By operations whose derivatives are torch's."""
    edges = 2.0 * torch.arange(1, BINS, dtype=mean.dtype) / BINS - 1.0
    return torch.erf((mean[..., None] - edges) / (math.sqrt(2.0) * std)[..., None]).sum(-1) / BINS


TRANSFORMS = {
    "each example's gradients": lambda f: vmap(grad(lambda m, s: f(m, s).square().sum(), argnums=(0, 1)))(MEAN, STD),
    "one deviation for all": lambda f: vmap(lambda m: f(m, STD[0]))(MEAN),
    "another axis": lambda f: vmap(lambda m: f(m, STD[:, 0]), in_dims=1, out_dims=1)(MEAN),
    "second derivatives": lambda f: hessian(lambda m: f(m, STD).sum())(MEAN),
    "gradient of a direction": lambda f: grad(lambda s: jvp(lambda m: f(m, s), (MEAN,), (STD,))[1].square().sum())(STD),
    "direction of a gradient": lambda f: jvp(grad(lambda s: f(MEAN, s).square().sum()), (STD,), (MEAN,)),
    "a direction of one argument": lambda f: jvp(lambda s: f(MEAN, s), (STD,), (MEAN,)),
    "third derivatives": lambda f: jacfwd(jacrev(jacrev(lambda a: f(a, STD[1, 1]))))(MEAN[1, 1]),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_derivatives_are_those_of_the_sum_over_edges(name):
    torch.testing.assert_close(TRANSFORMS[name](expectation), TRANSFORMS[name](plainly), rtol=1e-11, atol=1e-11)


def test_autograd_checks_out_to_second_order():
    mean, std = MEAN[:2].clone().requires_grad_(), (STD[:2] + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(expectation, (mean, std), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(expectation, (mean, std))
    assert torch.autograd.gradgradcheck(lambda m: expectation(m, std.detach()), (mean,))


def test_pieces_make_one_whole_and_nothing_of_each_edge_is_kept():
    n = 1000  # of 256 bins, which is more than one piece
    mean, std = torch.linspace(-1.1, 1.1, n).requires_grad_(), torch.logspace(-4, 1, n).flip(0).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        whole = _normal.bin_expectation(mean, std, 256)
    assert max(kept) == n
    rows = [_normal.bin_expectation(m, s, 256) for m, s in zip(mean, std, strict=True)]
    torch.testing.assert_close(whole, torch.stack(rows), rtol=0, atol=256 * 2**-24)
    found = torch.autograd.grad(whole.sum(), (mean, std))
    wide = grad(lambda m, s: _normal.bin_expectation(m, s, 256).sum(), argnums=(0, 1))(mean.double(), std.double())
    for got, want in zip(found, wide, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("std", [1e-30, 1e-4, 1e30])
def test_extreme_deviations_stay_finite(std):
    mean = torch.tensor([-1.0, -0.5, 0.0, 0.3, 1.0, 40.0], requires_grad=True)  # 0 is an edge of four bins
    std = torch.full_like(mean, std, requires_grad=True)
    value = _normal.bin_expectation(mean, std, 4)
    assert ((value >= -0.75) & (value <= 0.75)).all()
    if std[0] < 1:
        torch.testing.assert_close(value, torch.tensor([-0.75, -0.5, 0.0, 0.25, 0.75, 0.75]))
    for slope in torch.autograd.grad(value.sum(), (mean, std)):
        assert slope.isfinite().all()
    assert _normal.bin_expectation(mean[:0], std[:0], 4).shape == (0,)
