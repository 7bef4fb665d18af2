"""Bayesian flows: updates from the prior make them; permutations of classes; what networks see and predict."""

import math

import hypothesis.strategies as st
import pytest
import textbook
import torch
from hypothesis import given

from purevdm import decoders, random
from purevdm.bfn import flows, outputs

F64 = torch.float64
SIGMA_1, BETA_1, STEPS = 0.1, 3.0, 4
TIMES = torch.arange(STEPS + 1, dtype=F64) / 8
NORMAL, CLASSES = flows.Normal(SIGMA_1), flows.Categorical(4, BETA_1)


def messages(accuracies, shape):
    """The noise of each message, and that of the latent of their sum at the last time."""
    eps = random.normal(random.key(0), (STEPS, *shape), F64)
    return eps, torch.einsum("i,i...->...", accuracies.sqrt(), eps) / accuracies.sum().sqrt()


def test_updates_from_the_prior_make_the_flow():
    x = random.normal(random.key(1), (50,), F64)
    mean, rho = torch.zeros(50, dtype=F64), torch.ones((), dtype=F64)
    alphas = NORMAL.gain(TIMES[:-1], TIMES[1:])
    noise, whole = messages(alphas, (50,))
    for alpha, eps in zip(alphas, noise, strict=True):
        mean, rho = textbook.normal_update(mean, rho, textbook.normal_sender(x, alpha, eps), alpha)
    t = TIMES[-1]
    torch.testing.assert_close(rho, SIGMA_1 ** (-2 * t))
    torch.testing.assert_close(mean, NORMAL.parameters(flows.latent(x, NORMAL.snr(t), whole), t))


def test_updates_of_classes_from_the_prior_make_the_flow():
    x = random.randint(random.key(1), (50,), 0, 4).long()
    theta = torch.full((50, 4), 1 / 4, dtype=F64)
    alphas = CLASSES.gain(TIMES[:-1], TIMES[1:]) / 4
    torch.testing.assert_close(alphas.sum(), BETA_1 * TIMES[-1].square())
    noise, whole = messages(alphas, (50, 4))
    for alpha, eps in zip(alphas, noise, strict=True):
        theta = textbook.classes_update(theta, textbook.classes_sender(x, alpha, eps))
    h = outputs.Classes(decoders.discrete(4)).encode(x, F64)
    torch.testing.assert_close(theta, CLASSES.parameters(flows.latent(h, CLASSES.snr(TIMES[-1]), whole), TIMES[-1]))


@given(st.integers(3, 6), st.integers(0, 2**31))
def test_relabelling_the_classes_relabels_all(classes, seed):
    keys = random.split(random.key(seed), 5).unbind(0)
    order, x = random.permutation(keys[0], classes), random.randint(keys[1], (3,), 0, classes).long()
    eps, logits, sender = (random.normal(k, (3, classes), F64) for k in keys[2:])
    flow, output = flows.Categorical(classes, 2.0), outputs.Classes(decoders.discrete(classes))
    t, gain = torch.tensor(0.6, dtype=F64), torch.tensor(0.3, dtype=F64)

    def all_of(x, eps, logits, sender):
        h, out = output.encode(x, F64), (torch.log_softmax(logits, -1),)
        losses = [output.step_loss(out, x, h, gain, sender[None]), output.reconstruction(out, x)]
        theta = flow.parameters(flows.latent(h, flow.snr(t), eps), t)
        return theta, torch.stack([*losses, outputs.squared_loss(h, output.mean(out), gain).sum(-1)])

    theta, losses = all_of(x, eps, logits, sender)
    theirs, same = all_of(order.argsort()[x], *(numbers[:, order] for numbers in (eps, logits, sender)))
    torch.testing.assert_close(theirs, theta[:, order])
    torch.testing.assert_close(same, losses)


@pytest.mark.parametrize("flow", [flows.Normal(0.03), flows.Categorical(5, 2.5)])
def test_clocks_agree(flow):
    t = torch.linspace(0.05, 1.0, 7, dtype=F64)
    torch.testing.assert_close(flow.slope(t), torch.func.vmap(torch.func.grad(flow.snr))(t))
    torch.testing.assert_close(flow.gain(t[:-1], t[1:]), flow.snr(t).diff())
    assert flow.snr(torch.zeros(())) == 0
    # a step of a millionth keeps its digits in float32
    s = torch.tensor(0.5)
    torch.testing.assert_close(flow.gain(s, s + 2.0**-20).double() * 2**20, flow.slope(s.double()), rtol=1e-5, atol=0)


def test_what_networks_see():
    theta = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    assert flows.Categorical(3, 1.0, classes_last=True).shown(theta).equal(2 * theta - 1)
    flow, channels = flows.Categorical(3, 1.0), theta[:, None].expand(2, 4, 3)
    seen = flow.shown(channels)
    assert seen.shape == flow.network_shape((2, 4)) == (6, 4)
    assert seen[:3, 0].equal(2 * theta[0] - 1)  # the first channel's classes
    assert flow.logits(seen).equal(2 * channels - 1)
    two = flows.Categorical(2, 1.0)
    assert two.shown(theta[:, :2]).equal(2 * theta[:, 0] - 1)
    assert two.network_shape((7,)) == (7,)
    logits = torch.tensor([0.0, 3.0])
    torch.testing.assert_close(two.logits(logits).softmax(-1)[:, 1], torch.sigmoid(logits))


@pytest.mark.parametrize("predicts", ["eps", "x", "v"])
def test_every_prediction_of_the_same_data_is_the_same(predicts):
    x, eps = random.normal(random.key(0), (2, 9), F64)
    for time in (0.01, 0.4, 1.0):
        t, g = torch.tensor(time, dtype=F64), 1 - SIGMA_1 ** (2 * time)
        w = flows.latent(x, NORMAL.snr(t), eps)
        raw = {"eps": eps, "x": x, "v": math.sqrt(g) * eps - math.sqrt(1 - g) * x}[predicts]
        offset, factor = NORMAL.predicted(w, t, predicts)
        torch.testing.assert_close(offset + factor * raw, x)
    start = torch.zeros((), dtype=F64)
    grad = torch.func.grad(lambda w: NORMAL.predicted(w, start, predicts)[0].sum())(w)
    assert all(part.isfinite().all() for part in (grad, *NORMAL.predicted(w, start, predicts)))
