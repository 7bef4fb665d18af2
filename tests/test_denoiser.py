"""A network applied to a batch: mapped or whole, whatever it predicts, self-conditioned, guided, clamped."""

import optree
import perturb
import pytest
import torch
from compare import close, decoded_alike

import purevdm
from purevdm import decoders, denoiser, networks, nn, process, random, schedules


def self_conditioned():
    network = networks.mlp(8, fourier=(), self_condition=True)
    model = purevdm.vdm(network, schedules.learned_linear(), (2,), 16)
    return model, perturb.perturbed(model.init(random.key(0)), 1, 0.5)


def test_self_conditioning_predicts_twice_and_half_of_the_time_in_training():
    model, params = self_conditioned()
    z, gamma = random.normal(random.key(1), (2,)), torch.tensor(-1.0)
    apply, network = model.network.apply, params["network"]
    first = apply(network, z, gamma)
    x_hat = process.x_from_eps(z, first, gamma).clamp(-15 / 16, 15 / 16)
    second = apply(network, z, gamma, x_hat=x_hat)
    assert (first - second).norm() > 1e-3

    def predict(keys=None, params=network, n=1):
        return denoiser.Denoiser(model.network, model.decoder, params, key=keys).eps(z.expand(n, 2), gamma.expand(n))

    near = dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predict()[0], second, **near)
    torch.testing.assert_close(model.eps_hat(params, z[None], gamma[None])[0], second, **near)
    outs = predict(random.split(random.key(7), 64), n=64)
    estimated = sum(torch.allclose(out, second, **near) for out in outs)
    assert estimated + sum(torch.allclose(out, first, **near) for out in outs) == 64
    assert 16 <= estimated <= 48
    # no gradient through the estimate
    through = torch.func.grad(lambda p: predict(params=p).sum())(network)
    held = torch.func.grad(lambda p: apply(p, z, gamma, x_hat=x_hat).sum())(network)
    for a, b in zip(optree.tree_leaves(through), optree.tree_leaves(held), strict=True):
        torch.testing.assert_close(a, b, **near)


def linear(predicts="eps", batched=False):
    """One layer of z and gamma, written for one example or for a batch."""

    def init(key, event_shape):
        return nn.dense_init(key, event_shape[0] + 1, event_shape[0])

    def apply(params, z, gamma, cond=None, key=None):
        h = nn.dense(params, torch.cat([z, gamma[..., None]], -1))
        if key is not None:  # dropout, by each example's key
            keep = torch.func.vmap(lambda k: random.bernoulli(k, 0.5, z.shape[-1:]))(key) if batched else None
            h = h * (random.bernoulli(key, 0.5, z.shape) if keep is None else keep)
        return h

    return networks.Network.of(init, apply, batched=batched, predicts=predicts)


def test_a_batched_network_is_the_mapped_one():
    """Losses, gradients, dropout by key, the explicit noise of one example, samples."""
    mapped, whole = (purevdm.vdm(linear(batched=b), schedules.learned_linear(), (3,), 16) for b in (False, True))
    params, x = mapped.init(random.key(0)), random.randint(random.key(1), (5, 3), 0, 16)
    for train in (True, False):
        pair = [torch.func.grad_and_value(m.loss_fn)(params, x, random.key(2), train=train) for m in (mapped, whole)]
        close(*pair, 1e-4)
    noise = mapped.draw(random.key(3), 1)
    one = type(noise)(*(field[0] for field in noise))
    close(*(m.nll_bound_of_one(params, x[0], one) for m in (mapped, whole)), 1e-5)
    decoded_alike(*(m.sample(params, random.key(4), 3, steps=5) for m in (mapped, whole)))


def test_every_prediction_is_converted():
    """Ideal networks for one source that predict the noise, the data and v have one bound."""
    std, bounds = 0.4, []
    x, params = random.randint(random.key(1), (8, 3), 0, 256), {"network": {}, "schedule": {}}
    for predicts in ("eps", "x", "v"):

        def apply(params, z, gamma, cond=None, key=None, predicts=predicts):
            alpha, sigma = process.alpha(gamma), process.sigma(gamma)
            x = std**2 * alpha / (alpha**2 * std**2 + sigma**2) * z
            return {"eps": process.eps_from_x(z, x, gamma), "x": x, "v": (alpha * z - x) / sigma}[predicts]

        network = networks.Network.of(lambda key, shape: {}, apply, predicts=predicts)
        model = purevdm.vdm(network, schedules.fixed_linear(-9.0, 9.0), (3,), dtype=torch.float64)
        bounds.append(model.nll_bound(params, x, random.key(2)).total)
        assert model.sample(params, random.key(3), 2, steps=4).shape == (2, 3)
    torch.testing.assert_close(bounds[1], bounds[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(bounds[2], bounds[0], rtol=1e-10, atol=1e-10)


class Joined(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(17, 16)

    def forward(self, z, gamma):
        return self.layer(torch.cat([z.flatten(1), gamma[:, None]], 1)).reshape(z.shape)


UNET = dict(groups=4, fourier=(0,), heads=1)


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: networks.unet(8, (1, 2), 1, **UNET, **options),
        lambda **options: networks.vdm_unet(8, 1, **UNET, **options),
        lambda **options: networks.mlp(8, **options),
        lambda **options: networks.mixed(networks.mlp(8, **options)),
        lambda **options: networks.from_module(Joined, **options),
    ],
)
def test_every_network_predicts_v(make):
    """Its output is v itself, no z added; the loss is gamma' alpha**2 |v - v_hat|**2 / 2; samples and gradients follow."""
    model = purevdm.vdm(make(predicts="v"), schedules.learned_linear(-4.0, 4.0), (1, 4, 4), 16)
    assert not model.network.residual
    params = perturb.perturbed(model.init(random.key(0)), 1, 0.1)
    x = random.randint(random.key(2), (5, 1, 4, 4), 0, 16)
    noise = model.draw(random.key(3), 5, train=False)
    gamma, slope = schedules.gamma_and_slope(model.schedule, params["schedule"], noise.t)
    level, f = process.align(gamma, x), model.decoder.encode({}, x)
    z = process.diffuse(f, level, noise.eps)
    v_hat = denoiser.output(model.network, params["network"], z, gamma)
    v = process.alpha(level) * noise.eps - process.sigma(level) * f
    want = 0.5 * slope * (process.alpha(level) * (v - v_hat)).square().sum((1, 2, 3))
    torch.testing.assert_close(model.nll_bound(params, x, random.key(3)).diffusion, want, rtol=1e-4, atol=1e-4)
    grads = torch.func.grad(model.loss_fn)(params, x, random.key(3))
    assert sum(leaf.abs().sum() for leaf in optree.tree_leaves(grads["network"])) > 0
    assert model.sample(params, random.key(4), 2, steps=2).shape == (2, 1, 4, 4)
    with pytest.raises(ValueError, match="predicts: expected one of 'eps', 'x', 'v'"):
        make(predicts="velocity")


def test_a_residual_network_returns_z_where_its_layers_return_nothing():
    network = networks.unet(8, (1,), 1, groups=4)
    z = random.normal(random.key(0), (2, 1, 4, 4))
    assert network.residual
    assert torch.equal(denoiser.output(network, network.init(random.key(1), (1, 4, 4)), z, torch.zeros(2)), z)


@pytest.mark.parametrize(
    ("network", "shape"), [(networks.unet(8, (1,), 1, groups=4, outputs=3), (2, 4, 4)), (networks.mlp(8, outputs=3), (4,))]
)
def test_several_outputs_for_each_number(network, shape):
    params = perturb.perturbed(network.init(random.key(1), shape), 2, 0.1)
    z, gamma = random.normal(random.key(0), (2, *shape)), torch.zeros(2)
    assert denoiser.output(network, params, z, gamma).shape == (2, *shape, 3)
    with pytest.raises(ValueError, match="network: expected one output"):
        denoiser.Denoiser(network, decoders.gaussian(), params).eps(z, gamma)


def test_guidance_of_known_noises_is_linear():
    a, b = random.normal(random.key(0), (2, 5), torch.float64)
    torch.testing.assert_close(denoiser.guide(a, b, 2.5), 2.5 * a - 1.5 * b)
    each = denoiser.guide(a[:, None], b[:, None], torch.arange(5.0).double())
    torch.testing.assert_close(each[:, 0], b + torch.arange(5.0) * (a - b))


def test_a_clamped_prediction_agrees_with_itself():
    model, params = self_conditioned()
    z, gamma = 3 * random.normal(random.key(1), (4, 2)), torch.linspace(-3, 3, 4)
    eps, x = model.denoiser(params, n=4, clip=True)(z, gamma)
    assert x.abs().max() <= 15 / 16
    torch.testing.assert_close(process.diffuse(x, process.align(gamma, z), eps), z, rtol=1e-5, atol=1e-5)


def test_what_torch_cannot_do_under_vmap_is_said_in_our_words():
    def draws(params, z, gamma, cond=None, key=None):
        return z + torch.randn(2)

    network = networks.Network.of(lambda key, shape: {}, draws)
    with pytest.raises(RuntimeError, match=r"network: .*draws draws from torch's global generator under vmap.*purevdm\.ran"):
        denoiser.output(network, {}, torch.zeros(3, 2), torch.zeros(3))
