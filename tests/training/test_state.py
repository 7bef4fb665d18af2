"""The step: pure, the same in pieces as in one, stopping where the loss is not finite."""

import math

import pytest
import tiny
import torch
from compare import close, moved_alike
from optree import tree_leaves, tree_map

from purevdm import random, training
from purevdm.networks import Condition


def steps(n, **options):
    model, state = tiny.model(), tiny.state()
    grad_fn = training.gradients(model, **options)
    for i in range(n):
        state, metrics = training.train_step(tiny.SETTINGS, grad_fn, state, tiny.data(seed=i), random.key(3))
    return state, metrics


def test_a_step_leaves_its_state_and_repeats_bit_for_bit():
    state = tiny.state()
    before = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, state)
    grad_fn = training.gradients(tiny.model())
    settings = tiny.SETTINGS._replace(warmup=0)
    runs = [training.train_step(settings, grad_fn, state, tiny.data(), random.key(3)) for _ in range(2)]
    for a, b in zip(tree_leaves(runs[0][0]), tree_leaves(runs[1][0]), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    for a, b in zip(tree_leaves(state), tree_leaves(before), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
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


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_pieces_are_the_whole(accumulate):
    pieces, whole, start = (s.params for s in (steps(3, accumulate=accumulate)[0], steps(3)[0], tiny.state()))
    moved_alike(pieces, whole, start)


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


def test_bad_pieces_are_named():
    with pytest.raises(ValueError, match="accumulate: expected a divisor of the batch of 8"):
        steps(1, accumulate=3)
    with pytest.raises(ValueError, match="accumulate"):
        steps(1, accumulate=0)


def test_training_lowers_the_loss():
    settings, model, state = tiny.SETTINGS._replace(steps=60), tiny.model(), tiny.state()
    grad_fn, x = training.gradients(model), torch.zeros(64, 2, dtype=torch.int64)
    losses = []
    for _ in range(60):
        state, metrics = training.train_step(settings, grad_fn, state, x, random.key(3))
        losses.append(metrics["loss"])
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert state.step == 60


def test_bad_settings_are_refused_by_the_step():
    with pytest.raises(ValueError, match="lr: expected"):
        training.train_step(
            tiny.SETTINGS._replace(lr=-1.0), training.gradients(tiny.model()), tiny.state(), tiny.data(), random.key(3)
        )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (dict(settings=torch.optim.AdamW), "settings: expected a purevdm.training.AdamW, got"),
        (dict(state={"network": {}}), "state: expected a purevdm.training.TrainState, got"),
        (dict(grad_fn=None), "grad_fn: expected a function, got None"),
        (dict(grad_fn=torch.func.grad_and_value(tiny.model().loss_fn)), r"grad_fn: expected one that returns \(grads, "),
        (dict(update=True), "update: expected a function, got True"),
    ],
)
def test_other_kinds_are_refused_by_the_step(changes, word):
    given = dict(settings=tiny.SETTINGS, grad_fn=training.gradients(tiny.model()), state=tiny.state()) | changes
    with pytest.raises(TypeError, match=word):
        training.train_step(x=tiny.data(), key=random.key(3), **given)


def test_a_state_of_other_parameters_is_refused():
    state, grad_fn = tiny.state(), training.gradients(tiny.model())
    other = training.init(tiny.model(classes=3), random.key(0))
    for change, word in (
        (dict(ema_params=other.params), "state.ema_params"),
        (dict(moments=state.moments._replace(mu={})), "state.moments.mu"),
        (dict(moments=other.moments), "state.moments.mu"),
        (dict(step=-1), "state.step"),
        (dict(step=10**400), "state.step"),
    ):
        with pytest.raises(ValueError, match=f"^{word}: expected"):
            training.train_step(tiny.SETTINGS, grad_fn, state._replace(**change), tiny.data(), random.key(0))
