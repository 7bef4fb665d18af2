"""Products of decoders: the parts' own numbers side by side, trees there and back, what is refused."""

import math

import pytest
import torch

import purevdm
from purevdm import decoders, networks, parts, random, schedules, testing
from purevdm.testing.networks import _moved

F64 = torch.float64
KEY = random.key(0)
DECODER = decoders.product(
    positions=(decoders.gaussian(scale=1.5), 3),
    types=decoders.one_hot(5, scale=4.0),
    charges=(decoders.integers(0, scale=8.0), 2),
)


def tree(n=7, key=KEY):
    k_x, k_type, k_charge = random.split(key, 3)
    types, charges = random.randint(k_type, (2, n), 0, 5), random.randint(k_charge, (2, n, 2), 0, 9)
    return {"positions": random.normal(k_x, (2, n, 3), F64), "types": types.long(), "charges": charges.long()}


def test_a_tree_is_joined_and_split_again():
    given = tree()
    x = DECODER.join(**given)
    assert (x.shape, x.dtype, DECODER.latent_shape(x.shape)) == ((2, 7, 6), F64, (2, 7, 10))
    back = DECODER.split(x)
    assert all(torch.equal(back[name], given[name]) for name in given)
    assert DECODER.check(x).all()
    assert torch.equal(DECODER.mode({}, DECODER.encode({}, x, dtype=F64)).round(decimals=12), x.round(decimals=12))


@pytest.mark.parametrize("level", [torch.tensor(-3.0), torch.tensor([-3.0, -1.0]), "each"])
def test_each_part_has_the_numbers_of_its_decoder(level):
    """With one noise level, one for each example, or one for each number of the latent."""
    given, params = tree(), {}
    x, eps = DECODER.join(**given), random.normal(random.key(1), (2, 7, 10), F64)
    gamma_0 = -3.0 + eps.abs() if level == "each" else level.double().reshape(-1, 1, 1)
    z = DECODER.encode(params, x, dtype=F64) + torch.exp(0.5 * gamma_0) * eps
    latents = [slice(0, 3), slice(3, 8), slice(8, 10)]
    wants = []
    for (name, own, columns), at in zip(DECODER.parts, latents, strict=True):
        of = gamma_0[..., at] if level == "each" else gamma_0
        z_0 = z[..., at]
        if name == "types" and level != "each":
            want = own.log_prob({}, given[name], z_0, of)
        else:
            want = own.log_prob({}, given[name], z_0, of)
        wants.append(want if columns else want[..., None])
    want = torch.cat(wants, -1)
    torch.testing.assert_close(DECODER.log_prob(params, x, z, gamma_0), want, rtol=1e-12, atol=1e-12)
    found = DECODER.reconstruction(params, x, eps, gamma_0)
    torch.testing.assert_close(found, -want, rtol=1e-9, atol=1e-9)


def test_a_product_obeys_the_laws_of_its_parts():
    testing.check_decoder(DECODER)
    low, high = DECODER.bounds(torch.zeros(2, 10))
    assert low[0].tolist() == [-math.inf] * 3 + [0.0] * 5 + [-math.inf] * 2
    assert high[0].tolist() == [math.inf] * 3 + [0.25] * 5 + [math.inf] * 2
    assert decoders.product(a=decoders.gaussian()).bounds(torch.zeros(1)) is None
    assert (DECODER.unit, decoders.product(a=decoders.discrete(4)).unit) == ("nats", "bits/dim")


def test_a_mask_of_data_becomes_one_of_latents():
    whole = torch.tensor([True, False])[:, None]
    assert torch.equal(DECODER.latent_mask(whole), whole)
    columns = torch.tensor([[True, True, False, True, False, True], [False, True, True, False, True, True]])
    want = columns[:, [0, 1, 2, 3, 3, 3, 3, 3, 4, 5]]
    assert torch.equal(DECODER.latent_mask(columns), want)


def molecules(n=5, layers=2, **options):
    options = dict(subspace=parts.zero_centre(columns=3), dtype=F64) | options
    return purevdm.vdm(networks.egnn(16, layers), schedules.fixed_linear(-6.0, 5.0), (n, 6), decoder=DECODER, **options)


@pytest.mark.parametrize("timesteps", [0, 9])
def test_a_model_of_a_product_takes_masks_and_a_subspace_of_its_coordinates(timesteps):
    """The padded bound is the unpadded one's; the terms of a part that is masked off are 0; dimensions are counted."""
    wide, narrow = molecules(timesteps=timesteps), molecules(3, timesteps=timesteps)
    params = wide.init(KEY)
    params = params | {"network": _moved(params["network"], random.key(5))}
    mask = (torch.arange(5) < 3)[None, :, None]
    x = wide.subspace.project(DECODER.join(**tree(5)), mask.expand(2, 5, 1))
    noise = wide.draw(random.key(1), 2, train=False)
    cut = noise._replace(eps_0=noise.eps_0[:, :3], eps=noise.eps[:, :3])
    padded = purevdm.bound.bound(wide, params, x, noise, mask=mask)
    alone = purevdm.bound.bound(narrow, params, x[:, :3], cut)
    for a, b in zip(padded, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    full = torch.ones(2, 3, 6, dtype=torch.bool)
    assert wide.subspace.rank(full).tolist() == [6 + 9] * 2
    torch.testing.assert_close(wide.subspace.share(full).sum((1, 2)), torch.full((2,), 15.0, dtype=F64))
    grads = torch.func.grad(wide.loss_fn)(params, x, random.key(2), mask=mask)
    assert all(leaf.isfinite().all() for leaf in torch.utils._pytree.tree_leaves(grads))
    for decode in ("argmax", "sample"):
        drawn = wide.sample(params, KEY, 2, steps=4, mask=mask.expand(2, 5, 1), decode=decode)
        assert DECODER.check(drawn).all()
        assert drawn[..., :3].sum(1).abs().max() < 1e-12
        assert not drawn[:, 3:].any()


def test_a_model_of_a_product_obeys_the_laws():
    model = molecules(dtype=torch.float32)
    params = model.init(KEY)
    params = params | {"network": _moved(params["network"], random.key(5))}
    x = model.subspace.project(DECODER.join(**tree(5)).float())
    testing.check_model(model, params, x)
    testing.check_rotation(model, params, x)


def test_bounds_gradients_and_samples_are_one_graph():
    model = molecules(layers=1, dtype=torch.float32)
    params, mask = model.init(KEY), (torch.arange(5) < 3)[None, :, None].expand(2, 5, 1)
    x = model.subspace.project(DECODER.join(**tree(5)).float(), mask)
    options = dict(fullgraph=True, backend="aot_eager")
    grad = torch.func.grad_and_value(model.loss_fn)
    found, want = torch.compile(grad, **options)(params, x, KEY, mask=mask), grad(params, x, KEY, mask=mask)
    pairs = zip(*map(torch.utils._pytree.tree_leaves, (found, want)), strict=True)
    assert all((a - b).norm() <= 1e-4 * b.norm() + 1e-6 for a, b in pairs)
    drawn = torch.compile(lambda key: model.sample(params, key, 2, steps=3, mask=mask, decode="sample"), **options)(KEY)
    assert DECODER.check(drawn).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": 1.0}, r"^x: expected data in the model's subspace, ZeroCentre\(axis=0, columns=3\)"),
        (
            {"charges": -9},
            r"^x: expected columns of positions \(3: finite numbers\), types .*charges \(2: integers in \[0, ",
        ),
        ({"charges": 0.5}, r"^x: expected columns of"),
        ({"types": 5}, r"^x: expected columns of"),
        ({"types": math.nan}, r"^x: expected columns of"),
        ({"types": math.inf}, r"^x: expected columns of"),
    ],
)
def test_data_that_are_none_are_refused(change, message):
    model = molecules()
    x = model.subspace.project(DECODER.join(**tree(5)))
    ((name, by),) = change.items()
    x[..., {"positions": 0, "types": 3, "charges": 4}[name]] += by
    with pytest.raises(ValueError, match=message):
        model.nll_bound(model.init(KEY), x, KEY)


def test_settings_and_trees_that_do_not_fit_are_refused():
    options = dict(decoder=DECODER, event_shape=(5, 6))
    schedule = schedules.fixed_linear(-6.0, 5.0)
    for subspace in (parts.zero_centre(), parts.zero_centre(columns=2)):
        with pytest.raises(ValueError, match=r"^subspace: expected a decoders\.gaussian with one scale for its columns"):
            purevdm.vdm(networks.egnn(16, 1), schedule, subspace=subspace, **options)
    with pytest.raises(ValueError, match=r"^event_shape: expected a last axis of 6, columns of positions"):
        purevdm.vdm(networks.egnn(16, 1), schedule, **options | {"event_shape": (5, 5)})
    with pytest.raises(ValueError, match=r"^parts: expected at least one"):
        decoders.product()
    with pytest.raises(TypeError, match=r"^a: expected a decoder, or a pair"):
        decoders.product(a=3)
    with pytest.raises(ValueError, match=r"^tree: expected the parts positions, types, charges, got positions"):
        DECODER.join(positions=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"^types: expected shape"):
        DECODER.join(**tree() | {"types": torch.zeros(2, 8)})
    with pytest.raises(ValueError, match=r"^x: expected 6 columns"):
        DECODER.split(torch.zeros(2, 5))
    with pytest.raises(TypeError, match=r"^x: expected a tensor of float32 or float64"):
        DECODER.check(torch.zeros(2, 6, dtype=torch.int64))


def test_parts_may_learn():
    class Learned(type(decoders.gaussian())):
        def init(self, key):
            return {"log_scale": torch.zeros(())}

        def reconstruction(self, params, x, eps_0, gamma_0, cond=None, estimate=None):
            return super().reconstruction({}, x, eps_0, gamma_0) + params["log_scale"]

    decoder = decoders.product(a=(Learned(0.0, 1.0), 2), b=decoders.discrete(4))
    model = purevdm.vdm(networks.mlp(8), schedules.fixed_linear(-6.0, 5.0), (3,), decoder=decoder)
    params = model.init(KEY)
    assert list(params["decoder"]) == ["a"]
    x = decoder.join(a=torch.zeros(4, 2), b=torch.arange(4))
    grad = torch.func.grad(lambda p: model.nll_bound(p, x, KEY).total.mean())(params)
    assert grad["decoder"]["a"]["log_scale"] == 2.0
