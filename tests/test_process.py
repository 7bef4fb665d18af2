"""The diffusion's mathematics: identities in float64, float32 against float64 over gamma in [-30, 30]."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given

from purevdm import process

gammas = st.floats(-30, 30)
numbers = st.floats(-3, 3)


def f64(*values):
    return [torch.tensor(v, dtype=torch.float64) for v in values]


pairs = st.tuples(gammas, gammas).filter(lambda p: abs(p[0] - p[1]) > 1e-3).map(sorted)


@given(gammas)
def test_variance_is_preserved(gamma):
    for g, tolerance in ((torch.tensor(gamma), 3e-7), (*f64(gamma), 1e-15)):
        torch.testing.assert_close(process.alpha(g) ** 2 + process.sigma(g) ** 2, torch.ones_like(g), rtol=0, atol=tolerance)


@given(pairs, numbers, numbers)
def test_posterior_after_forward_is_forward(pair, x, eps):
    """q(z_s given z_t, x), z_t drawn from q(z_t given x), is q(z_s given x): mean and variance (App. A)."""
    gamma_s, gamma_t, x, eps = f64(*pair, x, eps)
    z_t = process.diffuse(x, gamma_t, eps)
    # The mean is affine in eps: its value at eps = 0, and its slope.
    at = [
        process.posterior(process.diffuse(x, gamma_t, e), x, gamma_t, gamma_s)
        for e in (torch.zeros_like(x), torch.ones_like(x))
    ]
    slope = at[1].mean - at[0].mean
    torch.testing.assert_close(at[0].mean, process.alpha(gamma_s) * x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope**2 + at[0].std ** 2, process.sigma(gamma_s) ** 2, rtol=1e-9, atol=1e-12)
    by_eps = process.posterior_from_eps(z_t, eps, gamma_t, gamma_s)
    by_x = process.posterior(z_t, x, gamma_t, gamma_s)
    torch.testing.assert_close(by_eps.std, by_x.std)
    if gamma_t < 15:  # beyond, eps hardly tells x
        torch.testing.assert_close(by_eps.mean, by_x.mean, rtol=1e-6, atol=1e-6)


@example((0.0, 21.0), 1.0)
@given(pairs, numbers)
def test_forward_steps_compose(pair, x):
    """q(z_t given z_s) after q(z_s given x) is q(z_t given x)."""
    gamma_s, gamma_t, x = f64(*pair, x)
    step = process.transition(process.alpha(gamma_s) * x, gamma_s, gamma_t)
    torch.testing.assert_close(step.mean, process.alpha(gamma_t) * x, rtol=1e-12, atol=1e-15)
    ratio = process.transition(torch.ones_like(x), gamma_s, gamma_t).mean
    variance = step.std**2 + ratio**2 * process.sigma(gamma_s) ** 2
    torch.testing.assert_close(variance, process.sigma(gamma_t) ** 2, rtol=1e-10, atol=1e-13)


@given(st.floats(-12, 12), numbers, numbers)
def test_predictions_convert_and_return(gamma, x, eps):
    g, x, eps = f64(gamma, x, eps)
    z = process.diffuse(x, g, eps)
    v = process.alpha(g) * eps - process.sigma(g) * x
    close = dict(rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(process.x_from_eps(z, eps, g), x, **close)
    torch.testing.assert_close(process.eps_from_x(z, x, g), eps, **close)
    torch.testing.assert_close(process.x_from_v(z, v, g), x, **close)
    torch.testing.assert_close(process.eps_from_v(z, v, g), eps, **close)


@pytest.mark.parametrize("name", ["alpha", "sigma", "transition", "posterior", "posterior_from_eps"])
@given(pair=pairs, z=numbers, x=numbers)
def test_float32_is_accurate(name, pair, z, x):
    """A few units in the last place of the terms that are added, for gamma in [-30, 30]."""

    def value(dtype):
        # the same float32 arguments for both
        s, t, z_, x_ = (torch.tensor(v).to(dtype) for v in (*pair, z, x))
        if name in ("alpha", "sigma"):
            return (getattr(process, name)(s),)
        if name == "transition":
            return tuple(process.transition(z_, s, t))
        return tuple(getattr(process, name)(z_, x_, t, s))

    scale = 1.0 + abs(z) + abs(x)
    for got, want in zip(value(torch.float32), value(torch.float64), strict=True):
        # gamma_s - gamma_t and softplus round by ulps of 30, which the exponential turns into relative error
        growth = scale * (1.0 + (0.0 if name != "posterior_from_eps" else float(want.abs())) + float(want.abs()))
        if name == "posterior_from_eps":  # its terms are as large as alpha_s / alpha_t
            growth *= float(torch.exp(torch.tensor(max(0.0, (pair[1] - max(pair[0], 0.0)) / 2))))
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6 * growth)
