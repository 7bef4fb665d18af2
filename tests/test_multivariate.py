"""Schedules of each dimension, under a context or none: exact ends, closed forms, any parameters."""

import hypothesis.strategies as st
import optree
import pytest
import torch
from hypothesis import given, settings
from perturb import perturbed

import purevdm
from purevdm import networks, random, schedules, testing

MAKERS = {"polynomial": schedules.polynomial, "mlp": schedules.multivariate_mlp}
SHAPE = (2, 3)


def scrambled(schedule, seed, scale):
    leaves, spec = optree.tree_flatten(schedule.init(random.key(0)))
    keys = random.split(random.key(seed), len(leaves))
    return optree.tree_unflatten(spec, [scale * random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


@pytest.mark.parametrize("context", [0, 4])
@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.05, 3))
def test_the_laws_hold_and_ends_are_exact_for_any_parameters(name, context, seed, scale):
    schedule = MAKERS[name](SHAPE, context, hidden=7, gamma_min=-13.3, gamma_max=4.7)
    params = scrambled(schedule, seed, scale)
    code = random.normal(random.key(seed + 1), (context,)) if context else None
    testing.check_schedule(schedule, params=params, event_shape=SHAPE, context=code)
    ends = schedule.gamma(params, torch.tensor(0.0), code), schedule.gamma(params, torch.tensor(1.0), code)
    low, high = (-13.3, 4.7) if name == "polynomial" else (params["l1"]["bias"][0], None)
    high = low + params["l1"]["kernel"].abs()[0, 0] if high is None else high
    for end, value in zip(ends, (low, high), strict=True):
        assert torch.equal(end, torch.full(SHAPE, float(value)))


@given(st.integers(0, 2**31))
def test_a_polynomial_is_the_integral_of_its_square(seed):
    schedule = schedules.polynomial((5,), gamma_min=-10.0, gamma_max=3.0)
    params = optree.tree_map(lambda leaf: leaf.double(), scrambled(schedule, seed, 2.0))
    t = torch.linspace(0, 1, 17, dtype=torch.float64)
    a, b, c = params["a"], params["b"], 1e-3 + torch.nn.functional.softplus(params["c"])
    u = t[:, None]
    area = a**2 * u**5 / 5 + a * b * u**4 / 2 + (b**2 + 2 * a * c) * u**3 / 3 + b * c * u**2 + c**2 * u
    gamma, slope = schedules.gamma_and_slope(schedule, params, t)
    torch.testing.assert_close(gamma, -10.0 + 13.0 * area / area[-1], rtol=1e-12, atol=1e-12)
    wanted = 13.0 * (a * u**2 + b * u + c) ** 2 / area[-1]
    torch.testing.assert_close(slope, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MAKERS)
def test_every_example_has_its_own_levels_and_the_context_s_last_numbers_count(name):
    schedule = MAKERS[name](SHAPE, 2, hidden=7)
    params = optree.tree_map(torch.Tensor.double, scrambled(schedule, 1, 1.0))
    t, context = torch.full((3,), 0.5, dtype=torch.float64), random.normal(random.key(2), (3, 2), torch.float64)
    gamma = schedules.gamma(schedule, params, t, context)
    wide = torch.cat([torch.ones_like(context), context], 1)
    # up to rounding, as some processors multiply a part of a matrix otherwise than a whole one
    torch.testing.assert_close(schedules.gamma(schedule, params, t, wide), gamma, rtol=1e-13, atol=1e-13)
    assert (gamma[0] != gamma[1]).all()
    with pytest.raises(ValueError, match="cond: expected at least 2 numbers"):
        schedules.gamma(schedule, params, t, context[:, :1])


def test_a_model_trains_under_one_and_refuses_one_of_another_shape():
    network = networks.mlp(8, fourier=(), cond_dim=2)
    model = purevdm.vdm(network, schedules.polynomial(SHAPE, 2, hidden=5), SHAPE, 16)
    params, x = perturbed(model.init(random.key(0)), 1, 0.2), random.randint(random.key(1), (4, *SHAPE), 0, 16)
    assert model.schedule.endpoints == (schedules.gamma_min_for(2 / 16), 5.0)
    for timesteps in (0, 10):
        varied, cond = model._replace(timesteps=timesteps), random.normal(random.key(2), (4, 2))
        grads = torch.func.grad(varied.loss_fn)(params, x, random.key(3), cond)
        assert all(leaf.any() for leaf in optree.tree_leaves(grads["schedule"]))
    with pytest.raises(ValueError, match=r"schedule: expected one for latents of shape \(2, 3\), got one for \(3, 2\)"):
        purevdm.vdm(network, schedules.polynomial((3, 2), 2), SHAPE, 16)


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: schedules.polynomial((0,)), ValueError, "event_shape"),
        (lambda: schedules.polynomial((2,), -1), ValueError, "context"),
        (lambda: schedules.polynomial((2,), hidden=0), ValueError, "hidden"),
        (lambda: schedules.multivariate_mlp((2,), gamma_min=5.0, gamma_max=4.0), ValueError, "gamma_min"),
    ],
)
def test_bad_arguments_are_refused(make, error, word):
    with pytest.raises(error, match=word):
        make()


def path_losses(rho, share, gamma, slope, x):
    """The integral of gamma' E(eps - eps_hat)**2 / 2 of each x, E over the noise, for data N(0, [[1, rho], [rho, 1]]) and a
    network that is ideal but that only a share of what one dimension says of the other enters. In closed form:
    eps_hat - eps is ((1 - K) x - K exp(gamma / 2) eps) / exp(gamma / 2) with the gain K."""
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=x.dtype)
    noise = torch.diag_embed(gamma.exp())
    gain = covariance @ torch.linalg.inv(covariance + noise)
    gain = gain * torch.tensor([[1.0, share], [share, 1.0]], dtype=x.dtype)
    bias = torch.einsum("tij,bj->bti", torch.eye(2, dtype=x.dtype) - gain, x).square()
    of_noise = (gain @ noise @ gain.mT).diagonal(dim1=-2, dim2=-1)
    return (0.5 * slope * (bias + of_noise) * torch.exp(-gamma)).sum(-1).mean(-1)


def test_the_path_between_the_ends_matters_unless_the_loss_is_a_gradient():
    """Both sides of MuLAN's theorem. On two paths from gamma(0) to gamma(1) the loss of each example is the same where
    the network takes dimensions for independent; and where it is ideal for correlated ones, as the bound is then -log p(x)
    on every path. It is another where it is not ideal."""
    dtype, (low, high), n = torch.float64, (-4.0, 6.0), 2000
    t = (torch.arange(n, dtype=dtype) + 0.5) / n
    mean, bend = low + (high - low) * t, 3.5 * torch.sin(torch.pi * t)
    slope, turn = torch.full_like(t, high - low), 3.5 * torch.pi * torch.cos(torch.pi * t)
    together = mean[:, None].expand(n, 2), slope[:, None].expand(n, 2)
    apart = torch.stack([mean + bend, mean - bend], 1), torch.stack([slope + turn, slope - turn], 1)
    x = torch.tensor([[1.5, 0.5], [-0.3, 1.2], [2.0, -1.0]], dtype=dtype)
    for rho, share, differs in ((0.0, 1.0, False), (0.9, 1.0, False), (0.9, 0.5, True)):
        one, other = path_losses(rho, share, *together, x), path_losses(rho, share, *apart, x)
        gap = (one - other).abs()
        assert (gap > 0.1).all() if differs else (gap < 1e-4).all(), (rho, share, one, other)
