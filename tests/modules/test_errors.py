"""What modules do and cannot do here is told in our own words, with the module's name and the remedy."""

from functools import partial

import kinds
import optree
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


class Reads(kinds.Base):
    def body(self, h):
        return h * h.sum().item()


class Unmapped(kinds.Base):
    def body(self, h):
        return h * torch.ones(len(h.unique()), requires_grad=False).mean()


class Outside(kinds.Base):
    def body(self, h):
        return kinds.checkpoint(lambda h: F.dropout(h.tanh(), 0.5, self.training), h, use_reentrant=False)


class Unkept(kinds.Base):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Dropout(0.5), nn.Tanh())

    def body(self, h):
        return kinds.checkpoint(self.block, h, use_reentrant=False, preserve_rng_state=False)


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
        (kinds.Checkpointed, by_func, "Checkpointed checkpoints its activations", "remat=True"),
        (partial(kinds.Checkpointed, True), by_example, "Checkpointed runs an autograd.Function without", "remat=True"),
        (kinds.BatchNorm, by_example, "BatchNorm normalises over the batch", "train=False"),
        (Draws, by_func, "Draws calls randn_like", "draw by key alone"),
        (DrawsUnseen, from_outside, "DrawsUnseen drew from torch's global generator", "draw by key alone"),
        (Writes, evaluated, "Writes writes in place to a parameter", ""),
        (Draws, evaluated, "Draws calls randn_like", "draw by key alone"),
        (Always, evaluated, "Always calls dropout with training=True", "training=self.training"),
        (Keeps, evaluated, "Keeps writes in place to", "register it as a buffer"),
        (Keeps, by_func, "Keeps writes in place to", "register it as a buffer"),
        (Reads, by_example, "Reads reads a tensor's value", "torch.where"),
        (Unmapped, by_example, "Unmapped calls an operation that torch.func.vmap does not know", "whole batches"),
        (Outside, from_outside, "Outside calls a dropout function in a checkpointed function", "use nn.Dropout"),
        (Unkept, from_outside, "Unkept draws in a checkpoint with preserve_rng_state=False", "leave that out"),
    ],
)
def test_what_cannot_work_is_told_in_our_words(module, use, problem, remedy):
    with pytest.raises(RuntimeError, match=rf"network: {problem}.*{remedy}"):
        use(*made(module))
    assert torch._C._autograd._saved_tensors_hooks_is_enabled()  # nothing is left switched off


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


def test_a_batch_norm_wants_a_batch():
    model = purevdm.vdm(networks.from_module(partial(WithGamma, nn.BatchNorm1d(2))), schedules.fixed_linear(), (2,))
    with pytest.raises(RuntimeError, match="A batch norm needs a batch of at least 2 in training"):
        model.loss_fn(model.init(KEY), torch.zeros(1, 2, dtype=torch.int64), KEY)


@pytest.mark.parametrize(("norm", "kind"), [(nn.GroupNorm(2, 2), "A group norm needs"), (nn.InstanceNorm1d(2), "instance")])
def test_norms_of_one_value_are_told_so(norm, kind):
    layers = nn.Sequential(nn.Unflatten(1, (2, 1)), norm, nn.Flatten())
    model, params, x = made(partial(WithGamma, layers))
    with pytest.raises(RuntimeError, match=rf"WithGamma normalises over a single value\. .*{kind}"):
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
    network = networks.Network.of(lambda key, shape: {}, lambda params, z, gamma, cond=None, key=None: Answer(z))
    with pytest.raises(RuntimeError, match="returns something else than a tensor"):
        purevdm.vdm(network, schedules.fixed_linear(), (2,)).loss_fn({"network": {}, "schedule": {}}, x, KEY)


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


def test_gradients_of_likelihoods_of_gated_linear_units():
    """torch's own tangent of one has no derivative; against differences."""
    model, params, _ = made(lambda: WithGamma(nn.Sequential(nn.Linear(2, 4), nn.GLU())))
    params = optree.tree_map(torch.Tensor.double, params)
    z = random.normal(KEY, (2, 2)).double()
    model = model._replace(dtype=torch.float64)

    def log_p(bias):
        layer = params["network"]["params"]["inner"]["0"] | {"bias": bias}
        tree = params | {"network": {"params": {"inner": {"0": layer}}}}
        return likelihood.log_prob_latent(model, tree, z, probe_noise="exact", integrator=ode.rk4(2)).log_prob.sum()

    bias = params["network"]["params"]["inner"]["0"]["bias"]
    step = 1e-5 * torch.eye(4, dtype=torch.float64)
    wanted = torch.stack([(log_p(bias + d) - log_p(bias - d)) / 2e-5 for d in step])
    torch.testing.assert_close(torch.func.grad(log_p)(bias), wanted, rtol=1e-4, atol=1e-6)
