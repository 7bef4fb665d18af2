"""The step: pure, the same in pieces as in one, stopping where the loss is not finite."""

import math
from functools import partial

import pytest
import tiny
import torch
from compare import close, moved_alike
from optree import tree_leaves, tree_map
from perturb import perturbed

import purevdm
from purevdm import networks, random, schedules, training
from purevdm.networks import Condition

OTHER = training.init(tiny.model(classes=3), random.key(0))


def steps(n, **options):
    model, state = tiny.model(), tiny.state()
    grad_fn = training.gradients(model, **options)
    for i in range(n):
        state, metrics = training.train_step(tiny.SETTINGS, grad_fn, state, tiny.data(seed=i), random.key(3))
    return state, metrics


def same(a, b):
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def test_a_step_leaves_its_state_and_repeats_bit_for_bit():
    state = tiny.state()
    before = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, state)
    grad_fn = training.gradients(tiny.model())
    settings = tiny.SETTINGS._replace(warmup=0)
    runs = [training.train_step(settings, grad_fn, state, tiny.data(), random.key(3)) for _ in range(2)]
    assert same(runs[0][0], runs[1][0])
    assert same(state, before)
    assert runs[0][0].step == 1
    assert not torch.equal(runs[0][0].params["network"]["dense1"]["kernel"], state.params["network"]["dense1"]["kernel"])


def test_metrics_are_of_the_documented_key():
    model, state = tiny.model(), tiny.state()._replace(step=7)
    _, metrics = training.train_step(tiny.SETTINGS, training.gradients(model), state, tiny.data(), random.key(3))
    loss, stats = model.loss_and_stats(state.params, tiny.data(), random.fold_in(random.key(3), 7))
    assert math.isclose(metrics["loss"], loss, rel_tol=1e-6)
    assert math.isclose(metrics["diffusion"], stats["diffusion"], rel_tol=1e-6)
    assert metrics["lr"] == training.learning_rate(tiny.SETTINGS, 7)
    assert metrics["grad_norm"] > 0


def test_gradients_are_those_of_func_and_touch_nothing_else():
    """In eager mode, with autograd switched off, under a transform; not those of what a network closes over."""
    outside = torch.ones((), requires_grad=True)
    network = networks.vdm_unet(8, 1, fourier=(), groups=4, dropout=0.5, gamma_min=-8.0, gamma_max=4.0)
    own = networks.Network.of(network.init, lambda *args, **kwargs: network.apply(*args, **kwargs) * outside)
    x, key = random.randint(random.key(1), (3, 1, 4, 4), 0, 16), random.key(2)
    for net in (network, own):
        model = purevdm.vdm(net, schedules.learned_linear(-8.0, 4.0), (1, 4, 4), 16, dtype=torch.float64)
        params = perturbed(model.init(random.key(0)), 1, 0.1)
        want, loss = torch.func.grad_and_value(model.loss_fn)(params, x, key)
        with torch.no_grad():
            grads, (value, _) = training.gradients(model)(params, x, key)
        close((grads, value), (want, loss), 1e-5)
        many = torch.func.vmap(training.gradients(model), (None, 0, None))(params, torch.stack([x, x]), key)[0]
        close(tree_map(lambda leaf: leaf[1], many), want, 1e-5)
    assert outside.grad is None


def test_a_batch_with_its_condition_is_both_arguments():
    model, (x, label) = tiny.model(classes=3), (tiny.data(), torch.arange(8) % 3)
    for options in ({}, {"accumulate": 2}, {"remat": True}):
        gradients = training.gradients(model, **options)
        assert same(gradients(OTHER.params, (x, label), random.key(1)), gradients(OTHER.params, x, random.key(1), label))


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_pieces_are_the_whole(accumulate):
    pieces, whole, start = (s.params for s in (steps(3, accumulate=accumulate)[0], steps(3)[0], tiny.state()))
    moved_alike(pieces, whole, start)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"remat": True}], ids=str)
def test_a_batch_is_its_parts(options):
    model, x, label, mask = (
        tiny.model(classes=3),
        tiny.data(),
        torch.arange(len(tiny.data())) % 3,
        torch.ones_like(tiny.data()),
    )
    params, grad_fn, mask = OTHER.params, training.gradients(model, **options), mask.bool()
    want = grad_fn(params, x, random.key(3), label)
    assert same(grad_fn(params, (x, label), random.key(3)), want)
    assert same(grad_fn(params, (x, label, mask), random.key(3)), grad_fn(params, x, random.key(3), label, mask=mask))
    assert same(grad_fn(params, [x, label, None], random.key(3)), want)
    for batch, cond, word in (
        ((x, label), label, "cond: expected it in the batch only"),
        ((), None, "x: expected data or a"),
    ):
        with pytest.raises((TypeError, ValueError), match=word):
            grad_fn(params, batch, random.key(3), cond)


def test_rows_of_a_batch_average_to_the_whole():
    """What processes compute, one after the other here."""
    model, x = tiny.model(classes=3), tiny.data()
    params = model.init(random.key(0))
    labels = Condition(label=torch.arange(8) % 3)
    seeds = model.seeds(random.key(1), 8)
    for variance in (False, True):
        grad_fn = training.gradients(model, variance=variance)
        whole = grad_fn(params, x, random.key(1), labels)
        pieces = [
            grad_fn(params, x[rows], seeds.rows(rows), Condition(label=labels.label[rows]))
            for rows in (slice(i, i + 2) for i in range(0, 8, 2))
        ]
        close(tree_map(lambda *leaves: sum(leaves) / 4, *pieces), whole, 1e-4)


def test_a_loss_that_is_not_finite_stops_with_its_parts():
    def broken(params, x, key, cond):
        grads, (loss, stats) = training.gradients(tiny.model())(params, x, key, cond)
        return grads, (loss * math.nan, stats | {"diffusion": stats["diffusion"] * math.inf})

    state = tiny.state()._replace(step=41)
    with pytest.raises(training.NonFiniteLossError, match=r"step 41: loss, diffusion not finite \(loss nan, recon"):
        training.train_step(tiny.SETTINGS, broken, state, tiny.data(), random.key(3))


def test_training_lowers_the_loss():
    settings, model, state = tiny.SETTINGS._replace(steps=60), tiny.model(), tiny.state()
    grad_fn, x = training.gradients(model), torch.zeros(64, 2, dtype=torch.int64)
    losses = []
    for _ in range(60):
        state, metrics = training.train_step(settings, grad_fn, state, x, random.key(3))
        losses.append(metrics["loss"])
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert state.step == 60


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        (dict(settings=tiny.SETTINGS._replace(lr=-1.0)), ValueError, "lr: expected"),
        (dict(settings=torch.optim.AdamW), TypeError, "settings: expected a purevdm.training.AdamW, got"),
        (
            dict(grad_fn=torch.func.grad_and_value(tiny.model().loss_fn)),
            TypeError,
            r"grad_fn: expected one that returns \(grads, ",
        ),
        (dict(state=tiny.state()._replace(step=-1)), ValueError, "state.step: expected"),
        (dict(state=tiny.state()._replace(ema_params={})), ValueError, "state.ema_params: expected"),
        (dict(state=tiny.state()._replace(moments=OTHER.moments)), ValueError, "state.moments.mu: expected"),
    ],
)
def test_what_a_step_cannot_take_is_named(changes, error, word):
    given = dict(settings=tiny.SETTINGS, grad_fn=training.gradients(tiny.model()), state=tiny.state()) | changes
    with pytest.raises(error, match=f"^{word}"):
        training.train_step(x=tiny.data(), key=random.key(3), **given)


MASK = torch.arange(2) < torch.tensor([1, 2] * 4)[:, None]


@pytest.mark.parametrize(
    ("options", "mask"),
    [
        ({}, MASK),
        (dict(accumulate=4), MASK),
        (dict(accumulate=4, frozen=["schedule.b"]), MASK[:1]),
        (dict(remat=True), MASK),
        (dict(compile=True, backend="eager"), MASK[:1]),
    ],
)
def test_masks_reach_the_loss(options, mask):
    model, x, state, masks = tiny.model(), tiny.data(), tiny.state(), []
    grad_fn = training.gradients(model, **options)
    found = grad_fn(state.params, x, random.key(1), mask=mask)
    loss = partial(model.loss_and_stats, x=x, key=random.key(1), mask=mask)
    grads, want = torch.func.grad_and_value(loss, has_aux=True)(state.params)
    grads["schedule"]["b"] = None if "frozen" in options else grads["schedule"]["b"]
    close(found, (grads, want), 1e-4)

    def update(params, x, key, cond, mask):
        masks.append(mask)
        return params

    _, metrics = training.train_step(tiny.SETTINGS, grad_fn, state, x, random.key(3), mask=mask, update=update)
    want = model.loss_fn(state.params, x, random.fold_in(random.key(3), 0), mask=mask)
    assert math.isclose(metrics["loss"], want, rel_tol=1e-5)
    assert masks == [mask]
    if "compile" not in options:
        with pytest.raises(ValueError, match=r"^mask: expected a tensor that broadcasts"):
            grad_fn(state.params, x, random.key(1), mask=MASK[:4])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_seeds_and_conditions_of_another_batch_are_refused(accumulate):
    model, x = tiny.model(classes=3), tiny.data(4)
    params, grad_fn = model.init(random.key(0)), training.gradients(model, accumulate=accumulate)
    labels, seeds = Condition(label=torch.arange(4) % 3), model.seeds(random.key(1), 4)
    for key, cond, word in (
        (model.seeds(random.key(1), 8), labels, "key.t"),
        (seeds._replace(key=torch.cat([seeds.key, seeds.key])), labels, "key.key"),
        (seeds, Condition(label=torch.arange(8) % 3), "cond"),
    ):
        with pytest.raises(ValueError, match=f"^{word}: expected"):
            grad_fn(params, x, key, cond)
    for bad in (x[:0], x[0, 0]):
        with pytest.raises(ValueError, match=r"^x: expected"):
            grad_fn(params, bad, random.key(1), labels)
    with pytest.raises(ValueError, match="accumulate: expected a divisor of the batch of 4, got 3"):
        training.gradients(model, accumulate=3)(params, x, random.key(1), labels)


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        ("mu", math.nan, "params, ema_params"),
        ("nu", math.inf, "nu"),
        ("nu", -1.0, "params, ema_params"),
        ("ema", math.nan, "ema_params"),
    ],
)
@pytest.mark.parametrize("lr", [0.0, 1e-2])
def test_a_state_that_is_not_finite_is_refused(place, value, word, lr):
    state = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, tiny.state())
    tree = {"mu": state.moments.mu, "nu": state.moments.nu, "ema": state.ema_params}[place]
    tree["network"]["dense1"]["kernel"][0, 0] = value
    settings = tiny.SETTINGS._replace(warmup=0, lr=lr)
    with pytest.raises(training.NonFiniteLossError, match=rf"^step 0: {word} not finite \(loss"):
        training.train_step(settings, training.gradients(tiny.model()), state, tiny.data(), random.key(3))


def test_what_a_step_leaves_is_finite():
    settings = tiny.SETTINGS._replace(warmup=0, lr=3.4e38, b1=0.0, weight_decay=1.0)
    with pytest.raises(training.NonFiniteLossError, match=r"step 0: params, ema_params not finite \(loss"):
        training.train_step(settings, training.gradients(tiny.model()), tiny.state(), tiny.data(), random.key(3))


@pytest.mark.parametrize("remat", [False, True])
def test_parameters_that_require_gradients_leave_no_graph(remat):
    grad_fn, states = training.gradients(tiny.model(), remat=remat), []
    for asks in (False, True):
        state = tiny.state()
        state = state._replace(params=tree_map(lambda leaf, asks=asks: leaf.requires_grad_(asks), state.params))
        for i in range(3):
            state, _ = training.train_step(tiny.SETTINGS, grad_fn, state, tiny.data(seed=i), random.key(3))
        assert all(leaf.is_leaf and leaf.requires_grad == asks for leaf in tree_leaves(state.params))
        assert not any(leaf.requires_grad for leaf in tree_leaves((state.ema_params, state.moments)))
        states.append(state)
    assert same(*states)


class Partly(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.kept, self.out = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
        self.kept.requires_grad_(False)

    def forward(self, z, gamma):
        return self.out(torch.tanh(self.kept(torch.cat([z, gamma[:, None] / 8.0], 1))))


def asking(state):
    """The state with parameters that require gradients, but for one layer's."""
    layer = state.params["network"]["dense1"]
    params = tree_map(lambda leaf: leaf.requires_grad_(all(leaf is not kept for kept in layer.values())), state.params)
    return state._replace(params=params)


MLP = networks.mlp(8, fourier=(0,), gamma_min=-5.0, gamma_max=3.0)
FROZEN = {
    "a module's": (networks.from_module(Partly), {}, "network.params.kept", None),
    "by path": (networks.mlp(8, fourier=(0,)), dict(frozen=["network.dense1", "schedule.w"]), "network.dense1", None),
    "in pieces": (networks.mlp(8, fourier=(0,)), dict(frozen=("network.dense1",), accumulate=2), "network.dense1", None),
    "a network's": (networks.Network.of(MLP.init, MLP.apply, frozen=("dense1",)), dict(remat=True), "network.dense1", None),
    "by flags": (networks.mlp(8, fourier=(0,)), {}, "network.dense1", asking),
    "compiled": (networks.from_module(Partly), dict(compile=True, backend="eager"), "network.params.kept", None),
}


@pytest.mark.parametrize("way", FROZEN)
def test_frozen_parameters_stay_and_all_others_move(way):
    network, options, path, change = FROZEN[way]
    model = purevdm.vdm(network, schedules.learned_linear(-5.0, 3.0), (2,), 16)
    start = training.init(model, random.key(0))
    state, grad_fn = start if change is None else change(start), training.gradients(model, **options)
    for i in range(3):
        settings = tiny.SETTINGS._replace(warmup=0)
        state, metrics = training.train_step(settings, grad_fn, state, tiny.data(seed=i), random.key(3))
        assert metrics["grad_norm"] > 0
    before, after = purevdm._checks.leaves(start.params), purevdm._checks.leaves(state.params)
    paths = [path, *options.get("frozen", ())]
    for name, leaf in after.items():
        stays = any(f"{purevdm._trees.dotted(*name)}.".startswith(f"{p}.") for p in paths)
        assert torch.equal(leaf, before[name]) == stays, name


def test_frozen_paths_are_held_against_the_parameters():
    with pytest.raises(ValueError, match=r"^frozen: expected paths of parameters, such as '.*', got 'dense1'"):
        training.gradients(tiny.model(), frozen=["dense1"])(tiny.state().params, tiny.data(), random.key(0))
    with pytest.raises(TypeError, match=r"^frozen: expected a sequence of paths"):
        training.gradients(tiny.model(), frozen="network.dense1")


def test_a_frozen_layer_stays_in_loops_of_ones_own():
    model = purevdm.vdm(networks.from_module(Partly), schedules.learned_linear(-5.0, 3.0), (2,), 16)
    owner = purevdm.module.Module(model.loss_fn, model.init(random.key(0)))
    owner(tiny.data(), random.key(1)).backward()
    assert all((p.grad is None) == ("kept" in name) for name, p in owner.named_parameters())
