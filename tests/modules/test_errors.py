"""What modules do and cannot do here is told in our own words, with the module's name and the remedy."""

from functools import partial

import kinds
import pytest
import torch
import torch.nn.functional as F
from kinds import KEY, made
from torch import nn

import purevdm
from purevdm import likelihood, networks, ode, random, schedules, training


class Draws(kinds.Base):
    def body(self, h):
        return h + torch.randn_like(h)


class DrawsUnseen(kinds.Base):
    def body(self, h):
        with torch._C.DisableTorchFunction():
            return h + torch.randn(8)


class Writes(kinds.Base):
    def body(self, h):
        with torch.no_grad():
            self.out.weight.clamp_(-1.0, 1.0)
        return h


class Always(kinds.Base):
    def body(self, h):
        return F.dropout(h, 0.5)


class Keeps(kinds.Base):
    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(8)

    def body(self, h):
        self.mean.add_(h.mean(0).detach())
        return h - self.mean


def by_func(model, params, x):
    return torch.func.grad(model.loss_fn)(params, x, KEY)


def by_example(model, params, x):
    def one(params, x, noise):
        return model.nll_bound_of_one(params, x, noise).total

    return torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))(params, x, model.draw(KEY, x.shape[0]))


def from_outside(model, params, x):
    return training.gradients(model, remat=True)(params, x, KEY)


def evaluated(model, params, x):
    return model.nll_bound(params, x, KEY)


@pytest.mark.parametrize(
    ("module", "use", "problem", "remedy"),
    [
        (partial(kinds.Everything, False), by_func, "Everything checkpoints its activations", "compile=True, remat=True"),
        (partial(kinds.Everything, False), from_outside, "Everything checkpoints its activations", "compile=True"),
        (partial(kinds.Everything, True), by_func, "Everything runs an autograd.Function without", "remat=True"),
        (kinds.BatchNorm, by_example, "BatchNorm normalises over a single value", "train=False"),
        (kinds.Recurrent, by_example, "Recurrent runs a recurrent layer that torch.func.vmap does not", "batches"),
        (Draws, by_func, "Draws calls randn_like", "draw only by key"),
        (Draws, evaluated, "Draws calls randn_like", "draw only by key"),
        (DrawsUnseen, from_outside, "DrawsUnseen drew from torch's global generator", "draw only by key"),
        (Writes, evaluated, "Writes writes in place to a parameter", ""),
        (Always, evaluated, "Always calls dropout with training=True", "training=self.training"),
        (Keeps, evaluated, "Keeps writes in place to", "register it as a buffer"),
        (Keeps, by_func, "Keeps writes in place to", "register it as a buffer"),
    ],
)
def test_what_cannot_work_is_told_in_our_words(module, use, problem, remedy):
    generator = torch.get_rng_state()
    with pytest.raises(RuntimeError, match=rf"network: {problem}.*{remedy}"):
        use(*made(module))
    assert torch._C._autograd._saved_tensors_hooks_is_enabled()  # nothing is left switched off
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_modules_own_errors_pass():
    class Broken(kinds.Base):
        def body(self, h):
            raise RuntimeError("a bug of its own")

    model, params, x = made(Broken)
    with pytest.raises(RuntimeError, match=r"^a bug of its own$"):
        model.loss_fn(params, x, KEY)


class WithGamma(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, z, gamma):
        return self.inner(z)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(2), nn.GroupNorm(2, 2), nn.InstanceNorm1d(2)])
def test_norms_of_one_value_are_told_so(norm):
    layers = norm if isinstance(norm, nn.BatchNorm1d) else nn.Sequential(nn.Unflatten(1, (2, 1)), norm, nn.Flatten())
    model, params, x = made(partial(WithGamma, layers))
    with pytest.raises(RuntimeError, match=r"WithGamma normalises over a single value\. A batch norm needs .* at least 2"):
        model.loss_fn(params, x[:1], KEY)


class Answer:
    def __init__(self, sample):
        self.sample = sample


class Answering(WithGamma):
    def forward(self, z, gamma):
        return Answer(super().forward(z, gamma))


def test_a_module_that_returns_an_object_is_told_of_call():
    model, params, x = made(partial(Answering, nn.Linear(2, 2)))
    for use in (lambda: model.loss_fn(params, x, KEY), lambda: model.sample(params, KEY, 2, steps=2)):
        with pytest.raises(TypeError, match=r"network: expected a tensor of Answering, got .*call=lambda"):
            use()
    model, params, x = made(partial(Answering, nn.Linear(2, 2)), call=lambda module, z, gamma, cond: module(z, gamma).sample)
    assert model.loss_fn(params, x, KEY).isfinite()


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(self, z, gamma):
        return self.attention(z, z, z, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 2, num_layers=2, batch_first=True)

    def forward(self, z, gamma):
        return self.lstm(z)[0]


def test_likelihoods_of_attention_and_recurrent_layers_by_probes_and_exactly():
    z = random.normal(KEY, (2, 3, 2))
    probes = random.rademacher(KEY, (1, 2, 3, 2), z.dtype)

    def log_p(module, probes):
        model = purevdm.vdm(networks.from_module(module), schedules.fixed_linear(-4.0, 4.0), (3, 2))
        options = dict(integrator=ode.rk4(4), probe_noise=probes)
        return likelihood.log_prob_latent(model, model.init(KEY), z, **options).log_prob

    eye = torch.eye(6).reshape(6, 1, 3, 2).expand(6, 2, 3, 2) * 6**0.5  # probes whose mean is the exact divergence
    for kind in (Attending, Recurrent):
        assert log_p(kind, probes).isfinite().all()
        torch.testing.assert_close(log_p(kind, eye), log_p(kind, "exact"), rtol=1e-4, atol=1e-4)
