"""Estimates over bins: the closed form, both ways to a batch, and what certainty is worth."""

import pytest
import torch

import purevdm
from purevdm import _apply, bfn, codec, networks, process, random, schedules, testing, training
from purevdm.bfn import distributions

BINS, SHAPE = 5, (1, 4, 4)
KEYS = random.split(random.key(0), 4)
UNET = networks.vdm_unet(4, 1, groups=2, outputs=2)


def model(network):
    return purevdm.vdm(networks.binned(network, BINS), schedules.fixed_linear(-8.0, 4.0), SHAPE, vocab_size=BINS)


@pytest.mark.parametrize("gamma", [-8.0, 0.0, 4.0])
def test_the_estimate_is_the_mean_of_the_bins_under_the_stated_normal(gamma):
    z, outputs = random.normal(KEYS[0], (3, 7), torch.float64), random.normal(KEYS[1], (3, 7, 2), torch.float64)
    network = networks.binned(networks.Network.of(lambda *_: {}, lambda *_, **__: outputs, outputs=2), BINS)
    gamma = torch.tensor(gamma, dtype=torch.float64)
    mean = (z - process.sigma(gamma) * (z + outputs[..., 0])) / process.alpha(gamma)
    log_p = distributions.bin_log_probs(mean, outputs[..., 1].exp() * torch.exp(0.5 * gamma), BINS)
    centres = bfn.binned(BINS).encode({}, torch.arange(BINS), dtype=torch.float64)
    torch.testing.assert_close(network.apply({}, z, gamma), log_p.exp() @ centres, rtol=0, atol=1e-12)


def test_a_sure_estimate_is_exact():
    """The noise is predicted with an error of 0.3 of its size; at gamma_0 the levels are some 20 deviations apart."""
    x = random.randint(KEYS[0], (8, *SHAPE), 0, BINS)

    def near(params, z, gamma, cond=None, key=None):
        data = bfn.binned(BINS).encode({}, params["x"])
        eps = process.eps_from_x(z, data, gamma) + 0.3
        return torch.stack([eps - z, torch.full_like(z, -1.0)], -1)

    network = networks.Network.of(lambda *_: {}, near, outputs=2, batched=True)
    own, gamma = networks.binned(network, BINS), torch.full((8, 1, 1, 1), -8.0)
    data = bfn.binned(BINS).encode({}, x)
    z = process.diffuse(data, gamma, random.normal(KEYS[1], data.shape))
    torch.testing.assert_close(own.apply({"x": x}, z, gamma), data, rtol=0, atol=1e-6)


def test_batches_whole_and_by_example_are_one():
    network = networks.binned(UNET, BINS)
    params = network.init(KEYS[0], SHAPE)
    z, gamma = random.normal(KEYS[1], (3, *SHAPE)), torch.tensor([-7.0, 0.0, 3.0])
    by_example = torch.func.vmap(lambda z, gamma: network.apply(params, z, gamma))(z, gamma)
    whole = _apply.for_batch(network, params, z, gamma)
    torch.testing.assert_close(whole(params, z, gamma), by_example, rtol=1e-5, atol=1e-5)
    assert _apply.for_batch(networks.binned(networks.mlp(4, outputs=2), BINS), params, z, gamma) is None


@pytest.mark.parametrize("network", [UNET, networks.mlp(8, outputs=2)], ids=["unet", "mlp"])
def test_a_model_keeps_the_laws_and_its_gradients_are_one(network):
    own, x = model(network), random.randint(KEYS[0], (6, *SHAPE), 0, BINS)
    params = own.init(KEYS[1])
    testing.check_model(own, params, x)
    grads, loss = torch.func.grad_and_value(own.loss_fn)(params, x, KEYS[2])
    others, _ = training.gradients(own)(params, x, KEYS[2])
    torch.testing.assert_close(others["network"], grads["network"], rtol=1e-4, atol=1e-5)
    compiled = torch.compile(own.loss_fn, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(params, x, KEYS[2]), loss)


def test_files_come_back():
    own, x = model(UNET), random.randint(KEYS[0], (4, *SHAPE), 0, BINS)
    params = own.init(KEYS[1])
    assert torch.equal(codec.decode(own, params, codec.encode(own, params, x, timesteps=10)), x)


@pytest.mark.parametrize(
    ("network", "bins", "error", "message"),
    [
        (networks.mlp(4), 5, ValueError, "network: expected outputs=2 and predicts='eps', got outputs=None"),
        (networks.mlp(4, outputs=2, predicts="v"), 5, ValueError, "got outputs=2, predicts='v'"),
        (networks.mlp(4, outputs=2), 1, ValueError, "bins: expected"),
        (torch.nn.Linear(2, 2), 5, TypeError, "network: expected a purevdm Network"),
    ],
)
def test_bad_input(network, bins, error, message):
    with pytest.raises(error, match=message):
        networks.binned(network, bins)
