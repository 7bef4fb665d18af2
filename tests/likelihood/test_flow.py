"""The probability flow: the official velocities and divergences, closed forms, Hutchinson's estimate."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from goldens import case, flow_case, nchw
from hypothesis import given

import purevdm
from purevdm import decoders, networks, ode, parts, process, random, schedules
from purevdm.likelihood import flow
from purevdm.testing import sources

NO_PARAMS = {"network": {}, "schedule": {}}


@pytest.mark.parametrize("name", ["fixed_t0", "scalar_t0", "nnet_t0_attn"])
def test_velocity_and_divergence_are_the_official_ones(name):
    c, a = case(name, torch.float64), flow_case(name)
    n = 2
    z, gamma = nchw(c.arrays["score/z"])[:n].double(), torch.tensor(c.arrays["score/g"])[:n].double()

    def field(z):
        return flow.velocity(c.model, c.params, z, gamma, c.cond[:n])

    value, exact = flow.divergence(field, z, "exact", chunk=64)
    torch.testing.assert_close(value, nchw(a["flow/velocity"])[:n], rtol=0, atol=1e-10)
    torch.testing.assert_close(exact, torch.tensor(a["flow/divergence"])[:n], rtol=0, atol=1e-9)
    _, estimate = flow.divergence(field, z, nchw(a["flow/probe"])[None, :n])
    torch.testing.assert_close(estimate, torch.tensor(a["flow/hutchinson"])[:n], rtol=0, atol=1e-9)


def linear(seed, dims=5):
    matrix = random.normal(random.key(seed), (dims, dims), torch.float64)
    return matrix, lambda z: z @ matrix.T


@given(st.integers(0, 2**31), st.integers(1, 7))
def test_chunks_of_any_size_sum_to_the_trace(seed, chunk):
    matrix, field = linear(seed)
    z = random.normal(random.key(seed + 1), (3, 5), torch.float64)
    value, div = flow.divergence(field, z, "exact", chunk=chunk)
    torch.testing.assert_close(value, field(z))
    torch.testing.assert_close(div, matrix.trace().expand(3))
    probes = random.normal(random.key(seed + 2), (4, 3, 5), torch.float64)
    _, whole = flow.divergence(field, z, probes)
    _, pieces = flow.divergence(field, z, probes, chunk=chunk)
    torch.testing.assert_close(pieces, whole)
    single = [flow.divergence(field, z, -probe[None])[1] for probe in probes]  # their signs change nothing
    torch.testing.assert_close(torch.stack(single).mean(0), whole)


def bent(seed, dims=4):
    """A field whose derivatives are neither symmetric nor constant."""
    first, second = (random.normal(k, (dims, dims), torch.float64) for k in random.split(random.key(seed)))
    return lambda z: torch.tanh(z @ first) @ second


def solved(matrix, z):
    return torch.linalg.solve(2.0 * torch.eye(3, dtype=z.dtype) + torch.tanh(z)[:, :, None] * matrix, z)


ROUGH = {
    "layer_norm": lambda matrix, z: F.layer_norm(z @ matrix, (3,)) @ matrix,
    "instance_norm": lambda matrix, z: F.instance_norm((z @ matrix)[:, None])[:, 0] @ matrix,
    "solve": solved,
    "slogdet": lambda matrix, z: z * torch.linalg.slogdet(matrix + torch.exp(z)[:, :, None] * matrix.T)[1][:, None],
    "det": lambda matrix, z: z * torch.linalg.det(matrix + torch.exp(z)[:, :, None] * matrix.T)[:, None],
}


@pytest.mark.parametrize("name", ROUGH)
@pytest.mark.parametrize("n", [None, 1, 2])
def test_the_derivative_of_a_divergence_is_that_of_differences(name, n):
    """Where the derivative of a forward-mode derivative is wrong in PyTorch."""
    k_matrix, k_z, k_probes, k_way = random.split(random.key(0), 4)
    matrix, z, way = (random.normal(k, (3, 3), torch.float64) for k in (k_matrix, k_z, k_way))
    probes = "exact" if n is None else random.normal(k_probes, (n, 3, 3), torch.float64)

    def total(z, matrix):
        return flow.divergence(lambda z: ROUGH[name](matrix, z), z, probes)[1].sum()

    for i in range(2):
        at, step = [z, matrix], 1e-5 * way
        found = (torch.func.grad(total, i)(*at) * way).sum()
        above, below = (total(*at[:i], at[i] + sign * step, *at[i + 1 :]) for sign in (1, -1))
        torch.testing.assert_close(found, (above - below) / 2e-5, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 2**31), st.booleans())
def test_probes_whose_covariance_is_the_identity_give_the_exact_divergence(seed, orthogonal):
    """All signs, as Rademacher probes have them, or an orthogonal basis, as Gaussian probes have one on average."""
    field, z = bent(seed), random.normal(random.key(seed + 1), (3, 4), torch.float64)
    if orthogonal:
        probes = 2.0 * torch.linalg.qr(random.normal(random.key(seed + 2), (4, 4), torch.float64))[0]
    else:
        probes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4)
    _, found = flow.divergence(field, z, probes[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(found, flow.divergence(field, z, "exact")[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_with_the_predicted_variance(kind):
    """For a linear field the variance is 2 |S|**2, S the symmetric part; without its diagonal for Rademacher probes."""
    matrix, field = linear(3)
    symmetric = 0.5 * (matrix + matrix.T)
    squares = symmetric.square()
    variance = 2 * (squares.sum() - (squares.diagonal().sum() if kind == "rademacher" else 0.0))
    n = 20_000
    if kind == "rademacher":
        probes = flow.draw_probes(random.split(random.key(4), n), 1, (5,), torch.float64)
    else:
        probes = random.normal(random.key(4), (1, n, 5), torch.float64)
    _, estimates = flow.divergence(field, torch.zeros(n, 5, dtype=torch.float64), probes)
    assert abs(estimates.mean() - matrix.trace()) < 4 * (variance / n).sqrt()
    # the estimate of a variance has a relative error of sqrt((kurtosis - 1) / n), here below 0.03
    assert abs(estimates.var() / variance - 1) < 0.12


def moments(std, gamma):
    return process.alpha(gamma) ** 2 * std**2 + process.sigma(gamma) ** 2


@pytest.mark.parametrize("make", [lambda: ode.dopri5(1e-9, 1e-9), lambda: ode.rk4(400)], ids=["dopri5", "rk4"])
def test_the_flow_of_a_gaussian_keeps_its_quantiles(make):
    std = 0.3
    model = purevdm.vdm(sources.gaussian(std), schedules.fixed_linear(-12.0, 12.0), (3,), dtype=torch.float64)
    ends = torch.tensor([-12.0, 12.0], dtype=torch.float64)
    z_0 = random.normal(random.key(0), (4, 3), torch.float64)
    scale = (moments(std, ends[1]) / moments(std, ends[0])).sqrt()
    z_1, change, _ = flow.integrate(model, NO_PARAMS, z_0, integrator=make(), probe_noise="exact")
    torch.testing.assert_close(z_1, scale * z_0, rtol=1e-7, atol=0)
    torch.testing.assert_close(change, (3 * scale.log()).expand(4), rtol=1e-7, atol=0)
    back, none, _ = flow.integrate(model, NO_PARAMS, z_1, integrator=make(), backward=True)
    torch.testing.assert_close(back, z_0, rtol=1e-7, atol=0)
    assert not none.any()


def test_the_flow_does_not_depend_on_the_schedule_and_each_dimension_has_its_own():
    std, n = 0.3, 3
    low, high = torch.tensor([-12.0, -11.0, -10.0]).double(), torch.tensor([12.0, 13.0, 14.0]).double()
    bent = schedules.Schedule.of(lambda key: {}, lambda params, t: low + (high - low) * t.square())
    model = purevdm.vdm(sources.gaussian(std), bent, (n,), dtype=torch.float64)
    z_0 = random.normal(random.key(0), (4, n), torch.float64)
    z_1, change, _ = flow.integrate(model, NO_PARAMS, z_0, integrator=ode.dopri5(1e-9, 1e-9), probe_noise="exact")
    scale = (moments(std, high) / moments(std, low)).sqrt()
    torch.testing.assert_close(z_1, scale * z_0, rtol=1e-6, atol=0)
    torch.testing.assert_close(change, scale.log().sum().expand(4), rtol=1e-6, atol=0)


def test_a_self_conditioned_network_is_differentiated_through_its_own_estimate():
    model = purevdm.vdm(networks.mlp(8, self_condition=True), schedules.learned_linear(-5.0, 3.0), (2,), dtype=torch.float64)
    params = model.init(random.key(0))
    z, gamma = 0.1 * random.normal(random.key(1), (3, 2), torch.float64), torch.zeros(3, dtype=torch.float64)

    def field(z):
        return flow.velocity(model, params, z, gamma)

    _, div = flow.divergence(field, z, "exact")
    step = 1e-6
    numeric = sum(
        (field(z + step * e) - field(z - step * e))[:, i] / (2 * step)
        for i, e in enumerate(torch.eye(2, dtype=torch.float64))
    )
    torch.testing.assert_close(div, numeric, rtol=1e-6, atol=1e-7)


def test_in_a_subspace_the_flow_and_its_divergence_are_those_of_the_subspace():
    """Of centred numbers, as many as there are points: against the same flow in an orthonormal basis of the subspace."""
    network = networks.Network.of(
        lambda key, shape: {}, lambda params, z, gamma, cond=None, key=None: torch.tanh(2.0 * z + z.sum() + gamma)
    )
    options = dict(decoder=decoders.gaussian(), dtype=torch.float64)
    model = purevdm.vdm(network, schedules.fixed_linear(-4.0, 3.0), (3,), subspace=parts.zero_centre(), **options)
    basis = torch.linalg.svd(torch.eye(3, dtype=torch.float64) - 1 / 3)[0][:, :2]  # (3, 2)
    w = random.normal(random.key(0), (4, 2), torch.float64)
    gamma = torch.linspace(-2.0, 2.0, 4, dtype=torch.float64)

    def field(z):
        return flow.velocity(model, NO_PARAMS, z, gamma)

    value, div = flow.divergence(field, w @ basis.T, "exact")
    torch.testing.assert_close(value.sum(1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    inner, want = flow.divergence(lambda w: field(w @ basis.T) @ basis, w, "exact")
    torch.testing.assert_close(inner @ basis.T, value)
    torch.testing.assert_close(div, want)
    options = dict(integrator=ode.rk4(20))
    z_1, _, _ = flow.integrate(model, NO_PARAMS, w @ basis.T, **options)
    torch.testing.assert_close(z_1.sum(1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    back, _, _ = flow.integrate(model, NO_PARAMS, z_1, backward=True, **options)
    torch.testing.assert_close(back, w @ basis.T, rtol=1e-4, atol=1e-4)
