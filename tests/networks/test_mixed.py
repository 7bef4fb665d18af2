"""Mixed precision: float32 outside, a shorter dtype inside, close to the whole."""

import optree
import perturb
import pytest
import torch
from parts import changed

import purevdm
from purevdm import denoiser, networks, random, schedules
from purevdm.networks import Condition

MAKERS = {
    "mlp": lambda: networks.mlp(32, fourier=(0, 1), classes=3, cond_dim=1),
    "unet": lambda: networks.unet(
        16, (1, 2), 1, groups=4, heads=2, classes=3, cond_dim=1, ctrl_dim=4, fourier=(6, 7), dropout=0.2
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_bfloat16_inside_float32_outside(name):
    whole, seen = MAKERS[name](), []

    def spy(params, z, gamma, **options):
        seen.append({leaf.dtype for leaf in optree.tree_leaves(params)} | {z.dtype, gamma.dtype})
        return whole.apply(params, z, gamma, **options)

    network = networks.mixed(changed(whole, apply=spy))
    params = perturb.perturbed(network.init(random.key(0), (2, 6, 6)), 1, 0.05)
    assert {leaf.dtype for leaf in optree.tree_leaves(params)} == {torch.float32}
    z = random.normal(random.key(2), (2, 6, 6))
    ctrl = random.normal(random.key(3), (3, 4)) if name == "unet" else None
    cond = optree.tree_map(lambda leaf: leaf[None], Condition(torch.ones(1), torch.tensor(2), ctrl))
    batch = (params, z[None], torch.tensor([-2.0]), cond, random.key(5)[None])
    full, short = denoiser.output(whole, *batch), denoiser.output(network, *batch)
    assert seen == [{torch.bfloat16, torch.float32}]
    assert short.dtype == torch.float32
    assert not torch.equal(short, full)
    assert (short - full).norm() < 0.03 * full.norm()


def test_gradients_are_float32_and_near():
    def model(network):
        return purevdm.vdm(network, schedules.learned_linear(-6.0, 4.0), (1, 5, 5), 16)

    plain = networks.vdm_unet(16, 1, groups=4, fourier=(0,), dropout=0.0)
    params = perturb.perturbed(model(plain).init(random.key(0)), 1, 0.05)
    x = random.randint(random.key(1), (8, 1, 5, 5), 0, 16)
    grad = [torch.func.grad_and_value(model(n).loss_fn) for n in (plain, networks.mixed(plain))]
    (full, loss), (short, _) = (f(params, x, random.key(2)) for f in grad)
    flat = [torch.cat([leaf.flatten() for leaf in optree.tree_leaves(tree["network"])]) for tree in (full, short)]
    assert flat[1].dtype == torch.float32
    assert (flat[1] - flat[0]).norm() < 0.1 * flat[0].norm()
    # sums of terms as large as the loss, with the eight bits of bfloat16
    torch.testing.assert_close(short["schedule"], full["schedule"], rtol=0, atol=2**-6 * loss.item())


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match="dtype: expected"):
        networks.mixed(networks.mlp(4), torch.float64)
