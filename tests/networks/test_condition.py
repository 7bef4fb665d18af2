"""Conditions: each kind matters, drops by key, and is refused where a network does not take it."""

import perturb
import pytest
import torch
from compare import close

import purevdm
from purevdm import denoiser, networks, random, schedules, testing
from purevdm.networks import Condition

ZERO = torch.tensor(0.0)
SHAPE = (2, 4, 4)
MAKERS = {
    "mlp": lambda **k: networks.mlp(8, fourier=(), **k),
    "unet": lambda **k: networks.unet(8, (1, 2), 1, groups=4, heads=2, attention=(0,), **k),
}


def ready(network, shape=SHAPE):
    params = perturb.perturbed(network.init(random.key(0), shape), 1, 0.2)
    z = random.normal(random.key(2), shape)

    def eps_hat(cond=None, key=None):
        return network.apply(params, z, ZERO, cond=cond, key=key)

    return eps_hat


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_labels_and_vectors_matter_and_bare_tensors_are_taken(make):
    eps_hat = ready(make(classes=3))
    a, b = (eps_hat(torch.tensor(i)) for i in (0, 2))
    assert not torch.equal(a, b)
    assert torch.equal(a, eps_hat(Condition(label=torch.tensor(0, dtype=torch.uint8))))
    eps_hat = ready(make(cond_dim=2))
    a, b = (eps_hat(torch.tensor(v)) for v in ([0.0, 1.0], [1.0, 0.0]))
    assert not torch.equal(a, b)
    eps_hat = ready(make(cond_dim=2, classes=3))
    both = eps_hat(Condition(vector=torch.tensor([0.0, 1.0]), label=torch.tensor(1)))
    assert not torch.equal(both, eps_hat(Condition(vector=torch.tensor([0.0, 1.0]), label=torch.tensor(0))))


def test_a_control_sequence_matters_as_a_set_of_tokens():
    eps_hat = ready(networks.unet(8, (1, 2), 1, groups=4, heads=2, ctrl_dim=5))
    ctrl = random.normal(random.key(7), (3, 5))
    out = eps_hat(ctrl)
    assert not torch.allclose(out, eps_hat(ctrl + 1), atol=1e-3)
    torch.testing.assert_close(out, eps_hat(ctrl[[2, 0, 1]]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out, eps_hat(torch.cat([ctrl, ctrl])), rtol=1e-4, atol=1e-4)


def every_kind(make):
    options = dict(cond_dim=2, classes=3, cond_drop=0.5)
    cond = Condition(torch.tensor([1.0, 2.0]), torch.tensor(1))
    if make is MAKERS["unet"]:
        options["ctrl_dim"] = 5
        options["map_channels"] = 3
        cond = cond._replace(ctrl=random.normal(random.key(7), (3, 5)), map=random.normal(random.key(8), (3, 4, 4)))
    return ready(make(**options)), cond


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_key_drops_the_whole_condition_at_the_rate(make):
    eps_hat, cond = every_kind(make)
    given, without = eps_hat(cond), eps_hat(None)
    assert not torch.allclose(given, without, atol=1e-3)
    assert torch.equal(without, eps_hat(Condition()))
    dropped = 0
    for i in range(64):
        out = eps_hat(cond, random.key(i))
        is_given, is_without = (torch.allclose(out, other, rtol=1e-4, atol=1e-4) for other in (given, without))
        assert is_given != is_without
        dropped += is_without
    assert 16 <= dropped <= 48  # four standard deviations


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_each_example_sees_its_own_condition(make):
    cond = Condition(vector=torch.tensor([[0.5], [1.0], [2.0]]), label=torch.tensor([2, 0, 1]))
    testing.check_network(make(classes=3, cond_dim=1), SHAPE, cond=cond)


@pytest.mark.parametrize("space", [(6,), (3, 5), (3, 2, 4)])
def test_a_map_is_concatenated_to_the_input_channels(space):
    """As by hand: without what the first convolution does to it, the network is the one without a map."""
    adapter = {1: "c l -> l c", 2: "c h w -> (h w) c", 3: "c d h w -> (d h w) c"}[len(space)]
    options = dict(embed=4, multipliers=(1, 2), blocks=1, groups=2, heads=1, fourier=(1,), adapter=adapter)
    network, plain = (networks.unet(**options, self_condition=True, map_channels=n) for n in (3, 0))
    params = perturb.perturbed(network.init(random.key(0), (2, *space)), 1, 0.2)
    z, x_hat = random.normal(random.key(2), (2, 2, *space)).unbind(0)
    field = random.normal(random.key(3), (3, *space))
    kernel = params["conv_in"]["kernel"].clone()
    kernel[:, -3:] = 0.0
    without, cut = (params | {"conv_in": params["conv_in"] | {"kernel": k}} for k in (kernel, kernel[:, :-3]))
    want = plain.apply(cut, z, ZERO, x_hat=x_hat)
    close(network.apply(without, z, ZERO, cond=field, x_hat=x_hat), want, 1e-4)
    got = network.apply(params, z, ZERO, cond=field, x_hat=x_hat)
    assert torch.equal(got, network.apply(params, z, ZERO, cond=Condition(map=field), x_hat=x_hat))
    grad = torch.func.grad(lambda field: network.apply(params, z, ZERO, cond=field, x_hat=x_hat).square().sum())(field)
    assert (grad != 0).all()


def test_a_map_is_learned_from_compiled_dropped_and_guided():
    network = networks.unet(4, (1,), 1, groups=2, heads=1, map_channels=2, classes=3, cond_drop=0.3)
    model = purevdm.vdm(network, schedules.learned_linear(), (1, 3, 4), 16)
    params, x = perturb.perturbed(model.init(random.key(0)), 1, 0.1), random.randint(random.key(1), (3, 1, 3, 4), 0, 16)
    cond = Condition(label=torch.tensor([0, 2, 1]), map=random.normal(random.key(4), (3, 2, 3, 4)))
    grad_fn = torch.func.grad_and_value(model.loss_fn)
    many = [grad_fn(params, x, random.key(i), cond) for i in range(8)]
    assert any(grads["network"]["cond"]["no_map"].norm() > 0 for grads, _ in many)
    close(torch.compile(grad_fn, fullgraph=True, backend="eager")(params, x, random.key(2), cond), many[2], 1e-4)
    z, gamma, own = random.normal(random.key(5), (3, 1, 3, 4)), torch.zeros(3), params["network"]
    free = denoiser.output(network, own, z, gamma, None)
    eps = [model.denoiser(params, c, n=3)(z, gamma).eps for c in (cond, None)]
    guided = model.denoiser(params, cond, n=3, guidance=2.0)(z, gamma).eps
    torch.testing.assert_close(guided, eps[1] + 2.0 * (eps[0] - eps[1]))
    no_map = cond._replace(map=own["cond"]["no_map"][None, :, None, None].expand(3, 2, 3, 4))
    label = dict(cond=own["cond"] | {"label": {"embedding": own["cond"]["label"]["embedding"][[3, 3, 3, 3]]}})
    torch.testing.assert_close(denoiser.output(network, own | label, z, gamma, no_map), free)
    assert model.sample(params, random.key(3), 3, steps=2, cond=cond, guidance=2.0).shape == (3, 1, 3, 4)


CLASSES, VECTOR = networks.mlp(4, classes=3), networks.mlp(4, cond_dim=2)
CTRL = networks.unet(8, (1,), 1, ctrl_dim=5, heads=2)
BOTH = networks.mlp(4, cond_dim=2, classes=3)
MAP = networks.unet(8, (1,), 1, map_channels=3, heads=2)


@pytest.mark.parametrize(
    ("network", "cond", "error", "word"),
    [
        (CLASSES, torch.tensor(3), ValueError, r"cond\.label: expected integers in \[0, 2\]"),
        (CLASSES, torch.tensor(1.0), TypeError, r"cond\.label"),
        (CLASSES, None, ValueError, "label .classes=3., got None; .*cond_drop"),
        (CLASSES, Condition(vector=torch.zeros(2)), ValueError, r"cond\.vector: this network takes none"),
        (BOTH, Condition(vector=torch.zeros(2)), ValueError, r"cond\.label: expected a tensor"),
        (VECTOR, torch.zeros(3), ValueError, r"cond: expected shape \(2,\)"),
        (VECTOR, Condition(vector=torch.zeros(2), label=torch.tensor(1)), ValueError, r"cond\.label: .* takes none"),
        (VECTOR, [1.0, 2.0], TypeError, "cond: expected a Condition"),
        (CTRL, torch.zeros(4), ValueError, r"cond\.ctrl: expected shape \(tokens, 5\)"),
        (CTRL, torch.zeros(0, 5), ValueError, r"cond\.ctrl"),
        (CTRL, torch.zeros(2, 5, dtype=torch.int64), TypeError, r"cond\.ctrl"),
        (MAP, torch.zeros(3, 4, 5), ValueError, r"cond\.map: expected shape \(3, 4, 4\)"),
        (MAP, torch.zeros(3, 4, 4, dtype=torch.uint8), TypeError, r"cond\.map: expected a floating-point"),
        (MAP, None, ValueError, r"cond: expected map \(map_channels=3\), got None"),
        (BOTH, torch.zeros(2), TypeError, "a Condition with vector .*label"),
        (networks.mlp(4), torch.zeros(2), ValueError, "takes none"),
    ],
)
def test_bad_conditions_are_named(network, cond, error, word):
    with pytest.raises(error, match=word):
        network.apply({}, torch.zeros(SHAPE), ZERO, cond=cond)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        (dict(classes=-1), ValueError, "classes"),
        (dict(cond_drop=0.1), ValueError, "cond_drop: expected 0 for a network without"),
        (dict(cond_dim=0.5), TypeError, "cond_dim"),
    ],
)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_bad_options_are_named(make, options, error, word):
    with pytest.raises(error, match=word):
        make(**options)
