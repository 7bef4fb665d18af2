"""Senders, Bayesian updates and flows: updates from the prior make the flow; the simplex; permutations of classes."""

import math

import hypothesis.strategies as st
import pytest
import textbook
import torch
from hypothesis import given

from purevdm import random
from purevdm.bfn import categorical, flows, normal, outputs, process
from purevdm.testing.sources import mean_and_error

F64 = torch.float64
SIGMA_1, BETA_1, STEPS, DRAWS = 0.1, 3.0, 8, 20_000
TIMES = torch.arange(STEPS + 1, dtype=F64) / STEPS


def test_updates_from_the_prior_have_the_flow_distribution():
    x = 0.6
    mean, rho = torch.zeros(DRAWS, dtype=F64), torch.ones((), dtype=F64)
    noise, alphas = [], []
    for i in range(STEPS // 2):
        eps, alpha = random.normal(random.key(i), (DRAWS,), F64), normal.accuracy(TIMES[i], TIMES[i + 1], SIGMA_1)
        mean, rho = textbook.normal_update(mean, rho, textbook.normal_sender(torch.full_like(mean, x), alpha, eps), alpha)
        noise.append(eps)
        alphas.append(alpha)
    t = TIMES[STEPS // 2]
    torch.testing.assert_close(rho, normal.precision(t, SIGMA_1))
    # moments, and path by path: the flow of the noises' sum
    g = 1 - SIGMA_1 ** (2 * t.item())
    mean_of, error = mean_and_error(mean)
    assert abs(mean_of - g * x) < 4 * error
    assert abs(mean.var().item() / (g * (1 - g)) - 1) < 4 * math.sqrt(2 / DRAWS)
    eps = sum(a.sqrt() * e for a, e in zip(alphas, noise, strict=True)) / normal.beta(t, SIGMA_1).sqrt()
    torch.testing.assert_close(mean, textbook.normal_flow(torch.full_like(mean, x), t, eps, SIGMA_1), rtol=1e-12, atol=1e-12)


def test_updates_of_classes_from_the_prior_have_the_flow_distribution():
    classes, x = 4, torch.full((DRAWS,), 2)
    theta = torch.full((DRAWS, classes), 1 / classes, dtype=F64)
    noise, alphas = [], []
    for i in range(STEPS // 2):
        eps = random.normal(random.key(i), (DRAWS, classes), F64)
        alpha = categorical.accuracy(TIMES[i], TIMES[i + 1], BETA_1)
        theta = textbook.classes_update(theta, textbook.classes_sender(x, alpha, eps))
        noise.append(eps)
        alphas.append(alpha)
    t = TIMES[STEPS // 2]
    beta = categorical.beta(t, BETA_1)
    # log theta_2 - log theta_0 is normal with mean and variance of K beta and 2 K beta
    odds = theta[:, 2].log() - theta[:, 0].log()
    mean, error = mean_and_error(odds)
    assert abs(mean - classes * beta) < 4 * error
    assert abs(odds.var() / (2 * classes * beta) - 1) < 4 * math.sqrt(2 / DRAWS)
    eps = sum(a.sqrt() * e for a, e in zip(alphas, noise, strict=True)) / beta.sqrt()
    torch.testing.assert_close(theta, textbook.classes_flow(x, t, eps, BETA_1), rtol=1e-11, atol=1e-14)


@given(st.integers(2, 6), st.integers(0, 2**31), st.floats(0.0, 1.0), st.floats(0.1, 1e4))
def test_input_distributions_stay_on_the_simplex(classes, seed, t, beta_1):
    k_x, k_eps = random.split(random.key(seed))
    x, eps = random.randint(k_x, (3,), 0, classes), random.normal(k_eps, (3, classes))
    theta = textbook.classes_flow(x, torch.tensor(t), eps, beta_1)
    updated = textbook.classes_update(theta.clamp(min=1e-30), textbook.classes_sender(x, torch.tensor(beta_1), eps))
    for p in (theta, updated):
        assert (p >= 0).all()
        torch.testing.assert_close(p.sum(-1), torch.ones(3))


@given(st.integers(3, 6), st.integers(0, 2**31))
def test_relabelling_the_classes_relabels_all(classes, seed):
    keys = random.split(random.key(seed), 5).unbind(0)
    order = random.permutation(keys[0], classes)
    x = random.randint(keys[1], (3,), 0, classes).long()
    back = order.argsort()
    eps, logits, sender = (random.normal(k, (3, classes), F64) for k in keys[2:])
    t, gain, beta_1 = torch.tensor(0.6, dtype=F64), torch.tensor(0.3, dtype=F64), 2.0
    theta = textbook.classes_flow(x, t, eps, beta_1)
    torch.testing.assert_close(textbook.classes_flow(back[x], t, eps[:, order], beta_1), theta[:, order])
    assert_same_loss(classes, (x, logits, sender), (back[x], logits[:, order], sender[:, order]), gain)


def assert_same_loss(classes, one, other, gain):
    from purevdm import decoders

    output = outputs.Classes(decoders.discrete(classes))
    found = []
    for x, logits, sender in (one, other):
        out, h = (torch.log_softmax(logits, -1),), output.encode(x, F64)
        parts = [output.step_loss(out, x, h, gain, sender[None]), output.reconstruction(out, x)]
        found.append(torch.stack([part.sum() for part in (*parts, process.continuous_loss(h, output.mean(out), gain))]))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("flow", [flows.Normal(0.03), flows.Categorical(5, 2.5)])
def test_clocks_agree(flow):
    t = torch.linspace(0.05, 1.0, 7, dtype=F64)
    slope = torch.func.vmap(torch.func.grad(flow.snr))(t)
    torch.testing.assert_close(flow.slope(t), slope)
    torch.testing.assert_close(flow.gain(t[:-1], t[1:]), flow.snr(t).diff())
    assert flow.snr(torch.zeros(())) == 0
    # a step of a millionth keeps its digits in float32
    s = torch.tensor(0.5)
    gain = flow.gain(s, s + 2.0**-20)
    torch.testing.assert_close(gain.double() * 2**20, flow.slope(s.double()), rtol=1e-5, atol=0)


def test_what_networks_see():
    theta = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    assert flows.Categorical(3, 1.0, classes_last=True).shown(theta).equal(2 * theta - 1)
    seen = flows.Categorical(3, 1.0).shown(theta[:, None].expand(2, 4, 3))
    assert seen.shape == flows.Categorical(3, 1.0).network_shape((2, 4)) == (6, 4)
    assert seen[:3, 0].equal(2 * theta[0] - 1)  # the first channel's classes
    flow = flows.Categorical(3, 1.0)
    assert flow.logits(flow.shown(theta[:, None].expand(2, 4, 3))).equal(2 * theta[:, None].expand(2, 4, 3) - 1)
    assert flows.Categorical(2, 1.0).shown(theta[:, :2]).equal(2 * theta[:, 0] - 1)
    assert flows.Categorical(2, 1.0).network_shape((7,)) == (7,)
    logits = flows.Categorical(2, 1.0).logits(torch.tensor([0.0, 3.0]))
    torch.testing.assert_close(logits.softmax(-1)[:, 1], torch.sigmoid(torch.tensor([0.0, 3.0])))


@pytest.mark.parametrize("predicts", ["eps", "x", "v"])
def test_every_prediction_of_the_same_data_is_the_same(predicts):
    x, eps = random.normal(random.key(0), (2, 9), F64)
    for time in (0.01, 0.4, 1.0):
        t = torch.tensor(time, dtype=F64)
        w = process.latent(x, normal.beta(t, SIGMA_1), eps)
        g = 1 - SIGMA_1 ** (2 * time)
        raw = {"eps": eps, "x": x, "v": math.sqrt(g) * eps - math.sqrt(1 - g) * x}[predicts]
        offset, factor = normal.predicted(w, t, SIGMA_1, predicts)
        torch.testing.assert_close(offset + factor * raw, x)
    offset, factor = normal.predicted(w, torch.zeros((), dtype=F64), SIGMA_1, predicts)
    assert offset.isfinite().all()
    assert factor.isfinite().all()
    grad = torch.func.grad(lambda w: normal.predicted(w, torch.zeros((), dtype=F64), SIGMA_1, predicts)[0].sum())(w)
    assert grad.isfinite().all()
