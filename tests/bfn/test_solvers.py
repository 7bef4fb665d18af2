"""Samplers: their orders on sources in closed form, BFN-Solver's formulas, samples that follow the source, one graph."""

import functools
import itertools
import math
import pickle

import ideal
import perturb
import pytest
import torch
from backends import every_backend
from torch._dynamo.utils import counters

from purevdm import bfn, networks, random
from purevdm.bfn import flows, solvers

F64 = torch.float64
NO_PARAMS = {"network": {}}
STD, SIGMA_1 = 0.7, 0.05
DETERMINISTIC = [(solvers.ode_1(), 1), (solvers.ode_2(), 2), (solvers.ode_2s(), 2)]


def rates(errors):
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def gaussian_path(flow):
    """The generative process of data N(0, STD**2)."""

    def predict(w, t):
        snr = flow.snr(t)
        return torch.sqrt(snr) / (snr + STD**-2) * w, None

    return solvers.Path(flow, predict)


def gaussian_flow(solver, times):
    """How far the solver ends from the probability flow of N(0, STD**2), which scales with the deviation of w."""
    flow, w = flows.Normal(SIGMA_1), random.normal(random.key(0), (20,), F64)
    scales = torch.sqrt(1 + STD**2 * flow.snr(times))
    latent = w * scales[0]
    carry = solver.init(latent)
    for s, t in itertools.pairwise(times):
        latent, _, carry = solver.step(gaussian_path(flow), latent, s, t, None, carry)
    want = w * scales[-1]
    return ((latent - want).norm() / want.norm()).item()


# on a Gaussian the single-step solver gains an order
@pytest.mark.parametrize(("solver", "order"), [*DETERMINISTIC[:2], (solvers.ode_2s(), 3)])
def test_probability_flow_of_a_gaussian_at_its_order(solver, order):
    errors = [gaussian_flow(solver, torch.linspace(0.1, 1.0, n + 1, dtype=F64)) for n in (20, 40, 80, 160)]
    assert abs(rates(errors)[-1] - order) < 0.15, rates(errors)
    assert errors[-1] < (0.02 if order == 1 else 0.001)
    # from the start, where sqrt(snr) is steep, on the grid "root": up to a logarithm, or better
    errors = [gaussian_flow(solver, torch.linspace(0.0, 1.0, n + 1, dtype=F64).square()) for n in (20, 40, 80, 160)]
    assert rates(errors)[-1] > order - 0.35, rates(errors)


P = torch.tensor([0.6, 0.1, 0.3], dtype=F64)
THREE = bfn.discrete(ideal.classes(P), (20,), 3, 2.0, classes_last=True, dtype=F64)


@functools.cache
def three_classes(steps, solver):
    """Where the probability flow of ideal outputs ends."""
    return THREE.sample(NO_PARAMS, random.key(0), 3, steps=steps, solver=solver, trajectory=True).theta[-1]


@pytest.mark.parametrize(("solver", "order"), DETERMINISTIC)
def test_probability_flow_of_classes_at_its_order(solver, order):
    errors = [(three_classes(n, solver) - three_classes(160, solvers.ode_2s())).norm().item() for n in (5, 10, 20)]
    assert abs(rates(errors)[-1] - order) < 0.3, rates(errors)
    assert errors[-1] < (0.2 if order == 1 else 0.05)


def variance_of(flow, solver, steps, grid):
    """The variance of w at t = 1 for data N(0, STD**2), whose ideal output is linear in w: exactly, by its recursion through
    the solver's own steps."""
    path, key = gaussian_path(flow), random.key(0)
    eps = random.normal(key, (1,), F64)
    carry = solver.init(torch.zeros(1, dtype=F64))
    cov = torch.zeros(1 + len(carry[:1]), 1 + len(carry[:1]), dtype=F64)
    cov[0, 0] = 1.0
    for i in range(steps):
        s, t = (torch.tensor(grid(v / steps), dtype=F64) for v in (i, i + 1))

        def after(state, s=s, t=t, carry=carry):
            step = solver.step(path, state[:1], s, t, key, (state[1:], *carry[1:]) if carry else ())
            return torch.cat([step.w, *step.carry[:1]])

        still = torch.zeros(len(cov), dtype=F64)
        drawn = after(still)
        linear = torch.func.jacfwd(after)(still)
        cov = linear @ cov @ linear.T + torch.outer(drawn, drawn) / eps**2
        carry = (carry[0], s) if carry else ()
    return cov[0, 0].item()


@pytest.mark.parametrize("flow", [flows.Normal(SIGMA_1), flows.Categorical(3, 4.0)], ids=["normal", "categorical"])
@pytest.mark.parametrize(("solver", "order"), [(solvers.sde_1(), 1), (solvers.sde_2(), 2)])
def test_stochastic_solvers_at_their_weak_order(flow, solver, order):
    want = 1 + STD**2 * flow.snr(torch.tensor(1.0, dtype=F64)).item()
    grid = (lambda t: t**2) if isinstance(flow, flows.Normal) else (lambda t: t)
    errors = [abs(variance_of(flow, solver, steps, grid) / want - 1) for steps in (20, 40, 80)]
    assert abs(rates(errors)[-1] - order) < 0.25, rates(errors)
    assert errors[-1] < (0.15 if order == 1 else 0.02)


def test_steps_for_classes_are_bfn_solver_s():
    """As Xue et al. write them: in z, the logits; their time is 1 minus ours."""
    k, beta_1 = 4, 2.5
    z, p, p_last, eps = random.normal(random.key(0), (4, 6, k), F64)
    p, p_last = p.softmax(-1), p_last.softmax(-1)
    r, s, t = (torch.tensor(v, dtype=F64) for v in (0.2, 0.35, 0.4))
    flow = flows.Categorical(k, beta_1)
    key = random.key(3)
    path = solvers.Path(flow, lambda w, t: (p - 1 / k, None))
    w, carry = z / flow.snr(s).sqrt(), (p_last - 1 / k, r)
    eps = random.normal(key, w.shape, F64)

    def logits(step):
        return step.w * flow.snr(t).sqrt()

    first = t / s * z - k * beta_1 * t * (t - s) * (1 / k - p)
    torch.testing.assert_close(logits(solvers.ode_1().step(path, w, s, t, None, ())), first)
    slope = (p - p_last) / (s - r)
    second = first + k * beta_1 * t * (t - s) ** 2 / 2 * slope
    torch.testing.assert_close(logits(solvers.ode_2().step(path, w, s, t, None, carry)), second)
    gain = beta_1 * (t**2 - s**2)
    first = z + gain * (k * p - 1) + (k * gain).sqrt() * eps
    torch.testing.assert_close(logits(solvers.sde_1().step(path, w, s, t, key, ())), first)
    second = first + k * beta_1 * (t - s) ** 2 * (2 * t + s) / 3 * slope
    torch.testing.assert_close(logits(solvers.sde_2().step(path, w, s, t, key, carry)), second)


ALL = {name: getattr(solvers, name)() for name in ("bayesian", "sde_1", "sde_2", "ode_1", "ode_2", "ode_2s")}


@pytest.mark.parametrize("name", ALL)
def test_samples_follow_the_source(name):
    p = torch.tensor([0.55, 0.05, 0.1, 0.3], dtype=F64)
    model = bfn.discrete(ideal.classes(p), (50,), 4, 3.0, classes_last=True, dtype=F64)
    # the paper's sampler is exact for independent data, in any number of steps
    steps, bias = (1, 0.0) if name == "bayesian" else (40, 0.02 if name.endswith("1") else 0.005)
    x = model.sample(NO_PARAMS, random.key(0), 400, steps=steps, solver=ALL[name], decode="sample")
    assert x.dtype == torch.int64
    frequencies = x.flatten().bincount(minlength=4) / x.numel()
    assert (frequencies - p).abs().max() < 4 * 0.5 / math.sqrt(20_000) + bias


def test_discretised_samples_follow_the_source():
    model = bfn.discretised(ideal.two_bins(0.8, 0.3), (50,), 2, 0.3, std_bounds=None, dtype=F64)
    for decode in ("argmax", "sample"):
        x = model.sample(NO_PARAMS, random.key(0), 400, steps=3, decode=decode)
        share = (x == 1).double().mean()
        assert abs(share - 0.8) < (4 * 0.4 / math.sqrt(20_000) if decode == "sample" else 0.05)


def test_the_loop_is_the_steps():
    """Sampling by hand, with the documented keys."""
    model = bfn.discrete(networks.mlp(4, fourier=()), (3,), 4, 2.0, dtype=F64)
    params, steps = model.init(random.key(0)), 5
    k_w, k_steps, k_decode = random.split(random.key(4), 3)
    w = random.normal(k_w, (6, 3, 4), F64)

    def look(w, t):
        return bfn.bound.outputs(model, params["network"], w, t.expand(6))

    def predict(w, t):
        out = look(w, t)
        return model.output.mean(out), lambda key: model.output.draw(key, out)

    seen, first = [], w
    for i in range(steps):
        s, t = (torch.tensor(v / steps, dtype=F64) for v in (i, i + 1))
        path = solvers.Path(model.flow, predict)
        w = solvers.bayesian().step(path, w, s, t, random.fold_in(k_steps, i), ()).w
    logits = look(w, torch.ones((), dtype=F64))[0]
    options = dict(steps=steps, callback=lambda i, w: seen.append(i))
    assert torch.equal(model.sample(params, random.key(4), 6, **options), logits.argmax(-1))
    found = model.sample(params, random.key(4), 6, steps=steps, decode="sample", trajectory=True)
    assert torch.equal(found.x, random.categorical(k_decode, logits))
    torch.testing.assert_close(found.theta[-1], (w * model.flow.snr(torch.ones(())).sqrt()).softmax(-1))
    assert found.theta[0].allclose(torch.full_like(first, 0.25))
    assert seen == list(range(steps))


def test_solvers_are_values():
    assert pickle.loads(pickle.dumps(ALL)) == ALL
    assert len(set(ALL.values())) == len(ALL)


@every_backend
def test_one_graph_serves_any_number_of_steps(backend):
    network = networks.mlp(4, fourier=(), self_condition=True, classes=3, cond_drop=0.1)
    model = bfn.discrete(network, (2,), 3, 2.0)
    params, cond = perturb.perturbed(model.init(random.key(0)), 1, 0.3), torch.tensor([0, 1, 2])
    counters.clear()
    sample = torch.compile(model.sample, fullgraph=True, backend=backend)
    options = dict(solver=solvers.sde_2(), cond=cond, guidance=2.0)
    for steps in (1, 4, 9):
        got = sample(params, random.key(steps), 3, steps=torch.tensor(steps), **options)
        want = model.sample(params, random.key(steps), 3, steps=steps, **options)
        assert torch.equal(got, want)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["continuous", "discretised", "discrete"])
def test_every_solver_compiles(kind, name):
    model = {
        "continuous": bfn.continuous(networks.mlp(4, fourier=()), (2,), 0.1, decoder=bfn.binned(8)),
        "discretised": bfn.discretised(networks.mlp(4, fourier=(), outputs=2), (2,), 8, 0.1),
        "discrete": bfn.discrete(networks.mlp(4, fourier=()), (2,), 3, 2.0),
    }[kind]
    params = model.init(random.key(0))
    sample = torch.compile(model.sample, fullgraph=True)
    for steps in (2, 5):
        got = sample(params, random.key(1), 3, steps=torch.tensor(steps), solver=ALL[name])
        assert torch.equal(got, model.sample(params, random.key(1), 3, steps=steps, solver=ALL[name]))
