"""The gradient of log p(x) by the adjoint: closed forms, differences, the gradient of the steps that were taken, memory."""

import weakref

import optree
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import purevdm
from purevdm import decoders, likelihood, networks, ode, parts, random, schedules
from purevdm.likelihood import flow
from purevdm.likelihood.gradient import adjoint
from purevdm.testing import sources

NO_PARAMS = {"network": {}, "schedule": {}}
FINE = ode.dopri5(1e-8, 1e-8)
OWN = schedules.Schedule.of(
    lambda key: {},
    lambda params, t: torch.tensor([-4.0, -3.0, -2.0]).to(t) + torch.tensor([7.0, 8.0, 6.0]).to(t) * t[..., None],
)


def mixing(schedule=None, **options):
    """A network in which each number depends on all, its parameters, and four examples."""
    network = networks.mlp(8, fourier=(), **options)
    options = dict(decoder=decoders.gaussian(loc=(1.0, 0.0, -2.0), scale=(2.0, 0.5, 1.0)), dtype=torch.float64)
    model = purevdm.vdm(network, schedule or schedules.fixed_linear(-4.0, 3.0), (3,), **options)
    params = model.init(random.key(0))
    params["network"]["dense3"]["kernel"] = random.normal(random.key(1), (8, 3), torch.float64)  # zero at first
    return model, params, random.normal(random.key(2), (4, 3), torch.float64)


def log_p(model, params, x, cond=None, **options):
    return likelihood.log_prob(model, params, x, random.key(3), cond, **options).log_prob


@pytest.mark.parametrize("own", [False, True], ids=["gamma", "t"])
@pytest.mark.parametrize("probes", ["exact", 1, 3])
def test_it_is_that_of_differences_and_of_the_steps_that_were_taken(own, probes):
    """Also where each dimension has a schedule of its own; examples do not depend on one another."""
    model, params, x = mixing(OWN if own else None, classes=2)
    options, cond = dict(integrator=ode.rk4(32), probes=probes), torch.tensor([0, 1, 1, 0])
    estimate, grad = likelihood.log_prob_and_grad(model, params, x, random.key(3), cond, **options, chunk=2)
    way = random.normal(random.key(4), (4, 3), torch.float64)
    above, below = (log_p(model, params, x + sign * 1e-4 * way, cond, **options) for sign in (1, -1))
    torch.testing.assert_close((grad * way).sum(1), (above - below) / 2e-4, rtol=1e-4, atol=1e-4)
    given = x.clone().requires_grad_()
    found = likelihood.log_prob(model, params, given, random.key(3), cond, **options)
    found.log_prob.sum().backward()
    torch.testing.assert_close(grad, given.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(estimate.log_prob, found.log_prob.detach(), rtol=0, atol=1e-10)
    assert torch.equal(estimate.evaluations, 2 * found.evaluations)


@pytest.mark.parametrize(
    "integrator", [FINE, ode.dopri5(1e-8, 1e-8, quadrature=4), ode.rk4(200)], ids=["dopri5", "quadrature", "rk4"]
)
def test_it_is_the_score_of_a_gaussian(integrator):
    """Of the source with the noise left at time 0, stretched as the decoder says; float32 data of a float64 model."""
    gamma_0, scale = -6.0, torch.tensor([2.0, 0.5]).double()
    covariance = torch.tensor([[[0.5, -0.2], [-0.2, 0.2]]]).double()
    source = sources.Mixture(torch.ones(1).double(), torch.tensor([[-1.0, 0.5]]).double(), covariance)
    options = dict(decoder=decoders.gaussian(scale=scale.tolist()), dtype=torch.float64)
    model = purevdm.vdm(source.network, schedules.fixed_linear(gamma_0, 25.0), (2,), **options)
    f = source.sample(random.key(0), 8).float()
    how = dict(integrator=integrator, probes="exact")
    _, grad = likelihood.log_prob_and_grad(model, NO_PARAMS, scale.float() * f, random.key(1), **how)
    noise = torch.full((2,), gamma_0).double().exp()
    wide = source.widened(noise)
    want = -torch.linalg.solve(wide.covariances[0], (f.double() - wide.means[0]).T).T / scale
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad.double(), want, rtol=2e-4, atol=2e-4)


def test_in_a_subspace_it_is_that_of_the_subspace():
    """Of centred numbers: along the flow in an orthonormal basis of the subspace."""

    def apply(params, z, gamma, cond=None, key=None):
        return torch.tanh(2.0 * z + z.roll(1) * z.sum() + gamma)

    network = networks.Network.of(lambda key, shape: {}, apply)
    options = dict(decoder=decoders.gaussian(), dtype=torch.float64, subspace=parts.zero_centre())
    model = purevdm.vdm(network, schedules.fixed_linear(-4.0, 3.0), (3,), **options)
    basis = torch.linalg.svd(torch.eye(3, dtype=torch.float64) - 1 / 3)[0][:, :2]  # (3, 2)
    w = random.normal(random.key(0), (4, 2), torch.float64).requires_grad_()
    how = dict(integrator=FINE, probe_noise="exact")
    z_1, change, _ = flow.integrate(model, NO_PARAMS, w @ basis.T, **how)
    (-0.5 * z_1.square().sum() + change.sum()).backward()
    z_1 = z_1.detach()
    a, _ = adjoint(model, NO_PARAMS, z_1, None, mask=None, **how, chunk=None)
    torch.testing.assert_close(a, w.grad @ basis.T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.sum(1), torch.zeros(4).double(), rtol=0, atol=1e-10)


class Alive(TorchDispatchMode):
    """Counts the numbers in tensors that are alive at once, at most, of all that operations make."""

    now = most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for x in optree.tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.now += x.numel()
                weakref.finalize(x, self.free, x.numel())
        self.most = max(self.most, self.now)
        return out

    def free(self, n):
        self.now -= n


def test_its_memory_does_not_grow_with_steps():
    """Where the gradient of the steps keeps what every one of them saves."""
    model, params, x = mixing()

    def most(run, steps):
        with Alive() as alive:
            run(x.clone().requires_grad_(), dict(integrator=ode.heun(steps)))
        return alive.most

    def through(x, how):
        log_p(model, params, x, **how).sum().backward()

    def by_adjoint(x, how):
        estimate, grad = likelihood.log_prob_and_grad(model, params, x, random.key(3), **how)
        assert not estimate.log_prob.requires_grad
        assert not grad.requires_grad

    assert most(through, 15) > 2.5 * most(through, 5)
    assert most(by_adjoint, 50) == most(by_adjoint, 5) < 0.2 * most(through, 5)


def test_with_probes_it_is_right_on_average():
    model, params, x = mixing()
    how = dict(integrator=ode.rk4(20))
    exact = likelihood.log_prob_and_grad(model, params, x, random.key(0), probes="exact", **how)[1]
    many = likelihood.log_prob_and_grad(model, params, x[:1].expand(2000, 3), random.key(0), **how)[1]
    error = many.std(0) / len(many) ** 0.5
    assert ((many.mean(0) - exact[0]).abs() < 4 * error + 1e-9).all()


@pytest.mark.parametrize(
    "integrator", [ode.heun(3), pytest.param(ode.dopri5(1e-3, 1e-3), marks=pytest.mark.slow)], ids=["heun", "dopri5"]
)
def test_it_compiles(integrator):
    model, params, x = mixing()

    def run(params, x, key):
        estimate, grad = likelihood.log_prob_and_grad(model, params, x, key, integrator=integrator, probes=2)
        return estimate.log_prob, grad

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for found, want in zip(compiled(params, x, random.key(2)), run(params, x, random.key(2)), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


def test_bad_input_is_named():
    model, params, x = mixing()
    of = likelihood.log_prob_and_grad
    discrete = purevdm.vdm(networks.mlp(8), schedules.fixed_linear(), (3,), 4)
    with pytest.raises(ValueError, match="dequantisation of discrete data: "):
        of(discrete, discrete.init(random.key(0)), torch.zeros(2, 3, dtype=torch.int64), random.key(1))
    with pytest.raises(ValueError, match="chunk: "):
        of(model, params, x, random.key(1), chunk=0, integrator=ode.heun(2))
    with pytest.raises(ValueError, match=r"torch\.func takes no derivatives of"):
        torch.func.grad(lambda x: of(model, params, x, random.key(1), integrator=ode.heun(2))[0].log_prob.sum())(x)
