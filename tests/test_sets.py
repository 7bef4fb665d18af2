"""Sets of varying size: the numbers of a public project, and masks in everything that takes them."""

import functools
import math
from dataclasses import dataclass

import goldens
import optree
import pytest
import torch
from compare import close
from perturb import perturbed
from weights import log_weight

import purevdm
from purevdm import (
    Noise,
    bfn,
    bound,
    codec,
    decoders,
    evaluation,
    likelihood,
    networks,
    ode,
    random,
    sampling,
    schedules,
    sizes,
    solvers,
    testing,
    training,
)
from purevdm.noise import discretise

F64 = torch.float64
KEY = random.key(0)


# The golden


@dataclass(frozen=True)
class Fixed(decoders.Decoder):
    """Real numbers, given a latent, with a fixed deviation."""

    std: float

    support, unit = "finite numbers", "nats"

    def check(self, x):
        return x.isfinite()

    def encode(self, params, x, cond=None, dtype=torch.float32):
        return x.to(dtype)

    def log_prob(self, params, x, z, gamma_0, cond=None, estimate=None):
        return -0.5 * ((x - z) / self.std).square() - math.log(self.std) - 0.5 * math.log(2 * math.pi)

    def mode(self, params, z, cond=None, estimate=None):
        return z


def by_a(a, params, z, gamma, cond=None, key=None, mask=None):
    """The closed form in place of a network."""
    here = torch.ones_like(z[:, :1]) if mask is None else mask[:, :1].to(z.dtype)
    mean, norm = (here * z).sum(0) / here.sum(), z.square().sum(-1, keepdim=True)
    parts = torch.sigmoid(gamma) * z, torch.tanh(z - gamma / 10.0), mean.expand_as(z), z / (1.0 + norm)
    return sum(a[i] * part for i, part in enumerate(parts))


def golden(name):
    """A case: its numbers, its model, parameters and noise."""
    a = goldens.point_cloud_case(name)
    ends, timesteps = (-a["settings/gamma_max"].item(), -a["settings/gamma_min"].item()), int(a["settings/timesteps"])
    make = {
        "linear": schedules.fixed_linear,
        "learned_linear": schedules.learned_linear,
        "learned_net": schedules.monotone_mlp,
    }
    schedule, params = make[name.rsplit("_", 1)[0] if "_t" in name else name](*ends), {}
    if "params/gamma/w" in a:  # b - |w| t, as log SNR
        params = {"b": -a["params/gamma/b"][0], "w": a["params/gamma/w"][0]}
    elif "params/gamma/l1/bias" in a:
        l1, l2, l3 = ({n: a.get(f"params/gamma/l{i}/{n}") for n in ("kernel", "bias")} for i in (1, 2, 3))
        params = {"l1": l1 | {"bias": -l1["bias"]}, "l2": l2 | {"bias": -l2["bias"]}, "l3": {"kernel": l3["kernel"]}}
    network = networks.Network.of(lambda key, shape: {}, functools.partial(by_a, a["net/a"]), masked=True)
    options = dict(decoder=Fixed(a["settings/noise_scale"].item()), timesteps=timesteps, dtype=F64)
    model = purevdm.vdm(network, schedule, (6, 3), **options)
    t = a["draw/t_raw"]
    t = (t + torch.arange(5, dtype=F64) / 5) % 1.0 if t.ndim == 0 else t
    noise = Noise(discretise(t, timesteps), a["draw/eps_0"], a["draw/eps"])
    return a, model, {"network": {}, "schedule": params}, noise


GOLDENS = ["linear", "linear_t0", "learned_linear_t0", "learned_net_t20"]


@pytest.mark.parametrize("name", GOLDENS)
def test_point_clouds(name):
    """The terms of each set, the project's loss by them, and its gradient in the schedule."""
    a, model, params, noise = golden(name)
    mask, n = a["mask"].bool()[..., None], a["mask"].sum(1)

    def loss(schedule, beta):
        terms = bound.bound(model, params | {"schedule": schedule}, a["x"], noise, mask=mask)
        return (((terms.diffusion + terms.prior) / beta + terms.recon) / n).mean(), terms

    losses, terms = zip(*(loss(params["schedule"], beta) for beta in (1.0, 0.5)), strict=True)
    for term, of in zip(terms[0], ("recon", "klz", "diff"), strict=True):
        want = (a[f"out/loss_{of}"] * mask).sum((1, 2))
        torch.testing.assert_close(term, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        torch.stack(losses), torch.stack([a["out/loss_beta1.0"], a["out/loss_beta0.5"]]), rtol=1e-9, atol=0
    )
    if params["schedule"]:
        grads = torch.func.grad(lambda schedule: loss(schedule, 1.0)[0])(params["schedule"])
        for path, grad in zip(optree.tree_paths(grads), optree.tree_leaves(grads), strict=True):
            want = a["grad_beta1.0/gamma/" + "/".join(path)]
            sign = -1.0 if path[-1] in ("b", "bias") else 1.0  # those that change their sign with gamma
            torch.testing.assert_close(grad.flatten(), sign * want.flatten(), rtol=1e-6, atol=1e-7 * want.abs().max().item())


@pytest.mark.parametrize("name", GOLDENS)
def test_ancestral_steps_of_point_clouds(name):
    a, model, params, _ = golden(name)
    mask, z_t = a["mask"].bool()[..., None], a["step/z"]
    denoise = model.denoiser(params, n=5, mask=mask)
    for i in (0, 4, 9):
        gamma_t, gamma_s = (model.gamma(params, torch.tensor((j - i) / 10, dtype=F64)) for j in (10, 9))
        eps_hat, _ = denoise(z_t, gamma_t.expand(5))
        z_s = solvers.ancestral_step(z_t, eps_hat, gamma_t, gamma_s, a[f"step/{i}/eps"])
        close(torch.where(mask, z_s, 0.0), torch.where(mask, a[f"step/{i}/z_s"], 0.0), 1e-9)


# Masks


NETWORK = networks.transformer(16, 1, heads=2, time_scale=1.0)  # smooth in gamma, so that integrators take few steps
N = torch.tensor([3, 1, 4])


def sets(points, decoder=None, **options):
    decoder = decoders.gaussian(loc=0.5, scale=2.0) if decoder is None else decoder
    return purevdm.vdm(NETWORK, schedules.fixed_linear(-6.0, 4.0), (points, 2), decoder=decoder, dtype=F64, **options)


def data(kind, points=5):
    """Three sets, whose padding is no data, and their mask."""
    x, mask = random.normal(random.key(1), (3, points, 2), F64), sizes.mask(N, (points, 2))
    if kind == "discrete":
        x = random.randint(random.key(1), (3, points, 2), 0, 16)
    return torch.where(mask, x, math.nan if kind == "real" else -9), mask


def parameters(model):
    return perturbed(model.init(KEY), 1, 0.2)


DECODERS = {"real": None, "discrete": decoders.discrete(16)}


@pytest.mark.parametrize("dequantisation", ["variational", "none", "truncated", "uniform"])
def test_the_flow_gives_a_padded_set_the_density_of_the_unpadded_one(dequantisation):
    """In every dequantisation, at the steps that it takes by itself; with the noise of what exists."""
    kind = "real" if dequantisation in ("variational", "none") else "discrete"
    wide = sets(5, DECODERS[kind])
    params, (x, mask) = parameters(wide), data(kind)
    eps = random.uniform(random.key(2), x.shape, F64, -0.5, 0.5)
    probes = random.rademacher(random.key(3), (2, *x.shape), F64)
    options = dict(dequantisation=dequantisation, integrator=ode.dopri5(1e-3, 1e-3))
    found = log_weight(wide, params, x, eps, mask=mask, probe_noise=probes, **options)
    exact = log_weight(wide, params, x, eps, mask=mask, probe_noise="exact", **options)
    for i, n in enumerate(N.tolist()):
        one, rows = sets(n, DECODERS[kind]), (slice(i, i + 1), slice(n))
        alone = log_weight(one, params, x[rows], eps[rows], probe_noise=probes[(slice(None), *rows)], **options)
        torch.testing.assert_close(found.log_prob[i : i + 1], alone.log_prob, rtol=1e-10, atol=1e-10)
        assert found.evaluations[i] == alone.evaluations[0]
        alone = log_weight(one, params, x[rows], eps[rows], probe_noise="exact", **options)
        torch.testing.assert_close(exact.log_prob[i : i + 1], alone.log_prob, rtol=1e-10, atol=1e-10)


def test_likelihoods_draw_what_exists_and_read_nothing_else():
    model = sets(5, DECODERS["discrete"], timesteps=6)
    params, (x, mask) = parameters(model), data("discrete")
    for method in (
        functools.partial(likelihood.log_prob, model, samples=2, integrator=ode.heun(3)),
        functools.partial(likelihood.importance_bound, model, samples=2),
    ):
        found = method(params, x, KEY, mask=mask)
        assert found.log_prob.isfinite().all()
        close(found, method(params, torch.where(mask, x, 3), KEY, mask=mask), 1e-14)
        each = evaluation.per_example(model, params, [(x, None, mask)], KEY, method=method)
        assert each.dims.tolist() == (2 * N).tolist()


def test_a_chain_of_a_padded_set_weighs_what_exists():
    """Under an ideal network of independent numbers: the bound of the mean weight is that of the numbers that exist."""
    std, steps = 0.7, 200

    def apply(params, z, gamma, cond=None, key=None):
        alpha, sigma = purevdm.process.alpha(gamma), purevdm.process.sigma(gamma)
        return sigma * z / (alpha**2 * std**2 + sigma**2)

    network = networks.Network.of(lambda key, shape: {}, apply)
    parts = dict(decoder=decoders.gaussian(), timesteps=steps, dtype=F64)
    model = purevdm.vdm(network, schedules.fixed_linear(-6.0, 6.0), (4, 2), **parts)
    params, mask = {"network": {}, "schedule": {}}, sizes.mask(torch.tensor([1, 3]), (4, 2))
    x = std * random.normal(KEY, (2, 4, 2), F64)
    found = likelihood.importance_bound(model, params, x, KEY, mask=mask, samples=400)
    wide = std**2 + math.exp(-6.0)
    want = torch.where(mask, -0.5 * x.square() / wide - 0.5 * math.log(2 * math.pi * wide), 0.0).sum((1, 2))
    assert ((found.log_prob - want).abs() < 5 * found.error + 0.1).all()


def test_the_flow_s_maps_and_inversions_leave_padding_at_zero():
    model = sets(5)
    params, (x, mask) = parameters(model), data("real")
    z = torch.where(mask, random.normal(random.key(2), x.shape, F64), 0.0)
    z_1 = likelihood.to_noise(model, params, z, mask=mask)
    assert not z_1[~mask.expand_as(z)].any()
    torch.testing.assert_close(likelihood.to_data(model, params, z_1, mask=mask), z, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"^z_0: expected latents .* 0 where nothing exists"):
        likelihood.to_noise(model, params, z + 1.0, mask=mask)
    inverted = sampling.invert(model, params, x, mask=mask)
    assert not inverted[~mask.expand_as(z)].any()
    back = model.sample(params, KEY, 3, z=inverted, mask=mask)
    torch.testing.assert_close(back, torch.where(mask, x, 0.0), rtol=1e-2, atol=1e-2)


FLOWS = {
    "continuous": lambda points, **options: bfn.continuous(NETWORK, (points, 2), 0.1, **options),
    "discretised": lambda points, **options: bfn.discretised(NETWORK._replace(outputs=2), (points, 2), 16, 0.1, **options),
    "binary": lambda points, **options: bfn.discrete(NETWORK, (points, 2), 2, 2.0, **options),
    "classes": lambda points, **options: bfn.discrete(NETWORK, (points,), 4, 2.0, classes_last=True, **options),
}


@pytest.mark.parametrize("timesteps", [0, 5])
@pytest.mark.parametrize("kind", FLOWS)
def test_bayesian_flows_take_masks(kind, timesteps):
    """With the noise of what exists, a padded set has the bound of the unpadded one; samples are 0 elsewhere."""
    wide = FLOWS[kind](5, timesteps=timesteps, dtype=F64)
    mask = sizes.mask(N, wide.event_shape)
    levels = {"discretised": 16, "binary": 2, "classes": 4}.get(kind)
    shape = (3, *wide.event_shape)
    x = random.normal(KEY, shape, F64) if levels is None else random.randint(KEY, shape, 0, levels)
    x = torch.where(mask, x, math.nan if levels is None else -9)
    params, noise = parameters(wide), wide.draw(random.key(2), 3, train=False)
    found = bfn.bound.bound(wide, params, x, noise, mask=mask)
    for i, n in enumerate(N.tolist()):
        cut = {"eps": noise.eps, "eps_1": noise.eps_1}
        cut = {name: part[i : i + 1, :n] for name, part in cut.items()}
        sender = None if noise.sender is None else noise.sender[i : i + 1, :, :n]
        one = noise._replace(t=noise.t[i : i + 1], sender=sender, **cut)
        alone = bfn.bound.bound(FLOWS[kind](n, timesteps=timesteps, dtype=F64), params, x[i : i + 1, :n], one)
        close(optree.tree_map(lambda term, i=i: term[i : i + 1], found), alone, 1e-11)
    terms = wide.terms(params, x, KEY, mask=mask)
    assert terms.diffusion.shape == x.shape
    assert not any(term[~mask.expand_as(x)].any() for term in terms)
    each = wide.nll_bound(params, x, KEY, mask=mask).total / mask.expand_as(x).reshape(3, -1).sum(1)
    torch.testing.assert_close(wide.loss_fn(params, x, KEY, mask=mask, train=False), each.mean() / math.log(2))
    drawn = wide.sample(params, KEY, 3, steps=3, mask=mask, trajectory=True)
    assert not drawn.x[~mask.expand_as(x)].any()
    assert evaluation.evaluate(wide, params, [(x, None, mask)], KEY).nll.mean > -math.inf


def test_networks_of_channels_of_classes_get_the_mask_of_their_channels():
    flow = bfn.flows.Categorical(3, 1.0)
    mask = torch.tensor([[[True, False]], [[True, True]]])
    assert flow.shown_mask(mask).shape == (2, 3, 2)
    shown = flow.shown(torch.where(mask[0, ..., None], 1.0, 0.0).expand(1, 2, 3))
    assert ((shown == 1.0) == flow.shown_mask(mask)[0]).all()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_takes_batches_with_masks(accumulate):
    model = sets(5)
    x, mask = (torch.cat([part, part]) for part in data("real"))
    params, seeds = parameters(model), model.seeds(KEY, 6)
    gradients = training.gradients(model, accumulate=accumulate)
    grads, (loss, _) = gradients(params, (x, None, mask), seeds)
    want, value = torch.func.grad_and_value(model.loss_fn)(params, x, seeds, mask=mask)
    close((grads, loss), (want, value), 1e-10)
    state = training.init(model, KEY)
    step = functools.partial(training.train_step, training.AdamW(), gradients, state, key=KEY, update=model.update)
    close(step(x, mask=mask)[0].params, step(torch.where(mask, x, 3.0), mask=mask)[0].params, 1e-14)
    for batch, error in (((), TypeError), ("x", TypeError), ((x, None, mask, None), TypeError)):
        with pytest.raises(error, match=r"^x: expected data or a batch \(x, cond, mask\)"):
            gradients(params, batch, seeds)
    with pytest.raises(ValueError, match=r"^cond: expected it in the batch"):
        gradients(params, (x, None, mask), seeds, torch.ones(6))


class Padded(torch.nn.Module):
    """A library's encoder, whose mask says what does not exist, and a norm over the batch."""

    def __init__(self, width=16):
        super().__init__()
        self.into, self.out = torch.nn.Linear(3, width), torch.nn.Linear(width, 2)
        self.body = torch.nn.TransformerEncoderLayer(width, 2, 32, dropout=0.1, batch_first=True)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, z, gamma, mask=None):
        there = torch.ones_like(z[..., 0], dtype=torch.bool) if mask is None else mask.expand_as(z)[..., 0]
        if self.training:
            self.seen.copy_(there.sum().float())
        h = self.into(torch.cat([z, (gamma / 10.0)[:, None, None].expand(*z.shape[:2], 1)], -1))
        return self.out(self.body(h, src_key_padding_mask=~there))


def test_any_module_takes_a_mask_by_keyword():
    network = networks.from_module(Padded, masked=True)
    testing.check_network(network, (5, 2), stochastic=True)
    testing.check_padding(network, (5, 2))
    testing.check_permutation(network, (5, 2))
    model = purevdm.vdm(network, schedules.learned_linear(-6.0, 4.0), (5, 2), decoder=decoders.gaussian())
    params, (x, mask) = model.init(KEY), data("real")
    x = x.float()
    assert model.loss_fn(params, x, KEY, mask=mask).isfinite()
    moved = model.update(params, x, KEY, mask=mask)["network"]["buffers"]["seen"]
    assert moved == N.sum()
    assert model.sample(params, KEY, 3, steps=3, mask=mask).isfinite().all()
    found = likelihood.log_prob(model, params, x, KEY, mask=mask, integrator=ode.heun(2))
    assert found.log_prob.isfinite().all()


def test_an_estimate_of_the_padding_moves_nothing():
    """A self-conditioned network, whose second pass is given an estimate of the data."""
    make = functools.partial(purevdm.vdm, NETWORK._replace(self_condition=True), schedules.fixed_linear(-6.0, 4.0))
    wide, narrow = (make((n, 2), decoder=decoders.gaussian(), dtype=F64) for n in (5, 4))
    params, (x, mask) = parameters(wide), data("real")
    noise = wide.draw(KEY, 3, train=False)
    cut = Noise(noise.t, noise.eps_0[:, :4], noise.eps[:, :4])
    found = bound.bound(wide, params, x, noise, mask=mask)
    close(found, bound.bound(narrow, params, x[:, :4], cut, mask=mask[:, :4]), 1e-12)


# What is refused


def test_files_hold_whole_events():
    model = sets(5, DECODERS["discrete"])._replace(dtype=torch.float32)
    x = random.randint(KEY, (3, 5, 2), 0, 16)
    with pytest.raises(TypeError, match=r"files hold whole events"):
        codec.write("unused", model, model.init(KEY), [(x, None, sizes.mask(N, (5, 2)))])


CALLS = {
    "log_prob": lambda model, params, x, mask: likelihood.log_prob(model, params, x, KEY, mask=mask),
    "importance": lambda model, params, x, mask: likelihood.importance_bound(model, params, x, KEY, mask=mask, timesteps=2),
    "to_noise": lambda model, params, x, mask: likelihood.to_noise(model, params, torch.zeros_like(x), mask=mask),
    "invert": lambda model, params, x, mask: sampling.invert(model, params, x, mask=mask),
    "sample": lambda model, params, x, mask: model.sample(params, KEY, 3, mask=mask),
    "denoiser": lambda model, params, x, mask: model.denoiser(params, n=3, mask=mask),
    "update": lambda model, params, x, mask: model.update(params, x, KEY, mask=mask),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_masks_of_another_form_are_refused(call):
    model = sets(5)
    params, x = model.init(KEY), torch.zeros(3, 5, 2, dtype=F64)
    for mask, error in (
        (torch.ones(3, 5, 1), TypeError),
        (torch.ones(3, 5, dtype=torch.bool), (TypeError, ValueError)),
        (torch.ones(3, 4, 1, dtype=torch.bool), ValueError),
        (sizes.mask(N, (5, 2)) & torch.tensor([True, False, True])[:, None, None], ValueError),
        ([True], TypeError),
    ):
        with pytest.raises(error, match=r"^mask: expected"):
            call(model, params, x, mask)


# The laws catch faults that people make


def faulty(kind):
    def apply(params, z, gamma, cond=None, key=None, mask=None):
        there = torch.ones_like(z[:, :1]) if mask is None else mask[:, :1].to(z.dtype)
        if kind == "a mean over the padding, too":
            return z.mean(0, keepdim=True).expand_as(z)
        if kind == "divided by the padded size":
            return (z * there).sum(0, keepdim=True).expand_as(z) / len(z)
        return (z * there).cumsum(0)

    return networks.Network.of(lambda key, shape: {}, apply, masked=True)


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        ("a mean over the padding, too", "outputs must not depend on what the padding holds"),
        ("divided by the padded size", "outputs must not depend on the amount of padding"),
        ("an order", "permuted elements must have permuted outputs"),
    ],
)
def test_laws_of_sets_are_broken(kind, law):
    check = testing.check_permutation if kind == "an order" else testing.check_padding
    with pytest.raises(testing.LawError, match=f"^{law}\n.*off by"):
        check(faulty(kind), (5, 2))
    if kind == "divided by the padded size":
        check(faulty(kind), (5, 2), any_size=False)
    with pytest.raises(ValueError, match="network: expected one that takes a mask"):
        testing.check_padding(networks.mlp(8), (5, 2))
    with pytest.raises(ValueError, match="event_shape: expected at least 3 elements"):
        check(faulty(kind), (2, 2))
