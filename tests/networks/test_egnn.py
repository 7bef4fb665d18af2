"""The equivariant network: laws, symmetries, points that coincide, conditions, what is refused."""

import pytest
import torch

from purevdm import networks, random, testing
from purevdm.testing.networks import _moved

KEY = random.key(0)


def made(event_shape=(5, 6), dtype=torch.float64, **options):
    network = networks.egnn(16, 2, **options)
    params = _moved(network.init(KEY, event_shape), random.key(1))
    z = random.normal(random.key(2), event_shape, dtype)
    return network, torch.utils._pytree.tree_map(lambda leaf: leaf.to(dtype), params), z


@pytest.mark.parametrize(("shape", "options"), [((5, 6), {}), ((4, 3), {"predicts": "eps"}), ((3, 4), {"coordinates": 2})])
def test_it_obeys_the_laws(shape, options):
    network = networks.egnn(16, 2, **options)
    testing.check_network(network, shape, stochastic=False)
    testing.check_permutation(network, shape)
    testing.check_padding(network, shape)


def test_it_compiles_and_takes_conditions():
    network = networks.egnn(16, 1, cond_dim=2, classes=3, cond_drop=0.5)
    cond = networks.Condition(vector=random.normal(KEY, (3, 2)), label=torch.tensor([0, 2, 1]))
    testing.check_network(network, (4, 5), cond=cond, stochastic=True, compile=True)


def test_outputs_turn_with_coordinates_and_do_not_move_with_them():
    network, params, z = made()
    gamma = torch.tensor(0.7, dtype=torch.float64)
    turn = torch.linalg.qr(random.normal(random.key(3), (3, 3), torch.float64))[0]
    found = network.apply(params, z, gamma)
    moved = torch.cat([z[:, :3] @ turn + 5.0, z[:, 3:]], 1)
    want = torch.cat([found[:, :3] @ turn, found[:, 3:]], 1)
    torch.testing.assert_close(network.apply(params, moved, gamma), want, rtol=1e-12, atol=1e-12)
    assert found[:, :3].abs().max() > 1e-3
    assert not torch.allclose(network.apply(params, z, -gamma), found)


def test_derivatives_are_finite_where_points_coincide_and_where_nothing_exists():
    network, params, z = made()
    z[1], z[3] = z[0], 0.0
    mask, gamma = torch.tensor([True, True, True, False, False])[:, None], torch.tensor(-3.0, dtype=torch.float64)

    def f(params, z):
        return network.apply(params, z, gamma, mask=mask)

    grads = torch.func.grad(lambda p: f(p, z).square().sum())(params)
    assert all(leaf.isfinite().all() for leaf in torch.utils._pytree.tree_leaves(grads))
    backward, forward = torch.func.jacrev(f, 1)(params, z), torch.func.jacfwd(f, 1)(params, z)
    assert backward.isfinite().all()
    torch.testing.assert_close(forward, backward, rtol=1e-10, atol=1e-12)
    second = torch.func.hessian(lambda z: f(params, z).square().sum())(z)
    assert second.isfinite().all()
    assert not f(params, z)[3:].any()
    torch.testing.assert_close(f(params, z)[:3], network.apply(params, z[:3], gamma), rtol=1e-12, atol=1e-12)


def test_it_computes_in_bfloat16_with_coordinates_in_float32():
    network, params, z = made(dtype=torch.float32)
    low = networks.mixed(network)
    short = torch.utils._pytree.tree_map(lambda leaf: leaf.bfloat16(), params)
    gamma = torch.tensor(0.5)
    found, want = low.apply(short, z, gamma), network.apply(params, z, gamma)
    assert found.dtype == torch.float32
    assert (found - want).norm() < 0.05 * want.norm()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.egnn(18), r"^hidden: expected a multiple of 4"),
        (lambda: networks.egnn(8), r"^hidden: expected an integer at least 16"),
        (lambda: networks.egnn(layers=0), r"^layers: expected an integer at least 1"),
        (lambda: networks.egnn(coordinates=0), r"^coordinates: expected an integer at least 1"),
        (lambda: networks.egnn(predicts="score"), r"^predicts: expected one of"),
        (lambda: networks.egnn().init(KEY, (5, 2)), r"^event_shape: expected \(points, 3 or more\)"),
        (lambda: networks.egnn().init(KEY, (6,)), r"^event_shape: expected \(points, 3 or more\)"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
