"""Integration: known solutions, orders by convergence, limits that end in an error."""

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch._dynamo.utils import counters
from versions import since_2_13

from purevdm import ode, random
from purevdm.ode import _fixed, _runge_kutta

ZERO, TWO = torch.zeros(4, dtype=torch.float64), torch.full((4,), 2.0, dtype=torch.float64)
START = (random.normal(random.key(0), (4, 3), torch.float64), torch.zeros(4, dtype=torch.float64))


def field(t, state):
    """y' = -a y + sin 3t, and an integral beside it."""
    y, _ = state
    return -torch.arange(1, 4, dtype=t.dtype) * y + torch.sin(3 * t)[:, None], y.sum(1)


def exact():
    a = torch.arange(1, 4, dtype=torch.float64)
    t, y = 2.0, START[0]
    particular = (a * math.sin(3 * t) - 3 * math.cos(3 * t)) / (a**2 + 9)
    final = (y + 3 / (a**2 + 9)) * torch.exp(-a * t) + particular
    # the integral of a y' = -a**2 y + ...: of y itself, from the equation
    forced = (1 - math.cos(3 * t)) / 3
    return final, ((y - final + forced) / a).sum(1)


def moving(t, state):
    """The first part of the field."""
    return field(t, (state[0], None))[:1]


def rated(t, state):
    return field(t, (state[0], None))


def off(done):
    return max((a - b).abs().max().item() for a, b in zip(done.state, exact(), strict=True))


@pytest.mark.parametrize(("make", "order", "stages"), [(ode.heun, 2, 2), (ode.rk4, 4, 4)])
def test_fixed_grids_converge_at_their_order(make, order, stages):
    errors = [off(make(steps)(field, START, ZERO, TWO)) for steps in (40, 80, 160)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(found - order) < 0.2 for found in orders)
    assert make(40)(field, START, ZERO, TWO).evaluations.tolist() == [40 * stages] * 4


def test_the_steps_of_the_adaptive_pair_converge_at_their_order():
    errors = [off(_fixed.Fixed(_runge_kutta.DOPRI5, steps)(field, START, ZERO, TWO)) for steps in (5, 10, 20)]
    assert all(4.8 < math.log2(a / b) < 6.2 for a, b in itertools.pairwise(errors)), errors


def test_adaptive_steps_gain_by_their_order_and_are_as_exact_as_their_tolerance():
    tolerances = (1e-6, 1e-8, 1e-10, 1e-12)
    runs = [ode.dopri5(tolerance, tolerance)(field, START, ZERO, TWO) for tolerance in tolerances]
    errors, work = [off(run) for run in runs], [run.evaluations.double().mean().item() for run in runs]
    assert all(error < 10 * tolerance for error, tolerance in zip(errors, tolerances, strict=True))
    orders = [math.log(errors[i] / errors[i + 1]) / math.log(work[i + 1] / work[i]) for i in (1, 2)]
    assert all(found > 5 - 0.3 for found in orders)


@pytest.mark.parametrize(("tableau", "order"), [(_runge_kutta.HEUN, 2), (_runge_kutta.RK4, 4), (_runge_kutta.DOPRI5, 5)])
def test_the_coefficients_satisfy_their_conditions(tableau, order):
    """Each stage is at the sum of its row. Steps integrate powers of t exactly up to their order."""
    nodes, weights = (torch.tensor(x, dtype=torch.float64) for x in (tableau.nodes, tableau.weights))
    for node, row in zip(tableau.nodes, tableau.rows, strict=True):
        assert sum(row) == pytest.approx(node, abs=1e-13)
    for power in range(order):
        assert weights @ nodes**power == pytest.approx(1 / (power + 1), abs=1e-13)
    assert abs(weights @ nodes**order - 1 / (order + 1)) > 1e-7
    assert sum(tableau.error) == pytest.approx(0.0, abs=1e-13)
    if tableau.error:
        assert tableau.rows[-1] == tableau.weights[:-1]


@pytest.mark.parametrize(("nodes", "order", "units"), [(None, 5, 10), (2, 2, 1e6), (3, 4, 100), (4, 5, 10)])
def test_integrals_along_a_solution_gain_by_their_order(nodes, order, units):
    errors, work = [], []
    for tolerance in (1e-4, 1e-7, 1e-10):
        integrator = ode.dopri5(tolerance, tolerance, quadrature=nodes)
        done, integral = integrator.along(moving, rated, START[:1], ZERO, TWO)
        errors.append((integral - exact()[1]).abs().max().item())
        work.append(done.evaluations.double().mean().item())
        assert (done.state[0] - exact()[0]).abs().max() < 10 * tolerance
        assert errors[-1] < units * tolerance
    orders = [math.log(errors[i] / errors[i + 1]) / math.log(work[i + 1] / work[i]) for i in (0, 1)]
    assert all(found > order - 0.3 for found in orders)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_points_inside_a_step_see_the_state_to_order_4_and_integrate_to_theirs(count):
    tableau = _runge_kutta.with_quadrature(_runge_kutta.DOPRI5, count)
    assert len(tableau.nodes) == len(_runge_kutta.DOPRI5.nodes) + count - 2
    for theta, row in zip(tableau.nodes[7:], tableau.rows[7:], strict=True):
        for power in range(4):
            found = sum(b * node**power for b, node in zip(row, tableau.nodes, strict=False))
            assert found == pytest.approx(theta ** (power + 1) / (power + 1), abs=1e-13)
    for power in range(2 * count - 1):
        found = sum(w * node**power for w, node in zip(tableau.quadrature, tableau.nodes, strict=True))
        assert (found == pytest.approx(1 / (power + 1), abs=1e-13)) == (power < 2 * count - 2)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_quadrature_asks_for_one_rate_fewer_than_its_points_a_step(count):
    asked = []

    def counted(t, state):
        asked.append(t)
        return rated(t, state)

    done, _ = ode.dopri5(1e-4, 1e-4, quadrature=count).along(moving, counted, START[:1], ZERO, TWO)
    steps = (done.evaluations.max().item() - 1) // (6 + count - 2)
    assert len(asked) == 1 + (count - 1) * steps


@pytest.mark.parametrize("nodes", [None, 3])
def test_derivatives_pass_through_an_integral(nodes):
    """Of the integral of y from 0 to 2, with y' = -y, by y(0): 1 - exp(-2)."""

    def integral(y):
        integrator = ode.dopri5(1e-8, 1e-8, quadrature=nodes)
        found = integrator.along(lambda t, s: (-s[0],), lambda t, s: (-s[0], s[0].sum(1)), (y,), ZERO, TWO)
        return found[1].sum()

    got = torch.func.grad(integral)(START[0])
    torch.testing.assert_close(got, torch.full_like(got, 1 - math.exp(-2.0)), rtol=1e-6, atol=0)


def test_a_reference_by_another_library():
    """SciPy's DOP853, of order 8, at a far smaller tolerance."""
    integrate = pytest.importorskip("scipy.integrate")
    y, tolerance = START[0][0], 1e-9
    a = torch.arange(1, 4, dtype=torch.float64)
    other = integrate.solve_ivp(
        lambda t, y: -a.numpy() * y + math.sin(3 * t), (0.0, 2.0), y.numpy(), "DOP853", rtol=1e-12, atol=1e-12
    )
    done = ode.dopri5(tolerance, tolerance)(lambda t, s: (field(t, (s[0], ZERO))[0],), (y[None],), ZERO[:1], TWO[:1])
    torch.testing.assert_close(done.state[0][0], torch.from_numpy(other.y[:, -1]), rtol=0, atol=20 * tolerance)


class Euler(ode.Integrator):
    """An integrator of one's own: one method."""

    def solve(self, field, state, start, stop):
        t, h = start, (stop - start) / 4096
        for _ in range(4096):
            state = tuple(y + h.reshape(-1, *[1] * (y.ndim - 1)) * k for y, k in zip(state, field(t, state), strict=True))
            t = t + h
        return ode.Solution(state, torch.full((len(start),), 4096))


def test_an_integrator_of_ones_own_is_one_method():
    done, integral = Euler().along(moving, rated, START[:1], ZERO, TWO)
    for got, want in zip((*done.state, integral), exact(), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=5e-3)


def test_it_goes_back_to_where_it_came_from():
    integrator = ode.dopri5(1e-10, 1e-10)
    there = integrator(field, START, ZERO, TWO)
    back = integrator(field, there.state, TWO, ZERO)
    for a, b in zip(back.state, START, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # errors grow by exp(6) on the way back


def with_an_integral(state, tolerance, steps):
    done, integral = ode.dopri5(tolerance, tolerance, quadrature=3).along(moving, rated, state[:1], ZERO, TWO)
    return ode.Solution((*done.state, integral), done.evaluations), ode.rk4(steps)(field, state, ZERO, TWO)


def alone(state, tolerance, steps):
    return (ode.dopri5(tolerance, tolerance)(field, state, ZERO, TWO),)


@since_2_13
@pytest.mark.parametrize(("run", "backend"), [(with_an_integral, "inductor"), (alone, "aot_eager")])
def test_one_graph_for_every_tolerance_and_number_of_steps(run, backend):
    counters.clear()
    compiled = torch.compile(run, fullgraph=True, backend=backend)
    for tolerance, steps in ((1e-4, 5), (1e-8, 50)):
        arguments = START, torch.tensor(tolerance, dtype=torch.float64), torch.tensor(steps)
        for got, want in zip(compiled(*arguments), run(*arguments), strict=True):
            assert torch.equal(got.evaluations, want.evaluations)
            for a, b in zip(got.state, want.state, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert counters["stats"]["unique_graphs"] == 1


@given(st.integers(0, 2**31), st.permutations(range(4)))
def test_examples_do_not_see_one_another(seed, order):
    state = tuple(
        random.normal(k, y.shape, torch.float64) for k, y in zip(random.split(random.key(seed)), START, strict=True)
    )
    stop = TWO * random.uniform(random.key(seed), (4,), torch.float64, 0.1, 1.0)
    whole = ode.dopri5(1e-4, 1e-4)(field, state, ZERO, stop)
    mixed = ode.dopri5(1e-4, 1e-4)(field, tuple(y[list(order)] for y in state), ZERO, stop[list(order)])
    assert torch.equal(mixed.evaluations, whole.evaluations[list(order)])
    torch.testing.assert_close(mixed.state[0], whole.state[0][list(order)], rtol=1e-12, atol=1e-12)


def wild(t, state):
    """Not finite from t = 1.2 on, in the third example alone."""
    bad = (t > 1.2) & (torch.arange(4) == 2)
    return torch.where(bad[:, None], math.nan, -state[0]), state[1]


def test_a_field_that_is_not_finite_is_an_error_that_names_the_step():
    with pytest.raises(ValueError, match=r"field: expected finite slopes, got NaN or infinity in example 2, step 6"):
        ode.rk4(10)(wild, START, ZERO, TWO)
    with pytest.raises(ValueError, match=r"field: example 2 stopped at 1.2 on its way to 2, after \d+ steps"):
        ode.dopri5()(wild, START, ZERO, TWO)
    with pytest.raises(ValueError, match="field: example"):
        ode.dopri5()(lambda t, s: (s[0] * math.nan, s[1]), START, ZERO, TWO)

    def unrated(t, state):
        slopes, _ = wild(t, (*state, ZERO))
        return -state[0], slopes.sum(1)

    for nodes in (None, 2, 4):
        with pytest.raises(ValueError, match=r"field: example 2 stopped at 1.2\d* on its way to 2, after \d+ steps"):
            ode.dopri5(quadrature=nodes).along(lambda t, s: (-s[0],), unrated, START[:1], ZERO, TWO)


@since_2_13
def test_a_compiled_graph_gives_nan_where_an_error_would_be():
    solve = torch.compile(
        lambda state: ode.dopri5(limit=40)(wild, state, ZERO, TWO).state[0], fullgraph=True, backend="eager"
    )
    got = solve(START)
    assert got[2].isnan().all()
    assert got[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ode.dopri5(rtol=torch.tensor(-1e-3)), "rtol: expected a finite number above 0, got -"),
        (lambda: ode.dopri5(quadrature=5), "quadrature: expected 2, 3 or 4 points a step, or None, got 5"),
        (lambda: ode.dopri5()(field, START[0], ZERO, TWO), "state: expected a tuple of tensors"),
        (lambda: ode.dopri5()(field, START, ZERO[0], TWO), "start: expected shape"),
        (lambda: ode.rk4(torch.tensor(0)), "steps"),
        (lambda: ode.dopri5(1e-9, 1e-9, limit=3)(field, START, ZERO, TWO), "limit: example 0 stopped at"),
    ],
)
def test_bad_input_is_named(make, word):
    with pytest.raises((TypeError, ValueError), match=word):
        make()


@pytest.mark.parametrize("make", [lambda: ode.dopri5(1e-8, 1e-8), lambda: ode.rk4(40)], ids=["dopri5", "rk4"])
def test_derivatives_pass_also_where_the_state_is_zero(make):
    def end(y):
        return make()(lambda t, state: (-state[0],), (y,), ZERO, TWO).state[0].sum()

    # From zero no error is seen, and the adaptive steps are as long as they may be.
    for start, rtol in ((START[0][:, :1], 1e-6), (torch.zeros(4, 1, dtype=torch.float64), 2e-3)):
        torch.testing.assert_close(torch.func.grad(end)(start), torch.full_like(start, math.exp(-2.0)), rtol=rtol, atol=0)


@pytest.mark.parametrize("of", ["state", "rate"])
def test_a_compiled_loop_refuses_derivatives(of):
    given = {name: torch.ones(4, 1, dtype=torch.float64, requires_grad=name == of) for name in ("state", "rate")}
    integrate = ode.rk4(3)

    def end(state, rate):
        return integrate(lambda t, s: (-rate * s[0],), (state,), ZERO, TWO).state[0]

    solve = torch.compile(end, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="integrator: a compiled loop passes no derivatives"):
        solve(**given)
    with torch.no_grad():
        torch.testing.assert_close(solve(**given), end(**given))


@pytest.mark.parametrize("make", [lambda: ode.dopri5(), lambda: ode.dopri5(quadrature=3), lambda: ode.rk4(1000)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_times_are_as_exact_as_they_are_given(make, dtype):
    start, seen = torch.full((2,), 2.0**24, dtype=torch.float64), set()

    def field(t, state):
        seen.add((t.dtype, state[0].dtype))
        return (-state[0],)

    def rated(t, state):
        return *field(t, state), (t - 2**24).to(dtype)

    done, integral = make().along(field, rated, (torch.ones(2, 1, dtype=dtype),), start, start + 1)
    for got, want in ((done.state[0], math.exp(-1)), (integral, 0.5)):
        assert got.dtype == dtype
        torch.testing.assert_close(got, torch.full_like(got, want), rtol=max(torch.finfo(dtype).eps, 1e-5), atol=0)
    assert seen == {(torch.float64, dtype)}


def test_a_state_of_few_bits_is_added_up_in_float32():
    """A thousandth of it is less than bfloat16 resolves."""
    one = torch.ones(1, dtype=torch.bfloat16)
    done = ode.heun(1000)(lambda t, state: (torch.ones_like(state[0]),), (one,), 0 * one, one)
    assert done.state[0].item() == 2.0
